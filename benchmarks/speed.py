"""Ours against the usual way of writing this training, in one run on one machine, in at most three minutes.

    python benchmarks/speed.py                              # needs CIFAR-10 in ./data; on a GPU: whole epochs
    python benchmarks/speed.py --data fake --images 1000 --blocks 1 1 1 --widths 16 32 64      # without it

The usual way, which comparable repositories share: torchvision's CIFAR10 with PIL transforms in a DataLoader
with workers, float32 (TF32 as PyTorch sets it), NCHW, eager, one .item() per step. Ours: data.augment() and
train.train_epoch() as train.py calls them. Both are timed in turn; a ratio is the median of the pairs, with
the smallest and the largest.
"""
import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import torch
import torch.nn.functional as F
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import train                                                                                    # noqa: E402
from data import MEAN, STD, augment, augmentation, load_data                                    # noqa: E402
from model import (Help, ResNet, add_network_flags, flop_per_image, number, pick_device,        # noqa: E402
                   start)


class Pictures(Dataset):
    """What torchvision.datasets.CIFAR10 is to a DataLoader: PIL images and labels, a transform for each."""

    def __init__(self, images, labels):
        self.images, self.labels = images.permute(0, 2, 3, 1).numpy(), labels.tolist()
        self.transform = v2.Compose([
            v2.RandomCrop(32, padding=4), v2.RandomHorizontalFlip(), v2.RandomRotation(15), v2.ColorJitter(0.2, 0.2, 0.2),
            v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10), v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, STD), v2.RandomErasing(p=0.2)])

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, i):
        return self.transform(Image.fromarray(self.images[i])), self.labels[i]


def usual_epoch(images, labels, args, device):
    """Seconds of one epoch the usual way, without the start of the network and of the workers."""
    model = ResNet(args.blocks, args.widths).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, weight_decay=args.weight_decay)
    batches = iter(DataLoader(Pictures(images.cpu(), labels.cpu()), args.batch_size, shuffle=True, drop_last=True,
                              num_workers=os.cpu_count(), pin_memory=device.type == "cuda"))
    begin = time.perf_counter()
    for x, y in batches:
        loss = F.cross_entropy(model(x.to(device)), y.to(device), label_smoothing=args.label_smoothing)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()
    return time.perf_counter() - begin


def our_epoch(images, labels, args, device):
    """Seconds of one epoch by train.py's own functions, after a batch of warm-up."""
    parts = train.build(args, images, device)
    train.train_epoch(parts, images[:args.batch_size], labels[:args.batch_size], args, 1)
    begin = time.perf_counter()
    train.train_epoch(parts, images, labels, args, 1)       # reads the loss at its end, so it waits for the device
    return time.perf_counter() - begin


def seconds(function, repeats=3):
    """Median time of a call that ends by waiting for the device."""
    times = []
    for _ in range(repeats + 1):                            # the first one warms up
        begin = time.perf_counter()
        function()
        times.append(time.perf_counter() - begin)
    return median(times[1:])


def row(name, value, ratios=()):
    spread = f"   {median(ratios):.1f} times ({min(ratios):.1f} to {max(ratios):.1f})" if ratios else ""
    print(f"{name:<52}{value:>12,.1f}{spread}")


def pipeline(images, labels, rounds):
    """The augmentation alone, on one core."""
    threads, pictures = torch.get_num_threads(), Pictures(images.cpu(), labels.cpu())
    torch.set_num_threads(1)
    usual, ours = [], []
    for _ in range(rounds):
        begin = time.perf_counter()
        for i in range(len(pictures)):
            pictures[i]
        usual.append(time.perf_counter() - begin)
        ours.append(seconds(lambda: augment(images.cpu(), augmentation(), 250), 1))
    torch.set_num_threads(threads)
    row("augmentation on one core, images/s: PIL", len(images) / median(usual))
    row("augmentation on one core, images/s: ours", len(images) / median(ours), [a / b for a, b in zip(usual, ours)])


