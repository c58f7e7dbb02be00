"""The tests: python -m pytest, offline, without a GPU.

With CIFAR10=DIR in the environment the last ones also run on the real data in DIR.
"""
import csv
import functools
import hashlib
import http.server
import importlib.util
import io
import json
import math
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
import time
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import data
import model
import predict
import train
from model import ResNet, UserError

HERE = Path(__file__).resolve().parent
data.fake_data = functools.cache(data.fake_data)        # made once for all tests; nobody writes into it
torch.set_num_threads(1)        # these networks are too small to share, and a busy machine makes sharing slow
TINY = "--data fake --device cpu --blocks 1 1 1 --widths 2 4 4 --lr 1e-2 --val-size 9000 --batch-size 100".split()
FULL = "--val-size 8400 --batch-size 50 --widths 8 16 16 --ema 0.5 --mix cutmix --decay weights --warmup 1 --dropout 0.1".split()
needs_cifar10 = pytest.mark.skipif("CIFAR10" not in os.environ, reason="set CIFAR10=DIR to test on the real data")


def script(name):
    """A script outside the top folder as a module."""
    spec = importlib.util.spec_from_file_location(Path(name).stem + "_script", HERE / name)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def history(folder):
    """log.csv without the columns that time the machine."""
    with open(folder / "log.csv", newline="") as file:
        return [{k: v for k, v in row.items() if k not in ("images_per_s", "seconds")} for row in csv.DictReader(file)]


