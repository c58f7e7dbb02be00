"""The tests: pytest, without internet, without a GPU. In the order of the promises: the network, the data, the
recipe, the machine, resuming, predicting, untrusted files, wrong input, the README.

With CIFAR10=DIR in the environment the last ones also run on the real data in DIR.
"""
import csv
import functools
import itertools
import json
import math
import multiprocessing
import os
import pickle
import re
import runpy
import shlex
import shutil
import signal
import sys
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torchvision.models.resnet import BasicBlock
from torchvision.transforms import v2

import data
import model
import predict
import train
from model import ResNet

HERE = Path(__file__).resolve().parent
README = (HERE / "README.md").read_text("utf-8")
TINY = ("--data fake --device cpu --blocks 1 1 1 --widths 2 4 4 --lr 1e-2 --batch-size 100 --train-size 300 "
        "--val-size 200").split()
FULL = ("--train-size 800 --batch-size 20 --widths 8 16 16 --lr 6e-3 --augment flip crop --group 50 --ema 0.5 "
        "--cutmix 0.2 --warmup 1 --dropout 0.1 --epochs 3 --sizes 24 32 32 --seed 1")
needs_cifar10 = pytest.mark.skipif("CIFAR10" not in os.environ, reason="set CIFAR10=DIR to test on the real data")


@pytest.fixture(scope="session", autouse=True)
def fast():
    """One thread is enough here, the fake data is made once, and curves.png is drawn in `trained` alone."""
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "fake_data", functools.cache(data.fake_data))
        patch.setattr(train, "save_figure", lambda figure, path: None)
        if "ONEDNN_MAX_CPU_ISA" in os.environ:          # .ci/run: as on a CPU without bfloat16
            patch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
        yield


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """The folder of a finished run with the average, CutMix, dropout, a warm-up and growing images."""
    out = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "save_figure", model.save_figure)
        run(out, FULL)
    return out


def run(folder, flags):
    train.main([*TINY, *flags.split(), "--out", str(folder)])


def history(folder):
    """The numbers of log.csv, without the column that times the machine."""
    lines = (folder / "log.csv").read_text().splitlines()
    return [{k: float(v) for k, v in row.items() if k != "seconds"} for row in csv.DictReader(lines)]


def load(path):
    return json.loads(path.read_text()) if path.suffix == ".json" else torch.load(path, weights_only=True)


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def assert_refused(why, call, *args):
    """The call ends in one line, which matches `why`."""
    with pytest.raises(SystemExit, match=why) as error:
        call(*args)
    assert str(error.value).startswith("error: ") and "\n" not in str(error.value) and len(str(error.value)) < 1000


# ---- the network -----------------------------------------------------------------------------------
@pytest.mark.parametrize("blocks, expected, share", [((4, 5, 3), 4_992_586, "99.9%"), ((2, 2, 2), 2_777_674, "55.6%")])
def test_parameters_are_those_of_the_paper_of_written_arithmetic_and_of_the_table(capsys, blocks, expected, share):
    conv = lambda i, o, k: i * o * k * k + 2 * o        # noqa: E731  a convolution and its batch norm
    a, b, c = blocks
    by_hand = (conv(3, 64, 3) + 2 * a * conv(64, 64, 3)
               + conv(64, 128, 3) + (2 * b - 1) * conv(128, 128, 3) + conv(64, 128, 1)
               + conv(128, 256, 3) + (2 * c - 1) * conv(256, 256, 3) + conv(128, 256, 1) + 256 * 10 + 10)
    built = sum(p.numel() for p in ResNet(blocks).parameters() if p.requires_grad)
    assert by_hand == built == expected
    model.main(["--blocks", *map(str, blocks)])
    out = capsys.readouterr().out
    assert f"{expected:,}" in out and "256 x 8 x 8" in out and f"{share} of the budget of 5,000,000" in out


def test_a_skip_carries_the_image_around_the_convolutions_and_is_all_that_plain_lacks():
    x = torch.randn(2, 4, 8, 8)
    for residual in (True, False):
        block = model.Block(4, 4, residual=residual).eval()
        torch.nn.init.zeros_(block.conv2.weight)
        assert torch.equal(block(x), F.relu(x) * residual)
    block, shortcut = model.Block(4, 8, stride=2), torch.nn.Conv2d(4, 8, 1, 2, bias=False)
    torchvisions = BasicBlock(4, 8, 2, downsample=torch.nn.Sequential(shortcut, torch.nn.BatchNorm2d(8)))
    torchvisions.load_state_dict({k.replace("shortcut", "downsample"): v for k, v in block.state_dict().items()})
    torch.testing.assert_close(block(x[..., :5]), torchvisions(x[..., :5]))         # (2, 8, 4, 3)
    assert ResNet().stem(torch.randn(2, 3, 8, 8)).min() == 0
    residual, plain = ({name: value.shape for name, value in ResNet(residual=residual).state_dict().items()}
                       for residual in (True, False))
    assert plain == {name: shape for name, shape in residual.items() if "shortcut" not in name} != residual
    assert not any(part.residual for part in ResNet(residual=False).modules() if isinstance(part, model.Block))
    assert all(conv.stride == (1, 1) for conv in ResNet().modules() if isinstance(conv, torch.nn.Conv2d)
               and conv.kernel_size == (1, 1))          # oneDNN's others give wrong gradients on AVX2, or crash


# ---- the data --------------------------------------------------------------------------------------
def crops(images, group, rounds):
    """(row offset, column offset, mirrored) of every image in `rounds` augmentations by crop and flip."""
    transform = v2.Compose(data.augmentation(["crop", "flip"]).transforms[:-1])         # without normalise
    versions = torch.cat([data.augment(images, transform, group) for _ in range(rounds)])
    row, column, number = versions[:, :, 16, 16].int().unbind(1)                        # never padding
    assert torch.equal(number, images[:, 2, 0, 0].int().repeat(rounds)), "ids are mixed up"
    mirrored = (versions[:, 1, 16, 15] > versions[:, 1, 16, 16]).int()
    return torch.stack([row - 17, column - 17 + mirrored, mirrored], dim=1)


