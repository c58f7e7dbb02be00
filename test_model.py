"""The tests: pytest, without internet, without a GPU. In the order of the promises: the network, the data, the
recipe, the machine, resuming, untrusted files, wrong input, the README.

With CIFAR10=DIR in the environment the last ones also run on the real data in DIR.
"""
import contextlib
import csv
import functools
import hashlib
import http.server
import importlib.util
import io
import json
import math
import multiprocessing
import os
import pickle
import random
import re
import resource
import shlex
import signal
import subprocess
import sys
import tarfile
import threading
import zipfile
import zlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import data
import model
import predict
import train
from model import ResNet

HERE = Path(__file__).resolve().parent
TINY = "--data fake --device cpu --blocks 1 1 1 --widths 2 4 4 --lr 1e-2 --batch-size 100".split()
TINY += "--train-size 1000 --val-size 500".split()
TINY += ["--amp", "off"] * ("ONEDNN_MAX_CPU_ISA" in os.environ)         # as on a CPU without bfloat16
FULL = "--train-size 1600 --batch-size 50 --widths 8 16 16 --whiten --ema 0.5 --cutmix 0.5 --warmup 1 --dropout 0.1".split()
needs_cifar10 = pytest.mark.skipif("CIFAR10" not in os.environ, reason="set CIFAR10=DIR to test on the real data")
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.fixture(scope="session", autouse=True)
def fast():
    """Networks this small gain nothing from a second thread; the fake data is made once, and never written to."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "fake_data", functools.cache(data.fake_data))
        yield
    torch.set_num_threads(threads)


@pytest.fixture
def few(monkeypatch):
    """Makes train.py see 1,200 training and 200 test images of the fake data, and learn them in a second."""
    sets = {train: tuple(part[:1200 if train else 200] for part in data.fake_data(train)) for train in (True, False)}
    monkeypatch.setattr(train, "load_data", lambda where, train: sets[train])
    return [*TINY, "--val-size", "200"]


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A finished run of a tiny network on fake data, with every part of the recipes switched on."""
    out = tmp_path_factory.mktemp("trained")
    train.main([*TINY, *FULL, "--epochs", "3", "--sizes", "24", "32", "32", "--refine", "0.3", "--out", str(out)])
    return out


def history(folder):
    """log.csv without the column that times the machine."""
    with open(folder / "log.csv", newline="") as file:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


def load(path):
    return torch.load(path, weights_only=True)


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# ---- the network -----------------------------------------------------------------------------------


@pytest.mark.parametrize("blocks, expected", [((4, 5, 3), 4_992_586), ((2, 2, 2), 2_777_674)])
def test_parameters_are_those_of_the_paper_and_of_written_arithmetic(blocks, expected):
    conv = lambda i, o, k: i * o * k * k + 2 * o        # noqa: E731  a convolution and its batch norm
    a, b, c = blocks
    by_hand = (conv(3, 64, 3) + 2 * a * conv(64, 64, 3)
               + conv(64, 128, 3) + (2 * b - 1) * conv(128, 128, 3) + conv(64, 128, 1)
               + conv(128, 256, 3) + (2 * c - 1) * conv(256, 256, 3) + conv(128, 256, 1) + 256 * 10 + 10)
    built = sum(p.numel() for p in ResNet(blocks).parameters() if p.requires_grad)
    assert by_hand == built == expected


def test_a_network_over_the_budget_is_refused_before_it_is_built():
    with pytest.raises(SystemExit, match="5,003,199 parameters, the budget is fewer than 5,000,000"):
        model.make_network((4, 5, 3), (65, 128, 256))
    with pytest.raises(SystemExit, match="the budget"):
        model.make_network((1, 1, 1), (64, 128, 100_000))       # 3 TB


def test_plain_network_lacks_exactly_the_shortcuts():
    shortcuts = 64 * 128 + 2 * 128 + 128 * 256 + 2 * 256
    residual, plain = ResNet(), ResNet(residual=False)
    assert sum(p.numel() for p in residual.parameters()) - sum(p.numel() for p in plain.parameters()) == shortcuts
    assert residual.state_dict().keys() - plain.state_dict().keys() == {
        name for name in residual.state_dict() if "shortcut" in name}