def epochs(images, labels, args, device, rounds):
    """Whole epochs, the two ways in turn; returns our seconds."""
    pairs = [(usual_epoch(images, labels, args, device), our_epoch(images, labels, args, device)) for _ in range(rounds)]
    ours = median(pair[1] for pair in pairs)
    row("training, images/s: the usual way", len(images) / median(pair[0] for pair in pairs))
    row("training, images/s: ours", len(images) / ours, [a / b for a, b in pairs])
    flop = flop_per_image(ResNet(args.blocks, args.widths), 32)
    row("training, TFLOP/s: ours", len(images) * flop / ours / 1e12)
    if args.compile:
        pairs = [(a, our_epoch(images, labels, args, device)) for a, _ in pairs]
        row("training, images/s: ours with --compile", len(images) / median(b for _, b in pairs), [a / b for a, b in pairs])
    return ours


def on_a_gpu(images, labels, args, device, ours):
    """What only a GPU's speed brings up: launches, the ceiling of the tensor cores, writing files."""
    for group in (250, 500, 1000):
        share = seconds(lambda: augment(images, augmentation(), group).sum().item()) / ours
        row(f"augmentation's share of our epoch, %: --group {group}", 100 * share)
    a, b = torch.randn(2, 8192, 8192, device=device, dtype=torch.bfloat16)
    ceiling = 2 * 8192 ** 3 / seconds(lambda: ((a @ b).sum().item()), 10)
    row("bf16 matrix product, TFLOP/s", ceiling / 1e12)
    for args.batch_size in (128, 512):
        parts, x, y = train.build(args, images, device), torch.randn(args.batch_size, 3, 32, 32, device=device), labels[:args.batch_size]
        steps = seconds(lambda: [train.train_step(parts, x, y, 0.1)[0] for _ in range(50)][-1].item())
        flop = 50 * args.batch_size * parts.flop[32]
        row(f"steps at batch {args.batch_size}, % of the matrix product", 100 * flop / steps / ceiling)
    with tempfile.TemporaryDirectory() as folder:
        history = [{"epoch": 1, "train_loss": 1.0, "train_acc": 0.5, "val_loss": 1.0, "val_acc": 0.5}]
        row("seconds of an epoch's files, last.pt and curves due", seconds(lambda: (
            Path(folder, "last.pt").unlink(missing_ok=True), train.save(Path(folder), parts, args, history))))
        row("seconds of an epoch's files, not due", seconds(lambda: train.save(Path(folder), parts, args, history)))
    row("peak device memory, GB", torch.cuda.max_memory_allocated() / 1e9)


def seconds_to_first_step(args):
    """Seconds from typing python train.py to the lines before its first epoch."""
    network = f"--blocks {' '.join(map(str, args.blocks))} --widths {' '.join(map(str, args.widths))}".split()
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, subprocess.Popen(
            [sys.executable, str(ROOT / "train.py"), "--data", args.data, "--out", folder, *network], stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            if "operations" in line:
                break
        process.kill()
    return time.perf_counter() - begin


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=Help)
    parser.add_argument("--data", default="data", help='folder of CIFAR-10, or "fake"')
    parser.add_argument("--images", type=number(int, 256), help="images per epoch; 45000 on a GPU, 256 on a CPU")
    parser.add_argument("--rounds", type=number(int, 1), default=3, help="how often the two ways are timed in turn")
    parser.add_argument("--device", help="cpu, cuda or mps, if not the accelerator that is found")
    parser.add_argument("--compile", action="store_true", help="also with --compile; a CPU needs a C++ compiler")
    add_network_flags(parser.add_argument)
    return parser.parse_args(argv)


def main(argv=None):
    asked = parse_args(argv)
    device = pick_device(asked.device)
    args = train.parse_args([])
    args.blocks, args.widths, args.data = asked.blocks, asked.widths, asked.data
    torch.backends.cudnn.benchmark = True       # as train.py
    images, labels = load_data(args.data, train=True)
    n = asked.images or (45_000 if device.type == "cuda" else 256)
    images, labels = images[:n].to(device), labels[:n].to(device)
    print(f"{train.machine(train.build(args, images, device))}, {time.strftime('%Y-%m-%d')}, blocks {args.blocks}, "
          f"widths {args.widths}, {len(images):,} images, batch {args.batch_size}")
    pipeline(images[:1000], labels[:1000], asked.rounds)
    args.compile = asked.compile
    ours = epochs(images, labels, args, device, asked.rounds)
    if device.type == "cuda":
        on_a_gpu(images, labels, args, device, ours)
    row("seconds from starting train.py to its first epoch", seconds_to_first_step(args))


if __name__ == "__main__":
    start(main)