def test_group_draws_have_the_distribution_of_single_draws_and_a_batch_mixes_them():
    number, row, column = torch.meshgrid(torch.arange(200), torch.arange(32), torch.arange(32), indexing="ij")
    images = torch.stack([row, column, number], dim=1).to(torch.uint8) + 1              # 0 is what a crop pads with
    before = images.clone()
    torch.manual_seed(0)
    single, grouped = crops(images, group=1, rounds=10), crops(images, group=10, rounds=100)    # 2,000 draws each
    for column, lowest, values in ((0, -4, 9), (1, -4, 9), (2, 0, 2)):
        for draws in (single, grouped):             # within three and a half deviations of a share of 1/2
            share = torch.bincount(draws[:, column] - lowest, minlength=values) / len(draws)
            assert (share - 1 / values).abs().max() < 0.04
    assert len(single[:200].unique(dim=0)) > 100                            # of 162 crops
    neighbours = crops(images, group=100, rounds=1)[:20]                    # groups are drawn, not cut in file order
    assert len(neighbours.unique(dim=0)) == 2
    assert torch.equal(images, before)


def test_papers_augmentation_stands_in_its_order_fills_with_the_mean_and_follows_from_the_seed():
    steps = data.augmentation().transforms
    assert [type(step).__name__ for step in steps[:6]] == [
        "RandomRotation", "RandomHorizontalFlip", "RandomCrop", "ColorJitter", "AutoAugment", "RandomErasing"]
    assert steps[0].degrees == [-15, 15] and steps[4].policy.value == "cifar10" and steps[3].hue is None
    assert steps[3].brightness == steps[3].contrast == steps[3].saturation == (0.8, 1.2)
    assert steps[5].p == 0.2 and steps[7] is data.normalise and len(steps) == 8
    erased = data.normalise(torch.tensor(steps[5].value).to(torch.uint8).view(3, 1, 1))
    assert erased.abs().max() < 0.01                            # black would be -2
    images, versions = data.fake_data(train=False)[0][:100], []
    for seed in (0, 0, 1):                                      # so that an epoch can be repeated
        torch.manual_seed(seed)
        versions.append(data.augment(images, data.augmentation(), 1))
    assert torch.equal(versions[0], versions[1]) and not torch.equal(versions[0], versions[2])


def test_a_crop_adds_black_reflect_adds_the_image_and_smaller_images_are_shrunk_not_cut():
    white = torch.full((50, 3, 32, 32), 255, dtype=torch.uint8)
    crop, reflect = (data.augment(white, data.augmentation([name]), 1) for name in ("crop", "reflect"))
    black_and_white = data.normalise(torch.tensor([0, 255], dtype=torch.uint8).expand(3, 1, 2))
    assert torch.equal(reflect, data.normalise(white)) and torch.equal(crop.unique(), black_and_white.unique())
    ramp = torch.arange(32, dtype=torch.uint8).expand(300, 3, 32, 32)
    back = data.augment(ramp, data.augmentation(["reflect"]), 1)[:, 0, 9].diff().lt(-0.01).sum(1)
    assert back.unique().tolist() == [0, 1, 2, 3, 4]                    # columns of the reflected margin
    images = data.fake_data(train=False)[0][:20]
    small = data.augment(images, data.augmentation(["flip"], size=16), 1)
    assert small.shape == (20, 3, 16, 16)
    torch.testing.assert_close(small.mean((2, 3)), data.normalise(images).mean((2, 3)), rtol=0, atol=0.02)


def test_split_is_disjoint_balanced_and_stable():
    labels = torch.arange(1000) % 10
    first, val = data.split(labels, 100, None, seed=3)
    torch.manual_seed(99)                                       # the global random state does not count
    fewer, same_val = data.split(labels, 100, 200, seed=3)
    assert torch.equal(val, same_val) and set(fewer.tolist()) <= set(first.tolist())
    assert sorted([*first.tolist(), *val.tolist()]) == list(range(1000))
    assert torch.bincount(labels[val]).tolist() == [10] * 10 and torch.bincount(labels[fewer]).tolist() == [20] * 10
    assert not torch.equal(val, data.split(labels, 100, None, seed=4)[1])
    assert len(data.split(labels, 0, None, seed=3)[1]) == 0
    for val_size, train_size in ((105, None), (100, 9), (100, 910)):
        assert_refused("multiples of 10.* no more than 1,000", data.split, labels, val_size, train_size, 3)


def test_fake_data_is_the_same_each_time_and_its_augmentation_is_drawn(tmp_path, monkeypatch):
    a, b = (data.fake_data.__wrapped__(train=True)[0] for _ in range(2))
    assert torch.equal(a, b) and a.shape == (10_000, 3, 32, 32) and a.dtype == torch.uint8
    assert not torch.equal(a[:2000], data.fake_data(train=False)[0])
    monkeypatch.chdir(tmp_path)
    data.main(["--data", "fake"])
    assert Image.open("augment.png").width > 500


def test_download_goes_on_until_a_mirror_gives_the_official_bytes(tmp_path, monkeypatch, capsys):
    whole = Mock(data=np.full((2, 32, 32, 3), (0, 1, 2), np.uint8), targets=[3, 4])
    cifar10 = Mock(side_effect=[OSError("no route"), OSError("cut off"), RuntimeError("other bytes"), *[whole] * 3])
    monkeypatch.setattr(data.datasets, "CIFAR10", cifar10)          # torchvision's checks the MD5 of every file
    images, labels = data.load_data(tmp_path / "cifar-10-batches-py", train=True)
    assert images.shape == (2, 3, 32, 32) and images[1, :, 5, 7].tolist() == [0, 1, 2] and labels.tolist() == [3, 4]
    assert cifar10.call_args == ((tmp_path, True), {"download": True})      # the folder that holds cifar-10-batches-py
    assert [*re.findall("from (http.*): ", capsys.readouterr().out), cifar10.url] == data.MIRRORS
    for where in (tmp_path, tmp_path / "cifar-10-python.tar.gz"):
        data.load_data(where, train=False)
        assert cifar10.call_args == ((tmp_path, False), {"download": True})


# ---- the recipe ------------------------------------------------------------------------------------
def test_learning_rate_is_a_cosine_to_zero_after_a_linear_warmup():
    paper, warm = ([train.lr_factor(step, 1000, warmup) for step in range(1001)] for warmup in (0, 100))
    assert [paper[step] for step in (0, 250, 500, 1000)] == pytest.approx([1, 0.5 + 0.5 * math.sqrt(0.5), 0.5, 0])
    assert paper == sorted(paper, reverse=True)
    assert [warm[step] for step in (49, 99, 100, 550)] == pytest.approx([0.5, 1, 1, 0.5])
    assert train.lr_factor(1000, 1000, 1000) == 1           # a warm-up as long as the run divides by no zero
    assert train.lr_factor(2, 9, 2.5) == 1                  # a warm-up that ends within a step