def weights(path):
    return torch.load(path, weights_only=True)["model"]


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture
def few(monkeypatch):
    """Makes train.py see 1,200 training and 200 test images of the fake data, and learn them in a second."""
    sets = {train: tuple(part[:1200 if train else 200] for part in data.fake_data(train)) for train in (True, False)}
    monkeypatch.setattr(train, "load_data", lambda where, train: sets[train])
    return [*TINY, "--val-size", "200"]


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A finished run of a tiny network on fake data, with every part of the strong recipe switched on."""
    out = tmp_path_factory.mktemp("trained")
    train.main([*TINY, *FULL, "--epochs", "3", "--out", str(out)])
    return out


# ---- model.py ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("blocks, expected", [((4, 5, 3), 4_992_586), ((2, 2, 2), 2_777_674)])
def test_parameters_are_those_of_the_paper_and_of_written_arithmetic(blocks, expected):
    conv = lambda i, o, k: i * o * k * k + 2 * o        # noqa: E731  a convolution and its batch norm
    a, b, c = blocks
    by_hand = (conv(3, 64, 3) + 2 * a * conv(64, 64, 3)
               + conv(64, 128, 3) + (2 * b - 1) * conv(128, 128, 3) + conv(64, 128, 1)
               + conv(128, 256, 3) + (2 * c - 1) * conv(256, 256, 3) + conv(128, 256, 1) + 256 * 10 + 10)
    built = sum(p.numel() for p in ResNet(blocks).parameters() if p.requires_grad)
    assert by_hand == built == model.parameter_count(blocks, (64, 128, 256)) == expected


def test_plain_network_lacks_exactly_the_shortcuts():
    shortcuts = 64 * 128 + 2 * 128 + 128 * 256 + 2 * 256
    residual, plain = ResNet(), ResNet(residual=False)
    assert sum(p.numel() for p in residual.parameters()) - sum(p.numel() for p in plain.parameters()) == shortcuts
    assert residual.state_dict().keys() - plain.state_dict().keys() == {
        name for name in residual.state_dict() if "shortcut" in name}
    assert model.parameter_count((4, 5, 3), (64, 128, 256), residual=False) == 4_992_586 - shortcuts


def test_skip_carries_the_image_around_the_convolutions():
    block = model.Block(4, 4).eval()
    torch.nn.init.zeros_(block.conv2.weight)
    x = torch.rand(2, 4, 8, 8)
    assert torch.equal(block(x), x) and block(x).shape == model.Block(4, 4, residual=False)(x).shape
    assert model.Block(4, 8, stride=2)(x).shape == (2, 8, 4, 4)


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


def test_table_and_figure_show_the_real_shapes(tmp_path, capsys):
    model.main(["--figure", str(tmp_path / "net.png")])
    out = capsys.readouterr().out
    assert "4,992,586" in out and "256 x 8 x 8" in out and "99.9% of 5,000,000" in out
    assert Image.open(tmp_path / "net.png").width > 500


# ---- data.py -----------------------------------------------------------------------------------------------


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


def test_papers_augmentation_stands_in_the_papers_order():
    names = [type(step).__name__ for step in data.augmentation().transforms]
    assert names[:5] == ["RandomCrop", "RandomHorizontalFlip", "RandomRotation", "ColorJitter", "AutoAugment"]
    normalise, erasing = data.augmentation().transforms[5:]
    assert [type(step).__name__ for step in normalise.transforms] == ["ToDtype", "Normalize"]
    assert type(erasing).__name__ == "RandomErasing" and erasing.p == 0.2
    out = data.augment(data.fake_data(train=False)[0][:50], data.augmentation(), 10)
    assert out.shape == (50, 3, 32, 32) and out.dtype == torch.float32 and out.isfinite().all()


def test_split_is_disjoint_balanced_and_stable():
    labels = torch.arange(1000) % 10
    first, val = data.split(labels, 100, seed=3)
    torch.manual_seed(99)
    again = data.split(labels, 100, seed=3)
    assert torch.equal(first, again[0]) and torch.equal(val, again[1])      # not by the global random state
    assert sorted([*first.tolist(), *val.tolist()]) == list(range(1000))
    assert torch.bincount(labels[val]).tolist() == [10] * 10
    assert not torch.equal(val, data.split(labels, 100, seed=4)[1])
    assert len(data.split(labels, 0, seed=3)[1]) == 0


def test_fake_data_is_the_same_each_time():
    a, b = (data.fake_data.__wrapped__(train=True) for _ in range(2))
    assert torch.equal(a[0], b[0]) and a[0].shape == (10_000, 3, 32, 32) and a[0].dtype == torch.uint8
    assert not torch.equal(a[0][:2000], data.fake_data(train=False)[0])


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
    assert asked == ["/down", "/wrong", "/cut", "/good"]
    assert images.shape == (20, 3, 32, 32) and images.unique().tolist() == [1] and labels.tolist() == list(range(10)) * 2
    data.load_data(tmp_path / "new" / "cifar-10-batches-py", train=True)            # the folder itself will do
    assert len(asked) == 4                                                          # and nothing is fetched again


def test_a_failed_download_leaves_nothing_that_passes_for_the_data(server, tmp_path, monkeypatch):
    monkeypatch.setattr(data, "MIRRORS", data.MIRRORS[:3])
    with pytest.raises(UserError, match=r"put cifar-10-python.tar.gz .* --data fake"):
        data.load_data(tmp_path / "new", train=True)
    assert list((tmp_path / "new").iterdir()) == []


def test_an_archive_in_the_folder_is_unpacked_without_a_network(server, tmp_path):
    asked, archive = server
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "cifar-10-python.tar.gz").write_bytes(archive.read_bytes()[:-40])
    with pytest.MonkeyPatch.context() as patch, pytest.raises(UserError):           # cut short: refused
        patch.setattr(data, "MIRRORS", [])
        data.load_data(tmp_path / "new", train=True)
    archive.rename(tmp_path / "new" / "cifar-10-python.tar.gz")
    assert len(data.load_data(tmp_path / "new", train=True)[0]) == 20 and asked == []
    batch = tmp_path / "new" / "cifar-10-batches-py" / "data_batch_1"               # a damaged file is unpacked anew
    batch.write_bytes(batch.read_bytes()[:-1] + b"x")
    assert data.load_data(tmp_path / "new", train=True)[0].sum() == 0


# ---- train.py ----------------------------------------------------------------------------------------------


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
    assert (args.warmup, args.ema, args.mix, args.decay, args.augment, args.dropout) == (0, 0, "none", "all", data.PAPER, 0)
    assert args.blocks == [4, 5, 3] and args.widths == [64, 128, 256] and args.val_size == 5000 and args.group == 250
    strong = train.parse_args(["--recipe", "strong", "--lr", "0.5"])
    assert strong.lr == 0.5 and strong.mix == train.RECIPES["strong"]["mix"]       # a flag overrides its recipe


def test_each_parameter_is_in_exactly_one_decay_group():
    net = ResNet((1, 1, 1), (4, 8, 8))
    for decay, n_decayed in (("all", len(list(net.parameters()))), ("weights", 10)):    # 9 convolutions, 1 linear layer
        decayed, others = train.parameter_groups(net, 0.3, decay)
        ids = [id(p) for p in decayed["params"] + others["params"]]
        assert sorted(ids) == sorted(id(p) for p in net.parameters())
        assert len(decayed["params"]) == n_decayed and decayed["weight_decay"] == 0.3 and others["weight_decay"] == 0
    assert {p.dim() for p in others["params"]} == {1}


def test_evaluation_is_exact_on_a_ragged_last_batch():
    net = ResNet((1, 1, 1), (4, 8, 8))
    images, labels = data.fake_data(train=False)
    images, labels, normalise = images[:23], labels[:23], data.normalisation()
    logits = predict.predict(net, images, normalise, batch_size=7)
    with torch.no_grad():
        whole = net.eval()(normalise(images))
    torch.testing.assert_close(logits, whole)
    assert predict.accuracy(logits, whole.argmax(1)) == 1
    assert predict.accuracy(F.one_hot(torch.tensor([0, 1, 2])).float(), torch.tensor([0, 1, 1])) == 2 / 3
    mirrored = predict.predict(net, images.flip(3), normalise, batch_size=7)
    torch.testing.assert_close(predict.predict(net, images, normalise, tta=True), (logits + mirrored) / 2)


def test_mixing_keeps_labels_and_images_together():
    x, y = torch.rand(8, 3, 32, 32), torch.arange(8)
    assert train.mixing("none")(x, y) == (x, y)
    for name in ("mixup", "cutmix", "both"):
        mixed, target = train.mixing(name)(x, y)
        assert mixed.shape == x.shape and target.shape == (8, 10)
        torch.testing.assert_close(target.sum(1), torch.ones(8))
        assert target[:, 8:].sum() == 0 and (target > 0).sum() <= 16


def test_training_learns_and_leaves_every_file(trained):
    rows = history(trained)
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    assert float(rows[2]["val_loss"]) < float(rows[0]["val_loss"])
    result = json.loads((trained / "result.json").read_text())
    best = max(rows, key=lambda row: float(row["val_acc"]))
    assert result["val_acc"] == float(best["val_acc"]) > 0.3 and result["test_acc"] > 0.3        # chance: 0.1
    assert result["parameters"] == model.parameter_count((1, 1, 1), (8, 16, 16)) and result["settings"]["mix"] == "cutmix"
    assert Image.open(trained / "curves.png").width > 500
    assert not list(trained.glob("*.part"))


def test_the_best_epoch_is_the_first_with_the_highest_validation_accuracy():
    def run(*accuracies):
        return [{"epoch": i + 1, "val_acc": value} for i, value in enumerate(accuracies)]
    assert train.best_epoch(run(0.5, 0.7, 0.7, 0.6)) == 2 and train.best_epoch(run(0.1)) == 1
    assert train.best_epoch(run(None, None, None)) == 3


def test_checkpoint_round_trip_gives_equal_logits(trained):
    net, checkpoint = predict.load_checkpoint(trained / "best.pt")
    rebuilt = ResNet(**checkpoint["config"])
    rebuilt.load_state_dict(weights(trained / "best.pt"))
    x = torch.randn(5, 3, 32, 32)
    assert torch.equal(net(x), rebuilt.eval()(x)) and checkpoint["config"]["widths"] == [8, 16, 16]
    assert not any("module." in name or "_orig_mod" in name for name in checkpoint["model"])
    assert checkpoint["mean"] == data.MEAN and checkpoint["classes"] == data.NAMES
    last = torch.load(trained / "last.pt", weights_only=True)
    assert not same(last["training"]["model"], last["model"])                       # EMA: what predicts is the average


def test_the_same_seed_gives_the_same_run_and_another_another(few, tmp_path):
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        torch.manual_seed(len(name) * seed * 7)             # whatever the random state was before
        train.main([*few, "--epochs", "1", "--seed", str(seed), "--out", str(tmp_path / name)])
    assert history(tmp_path / "a") == history(tmp_path / "b") != history(tmp_path / "c")
    assert same(weights(tmp_path / "a/best.pt"), weights(tmp_path / "b/best.pt"))


def test_fp16_trains_with_a_gradient_scaler(few, tmp_path):
    train.main([*few, "--epochs", "2", "--amp", "fp16", "--out", str(tmp_path)])
    rows, scaler = history(tmp_path), torch.load(tmp_path / "last.pt", weights_only=True)["training"]["scaler"]
    assert scaler["scale"] >= 2 and float(rows[1]["train_loss"]) < float(rows[0]["train_loss"])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("amp", ["fp16", "bf16"])
def test_training_on_a_gpu_writes_what_a_cpu_reads(tmp_path, amp):
    train.main([*TINY, "--device", "cuda", "--epochs", "2", "--amp", amp, "--ema", "0.9", "--out", str(tmp_path)])
    assert all(tensor.device.type == "cpu" for tensor in torch.load(tmp_path / "best.pt", weights_only=True)["model"].values())
    train.main([*TINY, "--device", "cuda", "--epochs", "2", "--amp", amp, "--ema", "0.9", "--out", str(tmp_path), "--resume"])


def test_compiled_training_leaves_ordinary_names(few, tmp_path, monkeypatch):
    compile = torch.compile
    monkeypatch.setattr(torch, "compile", lambda net, mode: compile(net, backend="eager"))     # no C++ compiler needed
    train.main([*few, "--epochs", "1", "--compile", "--out", str(tmp_path)])
    assert weights(tmp_path / "best.pt").keys() == ResNet((1, 1, 1), (2, 4, 4)).state_dict().keys()


def test_a_run_without_validation_keeps_its_last_epoch(few, tmp_path):
    train.main([*few, "--val-size", "0", "--epochs", "2", "--widths", "2", "2", "2", "--out", str(tmp_path)])
    assert torch.load(tmp_path / "best.pt", weights_only=True)["epoch"] == 2 and history(tmp_path)[0]["val_acc"] == ""


def test_without_a_terminal_there_is_a_line_an_epoch_and_no_control_character(few, tmp_path, capfd):
    train.main([*few, "--epochs", "2", "--out", str(tmp_path)])
    out, err = capfd.readouterr()
    assert len(re.findall(r"^epoch \d/2  lr .* train .* val .* images/s .* left$", out, re.MULTILINE)) == 2
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", out) and err == ""
    assert "2 epochs of 10 steps: about" in out and "test accuracy" in out
    assert f"python predict.py --ckpt {tmp_path}/best.pt --data fake" in out


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_epoch(few, tmp_path, monkeypatch):
    real = train.augment
    epochs = []

    def poisoned(*args):                        # the third epoch meets a nan
        epochs.append(1)
        return real(*args) * (math.nan if len(epochs) == 3 else 1)

    monkeypatch.setattr(train, "augment", poisoned)
    with pytest.raises(UserError, match=r"not finite at step 1 of epoch 3: try a lower --lr"):
        train.main([*few, "--epochs", "4", "--out", str(tmp_path)])
    assert torch.load(tmp_path / "last.pt", weights_only=True)["epoch"] == 2 == len(history(tmp_path))


# ---- interruption ------------------------------------------------------------------------------------------


RUN = [*TINY, "--epochs", "3", "--ema", "0.9", "--dropout", "0.2", "--mix", "both"]


@pytest.fixture(scope="session")
def uninterrupted(tmp_path_factory):
    out = tmp_path_factory.mktemp("uninterrupted")
    train.main([*RUN, "--out", str(out)])
    return out


def test_a_resumed_run_equals_an_uninterrupted_one(uninterrupted, tmp_path, monkeypatch):
    real = train.save

    def interrupted(*args):
        real(*args)
        if len(args[-1]) < 3:                   # the history: stop after the first and after the second epoch
            raise KeyboardInterrupt

    monkeypatch.setattr(train, "save", interrupted)
    for attempt in range(3):
        try:
            train.main([*RUN, "--out", str(tmp_path), *["--resume"] * (attempt > 0)])
        except KeyboardInterrupt as stop:
            assert "go on with: python train.py" in str(stop) and str(stop).endswith("--resume")
    assert_same_run(tmp_path, uninterrupted)


def assert_same_run(folder, reference):
    assert history(folder) == history(reference)
    ours, theirs = torch.load(folder / "last.pt", weights_only=True), torch.load(reference / "last.pt", weights_only=True)
    assert same(ours["model"], theirs["model"]) and same(ours["training"]["model"], theirs["training"]["model"])
    best = [torch.load(path / "best.pt", weights_only=True) for path in (folder, reference)]
    assert best[0]["epoch"] == best[1]["epoch"] and same(best[0]["model"], best[1]["model"])


def start(*flags):
    return subprocess.Popen([sys.executable, str(HERE / "train.py"), *flags], cwd=HERE, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ | {"OMP_NUM_THREADS": "1"},
                            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))    # a script's & ignores it


def wait_for_write(folder, alive):
    """Return at the moment when a file is being written in the folder, or the process has ended."""
    while alive() and not (folder.is_dir() and any(name.endswith(".part") for name in os.listdir(folder))):
        pass


def test_a_killed_run_loses_at_most_its_epoch_and_ends_with_the_same_bits(uninterrupted, tmp_path):
    """kill -9 at a random moment, then in the middle of a write; benchmarks/soak.py does it 200 times."""
    moments = random.Random(0)
    for attempt in range(2):
        process = start(*RUN, "--out", str(tmp_path), *["--resume"] * (tmp_path / "last.pt").exists())
        for line in process.stdout:
            if re.match(r"\d epochs of|epoch", line):
                break
        time.sleep(moments.uniform(0, 0.5))
        if attempt:
            wait_for_write(tmp_path, lambda: process.poll() is None)
        process.kill()
        process.communicate()
        for name in ("last.pt", "best.pt"):                 # whole, or not there yet
            if (tmp_path / name).exists():
                predict.load_checkpoint(tmp_path / name)
    saved = tmp_path / "last.pt"
    done = torch.load(saved, weights_only=True)["epoch"] if saved.exists() else 0
    process = start(*RUN, "--out", str(tmp_path), *["--resume"] * (tmp_path / "last.pt").exists())
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0 and err == "" and out.count("\nepoch ") == 3 - done
    assert_same_run(tmp_path, uninterrupted)


def test_a_stop_signal_ends_in_one_line_with_the_command_that_goes_on(tmp_path):
    runs = []
    for number, status in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):        # side by side: both must import torch
        out = tmp_path / str(status)
        flags = [*TINY, "--epochs", "1000", "--out", str(out)]
        runs.append((start(*flags), flags, out, number, status))
    for process, flags, out, number, status in runs:
        for line in process.stdout:
            if line.startswith("epoch"):
                break
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
        assert process.returncode == status and err.count("\n") == 1 and "Traceback" not in err
        command = err.strip().split("go on with: python train.py ")[1]
        assert shlex.split(command) == [*flags, "--resume"]
        assert f"last.pt holds epoch {torch.load(out / 'last.pt', weights_only=True)['epoch']}" in err


def test_resume_refuses_what_it_cannot_continue_and_changes_nothing(trained, tmp_path):
    flags = [*TINY, *FULL, "--resume", "--epochs", "3", "--out"]
    with pytest.raises(UserError, match="no last.pt in .* to resume from"):
        train.main([*flags, str(tmp_path / "empty")])
    before = {path.name: path.read_bytes() for path in trained.iterdir()}
    for extra, name in ((["--epochs", "5"], "epochs = 3, not 5"), (["--lr", "0.5"], "lr = 0.01, not 0.5"), (["--mix", "none"], "mix")):
        with pytest.raises(UserError, match=name):
            train.main([*flags, str(trained), *extra])
    with pytest.raises(UserError, match="earlier run.*--resume.*--out"):
        train.main([*TINY, "--out", str(trained)])
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs/log.csv").write_text("kept")
    with pytest.raises(UserError, match="earlier run's log.csv"):
        train.main([*TINY, "--out", str(tmp_path / "logs")])
    assert {path.name: path.read_bytes() for path in trained.iterdir()} == before
    (tmp_path / "last.pt").write_bytes(before["last.pt"][:5000])
    with pytest.raises(UserError, match="damaged"):
        train.main([*flags, str(tmp_path)])
    checkpoint = torch.load(trained / "last.pt", weights_only=True)
    for state in checkpoint["training"]["optimizer"]["state"].values():
        state["exp_avg"] = torch.zeros(1)
    torch.save(checkpoint, tmp_path / "last.pt")
    with pytest.raises(UserError, match="its optimizer is of another network"):
        train.main([*flags, str(tmp_path)])
    (tmp_path / "last.pt").write_bytes(before["best.pt"])
    with pytest.raises(UserError, match="not the last.pt of a run"):
        train.main([*flags, str(tmp_path)])
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["last.pt"]


def test_a_full_disk_is_one_line_and_leaves_the_old_file_whole(tmp_path):
    model.write_file(tmp_path / "last.pt", b"old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))       # the kernel refuses from the 1001st byte on
    try:
        with pytest.raises(UserError, match="cannot write .*last.pt: File too large; free some space"):
            model.write_file(tmp_path / "last.pt", bytes(5000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (tmp_path / "last.pt").read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1


# ---- predict.py --------------------------------------------------------------------------------------------


def rows(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def test_predict_writes_a_csv_that_scores_what_it_prints(trained, tmp_path, capsys):
    predict.main(["--ckpt", str(trained / "best.pt"), "--data", "fake", "--out", str(tmp_path / "s.csv"), "--device", "cpu"])
    out = capsys.readouterr().out
    table, (_, labels) = rows(tmp_path / "s.csv"), data.fake_data(train=False)
    assert table[0] == ["ID", "Labels"] and [row[0] for row in table[1:]] == [str(i) for i in range(2000)]
    right = sum(int(row[1]) == label for row, label in zip(table[1:], labels.tolist())) / 2000
    assert f"accuracy {right:.2%} on 2,000 test images" in out and "most often taken for" in out
    assert right == json.loads((trained / "result.json").read_text())["test_acc"]
    assert Image.open(tmp_path / "confusion.png").width > 400


def test_confusion_matrix_counts_true_classes_in_rows():
    matrix = predict.confusion_matrix(torch.tensor([1, 1, 2]), torch.tensor([1, 3, 2]))
    assert matrix[1, 1] == 1 and matrix[3, 1] == 1 and matrix[2, 2] == 1 and matrix.sum() == 3


def test_every_input_format_gives_the_same_images(tmp_path):
    images = data.fake_data(train=False)[0][:12]
    nhwc, planes = images.permute(0, 2, 3, 1).numpy(), images.reshape(12, 3072).numpy()
    ids = np.arange(100, 112)[::-1].copy()
    files = {
        "2025.pkl": ({b"data": nhwc, b"ids": ids}, 4), "2024.pkl": ({b"data": planes}, 4),
        "str.pkl": ({"data": nhwc, "ids": ids.tolist()}, 5), "old.pkl": ({b"data": planes, b"ids": ids.astype(">i4")}, 2),
        "names.pkl": ({"data": np.asfortranarray(planes), "ids": np.array([f"n{i}" for i in ids])}, 3)}
    for name, (content, protocol) in files.items():
        (tmp_path / name).write_bytes(pickle.dumps(content, protocol=protocol))
        found_ids, found = predict.read_images(tmp_path / name)
        assert torch.equal(found, images), name
        assert [int(str(i).strip("n")) for i in found_ids] == (ids.tolist() if "ids" in str(content.keys()) else list(range(12))), name
    for name, array in (("nhwc.npy", nhwc), ("nchw.npy", images.numpy())):
        np.save(tmp_path / name, array)
        assert torch.equal(predict.read_images(tmp_path / name)[1], images)
    (tmp_path / "pictures").mkdir()
    for i, array in enumerate(nhwc):
        Image.fromarray(array).save(tmp_path / "pictures" / f"img{i}.png")
    (tmp_path / "pictures" / "notes.txt").write_text("no picture")
    names, found = predict.read_images(tmp_path / "pictures")
    assert names == [f"img{i}" for i in range(12)] and torch.equal(found, images)          # 2 before 10
    Image.fromarray(nhwc[0]).resize((64, 80)).convert("L").save(tmp_path / "big.jpg")
    assert predict.read_images(tmp_path / "big.jpg")[1].shape == (1, 3, 32, 32)


def test_ids_of_a_file_come_out_in_its_order(trained, tmp_path):
    images = data.fake_data(train=False)[0][:5].permute(0, 2, 3, 1).numpy()
    (tmp_path / "x.pkl").write_bytes(pickle.dumps({b"data": images, b"ids": np.array([9, 3, 7, 1, 5])}))
    predict.main(["--ckpt", str(trained / "best.pt"), "--input", str(tmp_path / "x.pkl"), "--out", str(tmp_path / "s.csv"), "--tta"])
    assert [row[0] for row in rows(tmp_path / "s.csv")] == ["ID", "9", "3", "7", "1", "5"]


def test_names_come_out_as_valid_csv_that_is_no_formula(tmp_path):
    names = ["=1+1", "+cmd|' /C calc'!A0", "@x", " =1", "\t-x", "-5", "a,b", 'say "hi"', "two\nlines", "a\rb", "a;=1", "ünï"]
    predict.write_csv(tmp_path / "s.csv", names, range(len(names)))
    table = rows(tmp_path / "s.csv")
    assert [row[0] for row in table[1:]] == ["'" + name for name in names[:5]] + names[5:]
    assert [row[1] for row in table[1:]] == [str(i) for i in range(len(names))]
    assert b'"a;=1",10\n' in (tmp_path / "s.csv").read_bytes()                      # one cell where ; separates, too


def array_pickle(dtype, state):
    """A pickle of an array whose dtype and content are claimed by hand."""
    kind = b"cnumpy\ndtype\n(" + pickle.dumps(dtype, 2)[2:-1] + b"K\x00K\x01tR"
    return (b"\x80\x02}U\x04datacnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85U\x01btR(K\x01"
            + pickle.dumps(state[0], 2)[2:-1] + kind + b"\x89" + pickle.dumps(state[1], 2)[2:-1] + b"tbs.")


@pytest.mark.parametrize("raw", [
    array_pickle("O8", ((8,), [])), array_pickle("V8", ((2,), b"A" * 16)), array_pickle("u1", ((10 ** 10,), b"")),
    b"\x80\x05\x96" + (3 * 2 ** 30).to_bytes(8, "little") + b".",                              # claims 3 GB of bytes
    b"\x80\x02)q\x000" + b"h\x00h\x00\x86q\x000" * 45 + b"}h\x00K\x01s.",                      # a hash of 2^45 steps
    b"\x80\x02)" + b"\x85" * 1_000_000 + b"q\x000}h\x00K\x01s.",                             # a hash a million deep
    b"\x80\x02}r\xff\xff\xff\x7f.",                                                         # a memo of 32 GB
    pickle.dumps({"data": np.zeros((2, 3072), np.uint8), "ids": [1, 10 ** 5000]}),
    pickle.dumps({"data": np.zeros((2, 3072), np.uint8), "ids": [7, 7]}),
    pickle.dumps({"data": np.zeros((2, 3072), np.uint8), "ids": [True, 1.5]}),
])
def test_a_pickle_that_lies_about_itself_is_refused(tmp_path, raw):
    (tmp_path / "x.pkl").write_bytes(raw)
    with pytest.raises(UserError):
        predict.read_images(tmp_path / "x.pkl")


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_a_pickle_or_checkpoint_that_would_run_code_is_refused_by_name(tmp_path):
    victim = tmp_path / "created"
    for protocol in range(6):
        (tmp_path / "x.pkl").write_bytes(pickle.dumps({b"data": Evil(victim)}, protocol=protocol))
        with pytest.raises(UserError, match=r"wants to load \w*io\.open"):
            predict.read_images(tmp_path / "x.pkl")
    torch.save({"model": Evil(victim)}, tmp_path / "x.pt")
    with pytest.raises(UserError, match="no checkpoint"):
        predict.load_checkpoint(tmp_path / "x.pt")
    np.save(tmp_path / "x.npy", np.array([Evil(victim)], dtype=object), allow_pickle=True)
    with pytest.raises(UserError, match="cannot read"):
        predict.read_images(tmp_path / "x.npy")
    assert not victim.exists()


def png(width, height):
    """A PNG of that size by its header, with next to nothing in it."""
    chunk = lambda kind, body: (len(body).to_bytes(4, "big") + kind + body          # noqa: E731
                                + zlib.crc32(kind + body).to_bytes(4, "big"))
    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 2, 0, 0, 0])
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"x") + chunk(b"IEND", b"")


def wrong_checkpoints(good):
    """Checkpoints with one thing wrong each, and a word of what the refusal says."""
    def changed(**changes):
        return {key: value for key, value in (good | changes).items() if value is not None}
    weights, config = dict(good["model"]), good["config"]
    yield "list", [1, 2], "no dict"
    yield "classes", changed(classes=None), "'classes' is missing"
    yield "foreign", changed(model={**weights, "fc.weight": torch.zeros(2)}), "'fc.weight' is foreign"
    yield "missing", changed(model={k: v for k, v in weights.items() if k != "classifier.bias"}), "'classifier.bias' is missing"
    yield "shape", changed(model={**weights, "classifier.bias": torch.zeros(11)}), "shape \\(10,\\)"
    yield "nan", changed(model={**weights, "classifier.bias": torch.full((10,), math.nan)}), "no usable numbers"
    yield "budget", changed(config={**config, "widths": [64, 128, 9_999]}), "the budget is"
    yield "endless", changed(config={**config, "blocks": [10 ** 9, 1, 1]}), "make no network"
    yield "text", changed(config={**config, "blocks": "432"}), "three integers"
    yield "std", changed(std=[0.0, 0.2, 0.2]), "'std' must be"
    yield "names", changed(classes=["a"] * 9), "10 names"
    yield "escapes", changed(classes=["\x1b[2J"] * 10), "10 names"
    yield "bytearray", changed(extra=bytearray(5)), "its pickle names"
    yield "sparse", changed(model={**weights, "classifier.bias": torch.zeros(10).to_sparse()}), "its pickle names"
    yield "huge", changed(model={**weights, "classifier.bias": torch.zeros(1).expand(10 ** 9)}), "shape \\(10,\\)"


def test_a_checkpoint_is_checked_before_it_is_used(trained, tmp_path):
    for name, content, why in wrong_checkpoints(torch.load(trained / "best.pt", weights_only=True)):
        torch.save(content, tmp_path / "x.pt")
        with pytest.raises(UserError, match=why):
            predict.load_checkpoint(tmp_path / "x.pt")
            pytest.fail(name)
    with zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb/data.pkl", bytes(predict.MAX_CHECKPOINT + 1))
    with pytest.raises(UserError, match="too large"):
        predict.load_checkpoint(tmp_path / "bomb.pt")


def bad_calls(folder, best):
    """Every wrong input: the script, its arguments, and a word of the line that refuses them."""
    pictures = folder / "pictures"
    for name in ("pictures", "empty", "foreign/cifar-10-batches-py"):
        (folder / name).mkdir(parents=True)
    (folder / "foreign/cifar-10-batches-py/data_batch_1").write_bytes(b"something else")
    (folder / "file").write_text("not a folder")
    (pictures / "1.png").write_bytes(b"not a picture")
    (folder / "huge.png").write_bytes(png(100_000, 100_000))
    np.save(folder / "float.npy", np.zeros((2, 32, 32, 3)))
    np.save(folder / "shape.npy", np.zeros((2, 28, 28), np.uint8))
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (10 ** 9, 32, 32, 3)})
    (folder / "claims.npy").write_bytes(header.getvalue() + bytes(100))
    (folder / "claims.pkl").write_bytes(
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nJ\x00\xca\x9a\x3b\x85U\x01b\x87R.")
    (folder / "list.pkl").write_bytes(pickle.dumps([1, 2]))
    (folder / "nodata.pkl").write_bytes(pickle.dumps({"images": 1}))
    os.mkfifo(folder / "pipe.pkl")
    Image.fromarray(np.zeros((4, 4), np.uint16)).save(folder / "deep.png")
    (folder / "ids.pkl").write_bytes(pickle.dumps({"data": np.zeros((2, 3072), np.uint8), "ids": [1]}))
    to = ["--ckpt", best, "--out", str(folder / "out.csv")]
    for name, why in {"huge.png": "exceeds limit", "pictures": "1.png is no picture", "empty": "holds 0 pictures",
                      "float.npy": "must be a uint8 array, not float64", "shape.npy": "have shape (2, 28, 28)",
                      "claims.npy": "cannot read", "claims.pkl": "must hold a dict", "list.pkl": "must hold a dict",
                      "nodata.pkl": "no key 'data'", "ids.pkl": "must be 2 different whole numbers or names", "pipe.pkl": "no file or folder", "deep.png": "16 bits", "file": "cannot read",
                      "none.pkl": "there is no"}.items():
        yield predict, [*to, "--input", str(folder / name)], why
    yield predict, ["--ckpt", str(folder / "no.pt")], "there is no checkpoint"
    yield predict, ["--ckpt", str(folder / "file")], "no checkpoint of train.py"
    yield predict, [*to, "--data", str(folder / "empty")], "put cifar-10-python.tar.gz"
    yield predict, ["--ckpt", best, "--data", "fake", "--out", str(folder / "file/x.csv")], "cannot write to"
    yield predict, [*to, "--data", "fake", "--device", "cuda:99"], "there is no device 'cuda:99'"
    yield predict, [*to, "--data", "fake", "--device", "meta"], "there is no device 'meta'"
    yield predict, ["--ckpt", best, "--data", "fake", "--out", best], "would overwrite what is read"
    yield predict, ["--ckpt", best, "--data", "fake", "--out", str(folder)], "cannot be written as a file"
    for flags, why in ((["--data", str(folder / "foreign")], "put cifar-10-python.tar.gz"),
                       (["--data", str(folder / "file")], "cannot be a data folder"),
                       (["--widths", "65", "128", "256"], "5,003,199 parameters, the budget is fewer than 5,000,000"),
                       (["--blocks", "0", "1", "1"], "make no network"), (["--out", str(folder / "file")], "cannot write to"),
                       (["--epochs", "0"], "invalid integer from 1 to 1,000,000 value: '0'"), (["--lr", "nan"], "invalid number from 0"), (["--lr", "inf"], "invalid number"),
                       (["--val-size", "10000"], "less than one batch of 128"), (["--val-size", "55"], "multiple of 10"),
                       (["--warmup", "100"], "--warmup 100 must be shorter"), (["--recipe", "best"], "invalid choice"),
                       (["--augment", "blur"], "invalid choice"), (["--nonsense"], "unrecognized arguments")):
        yield train, ["--data", "fake", "--out", str(folder / "run"), *flags], why
    yield data, ["--data", "fake", "--out", str(folder / "file/augment.png")], "cannot write"
    yield data, ["--data", "fake", "--out", "."], "cannot be written as a file"
    yield model, ["--widths", "64", "128", "999"], "the budget is"


def test_every_wrong_input_is_one_line_and_status_2(trained, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(data, "MIRRORS", ["http://127.0.0.1:9/nobody-listens"])
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO()))
    for module, argv, why in bad_calls(tmp_path, str(trained / "best.pt")):
        with pytest.raises(SystemExit) as stop:
            model.run(lambda: module.main(argv))
        err = capsys.readouterr().err
        assert stop.value.code == 2 and err.startswith("error: ") and err.count("\n") == 1, (argv, err)
        assert why in err, (argv, err)
    assert not [path for path in tmp_path.rglob("*") if path.suffix in (".csv", ".part") or path.name == "best.pt"]


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
    return {path: predict.load_checkpoint if path.suffix == ".pt" else predict.read_images for path in sorted(folder.iterdir())}


def attack(folder, best, number, seed):
    """Read `number` damaged files; returns (refused, read). Anything but UserError or a right answer raises."""
    draw, refused, read = random.Random(seed), 0, 0
    files = seeds(folder, best)
    for path, reader in files.items():
        content, wanted = path.read_bytes(), reader(path)
        for damaged in mutations(content, number // len(files), draw):
            path.write_bytes(damaged)
            try:
                found = reader(path)
            except UserError as error:
                assert "\n" not in str(error).strip() or len(str(error)) < 2000
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
            with pytest.raises(UserError, match="put cifar-10-python.tar.gz"):
                data.load_data(tmp_path, train=True)


# ---- README.md ---------------------------------------------------------------------------------------------


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


# ---- the real data -----------------------------------------------------------------------------------------


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
    train.main([*flags, *"--blocks 1 1 1 --widths 8 16 32 --epochs 1 --lr 5e-3 --val-size 30000".split(), "--out", str(tmp_path)])
    predict.main([*flags, "--ckpt", str(tmp_path / "best.pt"), "--out", str(tmp_path / "s.csv")])
    labels = data.load_data(os.environ["CIFAR10"], train=False)[1].tolist()
    table = rows(tmp_path / "s.csv")
    assert len(table) == 10_001
    right = sum(int(row[1]) == label for row, label in zip(table[1:], labels)) / 10_000
    assert f"accuracy {right:.2%} on 10,000 test images" in capsys.readouterr().out and right > 0.25