def test_skip_carries_the_image_around_the_convolutions():
    block = model.Block(4, 4).eval()
    torch.nn.init.zeros_(block.conv2.weight)
    x = torch.rand(2, 4, 8, 8)
    assert torch.equal(block(x), x) and not torch.equal(model.Block(4, 4, residual=False).eval()(x), x)
    for size in (8, 5):
        assert model.Block(4, 8, stride=2)(torch.rand(2, 4, size, size)).shape == (2, 8, (size + 1) // 2, (size + 1) // 2)


def test_shortcut_is_a_strided_convolution_with_right_gradients():
    """oneDNN's own strided 1x1 kernel writes outside its memory on AVX2 below 8 channels, so none may be there."""
    assert all(conv.stride == (1, 1) for conv in ResNet().modules()
               if isinstance(conv, torch.nn.Conv2d) and conv.kernel_size == (1, 1))
    torch.manual_seed(0)
    block, x = model.Block(3, 6, stride=2).to(memory_format=torch.channels_last), torch.randn(64, 3, 16, 16)
    x = x.contiguous(memory_format=torch.channels_last)
    conv = block.shortcut[0]
    gradient = torch.randn(64, 6, 8, 8)
    conv(x[:, :, ::2, ::2]).backward(gradient)
    wanted = torch.nn.grad.conv2d_weight(x.double(), conv.weight.shape, gradient.double(), stride=2)
    torch.testing.assert_close(conv.weight.grad.double(), wanted, rtol=1e-4, atol=1e-4)


def test_logits_do_not_depend_on_the_other_images_in_eval_mode():
    net, x = ResNet((1, 1, 1), (4, 8, 8)).eval(), torch.randn(9, 3, 32, 32)
    torch.testing.assert_close(net(x)[3:4], net(x[3:4]))
    assert not torch.allclose(net.train()(x)[3:4], net(x[3:7])[0:1], atol=1e-3)     # with batch statistics they do


def test_one_batch_can_be_overfitted():
    torch.manual_seed(0)
    net, x, y = ResNet((1, 1, 1), (8, 16, 16)), torch.randn(32, 3, 32, 32), torch.arange(32) % 10
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
    for _ in range(40):
        loss = F.cross_entropy(net(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.05


def test_whitening_filters_give_uncorrelated_outputs_of_equal_size_and_do_not_train():
    images, net = data.normalise(data.fake_data(train=False)[0][:500]), ResNet((1, 1, 1), (12, 8, 8))
    net.whiten_stem(images)
    weight = net.stem[0].weight
    assert torch.equal(weight[:6], -weight[6:]) and not weight.requires_grad
    out = F.conv2d(images, weight[:6]).transpose(0, 1).reshape(6, -1)
    torch.testing.assert_close(out @ out.T / out.shape[1], torch.eye(6), rtol=0, atol=0.05)


def test_table_shows_the_real_shapes(capsys):
    model.main([])
    out = capsys.readouterr().out
    assert "4,992,586" in out and "256 x 8 x 8" in out and "99.9% of the budget of 5,000,000" in out


# ---- the data --------------------------------------------------------------------------------------


def coordinate_images(n):
    """Images whose channels hold row + 1, column + 1 and the image's number + 1; 0 is what a crop pads with."""
    images = torch.empty(n, 3, 32, 32, dtype=torch.uint8)
    images[:, 0] = torch.arange(1, 33).view(1, 32, 1)
    images[:, 1] = torch.arange(1, 33).view(1, 1, 32)
    images[:, 2] = torch.arange(1, n + 1).view(n, 1, 1)
    return images


def crops(images, group, rounds):
    """(row offset, column offset, mirrored) of every image in `rounds` augmentations by crop and flip."""
    mean, std = torch.tensor(data.MEAN).view(3, 1, 1), torch.tensor(data.STD).view(3, 1, 1)
    draws = []
    for _ in range(rounds):
        out = ((data.augment(images, data.augmentation(["crop", "flip"]), group) * std + mean) * 255).round().int()
        middle = out[:, :, 16, 16]                                          # (N, 3): never padding
        assert torch.equal(middle[:, 2], torch.arange(1, len(images) + 1).int()), "ids are mixed up"
        mirrored = out[:, 1, 16, 15] > out[:, 1, 16, 16]
        rows, columns = middle[:, 0] - 17, torch.where(mirrored, middle[:, 1] - 16, middle[:, 1] - 17)
        draws.append(torch.stack([rows, columns, mirrored.int()], dim=1))
    return torch.cat(draws)


def test_augmentation_keeps_ids_and_input_and_sees_all_offsets_and_mirrors():
    images = coordinate_images(250)
    before = images.clone()
    torch.manual_seed(0)
    draws = crops(images, group=5, rounds=20)                               # 1,000 draws of 81 offsets
    assert torch.equal(images, before)
    for column in (0, 1):
        assert draws[:, column].unique().tolist() == list(range(-4, 5))
    assert draws[:, 2].unique().tolist() == [0, 1]


def test_group_draws_have_the_distribution_of_single_draws():
    images = coordinate_images(100)
    torch.manual_seed(0)
    single, grouped = crops(images, group=1, rounds=20), crops(images, group=10, rounds=200)    # 2,000 draws each
    for column, values in ((0, 9), (1, 9), (2, 2)):
        low = -4 if values == 9 else 0
        share = [torch.bincount(draws[:, column].long() - low, minlength=values) / len(draws) for draws in (single, grouped)]
        assert (share[0] - share[1]).abs().max() < 0.04         # four deviations of a share of 1/2 in 2,000 draws
        assert (share[1] - 1 / values).abs().max() < 0.04


def test_group_one_draws_for_each_image_and_a_batch_mixes_draws():
    images = coordinate_images(200)
    torch.manual_seed(0)
    assert len(crops(images, group=1, rounds=1).unique(dim=0)) > 100        # of 162 crops
    assert 1 < len(crops(images, group=50, rounds=1).unique(dim=0)) <= 4
    neighbours = crops(images, group=100, rounds=1)[:20]                    # groups are drawn, not cut in file order
    assert len(neighbours.unique(dim=0)) == 2


def test_papers_augmentation_stands_in_its_order_and_erases_last():
    steps = data.augmentation().transforms
    assert [type(step).__name__ for step in steps[:5]] == [
        "RandomRotation", "RandomHorizontalFlip", "RandomCrop", "ColorJitter", "AutoAugment"]
    assert steps[5] is data.normalise and type(steps[6]).__name__ == "RandomErasing" and steps[6].p == 0.2
    out = data.augment(data.fake_data(train=False)[0][:50], data.augmentation(), 10)
    assert out.shape == (50, 3, 32, 32) and out.dtype == torch.float32 and out.isfinite().all()


def test_smaller_images_are_shrunk_not_cut():
    images = data.fake_data(train=False)[0][:20]
    small = data.augment(images, data.augmentation(["flip"], size=16), 1)
    assert small.shape == (20, 3, 16, 16)
    means = data.normalise(images).mean((2, 3))
    torch.testing.assert_close(small.mean((2, 3)), means, rtol=0, atol=0.02)


def test_split_is_disjoint_balanced_and_stable():
    labels = torch.arange(1000) % 10
    first, val = data.split(labels, 100, None, seed=3)
    torch.manual_seed(99)
    again = data.split(labels, 100, None, seed=3)
    assert torch.equal(first, again[0]) and torch.equal(val, again[1])      # not by the global random state
    assert sorted([*first.tolist(), *val.tolist()]) == list(range(1000))
    assert torch.bincount(labels[val]).tolist() == [10] * 10
    assert not torch.equal(val, data.split(labels, 100, None, seed=4)[1])
    assert len(data.split(labels, 0, None, seed=3)[1]) == 0
    fewer, same_val = data.split(labels, 100, 200, seed=3)
    assert torch.bincount(labels[fewer]).tolist() == [20] * 10 and torch.equal(val, same_val)
    assert set(fewer.tolist()) <= set(first.tolist())


def test_fake_data_is_the_same_each_time():
    a, b = (data.fake_data.__wrapped__(train=True) for _ in range(2))
    assert torch.equal(a[0], b[0]) and a[0].shape == (10_000, 3, 32, 32) and a[0].dtype == torch.uint8
    assert not torch.equal(a[0][:2000], data.fake_data(train=False)[0])


def test_the_picture_of_the_augmentation_is_drawn(tmp_path):
    data.main(["--data", "fake", "--out", str(tmp_path / "a.png")])
    assert Image.open(tmp_path / "a.png").width > 500


def make_archive(path):
    """A small archive in CIFAR-10's own format; returns what torchvision must know to accept it."""
    files, sums = {}, {}
    for i, name in enumerate(["data_batch_1", "test_batch"]):
        files[name] = pickle.dumps({"data": np.full((20, 3072), i, np.uint8), "labels": list(range(10)) * 2})
    files["batches.meta"] = pickle.dumps({"label_names": data.NAMES})
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
            sums[name] = hashlib.md5(content).hexdigest()
    return sums, hashlib.md5(path.read_bytes()).hexdigest()


@pytest.fixture
def server(tmp_path, monkeypatch):
    """CIFAR-10 in small on 127.0.0.1, and one address after the other where it goes wrong."""
    sums, archive_sum = make_archive(tmp_path / "good.tar.gz")
    good = (tmp_path / "good.tar.gz").read_bytes()
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(503 if self.path == "/down" else 200)
            self.send_header("Content-Length", str(len(good)))
            self.end_headers()
            self.wfile.write({"/wrong": bytes(len(good)), "/cut": good[:len(good) // 2], "/down": b""}.get(self.path, good))

        def log_message(self, *_):
            pass

    web = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=web.serve_forever, daemon=True).start()
    kind = data.datasets.CIFAR10
    monkeypatch.setattr(kind, "tgz_md5", archive_sum)
    monkeypatch.setattr(kind, "train_list", [["data_batch_1", sums["data_batch_1"]]])
    monkeypatch.setattr(kind, "test_list", [["test_batch", sums["test_batch"]]])
    monkeypatch.setattr(kind, "meta", kind.meta | {"md5": sums["batches.meta"]})
    base = f"http://127.0.0.1:{web.server_port}"
    monkeypatch.setattr(data, "MIRRORS", [f"{base}/{name}" for name in ("down", "wrong", "cut", "good", "never")])
    yield asked, tmp_path / "good.tar.gz"
    web.shutdown()
    web.server_close()


def test_download_goes_on_until_a_mirror_gives_the_official_bytes(server, tmp_path):
    asked, _ = server
    images, labels = data.load_data(tmp_path / "new", train=False)
    assert list(dict.fromkeys(asked)) == ["/down", "/wrong", "/cut", "/good"]
    assert images.shape == (20, 3, 32, 32) and images.unique().tolist() == [1] and labels.tolist() == list(range(10)) * 2
    asked.clear()
    data.load_data(tmp_path / "new" / "cifar-10-batches-py", train=True)            # the folder itself will do
    assert asked == []                                                              # and nothing is fetched again


def test_a_failed_download_leaves_nothing_that_passes_for_the_data(server, tmp_path, monkeypatch):
    monkeypatch.setattr(data, "MIRRORS", data.MIRRORS[:3])
    for _ in range(2):
        with pytest.raises(SystemExit, match=r"put cifar-10-python.tar.gz .* --data fake"):
            data.load_data(tmp_path / "new", train=True)


def test_an_archive_in_the_folder_is_unpacked_without_internet(server, tmp_path):
    asked, archive = server
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "cifar-10-python.tar.gz").write_bytes(archive.read_bytes()[:-40])
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit):          # cut short: refused
        patch.setattr(data, "MIRRORS", [])
        data.load_data(tmp_path / "new", train=True)
    archive.rename(tmp_path / "new" / "cifar-10-python.tar.gz")
    assert len(data.load_data(tmp_path / "new", train=True)[0]) == 20 and asked == []
    batch = tmp_path / "new" / "cifar-10-batches-py" / "data_batch_1"               # a damaged file is unpacked anew
    batch.write_bytes(batch.read_bytes()[:-1] + b"x")
    assert data.load_data(tmp_path / "new", train=True)[0].sum() == 0


# ---- the recipe ------------------------------------------------------------------------------------


def test_learning_rate_is_a_cosine_to_zero_after_a_linear_warmup():
    paper = [train.lr_factor(step, 1000, 0) for step in range(1000)]
    assert paper[0] == 1 and paper[500] == pytest.approx(0.5) and paper[250] == pytest.approx(0.5 + 0.5 * math.sqrt(0.5))
    assert train.lr_factor(1000, 1000, 0) == pytest.approx(0) and paper == sorted(paper, reverse=True)
    warm = [train.lr_factor(step, 1000, 100) for step in range(1000)]
    assert train.lr_factor(1000, 1000, 1000) == 1           # a warm-up as long as the run divides by no zero
    assert warm[49] == pytest.approx(0.5) and warm[99] == warm[100] == 1 and warm[550] == pytest.approx(0.5)


def test_the_papers_recipe_is_the_default():
    args = train.parse_args([])
    assert (args.recipe, args.lr, args.weight_decay, args.label_smoothing, args.batch_size, args.epochs) == (
        "paper", 1e-4, 1e-2, 0.1, 128, 100)
    assert (args.warmup, args.ema, args.cutmix, args.augment, args.dropout) == (0, 0, 0, data.PAPER, 0)
    assert (args.sizes, args.refine, args.whiten) == ([32], 0, False)
    assert args.blocks == [4, 5, 3] and args.widths == [64, 128, 256] and args.val_size == 5000 and args.group == 250


@pytest.mark.parametrize("recipe", ["quick", "strong"])
def test_a_flag_overrides_its_recipe_wherever_it_stands(recipe):
    plain = train.parse_args(["--recipe", recipe])
    assert plain.ema > 0 and plain.lr > 1e-4 and plain.recipe == recipe
    for argv in (["--recipe", recipe, "--ema", "0.5"], ["--ema", "0.5", "--recipe", recipe]):
        args = train.parse_args(argv)
        assert args.ema == 0.5 and args.lr == plain.lr and args.command.endswith(" ".join(argv))


def test_each_parameter_is_in_exactly_one_decay_group():
    net = ResNet((1, 1, 1), (4, 8, 8))
    decayed, others = train.decay_groups(net, 0.3)
    ids = [id(p) for p in decayed["params"] + others["params"]]
    assert sorted(ids) == sorted(id(p) for p in net.parameters())
    assert len(decayed["params"]) == 10 and decayed["weight_decay"] == 0.3      # 9 convolutions, 1 linear layer
    assert others["weight_decay"] == 0 and {p.dim() for p in others["params"]} == {1}


def parts_of(argv, n=200):
    images, labels = (part[:n] for part in data.fake_data(train=True))
    args = train.parse_args([*TINY, *argv])
    return train.build(args, images, torch.device("cpu")), images, labels, args


def test_gradients_are_dropped_before_the_forward_pass():
    parts, images, labels, _ = parts_of([])
    seen = []
    parts.model.register_forward_hook(lambda net, *_: seen.append(all(p.grad is None for p in net.parameters())))
    for _ in range(2):
        train.train_step(parts, data.normalise(images[:8]), labels[:8], 0.1)
    assert seen == [True, True] and any(p.grad is not None for p in parts.model.parameters())


def test_under_cutmix_the_label_with_the_larger_share_counts(monkeypatch):
    parts, images, labels, args = parts_of(["--cutmix", "1"])
    targets = []
    monkeypatch.setattr(train, "train_step", lambda parts, x, target, _: (
        targets.append(target), (torch.zeros(()), target))[1])          # a network that answers the target itself
    assert train.train_epoch(parts, images, labels, args, 1)["train_acc"] == 1
    shares = torch.cat(targets)
    assert shares.shape == (200, 10) and ((shares > 0) & (shares < 1)).any()
    torch.testing.assert_close(shares.sum(1), torch.ones(200))


def test_the_last_epochs_are_refined_and_sizes_share_the_epochs(monkeypatch):
    parts, images, labels, args = parts_of(
        ["--augment", "trivial", "--cutmix", "1", "--refine", "0.2", "--epochs", "10", "--sizes", "16", "24", "24", "32"])
    asked = []
    monkeypatch.setattr(train, "augmentation", lambda *drawn: asked.append(drawn) or data.augmentation(*drawn))
    monkeypatch.setattr(train, "train_step", lambda parts, x, target, _: (
        asked.append(target.dim()), (torch.zeros(()), torch.zeros(100, 10)))[1])
    for epoch in range(1, 11):
        train.train_epoch(parts, images, labels, args, epoch)
    calls = [call for call in asked if isinstance(call, tuple)]
    assert [size for _, size in calls] == [16] * 3 + [24] * 5 + [32] * 2
    assert [names for names, _ in calls] == [["trivial"]] * 8 + [["crop", "flip"]] * 2
    assert [call for call in asked if isinstance(call, int)] == [2] * 16 + [1] * 4


def test_the_average_forgets_the_untrained_weights():
    parts, *_ = parts_of(["--ema", "0.99"])
    for average, value in zip(parts.average.parameters(), parts.model.parameters()):
        average.data.zero_(), value.data.fill_(1)
    held = []
    for update in range(45):                        # an epoch of the paper
        parts.scheduler.last_epoch = update * train.EMA_EVERY
        train.update_average(parts, 0.99)
        held.append(1 - parts.average.classifier.bias[0].item())
    assert held[0] == pytest.approx(0.1) and held[44] < 1e-4
    parts.scheduler.last_epoch = 10 ** 6
    parts.model.classifier.bias.data.fill_(2)
    train.update_average(parts, 0.99)
    assert parts.average.classifier.bias[0].item() == pytest.approx(1.01, abs=1e-3)
    parts.model.stem[1].running_mean.fill_(7)       # batch norm's statistics are averaged, too
    train.update_average(parts, 0)
    assert parts.average.stem[1].running_mean[0] == 7


def test_evaluation_is_exact_on_a_ragged_last_batch():
    net = ResNet((1, 1, 1), (4, 8, 8))
    images = data.fake_data(train=False)[0][:503]
    logits = predict.predict(net, images)
    with torch.no_grad():
        whole = net.eval()(data.normalise(images))
    torch.testing.assert_close(logits, whole)
    assert predict.accuracy(logits, whole.argmax(1)) == 1
    assert predict.accuracy(F.one_hot(torch.tensor([0, 1, 2])).float(), torch.tensor([0, 1, 1])) == 2 / 3
    mirrored = predict.predict(net, images.flip(3))
    torch.testing.assert_close(predict.predict(net, images, tta=True), (logits + mirrored) / 2)


def test_training_learns_and_leaves_every_file(trained):
    rows = history(trained)
    assert [row["epoch"] for row in rows] == ["1", "2", "3"] and [row["size"] for row in rows] == ["24", "32", "32"]
    assert float(rows[2]["train_loss"]) < float(rows[0]["train_loss"])
    result = json.loads((trained / "result.json").read_text())
    best = max(rows, key=lambda row: float(row["val_acc"]))
    assert result["val_acc"] == float(best["val_acc"]) > 0.2 and result["test_acc"] > 0.2        # chance: 0.1
    assert result["parameters"] == sum(p.numel() for p in ResNet((1, 1, 1), (8, 16, 16)).parameters())
    assert result["settings"]["cutmix"] == 0.5 and result["machine"].startswith("cpu (1 threads)")
    assert Image.open(trained / "curves.png").width > 500
    assert not list(trained.glob("*.part"))


def test_arithmetic_is_six_operations_per_forward_multiply_add(trained):
    multiply_adds = 27 * 4 * 1024 + 2 * 9 * 16 * 1024 + (9 * 4 * 8 + 9 * 64 + 4 * 8) * 256 + 2 * 9 * 64 * 64 + 64 * 64 + 80
    assert train.flop_per_image(ResNet((1, 1, 1), (4, 8, 8)), 32) == 6 * multiply_adds
    result, net = json.loads((trained / "result.json").read_text()), ResNet((1, 1, 1), (8, 16, 16))
    assert result["flop"] == 1600 * (train.flop_per_image(net, 24) + 2 * train.flop_per_image(net, 32))


def test_the_best_epoch_is_the_first_with_the_highest_validation_accuracy():
    def run(*accuracies):
        return [{"epoch": i + 1} | ({} if value is None else {"val_acc": value}) for i, value in enumerate(accuracies)]
    assert train.best_epoch(run(0.5, 0.7, 0.7, 0.6)) == 2 and train.best_epoch(run(0.1)) == 1
    assert train.best_epoch(run(None, None, None)) == 3


def test_checkpoint_round_trip_gives_equal_logits(trained):
    net, checkpoint = model.load_checkpoint(trained / "best.pt")
    rebuilt = ResNet(**checkpoint["config"])
    rebuilt.load_state_dict(load(trained / "best.pt")["model"])
    x = torch.randn(5, 3, 32, 32)
    assert torch.equal(net(x), rebuilt.eval()(x)) and checkpoint["config"]["widths"] == [8, 16, 16]
    assert not any("module." in name or "_orig_mod" in name for name in checkpoint["model"])
    last = load(trained / "last.pt")
    assert not same(last["states"]["model"], last["model"])             # what predicts is the average
    assert checkpoint.keys() == {"config", "model", "epoch"}


def test_the_same_seed_gives_the_same_run_and_another_another(few, tmp_path):
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        torch.manual_seed(len(name) * seed * 7)             # whatever the random state was before
        train.main([*few, "--epochs", "1", "--seed", str(seed), "--out", str(tmp_path / name)])
    assert history(tmp_path / "a") == history(tmp_path / "b") != history(tmp_path / "c")
    assert same(load(tmp_path / "a/best.pt")["model"], load(tmp_path / "b/best.pt")["model"])


def test_compiled_training_leaves_ordinary_names(few, tmp_path, monkeypatch):
    compile = torch.compile
    monkeypatch.setattr(torch, "compile", lambda net, **_: compile(net, backend="eager"))      # no C++ compiler needed
    train.main([*few, "--epochs", "1", "--compile", "--out", str(tmp_path)])
    assert load(tmp_path / "best.pt")["model"].keys() == ResNet((1, 1, 1), (2, 4, 4)).state_dict().keys()


def test_a_run_without_validation_keeps_its_last_epoch(few, tmp_path):
    train.main([*few, "--val-size", "0", "--epochs", "2", "--out", str(tmp_path)])
    assert load(tmp_path / "best.pt")["epoch"] == 2 and "val_acc" not in history(tmp_path)[0]
    assert json.loads((tmp_path / "result.json").read_text())["val_acc"] is None


def test_without_a_terminal_there_is_a_line_per_epoch_and_no_control_character(few, tmp_path, capfd):
    train.main([*few, "--epochs", "2", "--out", str(tmp_path)])
    out, err = capfd.readouterr()
    assert len(re.findall(r"^epoch \d/2  size 32  lr .* train .* val .* s$", out, re.MULTILINE)) == 2
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", out) and err == ""
    assert "2 epochs of 10 steps" in out and "operations, about 0:00:" in out and "test accuracy" in out
    assert f"python predict.py --ckpt {tmp_path}/best.pt --data fake" in out


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_an_earlier_epoch(few, tmp_path, monkeypatch):
    real, epochs = train.augment, []

    def poisoned(*args):                        # the second epoch meets a nan
        epochs.append(1)
        return real(*args) * (math.nan if len(epochs) == 2 else 1)

    monkeypatch.setattr(train, "augment", poisoned)
    with pytest.raises(SystemExit, match=r"not finite in epoch 2: try a lower --lr"):
        train.main([*few, "--epochs", "4", "--out", str(tmp_path)])
    assert load(tmp_path / "last.pt")["epoch"] == 1 == len(history(tmp_path))


# ---- the machine -----------------------------------------------------------------------------------


@pytest.mark.parametrize("device, native, dtype", [
    ("cuda", True, torch.bfloat16), ("cuda", False, torch.float16),             # an A100; a T4
    ("cpu", True, torch.bfloat16), ("cpu", False, torch.float32), ("mps", False, torch.float32)])
def test_precision_is_what_the_device_computes_in_natively(monkeypatch, device, native, dtype):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: native or including_emulation)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: native)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    assert model.pick_dtype(torch.device(device)) == dtype
    assert model.pick_dtype(torch.device(device), "off") == torch.float32
    wanted = torch.contiguous_format if device == "mps" else torch.channels_last        # MPS: wrong gradients
    assert model.memory_format(torch.device(device)) == wanted


@pytest.mark.parametrize("driver", [True, False], ids=["driver", "no driver"])
def test_an_nvidia_driver_that_torch_cannot_use_is_named_in_a_line(monkeypatch, capsys, driver):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    monkeypatch.setattr(model.shutil, "which", lambda name: "/usr/bin/nvidia-smi" if driver else None)
    assert model.pick_device().type == "cpu"
    out = capsys.readouterr().out
    assert out.count("\n") == driver and ("install a torch" in out) == driver


@pytest.mark.parametrize("error, line", [
    (torch.OutOfMemoryError("CUDA out of memory"), "the memory is full"), (MemoryError(), "the memory is full"),
    (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "the memory is full"),
    (RuntimeError("CUDA error: an illegal memory access was encountered"), None),
    (OSError(28, "No space left on device"), "No space left"), (KeyboardInterrupt(), "130")], ids=repr)
def test_what_comes_from_outside_ends_in_one_line_and_bugs_in_a_traceback(monkeypatch, error, line):
    def main():
        raise error
    with pytest.raises(SystemExit if line else type(error), match=line):
        model.start(main)


@pytest.mark.parametrize("hours, named", [(3, True), (1, False)])
def test_a_run_of_hours_on_a_cpu_names_the_quick_one(monkeypatch, capsys, hours, named):
    parts, images, _, args = parts_of([])
    forward = hours * 3600 / train.epoch_flop(1, parts, args) / 100 * 200 * parts.flop[32] / 3
    clock = iter([0, 0, 0, forward])
    monkeypatch.setattr(train.time, "perf_counter", lambda: next(clock))
    train.announce(parts, args, images, 0)
    out = capsys.readouterr().out
    assert f"about {hours}:00:00" in out and ("--recipe quick" in out and "weights/quick.pt" in out) == named


def test_fp16_trains_with_a_gradient_scaler_and_moves_to_another_precision_and_back(few, tmp_path, capsys):
    flags = [*few, "--train-size", "300", "--epochs", "3", "--out", str(tmp_path)]

    def stop_after(epoch, amp, *more):
        with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(train, "print_row", lambda row, _: interrupt_at(row, epoch))
            age(tmp_path / "last.pt")
            train.main([*flags, "--amp", amp, *more])

    stop_after(1, "off")                                            # its scaler saves {}
    assert load(tmp_path / "last.pt")["states"]["scaler"] == {}
    stop_after(2, "fp16", "--resume")
    assert load(tmp_path / "last.pt")["states"]["scaler"]["scale"] >= 2
    assert "begun on cpu (1 threads), float32" in capsys.readouterr().out
    train.main([*flags, "--amp", "bf16", "--resume"])
    assert "begun on cpu (1 threads), float16" in capsys.readouterr().out
    losses = [float(row["train_loss"]) for row in history(tmp_path)]
    assert losses[2] < losses[0]


@needs_cuda
@pytest.mark.parametrize("amp", ["fp16", "bf16"])
def test_training_on_a_gpu_resumes_and_writes_what_a_cpu_reads(few, tmp_path, monkeypatch, amp):
    flags = [*few, "--device", "cuda", "--epochs", "2", "--amp", amp, "--ema", "0.9", "--out", str(tmp_path)]
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(train, "print_row", lambda row, _: interrupt_at(row, 1))
        train.main(flags)
    train.main([*flags, "--resume"])                                # so optimizer steps follow the restore
    assert len(history(tmp_path)) == 2
    assert model.load_checkpoint(tmp_path / "best.pt")[0](torch.zeros(1, 3, 32, 32)).shape == (1, 10)


# ---- resuming --------------------------------------------------------------------------------------

RUN = [*TINY, "--epochs", "3", "--ema", "0.9", "--dropout", "0.2", "--cutmix", "0.5"]


def interrupt_at(row, epoch):
    if row["epoch"] == epoch:
        raise KeyboardInterrupt


def age(path):
    """Make last.pt look older than the 30 seconds after which it is written anew."""
    if path.exists():
        os.utime(path, (0, 0))


@pytest.fixture(scope="session")
def uninterrupted(tmp_path_factory):
    out = tmp_path_factory.mktemp("uninterrupted")
    train.main([*RUN, "--out", str(out)])
    return out


def assert_same_run(folder, reference):
    assert history(folder) == history(reference)
    ours, theirs = load(folder / "last.pt"), load(reference / "last.pt")
    assert same(ours["model"], theirs["model"]) and same(ours["states"]["model"], theirs["states"]["model"])
    best = [load(path / "best.pt") for path in (folder, reference)]
    assert best[0]["epoch"] == best[1]["epoch"] and same(best[0]["model"], best[1]["model"])


@pytest.mark.parametrize("old", [True, False], ids=["last.pt every epoch", "last.pt after 30 s"])
def test_a_resumed_run_equals_an_uninterrupted_one(uninterrupted, tmp_path, monkeypatch, old):
    monkeypatch.setattr(train, "print_row", lambda row, _: interrupt_at(row, 2))
    if old:
        monkeypatch.setattr(train.time, "time", lambda: 1e12)
    with pytest.raises(KeyboardInterrupt):
        train.main([*RUN, "--out", str(tmp_path)])
    assert load(tmp_path / "last.pt")["epoch"] == (2 if old else 1) and len(history(tmp_path)) == 2
    assert load(tmp_path / "best.pt")["epoch"] == train.best_epoch(
        [{"epoch": int(row["epoch"]), "val_acc": float(row["val_acc"])} for row in history(tmp_path)])
    monkeypatch.undo()
    data.fake_data(train=True)
    train.main([*RUN, "--out", str(tmp_path), "--resume"])
    assert_same_run(tmp_path, uninterrupted)
    seconds = [float(row["seconds"]) for row in csv.DictReader(open(tmp_path / "log.csv"))]
    assert json.loads((tmp_path / "result.json").read_text())["seconds"] == pytest.approx(sum(seconds))


def test_a_kill_between_two_files_of_an_epoch_can_be_resumed(uninterrupted, tmp_path, monkeypatch):
    real = train.save_checkpoint

    def killed(path, *args, **more):
        real(path, *args, **more)
        if path.name == "last.pt":
            raise KeyboardInterrupt                 # best.pt and log.csv are not written yet

    monkeypatch.setattr(train, "save_checkpoint", killed)
    with pytest.raises(KeyboardInterrupt):
        train.main([*RUN, "--out", str(tmp_path)])
    assert [path.name for path in tmp_path.iterdir()] == ["last.pt"]
    monkeypatch.undo()
    train.main([*RUN, "--out", str(tmp_path), "--resume"])
    assert_same_run(tmp_path, uninterrupted)


def fork(argv):
    """A training process of its own, forked so that it need not import torch again."""
    def quiet_main():
        with open(os.devnull, "w") as sink, contextlib.redirect_stdout(sink):
            train.main(argv)
    process = multiprocessing.get_context("fork").Process(target=quiet_main)
    process.start()
    return process


def wait_for_write(folder, alive):
    """Return at the moment when a file is being written in the folder, or the process has ended."""
    while alive() and not (folder.is_dir() and any(name.endswith(".part") for name in os.listdir(folder))):
        pass


def test_a_run_that_is_killed_in_a_write_ends_with_the_same_bits(uninterrupted, tmp_path):
    """benchmarks/soak.py kills 200 times, at random moments, too."""
    process = fork([*RUN, "--out", str(tmp_path)])
    wait_for_write(tmp_path, process.is_alive)
    while process.is_alive() and not (tmp_path / "log.csv").exists():
        pass                                                # the first epoch is whole
    wait_for_write(tmp_path, process.is_alive)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    for name in ("last.pt", "best.pt"):
        model.load_checkpoint(tmp_path / name)
    train.main([*RUN, "--out", str(tmp_path), "--resume"])
    assert_same_run(tmp_path, uninterrupted)


def test_ctrl_c_ends_in_one_line(tmp_path):
    process = subprocess.Popen(
        [sys.executable, str(HERE / "train.py"), *TINY, "--epochs", "1000", "--out", str(tmp_path)], text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ | {"OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))            # a script's & ignores it
    for line in process.stdout:
        if line.startswith("epoch"):
            break
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and err.strip() == "stopped: the same command with --resume goes on"


FLAGS = [*TINY, *FULL, "--epochs", "3", "--sizes", "24", "32", "32", "--refine", "0.3"]


@pytest.mark.parametrize("flags, why", [
    (["--epochs", "5", "--resume"], "epochs = 3, not 5"), (["--lr", "0.5", "--resume"], "lr = 0.01, not 0.5"),
    (["--cutmix", "0", "--resume"], "cutmix = 0.5"), ([], "earlier run's last.pt: go on with --resume")], ids=str)
def test_a_run_with_other_flags_is_refused_and_changes_nothing(trained, flags, why):
    before = {path.name: path.read_bytes() for path in trained.iterdir()}
    with pytest.raises(SystemExit, match=why):
        train.main([*FLAGS, "--out", str(trained), *flags])
    assert {path.name: path.read_bytes() for path in trained.iterdir()} == before


@pytest.mark.parametrize("case, why", [
    ("nothing", "no last.pt in .* to resume from"), ("cut", "no whole checkpoint"), ("best", "not the last.pt of a run"),
    ("optimizer", "another optimizer")])
def test_what_is_no_last_pt_of_this_run_is_refused(trained, tmp_path, case, why):
    content = (trained / "last.pt").read_bytes()
    if case == "cut":
        (tmp_path / "last.pt").write_bytes(content[:5000])
    if case == "best":
        (tmp_path / "last.pt").write_bytes((trained / "best.pt").read_bytes())
    if case == "optimizer":
        checkpoint = load(trained / "last.pt")
        for state in checkpoint["states"]["optimizer"]["state"].values():
            state["exp_avg"] = torch.zeros(1)
        torch.save(checkpoint, tmp_path / "last.pt")
    with pytest.raises(SystemExit, match=why):
        train.main([*FLAGS, "--out", str(tmp_path), "--resume"])
    assert {path.name for path in tmp_path.iterdir()} <= {"last.pt"}


def test_a_full_disk_is_one_line_and_leaves_the_old_file_whole(tmp_path):
    def write(content):
        with model.whole_file(tmp_path / "last.pt") as file:
            file.write(content)

    write(b"old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))       # the kernel refuses from the 1001st byte on
    try:
        with pytest.raises(SystemExit, match="error: cannot write .*last.pt': File too large"):
            write(bytes(5000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (tmp_path / "last.pt").read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1


# ---- predicting ------------------------------------------------------------------------------------


def rows(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def test_predict_writes_a_csv_that_scores_what_it_prints(trained, tmp_path, capsys):
    predict.main(["--ckpt", str(trained / "best.pt"), "--data", "fake", "--out", str(tmp_path / "s.csv"), "--device", "cpu"])
    out = capsys.readouterr().out
    table, (_, labels) = rows(tmp_path / "s.csv"), data.fake_data(train=False)
    assert table[0] == ["ID", "Labels"] and [row[0] for row in table[1:]] == [str(i) for i in range(2000)]
    right = sum(int(row[1]) == label for row, label in zip(table[1:], labels.tolist())) / 2000
    assert f"accuracy {right:.2%} on 2,000 test images" in out and "most often taken for" in out and "figure 3" in out
    assert right == json.loads((trained / "result.json").read_text())["test_acc"]
    assert all(Image.open(tmp_path / name).width > 400 for name in ("confusion.png", "mistakes.png"))


def test_confusion_matrix_counts_true_classes_in_rows():
    matrix = predict.confusion_matrix(torch.tensor([1, 1, 2]), torch.tensor([1, 3, 2]))
    assert matrix[1, 1] == 1 and matrix[3, 1] == 1 and matrix[2, 2] == 1 and matrix.sum() == 3


def test_the_surest_mistakes_come_first_and_right_answers_never():
    logits = torch.tensor([[9., 0.], [2., 0.], [0., 4.], [0., 3.]])         # said 0 0 1 1
    figure = predict.draw_mistakes(torch.zeros(4, 3, 32, 32, dtype=torch.uint8), logits, torch.tensor([0, 1, 0, 1]), ["cat", "dog"])
    titles = [axes.get_title() for axes in figure.axes if axes.get_title()]
    assert titles == ["said dog (98%),\nis cat", "said cat (88%),\nis dog"]


def test_a_picture_of_ones_own_is_named(trained, tmp_path, capsys):
    Image.fromarray(data.fake_data(train=False)[0][0].permute(1, 2, 0).numpy()).save(tmp_path / "my_cat.jpg")
    predict.main(["--ckpt", str(trained / "best.pt"), "--input", str(tmp_path / "my_cat.jpg"), "--out", str(tmp_path / "s.csv")])
    line = capsys.readouterr().out.splitlines()[-1]
    shares = [int(share) for share in re.findall(r"[a-z]+ (\d+)%", line)]
    assert line.startswith("'my_cat' ") and len(shares) == 3 and shares == sorted(shares, reverse=True) and sum(shares) <= 101
    names = re.findall(r"([a-z]+) \d+%", line)
    assert data.NAMES.index(names[0]) == int(rows(tmp_path / "s.csv")[1][1])


def inputs(folder):
    """Files of every kind that is read, all with the same 12 images; {name: ids that must come out}."""
    images = data.fake_data(train=False)[0][:12]
    nhwc, planes = images.permute(0, 2, 3, 1).numpy(), images.reshape(12, 3072).numpy()
    ids, plain = np.arange(100, 112)[::-1].copy(), list(range(12))
    pickles = {
        "2025.pkl": ({b"data": nhwc, b"ids": ids}, 4), "2024.pkl": ({b"data": planes}, 4),
        "str.pkl": ({"data": nhwc, "ids": ids.tolist()}, 5), "array5.pkl": ({"data": nhwc, "ids": ids}, 5),
        "old.pkl": ({b"data": planes, b"ids": ids.astype(">i4")}, 2),
        "names.pkl": ({"data": np.asfortranarray(planes), "ids": np.array([f"n{i}" for i in ids])}, 3)}
    for name, (content, protocol) in pickles.items():
        (folder / name).write_bytes(pickle.dumps(content, protocol=protocol))
    np.save(folder / "nhwc.npy", nhwc)
    np.save(folder / "nchw.npy", images.numpy())
    (folder / "pictures").mkdir()
    for i, array in enumerate(nhwc):
        Image.fromarray(array).save(folder / "pictures" / f"img{i}.png")
    (folder / "pictures" / "notes.txt").write_text("no picture")
    return {"2025.pkl": ids.tolist(), "2024.pkl": plain, "str.pkl": ids.tolist(), "array5.pkl": ids.tolist(),
            "old.pkl": ids.tolist(), "names.pkl": [f"n{i}" for i in ids], "nhwc.npy": plain, "nchw.npy": plain,
            "pictures": [f"img{i}" for i in plain]}                 # 2 before 10


def test_every_input_format_gives_the_same_images(tmp_path):
    images = data.fake_data(train=False)[0][:12]
    for name, ids in inputs(tmp_path).items():
        found_ids, found = predict.read_images(tmp_path / name)
        assert torch.equal(found, images) and found_ids == ids, name
    Image.fromarray(images[0].permute(1, 2, 0).numpy()).resize((64, 80)).convert("L").save(tmp_path / "big.jpg")
    assert predict.read_images(tmp_path / "big.jpg")[1].shape == (1, 3, 32, 32)


def test_ids_of_a_file_come_out_in_its_order_and_names_as_valid_csv(trained, tmp_path):
    images = data.fake_data(train=False)[0][:5].permute(0, 2, 3, 1).numpy()
    for ids in ([9, 3, 7, 1, 5], ["a,b", 'say "hi"', "two\nlines", "a;b", "ünï"]):
        (tmp_path / "x.pkl").write_bytes(pickle.dumps({b"data": images, b"ids": ids}))
        predict.main(["--ckpt", str(trained / "best.pt"), "--input", str(tmp_path / "x.pkl"), "--out", str(tmp_path / "s.csv"), "--tta"])
        assert [row[0] for row in rows(tmp_path / "s.csv")] == ["ID", *map(str, ids)]


# ---- untrusted files -------------------------------------------------------------------------------


def array_pickle(dtype, state):
    """A pickle of an array whose dtype and content are claimed by hand."""
    kind = b"cnumpy\ndtype\n(" + pickle.dumps(dtype, 2)[2:-1] + b"K\x00K\x01tR"
    return (b"\x80\x02}U\x04datacnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85U\x01btR(K\x01"
            + pickle.dumps(state[0], 2)[2:-1] + kind + b"\x89" + pickle.dumps(state[1], 2)[2:-1] + b"tbs.")


@pytest.mark.parametrize("raw", [
    pytest.param(array_pickle("O8", ((8,), [])), id="objects"),
    pytest.param(array_pickle("V8", ((2,), b"A" * 16)), id="records"),
    pytest.param(array_pickle("u1", ((10 ** 10,), b"")), id="10 GB in no bytes"),
    pytest.param(b"\x80\x05\x96" + (3 * 2 ** 30).to_bytes(8, "little") + b".", id="3 GB of bytes in none"),
    pytest.param(pickle.dumps({"data": np.zeros((2, 3072), np.uint8), "ids": [7, 7]}), id="an id twice"),
    pytest.param(pickle.dumps({"data": np.zeros((2, 3072), np.uint8), "ids": [1.5, 2.5]}), id="ids that are no numbers"),
])
def test_a_pickle_that_lies_about_itself_is_refused(tmp_path, raw):
    (tmp_path / "x.pkl").write_bytes(raw)
    with pytest.raises(SystemExit, match="cannot read"):
        predict.read_images(tmp_path / "x.pkl")


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("protocol", range(6))
def test_a_pickle_that_would_run_code_is_refused_by_name(tmp_path, protocol):
    (tmp_path / "x.pkl").write_bytes(pickle.dumps({b"data": Evil(tmp_path / "created")}, protocol=protocol))
    with pytest.raises(SystemExit, match=r"wants to load \w*io\.open"):
        predict.read_images(tmp_path / "x.pkl")
    assert not (tmp_path / "created").exists()


def test_a_checkpoint_or_npy_that_would_run_code_is_refused(tmp_path):
    torch.save({"model": Evil(tmp_path / "created")}, tmp_path / "x.pt")
    with pytest.raises(SystemExit, match="no whole checkpoint"):
        model.load_checkpoint(tmp_path / "x.pt")
    np.save(tmp_path / "x.npy", np.array([Evil(tmp_path / "created")], dtype=object), allow_pickle=True)
    with pytest.raises(SystemExit, match="cannot read"):
        predict.read_images(tmp_path / "x.npy")
    assert not (tmp_path / "created").exists()


WRONG_CHECKPOINTS = {       # what is changed, and a word of what the refusal says
    "list": (lambda good: [1, 2], "TypeError"),
    "no config": (lambda good: {"model": good["model"]}, "config"),
    "no model": (lambda good: {"config": good["config"]}, "model"),
    "foreign key": (lambda good: good | {"model": good["model"] | {"fc.weight": torch.zeros(2)}}, "fc.weight"),
    "missing key": (lambda good: good | {"model": {k: v for k, v in good["model"].items() if "bias" not in k}}, "bias"),
    "wrong shape": (lambda good: good | {"model": good["model"] | {"classifier.bias": torch.zeros(11)}}, "size mismatch"),
    "no number": (lambda good: good | {"model": good["model"] | {"classifier.bias": torch.full((10,), math.nan)}}, "finite"),
    "over the budget": (lambda good: good | {"config": good["config"] | {"widths": [64, 128, 9999]}}, "the budget is"),
    "text for blocks": (lambda good: good | {"config": good["config"] | {"blocks": "432"}}, "TypeError"),
}


@pytest.mark.parametrize("name", WRONG_CHECKPOINTS)
def test_a_checkpoint_that_does_not_fit_is_refused(trained, tmp_path, name):
    change, why = WRONG_CHECKPOINTS[name]
    torch.save(change(load(trained / "best.pt")), tmp_path / "x.pt")
    with pytest.raises(SystemExit, match=why):
        model.load_checkpoint(tmp_path / "x.pt")


def test_a_checkpoint_larger_than_it_looks_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb/data.pkl", bytes(model.MAX_CHECKPOINT + 1))
    with pytest.raises(SystemExit, match="larger than 200,000,000 bytes"):
        model.load_checkpoint(tmp_path / "bomb.pt")


def mutations(content, number, draw):
    """Damaged copies of a file: cut short, single bits and bytes changed, pieces moved or zeroed."""
    for i in range(number):
        damaged, at = bytearray(content), draw.randrange(len(content))
        if i % 4 == 0:
            damaged = damaged[:at]
        elif i % 4 == 1:
            damaged[at] ^= 1 << draw.randrange(8)
        elif i % 4 == 2:
            for _ in range(8):
                damaged[draw.randrange(min(len(content), 400))] = draw.randrange(256)       # headers
        else:
            damaged[at:at + 16] = damaged[at // 2:at // 2 + 16]
        yield bytes(damaged)


def seeds(folder, best):
    """Good files of every kind that is read: (name, how it is read)."""
    images = data.fake_data(train=False)[0][:3].permute(0, 2, 3, 1).numpy()
    for protocol in (2, 4):
        (folder / f"p{protocol}.pkl").write_bytes(pickle.dumps({b"data": images, b"ids": np.arange(3)}, protocol=protocol))
    np.save(folder / "a.npy", images)
    for name in ("a.png", "a.jpg", "a.bmp", "a.webp"):
        Image.fromarray(images[0]).save(folder / name)
    (folder / "best.pt").write_bytes(Path(best).read_bytes())
    return {path: model.load_checkpoint if path.suffix == ".pt" else predict.read_images for path in sorted(folder.iterdir())}


def attack(folder, best, number, seed):
    """Read `number` damaged files; returns (refused, read). Anything but SystemExit or a right answer raises."""
    draw, refused, read = random.Random(seed), 0, 0
    files = seeds(folder, best)
    for path, reader in files.items():
        content, wanted = path.read_bytes(), reader(path)
        for damaged in mutations(content, number // len(files), draw):
            path.write_bytes(damaged)
            try:
                found = reader(path)
            except SystemExit as error:
                assert str(error).startswith("error: ") and "\n" not in str(error) and len(str(error)) < 1000
                refused += 1
                continue
            read += 1
            if path.suffix == ".pt":            # a check sum covers every byte that counts
                assert same(found[0].state_dict(), wanted[0].state_dict())
            else:                               # pixels carry no check sum, but shape and kind are right
                assert found[1].shape[1:] == (3, 32, 32) and found[1].dtype == torch.uint8 and len(found[0]) == len(found[1])
        path.write_bytes(content)
    return refused, read


@pytest.mark.filterwarnings("ignore")
def test_damaged_files_are_refused_or_read_right(trained, tmp_path):
    refused, read = attack(tmp_path, trained / "best.pt", 400, seed=0)
    assert refused + read >= 390 and refused > 100


def test_a_damaged_archive_is_never_data(server, tmp_path, monkeypatch):
    _, archive = server
    monkeypatch.setattr(data, "MIRRORS", [])
    content = archive.read_bytes()
    for damaged in mutations(content, 40, random.Random(1)):
        if damaged != content:
            (tmp_path / "cifar-10-python.tar.gz").write_bytes(damaged)
            with pytest.raises(SystemExit, match="put cifar-10-python.tar.gz"):
                data.load_data(tmp_path, train=True)


# ---- wrong input -----------------------------------------------------------------------------------


def png(width, height):
    """A PNG of that size by its header, with next to nothing in it."""
    chunk = lambda kind, body: (len(body).to_bytes(4, "big") + kind + body          # noqa: E731
                                + zlib.crc32(kind + body).to_bytes(4, "big"))
    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 2, 0, 0, 0])
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"x") + chunk(b"IEND", b"")


@pytest.fixture(scope="session")
def wrong(tmp_path_factory, trained):
    """A folder of files that are not what they should be."""
    folder = tmp_path_factory.mktemp("wrong")
    for name in ("pictures", "empty", "foreign/cifar-10-batches-py"):
        (folder / name).mkdir(parents=True)
    (folder / "foreign/cifar-10-batches-py/data_batch_1").write_bytes(b"something else")
    (folder / "file").write_text("not a folder")
    (folder / "pictures/1.png").write_bytes(b"not a picture")
    (folder / "huge.png").write_bytes(png(100_000, 100_000))
    np.save(folder / "float.npy", np.zeros((2, 32, 32, 3)))
    np.save(folder / "shape.npy", np.zeros((2, 28, 28), np.uint8))
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (10 ** 9, 32, 32, 3)})
    (folder / "claims.npy").write_bytes(header.getvalue() + bytes(100))
    (folder / "list.pkl").write_bytes(pickle.dumps([1, 2]))
    (folder / "nodata.pkl").write_bytes(pickle.dumps({"images": 1}))
    os.mkfifo(folder / "pipe.pkl")
    Image.fromarray(np.zeros((4, 4), np.uint16)).save(folder / "deep.png")
    (folder / "ids.pkl").write_bytes(pickle.dumps({"data": np.zeros((2, 3072), np.uint8), "ids": [1]}))
    (folder / "best.pt").write_bytes((trained / "best.pt").read_bytes())
    return folder


@pytest.mark.parametrize("name, why", {
    "huge.png": "exceeds limit", "pictures": "cannot identify", "empty": "0 pictures", "float.npy": "but float64",
    "shape.npy": r"shape \(2, 28, 28\)", "claims.npy": "cannot read", "list.pkl": "cannot read", "nodata.pkl": "no uint8 array",
    "ids.pkl": "different whole numbers or names", "pipe.pkl": "no file", "deep.png": "16 bits", "file": "cannot read",
    "none.pkl": "no file"}.items())
def test_an_input_that_is_no_images_is_one_line(wrong, name, why):
    with pytest.raises(SystemExit, match=why) as error:
        predict.main(["--ckpt", str(wrong / "best.pt"), "--out", str(wrong / "out.csv"), "--input", str(wrong / name)])
    assert str(error.value).startswith("error: ") and "\n" not in str(error.value) and not (wrong / "out.csv").exists()


@pytest.mark.parametrize("command, why", [
    ("predict.py --ckpt no.pt", "there is no checkpoint"), ("predict.py --ckpt file", "no whole checkpoint"),
    ("predict.py --ckpt best.pt --data empty", "put cifar-10-python.tar.gz"),
    ("predict.py --ckpt best.pt --data fake --out file/x.csv", "file/x.csv': Not a directory"),
    ("predict.py --ckpt best.pt --data fake --out none/x.csv", "none/x.csv': No such file or directory"),
    ("predict.py --ckpt best.pt --data fake --out empty", "must be the name of a .csv"),
    ("predict.py --ckpt best.pt --data fake --device cuda:99", "there is no device 'cuda:99'"),
    ("predict.py --ckpt best.pt --data fake --device meta", "there is no device 'meta'"),
    ("predict.py --ckpt best.pt --data fake --out best.pt", "must be the name of a .csv"),
    ("train.py --data foreign", "put cifar-10-python.tar.gz"), ("train.py --data file", "file"),
    ("train.py --widths 65 128 256", "the budget is fewer than 5,000,000"), ("train.py --out file", "File exists"),
    ("train.py --val-size 10000", "0 images are less than a batch of 128"),
    ("model.py --widths 64 128 999", "the budget is")], ids=str)
def test_a_wrong_file_or_value_is_one_line_and_status_1(wrong, monkeypatch, command, why):
    monkeypatch.setattr(data, "MIRRORS", ["http://127.0.0.1:9/nobody-listens"])
    monkeypatch.chdir(wrong)
    name, *argv = shlex.split(command)
    fake = ["--data", "fake"] * (name in ("train.py", "data.py") and "--data" not in argv)
    out = ["--out", "run"] * (name == "train.py" and "--out" not in argv)
    with pytest.raises(SystemExit, match=why) as error:
        model.start(lambda: script(name).main([*fake, *out, *argv]))
    assert str(error.value).startswith("error: ") and "\n" not in str(error.value)
    assert not list(wrong.rglob("*.csv")) + list(wrong.rglob("*.part"))


@pytest.mark.parametrize("flags, why", [
    ("--epochs 0", "int from 1"), ("--lr nan", "float from 0"), ("--lr x", "float from 0"), ("--batch-size 0", "int from 1"),
    ("--dropout 1.5", "float from 0 to 1"), ("--blocks 0 1 1", "int from 1"), ("--recipe best", "invalid choice"),
    ("--augment blur", "invalid choice"), ("--sizes 64", "int from 8 to 32"), ("--nonsense", "unrecognized arguments")], ids=str)
def test_a_wrong_flag_is_argparses_line_and_status_2(capsys, flags, why):
    with pytest.raises(SystemExit) as error:
        train.parse_args(flags.split())
    assert error.value.code == 2 and why in capsys.readouterr().err.splitlines()[-1]


# ---- the README ------------------------------------------------------------------------------------


def script(name):
    """A script as a module: one of the four, or one of another folder."""
    if name in ("model.py", "data.py", "train.py", "predict.py"):
        return importlib.import_module(name[:-3])
    spec = importlib.util.spec_from_file_location(Path(name).stem + "_script", HERE / name)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def readme_commands():
    """Every `python SCRIPT.py ...` of the README, in a block or in a line."""
    text = (HERE / "README.md").read_text()
    for part in re.findall(r"```.*?```", text, re.DOTALL) + re.findall(r"`[^`\n]+`", text):
        yield from (command.strip() for command in re.findall(r"python [\w./]+\.py[^\n#&`]*", part))


def test_every_command_in_the_readme_parses():
    commands = [shlex.split(command)[1:] for command in readme_commands()]
    assert {"train.py", "predict.py", "data.py", "model.py", "results/run.py"} <= {command[0] for command in commands}
    for name, *flags in commands:
        assert (HERE / name).is_file(), name
        script(name).parse_args([] if flags == ["--help"] else flags)


def test_every_default_that_the_readme_quotes_is_the_real_one():
    text, args = (HERE / "README.md").read_text(), vars(train.parse_args([]))
    quoted = re.findall(r"`--([a-z-]+)` \(default ([^)]+)\)", text)
    assert len(quoted) >= 8
    for name, value in quoted:
        real = args[name.replace("-", "_")]
        shown = " ".join(map(str, real)) if isinstance(real, list) else real
        assert value == shown or float(value) == real, name


def test_every_table_of_numbers_is_what_the_logs_say():
    script("results/tables.py").main(["--check"])


# ---- the real data ---------------------------------------------------------------------------------


@needs_cifar10
def test_mean_and_std_are_those_of_the_training_images():
    images, labels = data.load_data(os.environ["CIFAR10"], train=True)
    assert images.shape == (50_000, 3, 32, 32) and torch.bincount(labels).tolist() == [5000] * 10
    pixels = images.permute(1, 0, 2, 3).reshape(3, -1).double() / 255
    assert [round(x, 4) for x in pixels.mean(1).tolist()] == data.MEAN
    assert [round(x, 4) for x in pixels.std(1).tolist()] == data.STD


@needs_cifar10
def test_one_epoch_on_the_real_data_is_far_above_chance_and_its_csv_scores_it(tmp_path, capsys):
    flags = ["--data", os.environ["CIFAR10"], "--device", "cpu"]
    train.main([*flags, *"--blocks 1 1 1 --widths 8 16 32 --epochs 1 --lr 5e-3 --train-size 15000".split(), "--out", str(tmp_path)])
    predict.main([*flags, "--ckpt", str(tmp_path / "best.pt"), "--out", str(tmp_path / "s.csv")])
    labels = data.load_data(os.environ["CIFAR10"], train=False)[1].tolist()
    table = rows(tmp_path / "s.csv")
    assert len(table) == 10_001
    right = sum(int(row[1]) == label for row, label in zip(table[1:], labels)) / 10_000
    assert f"accuracy {right:.2%} on 10,000 test images" in capsys.readouterr().out and right > 0.25