def test_the_papers_recipe_is_the_default_that_the_readme_quotes_and_a_flag_overrides_any_recipe():
    paper = dict(recipe="paper", lr=1e-4, weight_decay=1e-2, label_smoothing=0.1, batch_size=128, epochs=100,
                 blocks=[4, 5, 3], widths=[64, 128, 256], val_size=5000, augment=data.PAPER, group=250, sizes=[32])
    off = dict(warmup=0, ema=0, cutmix=0, dropout=0, plain=False)
    defaults = vars(train.parse_args([]))
    assert defaults | paper | off == defaults
    quoted = re.findall(r"`--([a-z-]+)`\s\(default ([^)]+)\)", README)
    typed = vars(train.parse_args([word for name, value in quoted for word in (f"--{name}", *value.split())]))
    assert len(quoted) >= 9 and typed == defaults
    for recipe in ("quick", "strong"):
        plain = vars(train.parse_args(["--recipe", recipe]))
        assert plain["ema"] > 0 and plain["lr"] > 1e-4
        for argv in (["--recipe", recipe, "--ema", "0.5"], ["--ema", "0.5", "--recipe", recipe]):
            assert vars(train.parse_args(argv)) == plain | {"recipe": recipe, "ema": 0.5}


def ready(flags=""):
    """What train_epoch() takes: the parts, 200 images, their labels, the flags."""
    images, labels = (part[:200] for part in data.fake_data(train=True))
    args = train.parse_args([*TINY, *flags.split()])
    return train.build(args, len(images), torch.device("cpu")), images, labels, args


def test_every_flag_of_the_recipe_reaches_what_it_names_and_only_filters_and_matrices_decay():
    parts, images, *_ = ready("--lr 0.3 --weight-decay 0.7 --warmup 2 --epochs 4 --dropout 1 --plain --ema 0.5")
    assert isinstance(parts.optimizer, torch.optim.AdamW)       # Adam's decay is another
    decayed, others = parts.optimizer.param_groups              # torch refuses a parameter that is in both
    assert len(decayed["params"] + others["params"]) == len(list(parts.model.parameters()))
    assert decayed["weight_decay"] == 0.7 and {p.dim() for p in decayed["params"]} == {2, 4}
    assert others["weight_decay"] == 0 and {p.dim() for p in others["params"]} == {1}
    assert decayed["lr"] == pytest.approx(0.3 / 4)              # in the first of the warm-up's four steps
    assert parts.scheduler.lr_lambdas[0](4 * 2) == 0            # four epochs of two steps
    assert parts.model.config == {"blocks": [1, 1, 1], "widths": [2, 4, 4], "residual": False, "dropout": 1}
    assert torch.equal(parts.model(data.normalise(images)), parts.model.classifier.bias.expand(200, 10))    # none kept
    first, second, third = (ready(f"--seed {seed}")[0].model.state_dict() for seed in (0, 0, 1))
    assert same(first, second) and not same(first, third)
    args = train.parse_args(["--data", "elsewhere"])
    free = {"recipe", "out", "resume", "device", "amp", "compile", "deterministic"}
    assert train.settings(args) == {k: v for k, v in vars(args).items() if k not in free} | {"data": "cifar10"}


def test_steps_overfit_one_batch_and_drop_old_gradients_before_the_forward_pass():
    parts, _, labels, _ = ready("--widths 8 16 16 --epochs 100")
    parts.model.train()
    x, dropped = torch.randn(32, 3, 32, 32), []
    parts.model.register_forward_hook(lambda net, *_: dropped.append(all(p.grad is None for p in net.parameters())))
    losses = [train.train_step(parts, x, labels[:32], label_smoothing=0)[0].item() for _ in range(40)]
    assert losses[39] < 0.05
    assert dropped == [True] * 40 and any(p.grad is not None for p in parts.model.parameters())
    parts.dtype = torch.bfloat16
    loss, logits = train.train_step(parts, x, labels[:32], label_smoothing=0.1)
    assert logits.dtype == torch.bfloat16
    right, every = F.nll_loss(logits.float().log_softmax(1), labels[:32]), -logits.float().log_softmax(1).mean()
    assert loss.item() == pytest.approx((0.9 * right + 0.1 * every).item(), rel=0.01)


def test_sizes_share_the_epochs_and_cutmix_counts_the_larger_share(monkeypatch):
    sizes, asked, drawn, averaged = [], [], [], []

    def answer_what_is_asked(parts, x, target, label_smoothing):
        assert parts.model.training and label_smoothing == 0.3
        sizes.append(x.shape[3])
        asked.append(target)
        return torch.ones(()), target if target.dim() == 2 else F.one_hot(target, 10)

    monkeypatch.setattr(train, "train_step", answer_what_is_asked)
    monkeypatch.setattr(train, "augment", lambda *args: drawn.append(args[1:]) or data.augment(*args))
    monkeypatch.setattr(train, "update_average", lambda parts, decay: averaged.append(decay))
    run = ready("--augment trivial --cutmix 1 --epochs 10 --sizes 16 24 24 32 "
                "--label-smoothing 0.3 --ema 0.7 --group 50")
    run[0].model.eval()                                         # as an evaluation leaves it
    assert [train.train_epoch(*run, epoch) for epoch in range(1, 11)] == [{"train_loss": 1, "train_acc": 1}] * 10
    assert sizes == [16] * 6 + [24] * 10 + [32] * 4             # two steps an epoch, in one of which is averaged
    assert [target.dim() for target in asked] == [2] * 20 and averaged == [0.7] * 10
    assert (asked[0].sum(0) - 10).abs().max() > 0.5             # in the file's order it would have ten of each class
    assert [(type(transform.transforms[0]), group) for transform, group in drawn] == [(v2.TrivialAugmentWide, 50)] * 10
    run[-1].seed = 1
    train.train_epoch(*run, 9)
    draws = asked[16], asked[18], asked[20]                     # epochs 9 and 10, and epoch 9 of another seed
    assert not any(torch.equal(a, b) for a, b in itertools.combinations(draws, 2))


@pytest.mark.parametrize("name", ["classifier.bias", "stem.1.running_mean"])
def test_the_average_forgets_the_untrained_values_and_then_keeps_its_decay(name):
    parts, *_ = ready("--ema 0.99")
    average, now = (part.state_dict()[name] for part in (parts.predictor, parts.model))
    now.fill_(1)
    kept = []
    for update in [*range(44), 10 ** 6]:                        # an epoch of 45,000 images; long after
        average.fill_(0)
        parts.scheduler.last_epoch = update * train.EMA_EVERY
        train.update_average(parts, 0.99)
        kept.append(1 - average[0].item())
    assert kept[0] == pytest.approx(0.1) and math.prod(kept[:44]) < 1e-4 and kept[44] == pytest.approx(0.99)


