"""Our training loop against the usual one, on one machine; a minute on a CPU.

    python benchmarks/speed.py              # flags of train.py work: --data DIR, --blocks 2 2 2
    python benchmarks/speed.py --compile    # on a GPU

The usual way, which comparable repositories share: PIL images and transforms in a DataLoader with
workers, float32 (TF32 as PyTorch sets it), NCHW, eager, one .item() per step. Ours: augment() and
train_epoch() as train.py calls them. The ways are timed in turn, three times; a ratio is the median
of the three, with the smallest and the largest.
"""
import copy
import os
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import torch
import torch.nn.functional as F
from torch.utils.benchmark import Timer
from torch.utils.data import DataLoader, default_collate
from torchvision.transforms import v2

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import train
from data import MEAN, PAPER, STD, augment, augmentation, load_data
from model import ResNet, layer_table, pick_device, start
from train import parse_args

USUAL = v2.Compose([
    v2.RandomCrop(32, padding=4), v2.RandomHorizontalFlip(), v2.RandomRotation(15),
    v2.ColorJitter(0.2, 0.2, 0.2), v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10), v2.PILToTensor(),
    v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD), v2.RandomErasing(p=0.2)])


def pictures(images):
    """PIL images, as torchvision.datasets.CIFAR10 makes them."""
    return [v2.functional.to_pil_image(image) for image in images.cpu()]


def collate(batch):
    return default_collate([(USUAL(picture), label) for picture, label in batch])


def usual_epoch(images, labels, args):
    """Seconds of one epoch the usual way, without the start of the network and of the workers."""
    device = images.device
    model = ResNet(args.blocks, args.widths, not args.plain).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, weight_decay=args.weight_decay)
    loader = DataLoader(list(zip(pictures(images), labels.tolist())), args.batch_size,
                        shuffle=True, drop_last=True, num_workers=os.cpu_count(),
                        persistent_workers=True, collate_fn=collate,
                        pin_memory=device.type == "cuda")
    next(iter(loader))      # on Windows and macOS each worker first imports torch
    batches = iter(loader)
    begin = time.perf_counter()
    for x, y in batches:
        loss = F.cross_entropy(model(x.to(device)), y.to(device),
                               label_smoothing=args.label_smoothing)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()
    return time.perf_counter() - begin


def our_epoch(images, labels, args):
    """Seconds of one epoch by train.py's own functions, after four batches of warm-up: the third
    step is the first that replays a CUDA graph."""
    parts, some = train.build(args, len(images), images.device), 4 * args.batch_size
    train.train_epoch(parts, images[:some], labels[:some], args, 1)
    begin = time.perf_counter()
    train.train_epoch(parts, images, labels, args, 1)       # reads the loss at its end, so it waits
    return time.perf_counter() - begin


def seconds(function, calls=1):
    """Mean time of a call, on one CPU core, after two of warm-up; it waits for the device."""
    return Timer("function()", globals={"function": function}).timeit(calls).mean


def row(name, value, more=""):
    print(f"{name:<52}{value:>12,.1f}{more}")


def compare(what, count, ways):
    """Time the ways, {name: function that gives its seconds for `count` images}, in turn, print
    images per second, and return the median seconds of each."""
    times = [[way() for way in ways.values()] for _ in range(3)]
    medians = [median(column) for column in zip(*times)]
    for i, name in enumerate(ways):
        ratios = [line[0] / line[i] for line in times]
        more = f"   {median(ratios):.1f} times ({min(ratios):.1f} to {max(ratios):.1f})"
        row(f"{what}, images/s: {name}", count / medians[i], more if i else "")
    return medians


def on_a_gpu(images, labels, args, flop, epoch):
    """What matters only at a GPU's speed: launches, the peak of its matrix units, files.
    flop: of an image; epoch: seconds of ours, without --compile."""
    for group in (250, 500, 1000):
        share = seconds(lambda: augment(images, augmentation(), group), 3) / epoch
        row(f"augmentation's share of our epoch, %: --group {group}", 100 * share)
    a, b = torch.randn(2, 8192, 8192, device=images.device, dtype=torch.bfloat16)
    ceiling = 2 * 8192 ** 3 / seconds(lambda: a @ b, 10)
    row("bf16 matrix product, TFLOP/s", ceiling / 1e12)
    for size in (128, 512):
        parts = train.build(args, len(images), images.device)
        x, y = torch.randn(size, 3, 32, 32, device=images.device), labels[:size]

        def step():
            train.train_step(parts, x, y, 0.1)
        seconds(step, 10)                       # kernels are chosen, or compiled (--compile)
        row(f"steps at batch {size}, % of the matrix product",
            100 * size * flop / seconds(step, 50) / ceiling)
    with tempfile.TemporaryDirectory() as folder:
        row("seconds of an epoch's files",
            seconds(lambda: train.save(Path(folder), parts, args, [{"epoch": 1}]), 3))
    row("peak device memory, GB", torch.cuda.max_memory_allocated() / 1e9)


def main(argv=None):
    args = parse_args(argv)
    args.sizes, args.augment = [32], PAPER      # as in the usual way
    device = pick_device(args.device)
    torch.backends.cudnn.benchmark = True       # as train.py
    count = 45_000 if device.type == "cuda" else 256
    images, labels = (part[:count].to(device) for part in load_data(args.data, train=True))
    machine = train.machine(train.build(args, len(images), device))
    print(f"{machine}, {time.strftime('%Y-%m-%d')}, blocks {args.blocks}, widths {args.widths}, "
          f"{len(images):,} images, batch {args.batch_size}")
    some = images[:1000].cpu()
    as_pil = pictures(some)
    compare("augmentation on one core", len(some), {
        "PIL": lambda: seconds(lambda: [USUAL(picture) for picture in as_pil]),
        "ours": lambda: seconds(lambda: augment(some, augmentation(), args.group))})
    eager = copy.copy(args)
    eager.compile = False
    ways = {"the usual way": lambda: usual_epoch(images, labels, args),
            "ours": lambda: our_epoch(images, labels, eager)}
    if args.compile:
        ways["ours with --compile"] = lambda: our_epoch(images, labels, args)
    _, ours, *_ = compare("training", len(images), ways)
    network = ResNet(args.blocks, args.widths, not args.plain)
    flop = 6 * sum(part[3] for part in layer_table(network))        # of an image, as in run.py
    row("training, TFLOP/s: ours", len(images) * flop / ours / 1e12)
    if device.type == "cuda":
        on_a_gpu(images, labels, args, flop, ours)


if __name__ == "__main__":
    start(main)
