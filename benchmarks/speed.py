"""Ours against the usual way of writing this training, on one machine; a minute on a CPU.

    python benchmarks/speed.py              # with the flags of train.py: --data DIR, --blocks 2 2 2
    python benchmarks/speed.py --compile    # on a GPU

The usual way, which comparable repositories share: PIL images and transforms in a DataLoader with
workers, float32 (TF32 as PyTorch sets it), NCHW, eager, one .item() per step. Ours: augment() and
train_epoch() as train.py calls them. The ways are timed in turn, three times; a ratio is the median
of the three, with the smallest and the largest.
"""
import argparse
import os
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from statistics import median

import torch
import torch.nn.functional as F
from torch.utils.benchmark import Timer
from torch.utils.data import DataLoader, default_collate
from torchvision.transforms import v2

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import train
from data import MEAN, STD, augment, augmentation, load_data
from model import ResNet, layer_table, pick_device, start
from train import parse_args

USUAL = v2.Compose([
    v2.RandomCrop(32, padding=4), v2.RandomHorizontalFlip(), v2.RandomRotation(15),
    v2.ColorJitter(0.2, 0.2, 0.2), v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10), v2.PILToTensor(),
    v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD), v2.RandomErasing(p=0.2)])


def pictures(images, labels):
    """[(PIL image, label)], what torchvision.datasets.CIFAR10 is without a transform."""
    return [(v2.functional.to_pil_image(x), y) for x, y in zip(images.cpu(), labels.tolist())]


def collate(batch):
    return default_collate([(USUAL(picture), label) for picture, label in batch])


def usual_epoch(images, labels, args):
    """Seconds of one epoch the usual way, without the start of the network and of the workers."""
    device = images.device
    model = ResNet(args.blocks, args.widths, not args.plain).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, weight_decay=args.weight_decay)
    batches = iter(DataLoader(pictures(images, labels), args.batch_size, shuffle=True,
                              drop_last=True, num_workers=os.cpu_count(), collate_fn=collate,
                              pin_memory=device.type == "cuda"))
    begin = time.perf_counter()
    for x, y in batches:
        loss = F.cross_entropy(model(x.to(device)), y.to(device),
                               label_smoothing=args.label_smoothing)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()
    return time.perf_counter() - begin


def our_epoch(images, labels, args, compiled=False):
    """Seconds of one epoch by train.py's own functions, after four batches of warm-up: the third
    step is the first that replays a CUDA graph."""
    args = argparse.Namespace(**vars(args) | {"compile": compiled})
    parts = train.build(args, len(images), images.device)
    some = 4 * args.batch_size
    train.train_epoch(parts, images[:some], labels[:some], args, 1)
    begin = time.perf_counter()
    train.train_epoch(parts, images, labels, args, 1)       # reads the loss at its end, so it waits
    return time.perf_counter() - begin


def seconds(function, calls):
    """Mean time of a call, on one CPU core, after two of warm-up; it waits for the device."""
    return Timer("function()", globals={"function": function}).timeit(calls).mean


def usual_augmentation(images, labels, args):
    made = pictures(images, labels)
    return seconds(lambda: [USUAL(picture) for picture, _ in made], 1)


def our_augmentation(images, labels, args):
    return seconds(lambda: augment(images, augmentation(), args.group), 1)


def row(name, value, more=""):
    print(f"{name:<52}{value:>12,.1f}{more}")


def compare(what, ways, images, labels, args):
    """Time the ways in turn, print images per second, and return the median seconds of each."""
    times = [[way(images, labels, args) for way in ways.values()] for _ in range(3)]
    medians = [median(column) for column in zip(*times)]
    for i, name in enumerate(ways):
        ratios = [line[0] / line[i] for line in times]
        more = f"   {median(ratios):.1f} times ({min(ratios):.1f} to {max(ratios):.1f})"
        row(f"{what}, images/s: {name}", len(images) / medians[i], more if i else "")
    return medians


def on_a_gpu(images, labels, args, flop):
    """What only a GPU's speed brings up: launches, the ceiling of its matrix units, files."""
    epoch = our_epoch(images, labels, args)
    for group in (250, 500, 1000):
        share = seconds(lambda: augment(images, augmentation(), group), 3) / epoch
        row(f"augmentation's share of our epoch, %: --group {group}", 100 * share)
    a, b = torch.randn(2, 8192, 8192, device=images.device, dtype=torch.bfloat16)
    ceiling = 2 * 8192 ** 3 / seconds(lambda: a @ b, 10)
    row("bf16 matrix product, TFLOP/s", ceiling / 1e12)
    for args.batch_size in (128, 512):
        parts = train.build(args, len(images), images.device)
        x = torch.randn(args.batch_size, 3, 32, 32, device=images.device)
        step = partial(train.train_step, parts, x, labels[:args.batch_size], 0.1)
        seconds(step, 10)                       # kernels are chosen, with --compile made
        share = args.batch_size * flop / seconds(step, 50) / ceiling
        row(f"steps at batch {args.batch_size}, % of the matrix product", 100 * share)
    with tempfile.TemporaryDirectory() as folder:
        save = partial(train.save, Path(folder), parts, args, [{"epoch": 1}])
        row("seconds of an epoch's files", seconds(save, 3))
    row("peak device memory, GB", torch.cuda.max_memory_allocated() / 1e9)


def main(argv=None):
    args = parse_args(argv)
    device = pick_device(args.device)
    torch.backends.cudnn.benchmark = True       # as train.py
    images, labels = load_data(args.data, train=True)
    count = 45_000 if device.type == "cuda" else 256
    images, labels = images[:count].to(device), labels[:count].to(device)
    machine = train.machine(train.build(args, len(images), device))
    print(f"{machine}, {time.strftime('%Y-%m-%d')}, blocks {args.blocks}, widths {args.widths}, "
          f"{len(images):,} images, batch {args.batch_size}")
    ways = {"PIL": usual_augmentation, "ours": our_augmentation}
    compare("augmentation on one core", ways, images[:1000].cpu(), labels[:1000], args)
    ways = {"the usual way": usual_epoch, "ours": our_epoch}
    if args.compile:
        ways["ours with --compile"] = partial(our_epoch, compiled=True)
    _, ours, *_ = compare("training", ways, images, labels, args)
    flop = 6 * sum(row[3] for row in layer_table(ResNet(args.blocks, args.widths)))     # per image
    row("training, TFLOP/s: ours", len(images) * flop / ours / 1e12)
    if device.type == "cuda":
        on_a_gpu(images, labels, args, flop)


if __name__ == "__main__":
    start(main)