def test_evaluation_is_exact_on_a_ragged_last_batch():
    net, images = ResNet((1, 1, 1), (4, 8, 8)), data.fake_data(train=False)[0][:503]        # in training mode
    logits, mirrored = predict.predict(net, images), predict.predict(net, images.flip(3))
    assert not logits.requires_grad                             # or a graph of all batches fills the memory
    with torch.no_grad():
        maps = net.eval().stages(net.stem(data.normalise(images)))                          # (503, 8, 8, 8)
        torch.testing.assert_close(logits, net.classifier(maps.mean((2, 3))))
    torch.testing.assert_close(predict.predict(net, images, tta=True), (logits + mirrored) / 2)


def test_training_learns_and_leaves_every_file(trained):
    rows, result, last = history(trained), load(trained / "result.json"), load(trained / "last.pt")
    assert [(row["epoch"], row["size"]) for row in rows] == [(1, 24), (2, 32), (3, 32)]
    assert [row["lr"] for row in rows] == pytest.approx([0.006 / 40, 0.006, 0.003])         # as each epoch begins
    assert rows[2]["train_loss"] < rows[0]["train_loss"] and result["test_acc"] > 0.8
    assert result["val_acc"] == max(row["val_acc"] for row in rows) > 0.8
    assert result["parameters"] == sum(p.numel() for p in ResNet((1, 1, 1), (8, 16, 16)).parameters())
    assert result["settings"]["cutmix"] == 0.2 and result["machine"].startswith("CPU with ")
    assert not same(last["states"]["model"], last["weights"])           # what predicts is the average
    assert last["states"]["scheduler"]["last_epoch"] == 3 * 800 // 20   # steps: validation images are not trained on
    images, labels = data.fake_data(train=True)
    val, (net, best) = data.split(labels, 200, 800, seed=1)[1], model.load_checkpoint(trained / "best.pt")
    logits = predict.predict(net, images[val], model.pick_dtype(torch.device("cpu")))
    assert F.cross_entropy(logits, labels[val]).item() == pytest.approx(best["row"]["val_loss"])
    assert Image.open(trained / "curves.png").width > 500 and not list(trained.glob("*.part"))
    assert [len(axes.lines) for axes in train.draw_curves(rows).axes] == [2, 2]


def test_best_pt_is_of_the_first_best_epoch_and_has_ordinary_names_when_compiled(tmp_path, monkeypatch):
    accuracies, compile, used = iter([0.5, 0.7, 0.7, 0.6]), torch.compile, []
    monkeypatch.setattr(train, "evaluate", lambda *_: {"val_acc": next(accuracies)})
    backend = lambda graph, _: used.append(graph) or graph.forward          # noqa: E731  needs no C++ compiler
    monkeypatch.setattr(torch, "compile", lambda net, **_: compile(net, backend=backend))
    run(tmp_path, "--epochs 4 --plain --compile")
    best, last, result = (load(tmp_path / name) for name in ("best.pt", "last.pt", "result.json"))
    assert best["row"]["epoch"] == result["epoch"] == 2 and result["val_acc"] == 0.7
    assert used and not same(best["weights"], last["weights"])
    images, labels = data.fake_data(train=False)
    net, _ = model.load_checkpoint(tmp_path / "best.pt")
    assert result["test_acc"] == predict.accuracy(predict.predict(net, images), labels)
    assert best["weights"].keys() == last["states"]["model"].keys() == ready("--plain")[0].model.state_dict().keys()


def test_without_validation_the_last_epoch_counts_and_without_a_terminal_each_has_a_line(tmp_path, capfd):
    run(tmp_path, "--epochs 2 --val-size 0")
    assert load(tmp_path / "best.pt")["row"]["epoch"] == 2 and "val_acc" not in history(tmp_path)[0]
    assert load(tmp_path / "result.json")["val_acc"] is None
    assert [len(axes.lines) for axes in train.draw_curves(history(tmp_path)).axes] == [1, 1]
    out, err = capfd.readouterr()
    assert len(re.findall(r"^epoch \d  size 32  lr .*  train_loss .*  train_acc .*  seconds .*$", out, re.M)) == 2
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", out) and err == ""
    assert "2 epochs of 3 steps" in out and "test accuracy" in out and "--recipe quick" not in out
    assert f'python predict.py --ckpt "{tmp_path / "best.pt"}" --data "fake"' in out


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_an_earlier_epoch(tmp_path, monkeypatch):
    real, factors = train.augment, iter([1, math.nan])          # the second epoch meets a nan
    monkeypatch.setattr(train, "augment", lambda *args: real(*args) * next(factors))
    assert_refused("not finite in epoch 2", run, tmp_path, "--epochs 4")
    assert len(load(tmp_path / "last.pt")["history"]) == 1 == len(history(tmp_path))


# ---- the machine -----------------------------------------------------------------------------------
@pytest.mark.parametrize("device, native, dtype", [
    ("cuda", True, torch.bfloat16), ("cuda", False, torch.float16),             # an A100; a T4
    ("cpu", True, torch.bfloat16), ("cpu", False, torch.float32), ("mps", True, torch.float32)])
def test_precision_is_what_the_device_computes_in_natively(monkeypatch, device, native, dtype):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: native or including_emulation)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: native)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: device == "cuda")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: device == "mps")
    monkeypatch.setattr(torch, "zeros", Mock())                 # no such device here
    assert model.pick_device(None) == torch.device(device)
    device = torch.device(device)
    assert model.pick_dtype(device) == dtype and model.pick_dtype(device, "off") == torch.float32
    assert (model.memory_format(device) == torch.channels_last) == (device.type != "mps")       # wrong gradients there


def run_script(name, *argv):
    """What `python NAME ARGV` does, without importing torch again."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [name, *argv])
        runpy.run_path(str(HERE / name), run_name="__main__")


@pytest.mark.parametrize("error, ends, line", [
    (KeyboardInterrupt, SystemExit, "stopped: --resume continues after the last whole epoch"),
    (torch.OutOfMemoryError, SystemExit, "memory is full"), (RuntimeError, RuntimeError, None),
    (type("InductorError", (RuntimeError,), {"__module__": "torch._inductor.exc"}), SystemExit, "go without it")])
def test_what_comes_from_outside_ends_in_a_line_a_bug_in_a_traceback(tmp_path, monkeypatch, capsys, error, ends, line):
    monkeypatch.setattr(F, "cross_entropy", Mock(side_effect=error))
    with pytest.raises(ends, match=line):
        run_script("train.py", *TINY, *"--blocks 4 5 3 --widths 64 128 256 --batch-size 2 --out".split(), str(tmp_path))
    assert "--recipe quick" in capsys.readouterr().out      # the paper's network would take a CPU many hours


def run_until(owner, call, number, folder, flags, killed=False):
    """A run that Ctrl-C or a kill ends after the `number`-th call of OWNER.CALL; a file being written is cut short."""
    real, numbers = getattr(owner, call), itertools.count(1)

    def stop_after(*args, **more):
        real(*args, **more)
        if next(numbers) == number:
            if call == "fsync":
                os.ftruncate(*args, 1000)
            if killed:
                os.kill(os.getpid(), signal.SIGKILL)
            raise KeyboardInterrupt
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(owner, call, stop_after)
        run(folder, flags)


def test_a_run_moves_from_a_mac_to_another_memory_format_and_precision_and_back(tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "memory_format", lambda device: torch.contiguous_format)
        run_until(train, "save", 1, tmp_path, "--epochs 3 --amp off")
    assert load(tmp_path / "last.pt")["states"]["scaler"] == {}             # it is off, too
    parts, *_, args = ready("--epochs 3")
    train.restore(tmp_path / "last.pt", parts, args)
    for p, state in parts.optimizer.state.items():
        assert p.stride() == state["exp_avg"].stride() == state["exp_avg_sq"].stride()
    assert parts.model.stem[0].weight.stride() == (27, 1, 9, 3)
    run_until(train, "save", 2, tmp_path, "--epochs 3 --amp fp16 --resume")
    assert load(tmp_path / "last.pt")["states"]["scaler"]["scale"] >= 2     # a gradient scaler, as fp16 needs
    run(tmp_path, "--epochs 3 --amp bf16 --resume")
    rows = history(tmp_path)
    assert rows[2]["train_loss"] < rows[0]["train_loss"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("flags, tolerance", [
    ("--amp fp16", 0.05), ("--amp bf16", 0.05), ("--compile", 0.05), ("--deterministic", 0)])
def test_a_gpu_resumes_as_if_uninterrupted_and_writes_what_a_cpu_reads(tmp_path, flags, tolerance):
    common = "--device cuda --epochs 2 --ema 0.9 --cutmix 0.5"
    run_until(train, "save", 1, tmp_path / "a", f"{common} {flags}")
    run(tmp_path / "a", f"{common} {flags} --resume")                   # so optimizer steps follow the restore
    run(tmp_path / "b", common if tolerance else f"{common} {flags}")
    a, b = ([row["train_loss"] for row in history(tmp_path / name)] for name in ("a", "b"))
    assert a == pytest.approx(b, rel=tolerance, abs=0) and len(a) == 2
    assert model.load_checkpoint(tmp_path / "a/best.pt")[0](torch.zeros(1, 3, 32, 32)).shape == (1, 10)


# ---- resuming --------------------------------------------------------------------------------------
@pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows cannot fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")         # torch's threads are idle then
@pytest.mark.parametrize("owner, call, number", [
    (train, "save_checkpoint", 1), (train, "save_checkpoint", 5), (train, "save", 2), (train, "save", 3),
    (os, "fsync", 4)],
    ids=["before the first best.pt", "before the last best.pt", "after an epoch", "before the test set", "in a write"])
def test_an_interrupted_and_then_killed_run_ends_with_the_same_bits(trained, tmp_path, owner, call, number):
    run_until(owner, call, number, tmp_path, FULL)
    assert bool(list(tmp_path.glob("*.part"))) == (call == "fsync")
    killed = (os, "fsync", 1, tmp_path, f"{FULL} --resume", True)           # in the first write, before a step
    process = multiprocessing.get_context("fork").Process(target=run_until, args=killed)       # imports nothing again
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL and list(tmp_path.glob("*.part"))
    run(tmp_path, f"{FULL} --resume")
    assert history(tmp_path) == history(trained)
    last, other = load(tmp_path / "last.pt"), load(trained / "last.pt")
    assert same(last["states"]["model"], other["states"]["model"]) and same(last["weights"], other["weights"])
    assert same(*(load(folder / "best.pt")["weights"] for folder in (tmp_path, trained)))
    seconds = sum(row["seconds"] for row in last["history"])
    assert load(tmp_path / "result.json") == load(trained / "result.json") | {"seconds": pytest.approx(seconds)}


@pytest.mark.parametrize("move, flags, why", [
    ("", "--resume --epochs 5", "epochs = 3, not 5"), ("", "--resume --lr 0.5", "lr = 0.006, not 0.5"),
    ("", "--resume --cutmix 0", "cutmix = 0.2"), ("", "", "an earlier run: continue it with --resume"),
    ("last.pt away.pt", "", "an earlier run"), ("best.pt last.pt", "--resume", "data = None, not fake")],
    ids=["other epochs", "other lr", "other cutmix", "no --resume", "last.pt is lost", "best.pt as last.pt"])
def test_other_flags_or_files_are_refused_and_nothing_changes(trained, tmp_path, move, flags, why):
    folder = shutil.copytree(trained, tmp_path / "run")
    if move:
        os.replace(*(folder / name for name in move.split()))
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert_refused(why, run, folder, f"{FULL} {flags}")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_lost_or_another_runs_best_pt_is_not_reported_as_ones_own(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "evaluate", lambda *_: {"val_acc": 0.5})     # the first epoch is the best
    run_until(train, "save", 2, tmp_path, "--epochs 3")
    (tmp_path / "best.pt").unlink()
    assert_refused("cannot load checkpoint .*best.pt", run, tmp_path, "--epochs 3 --resume")
    assert len(history(tmp_path)) == 3                      # it trained on: a later epoch could have been better
    shutil.copy(trained / "best.pt", tmp_path)
    assert_refused("is another run's", run, tmp_path, "--epochs 3 --resume")
    assert not (tmp_path / "result.json").exists()


# ---- predicting ------------------------------------------------------------------------------------
def predicted(checkpoint, folder, *flags):
    """The rows of the CSV that predict.py writes."""
    predict.main(["--ckpt", str(checkpoint), "--out", str(folder / "s.csv"), *map(str, flags)])
    with open(folder / "s.csv", newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def test_predict_writes_a_csv_that_scores_what_it_prints(trained, tmp_path, capsys):
    header, *rows = predicted(trained / "best.pt", tmp_path, "--data", "fake", "--device", "cpu")
    labels, out = data.fake_data(train=False)[1].tolist(), capsys.readouterr().out
    right = sum(int(found) == label for (_, found), label in zip(rows, labels, strict=True)) / 2000
    assert header == ["ID", "Labels"] and [row[0] for row in rows] == [str(i) for i in range(2000)]
    assert f"accuracy {right:.2%} on 2,000 test images" in out and "most often taken for" in out and "figure 3" in out
    assert right == load(trained / "result.json")["test_acc"]
    assert all(Image.open(tmp_path / name).width > 400 for name in ("confusion.png", "mistakes.png"))


def test_mistakes_are_counted_by_their_true_class_and_shown_surest_first(tmp_path, monkeypatch, capsys):
    images, labels = torch.zeros(5, 3, 32, 32, dtype=torch.uint8), torch.tensor([0, 1, 0, 0, 1])
    logits = F.pad(torch.tensor([[9., 0], [2, 0], [0, 4], [0, 3], [0, 5]]), (0, 8), value=-99)      # said 0 0 1 1 1
    figures = {}
    monkeypatch.setattr(predict, "save_figure", lambda figure, path: figures.update({path.name: figure}))
    predict.show_test(images, logits, labels, data.NAMES, tmp_path)
    out = capsys.readouterr().out
    assert re.search(r"airplane +3 +33.3% +automobile \(2\)\nautomobile +2 +50.0% +airplane \(1\)", out)
    twos = [text.get_position() for text in figures["confusion.png"].axes[0].texts if text.get_text() == "2"]
    assert twos == [(1, 0)]                     # two airplanes, row 0, were taken for automobiles, column 1
    titles = [axes.get_title() for axes in figures["mistakes.png"].axes]
    assert titles == ["said automobile (98%),\nis airplane", "said automobile (95%),\nis airplane",
                      "said airplane (88%),\nis automobile", *[""] * 21]
    assert [text.get_text() for text in figures["mistakes.png"].texts] == ["3 mistakes in 5 images, the surest first"]


def test_a_picture_of_ones_own_is_named_and_leaves_the_csv_alone(trained, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(data.fake_data(train=False)[0][0].permute(1, 2, 0).numpy()).save("my_cat.jpg")
    predict.main(["--ckpt", str(trained / "best.pt"), "--input", "my_cat.jpg"])
    line = capsys.readouterr().out
    found = re.findall(r"([a-z]+) (\d+)%", line)
    shares = [int(share) for name, share in found if name in data.NAMES]
    assert line.startswith("'my_cat' ") and line.count("\n") == 1
    assert len(found) == len(shares) == 3 and shares == sorted(shares, reverse=True) and sum(shares) <= 101
    assert os.listdir() == ["my_cat.jpg"]


def test_every_input_format_gives_the_same_images(tmp_path):
    images, ids, plain = data.fake_data(train=False)[0][:12], np.arange(100, 112)[::-1].copy(), list(range(12))
    nhwc, planes, named = images.permute(0, 2, 3, 1).numpy(), images.reshape(12, 3072).numpy(), [f"n{i}" for i in ids]
    files = {
        "2025.pkl": (pickle.dumps({b"data": nhwc, b"ids": ids}, 4), ids.tolist()),
        "2024.pkl": (pickle.dumps({b"data": planes}, 4), plain),
        "list.pkl": (pickle.dumps({"data": nhwc, "ids": ids.tolist()}, 5), ids.tolist()),
        "array5.pkl": (pickle.dumps({"data": nhwc, "ids": ids}, 5), ids.tolist()),
        "old.pkl": (pickle.dumps({b"data": planes, b"ids": ids.astype(">i4")}, 2), ids.tolist()),
        "bytes.pkl": (pickle.dumps({b"data": planes, b"ids": [name.encode() for name in named]}, 2), named),
        "names.pkl": (pickle.dumps({"data": np.asfortranarray(planes), "ids": np.array(named)}, 3), named)}
    for name, (content, wanted) in files.items():
        (tmp_path / name).write_bytes(content)
        found_ids, found = predict.read_images(tmp_path / name)
        assert torch.equal(found, images) and found_ids == wanted, name
    for i, array in enumerate(nhwc):
        Image.fromarray(array).save(tmp_path / f"img{i:02}.png")
    (tmp_path / "._img0.png").write_bytes(b"what macOS leaves in an archive")
    found_ids, found = predict.read_images(tmp_path)            # a folder: its pictures, by name
    assert torch.equal(found, images) and found_ids == [f"img{i:02}" for i in plain]
    first, turned = Image.fromarray(nhwc[0]), Image.Exif()
    first.resize((64, 80)).convert("L").save(tmp_path / "big.JPG")
    assert predict.read_images(tmp_path / "big.JPG")[1].shape == (1, 3, 32, 32)
    ImageOps.expand(first, (32, 0)).save(tmp_path / "wide.png")             # not squeezed: its middle is what counts
    assert torch.equal(predict.read_images(tmp_path / "wide.png")[1][0], images[0])
    Image.new("RGBA", (40, 40), (0, 0, 0, 0)).save(tmp_path / "clear.png")      # black, but nobody sees it
    assert predict.read_images(tmp_path / "clear.png")[1].unique().tolist() == [255]
    turned[0x0112] = 6                                                      # a phone that was held upright
    first.save(tmp_path / "phone.png", exif=turned)
    assert torch.equal(predict.read_images(tmp_path / "phone.png")[1][0], images[0].rot90(-1, (1, 2)))


def test_ids_come_out_in_the_order_of_the_file_and_names_as_valid_csv(trained, tmp_path, monkeypatch, capsys):
    ids, logits, asked = ["z", 3, "a,b", 'say "hi"', "two\nlines", "a;b", "ünï", 1, "\udcff"], torch.eye(10)[:9], []
    (tmp_path / "x.pkl").write_bytes(pickle.dumps({b"data": np.zeros((9, 3072), np.uint8), b"ids": ids}))
    monkeypatch.setattr(predict, "predict", lambda *_, tta: asked.append(tta) or logits)
    for flags in ([], ["--tta"]):
        rows = predicted(trained / "best.pt", tmp_path, "--input", tmp_path / "x.pkl", *flags)
        assert rows[1:] == [[str(i).replace("\udcff", r"\udcff"), str(label)] for label, i in enumerate(ids)]
    assert asked == [False, True] and capsys.readouterr().out.count("%") == 2 * 9 * 3        # few images are named, too


# ---- untrusted files -------------------------------------------------------------------------------
class Evil:
    """Creates a file when it is unpickled."""

    def __reduce__(self):
        return open, ("created", "w")


@pytest.mark.parametrize("change, why", [
    (lambda good, raw: good | {"row": Evil()}, "could run code: refused"),
    (lambda good, raw: {"weights": good["weights"]}, "KeyError.'config'"),
    (lambda good, raw: good | {"weights": {"stem.0.weight": good["weights"]["stem.0.weight"]}}, "Missing key"),
    (lambda good, raw: good | {"config": {"widths": [64, 128, 1000]}}, "parameters, the budget is"),
    (lambda good, raw: raw[:5000], "BadZipFile"),
    (lambda good, raw: raw[:9000] + bytes(64) + raw[9064:], "checksum")],
    ids=["code", "no config", "weights are missing", "over the budget", "cut short", "other weights than were written"])
def test_a_checkpoint_that_is_damaged_or_would_run_code_is_refused(trained, tmp_path, monkeypatch, change, why):
    monkeypatch.chdir(tmp_path)
    changed = change(load(trained / "best.pt"), (trained / "best.pt").read_bytes())
    Path("x.pt").write_bytes(changed) if isinstance(changed, bytes) else torch.save(changed, "x.pt")
    assert_refused(why, model.load_checkpoint, "x.pt")
    assert os.listdir() == ["x.pt"]


PIXELS = np.zeros((2, 3072), np.uint8)
ARRAY, LENGTH, LONG = pickle.dumps({"data": np.zeros(8, np.uint8)}, 2), b"K\x08\x85", b"\x8a\x05\0\0\0\0\1\x85"
LIES = {                # what is in a file, and a word of why it is refused
    "objects.pkl": (ARRAY.replace(b"u1", b"O8"), "cannot create an OBJECT array"),
    "4 GB in 8 bytes.pkl": (ARRAY.replace(LENGTH, LONG), "cannot reshape"),
    "cut short.pkl": (ARRAY[:-9], "cannot read"),
    "an id twice.pkl": (pickle.dumps({"data": PIXELS, "ids": [7, 7]}), "2 images need as many different ids"),
    "ids that are lists.pkl": (pickle.dumps({"data": PIXELS, "ids": [[1], [2]]}), "unhashable"),
    "too few ids.pkl": (pickle.dumps({"data": PIXELS, "ids": [1]}), "as many different ids"),
    "no images.pkl": (pickle.dumps({"data": PIXELS[:0]}), r"uint8 \(0, 3072\)"),
    "a list of images.pkl": (pickle.dumps({"data": [[1, 2]]}), r"data is int\d+ \(1, 2\)"),
    "no data.pkl": (pickle.dumps({"images": PIXELS}), "KeyError.'data'"),
    "float.pkl": (pickle.dumps({"data": np.zeros((2, 32, 32, 3))}), "data is float64"),
    "shape.pkl": (pickle.dumps({"data": np.zeros((2, 28, 28), np.uint8)}), r"uint8 \(2, 28, 28\)"),
    "700 MB.pkl": (b"", "larger than 200,000 images"),
    **{f"code{i}.pkl": (pickle.dumps({b"data": Evil()}, i), r"wants to load \w*io\.open") for i in (0, 2, 5)},
}


# ---- wrong input -----------------------------------------------------------------------------------
EXISTS = "(File|when that file already) exists: "           # as Linux and as Windows say it
WRONG_COMMANDS = {f"predict.py --input '{name}'": why for name, (_, why) in LIES.items()} | {
    "predict.py --input pictures": "2.png: image file is truncated", "predict.py --input 1.png": "cannot identify",
    "predict.py --input empty": "takes .pkl, .png, .* or a folder of pictures",
    "predict.py --input none.pkl": "FileNotFoundError", "predict.py --ckpt no.pt": "FileNotFoundError",
    "predict.py --device cuda:99": "no device 'cuda:99'", "predict.py --device meta": "no device 'meta'",
    "predict.py --out file/x.csv": f"{EXISTS}'file'", "predict.py --out empty": "must be the name of a .csv",
    "model.py --widths 65 128 256": "5,003,199 parameters, the budget is fewer than 5,000,000",
    "train.py --out file": f"{EXISTS}'file'", "train.py --resume": "FileNotFoundError",
    "train.py --data foreign": "put cifar-10-python.tar.gz .* --data fake",
    "train.py --data file": f"{EXISTS}'(/|[A-Z]:)", "train.py --val-size 10000": "0 images .* a batch of 128"}
if sys.platform == "linux":                 # a folder in which not even root can make a file
    WRONG_COMMANDS["train.py --epochs 1 --blocks 1 1 1 --out /proc"] = "'/proc/tmp"
USUAL = {"predict.py": "--ckpt best.pt --data fake", "train.py": "--data fake --out run", "model.py": ""}


@pytest.mark.parametrize("command, why", WRONG_COMMANDS.items(), ids=WRONG_COMMANDS)
def test_a_wrong_file_or_value_is_one_line_and_leaves_no_file(trained, tmp_path, monkeypatch, command, why):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(data, "MIRRORS", ["http://127.0.0.1:9/nobody-listens"])
    for folder in ("pictures", "empty", "foreign/cifar-10-batches-py"):
        os.makedirs(folder)
    shutil.copy(HERE / "results/pictures/claims.png", "pictures/1.png")
    Path("pictures/2.png").write_bytes(Path("pictures/1.png").read_bytes()[:9000])
    for file in ("file", "1.png", "foreign/cifar-10-batches-py/data_batch_1"):
        Path(file).write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")         # a program, not a picture
    shutil.copy(trained / "best.pt", "best.pt")
    name, *flags = shlex.split(command)
    for file in LIES.keys() & set(flags):
        Path(file).write_bytes(LIES[file][0])
    if "700 MB.pkl" in flags:
        os.truncate("700 MB.pkl", 700_000_000)          # sparse: it takes no place
    before = {path for path in tmp_path.rglob("*") if path.is_file()}
    assert_refused(why, run_script, name, *USUAL[name].split(), *flags)         # of a flag given twice the last counts
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("flags, why", [
    ("--epochs 0", "int from 1"), ("--batch-size 0", "int from 1"), ("--blocks 0 1 1", "int from 1"),
    ("--sizes 64", "int from 8 to 32"), ("--lr nan", "float from 0"), ("--lr x", "float from 0"),
    ("--dropout 1.5", "float from 0 to 1"), ("--recipe best", "invalid choice"), ("--augment blur", "invalid choice"),
    ("--nonsense", "unrecognized arguments")])
def test_a_wrong_flag_is_argparses_line_and_status_2(capsys, flags, why):
    with pytest.raises(SystemExit) as error:
        train.parse_args(flags.split())
    assert error.value.code == 2 and why in capsys.readouterr().err.splitlines()[-1]


# ---- the README ------------------------------------------------------------------------------------
def test_every_command_of_the_readme_and_of_the_lists_parses(capsys):
    parts = re.findall(r"```.*?```", README, re.DOTALL) + re.findall(r"`[^`\n]+`", README)       # a block, or in a line
    commands = [shlex.split(found)[1:] for part in parts for found in re.findall(r"python [\w./]+\.py[^\n#&`]*", part)]
    names = {name for name, *_ in commands} | {"results/robustness.py", "benchmarks/speed.py"}
    parsers = {name: runpy.run_path(str(HERE / name))["parse_args"] for name in names}      # what they import is there
    assert {"train.py", "predict.py", "data.py", "model.py", "results/run.py"} <= parsers.keys()
    assert re.findall(r"^(\w+) +1,000 ", README, re.MULTILINE) == data.NAMES
    lists = "quick gpu-claims gpu-fast gpu-long gpu-strong gpu-paper claims screen".split()
    runpy.run_path(str(HERE / "results/run.py"))["main"]([*lists, "--list"])
    out = capsys.readouterr().out
    assert list(dict.fromkeys(re.findall(r"--out results\W([\w-]+)", out))) == lists        # in the order typed
    assert "python train.py --recipe quick --seed 2 --data data --out" in out
    commands += [shlex.split(line)[1:] for line in out.splitlines()]
    for name, *flags in commands:
        parsers[name](flags)


def test_tables_are_what_the_logs_say_and_the_commands_of_the_headline_still_take_their_arithmetic():
    runpy.run_path(str(HERE / "results/tables.py"))["main"](["--check"])
    assert set(re.findall(r"(?s)<!-- (\w+) -->\n.*?<!-- /\1 -->", README)) == {"headline", "claims"}
    results = runpy.run_path(str(HERE / "results/run.py"))
    for row in results["read_rows"](HERE / "results/runs.csv"):
        if row["name"] in ("long-s0", "strong-s0", "paper-s0", "quick-s0"):
            args = train.parse_args(row["command"].split()[2:])
            assert results["flop"](vars(args)) == int(row["flop"]), row["name"]
            steps, log = (50_000 - args.val_size) // args.batch_size, HERE / f"results/logs/{row['name']}.csv"
            for epoch, logged in enumerate(results["read_rows"](log)):
                factor = train.lr_factor(epoch * steps, args.epochs * steps, args.warmup * steps)
                assert float(logged["lr"]) == pytest.approx(factor * args.lr), row["name"]
    by_hand = (1024 * (27 * 64 + 8 * 9 * 64 * 64) + 256 * (9 * 64 * 128 + 9 * 9 * 128 * 128 + 64 * 128)
               + 64 * (9 * 128 * 256 + 5 * 9 * 256 * 256 + 128 * 256) + 2560)       # pixels times weights, by stage
    assert results["flop"](vars(train.parse_args([]))) == 6 * 100 * 351 * 128 * by_hand
    assert f"|{model.load_checkpoint(HERE / 'weights/strong.pt')[0].parameter_count:,}|" in README


def test_a_list_resumes_what_was_interrupted_and_records_what_has_ended_in_its_row(trained, tmp_path, monkeypatch):
    results, folder, commands = runpy.run_path(str(HERE / "results/run.py")), tmp_path / "quick/quick-s2", []
    monkeypatch.setattr("subprocess.run", lambda command, **_: commands.append(command))
    assert not results["run_one"](folder, [])
    (folder / "last.pt").touch()
    assert not results["run_one"](folder, [])
    shutil.copytree(trained, folder, dirs_exist_ok=True)
    assert results["run_one"](folder, [])
    assert [command[2:] for command in commands] == [["--out", folder], ["--out", folder, "--resume"]]
    before, result = results["read_rows"](HERE / "results/runs.csv"), load(trained / "result.json") | {"epoch": 1}
    (folder / "result.json").write_text(json.dumps(result))
    results["record"].__globals__["RUNS"] = shutil.copy(HERE / "results/runs.csv", tmp_path / "runs.csv")
    results["record"]("quick/quick-s2", folder)
    after = results["read_rows"](tmp_path / "runs.csv")
    [row] = [row for row in after if row not in before]
    assert len(after) == len(before) and row["command"] == "python train.py --recipe quick --seed 2"
    assert float(row["train_acc"]) == pytest.approx(history(trained)[0]["train_acc"], abs=1e-4)
    assert float(row["minutes"]) == pytest.approx(result["seconds"] / 60, abs=0.01)
    assert float(row["test_acc"]) == result["test_acc"]


# ---- the real data ---------------------------------------------------------------------------------
@needs_cifar10
def test_the_real_data_has_its_mean_and_std_and_the_shipped_weights_are_right_on_nine_of_ten_images():
    images, labels = data.load_data(os.environ["CIFAR10"], train=True)
    assert images.shape == (50_000, 3, 32, 32) and torch.bincount(labels).tolist() == [5000] * 10
    for channel, mean, std in zip(images.unbind(1), data.MEAN, data.STD):
        found = torch.std_mean(channel.double())
        assert [round(x.item() / 255, 4) for x in found] == [std, mean]
    images, labels = data.load_data(os.environ["CIFAR10"], train=False)
    assert len(images) == 10_000
    logits = predict.predict(model.load_checkpoint(HERE / "weights/strong.pt")[0], images[:125])
    assert predict.accuracy(logits, labels[:125]) > 0.9


@needs_cifar10
def test_one_epoch_on_the_real_data_is_far_above_chance(tmp_path):
    flags = ("--device cpu --blocks 1 1 1 --widths 8 16 32 --epochs 1 --train-size 5000 --val-size 500 --batch-size 32 "
             "--lr 5e-3 --augment reflect flip --sizes 24")
    train.main([*flags.split(), "--data", os.environ["CIFAR10"], "--out", str(tmp_path)])
    assert load(tmp_path / "result.json")["test_acc"] > 0.25
