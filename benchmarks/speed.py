"""Ours against the usual way of writing this training, in one run on one machine.

    python benchmarks/speed.py                      # real data in ./data; on a GPU: whole epochs
    python benchmarks/speed.py --data fake --images 1000 --blocks 1 1 1 --widths 16 32 64      # a look, in a minute

The usual way, which the comparable repositories share: torchvision's CIFAR10 with PIL transforms in a DataLoader
with workers, float32 (TF32 as PyTorch sets it), NCHW, eager, one .item() a step. Ours: data.augment() and
train.train_epoch() as train.py calls them. Output:

    cpu (2 threads), bfloat16, torch 2.15.0+cu132, 2026-11-22, blocks [4, 5, 3], widths [64, 128, 256], 1,280 images, batch 128
    pipeline, images/s: PIL on one core                1,705.3
    pipeline, images/s: ours on one core              18,094.4   10.6 times
    epoch, images/s: the usual way, 2 workers             27.5
    epoch, images/s: ours                                 68.5   2.5 times
    epoch, images/s: ours with --compile                  65.9   2.4 times
      seconds that compiling took                         52.2
    peak memory of this process, GB                        3.0
    augmentation's share of our epoch, %                   0.3
    GFLOP of one training image                            5.2
    batch 128: epoch, images/s                            65.2
    batch 128: step alone, TFLOP/s                         0.3
    batch 256: epoch, images/s                            62.4
    batch 256: step alone, TFLOP/s                         0.3
    batch 512: epoch, images/s                            60.4
    batch 512: step alone, TFLOP/s                         0.3
    batch 1024: epoch, images/s                           60.2
    batch 1024: step alone, TFLOP/s                        0.3
    seconds from starting train.py to its first step       10.8
"""
import itertools
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import FlopCounterMode
from torchvision.transforms import v2
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import train                                                                            # noqa: E402
from data import MEAN, STD, augment, augmentation, load_data                            # noqa: E402
from model import Parser, ResNet, pick_amp, pick_device, run                            # noqa: E402


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


def usual_epoch(images, labels, args, device, workers):
    """One epoch the usual way; returns its seconds, without the building of the network."""
    model = ResNet(args.blocks, args.widths).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, weight_decay=args.weight_decay)
    loader = DataLoader(Pictures(images, labels), args.batch_size, shuffle=True, num_workers=workers, drop_last=True,
                        pin_memory=device.type == "cuda")
    start, total = time.perf_counter(), 0.0
    for x, y in loader:
        x, y = x.to(device), y.to(device)
        loss = F.cross_entropy(model(x), y, label_smoothing=args.label_smoothing)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += loss.item()
    return time.perf_counter() - start


def our_epoch(images, labels, args, device, compiled=False):
    """(seconds of one epoch, seconds before it) by train.py's own functions; the first, a short one, warms up."""
    amp = pick_amp(device, args.amp)
    start, steps = time.perf_counter(), len(images) // args.batch_size
    model, *trainer = train.build(args, steps, device, amp)
    network = torch.compile(model, mode="reduce-overhead") if compiled else model
    with tqdm(disable=True) as bar:
        few = 3 * args.batch_size
        train.train_epoch(network, images[:few], labels[:few], *trainer, train.autocast(device, amp), bar, args)
        begin = time.perf_counter()
        train.train_epoch(network, images, labels, *trainer, train.autocast(device, amp), bar, args)
    return time.perf_counter() - begin, begin - start


def augment_seconds(images, group):
    """Seconds of one augmentation of all images, the device waited for."""
    augment(images[:2 * group], augmentation(), group)
    start = time.perf_counter()
    augment(images, augmentation(), group).sum().item()
    return time.perf_counter() - start


def ceiling(device, n=8192):
    """Floating-point operations a second of a large bf16 matrix product, the best of ten."""
    a, b = (torch.randn(n, n, device=device, dtype=torch.bfloat16) for _ in range(2))
    seconds = []
    for _ in range(12):
        torch.cuda.synchronize()
        start = time.perf_counter()
        a @ b
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return 2 * n ** 3 / min(seconds[2:])


def flop_per_image(args):
    """Floating-point operations of one training image, forward and backward, counted from the shapes."""
    with FlopCounterMode(display=False) as counter:
        ResNet(args.blocks, args.widths)(torch.zeros(1, 3, 32, 32)).sum().backward()
    return counter.get_total_flops()


def peak_memory(device):
    """Peak of device memory since the last call, in GB; on a CPU the peak of this process so far."""
    if device.type != "cuda":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    peak = torch.cuda.max_memory_allocated() / 1e9
    torch.cuda.reset_peak_memory_stats()
    return peak


def seconds_to_first_step(args, tmp="."):
    """Seconds from typing python train.py to its first step."""
    start = time.perf_counter()
    command = [sys.executable, str(Path(train.__file__)), "--data", args.data, "--out", tmp, "--blocks", *map(str, args.blocks),
               "--widths", *map(str, args.widths)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        for line in itertools.islice(process.stdout, 2):
            pass
        seconds = time.perf_counter() - start
        process.kill()
    return seconds


def parse_args(argv=None):
    parser = Parser(__doc__.split("Output:")[0])
    parser.add_argument("--data", default="data", help='folder of CIFAR-10, or "fake" (default: data)')
    parser.add_argument("--images", type=int, help="images an epoch (default: 45000 on a GPU, 1280 on a CPU)")
    parser.add_argument("--blocks", type=int, nargs=3, default=[4, 5, 3], help="(default: 4 5 3)")
    parser.add_argument("--widths", type=int, nargs=3, default=[64, 128, 256], help="(default: 64 128 256)")
    parser.add_argument("--device", help="(default: the accelerator if there is one)")
    parser.add_argument("--rounds", type=int, default=3, help="both ways in turn so often; medians count (default: 3)")
    parser.add_argument("--compile", action="store_true", help="also ours with --compile; a CPU needs a C++ compiler")
    return parser.parse_args(argv)


def median(values):
    return sorted(values)[len(values) // 2]


def pipeline(images, labels, device, args, group):
    """Time the augmentation both ways; on a CPU on one core. Prints the rows, returns our seconds an image."""
    threads = torch.get_num_threads()
    pictures, n = Pictures(images.cpu(), labels.cpu()), min(len(images), 2000)
    if device.type == "cpu":
        torch.set_num_threads(1)
    usual, ours = [], []
    for _ in range(args.rounds):
        start = time.perf_counter()
        for i in range(n):
            pictures[i]
        usual.append((time.perf_counter() - start) / n)
        ours.append(augment_seconds(images, group) / len(images))
    torch.set_num_threads(threads)
    row("pipeline, images/s: PIL on one core", 1 / median(usual))
    row("pipeline, images/s: ours" + (" on one core" if device.type == "cpu" else ""), 1 / median(ours), median(usual) / median(ours))
    return median(ours)


def epochs(images, labels, device, args, ours_args):
    """Time the whole epoch both ways, in turn. Prints the rows, returns our seconds an image."""
    workers, usual, ours, n = os.cpu_count(), [], [], len(images)
    host_images, host_labels = images.cpu(), labels.cpu()
    for _ in range(args.rounds):
        ours.append(our_epoch(images, labels, ours_args, device)[0] / n)
        ours_memory = peak_memory(device)
        usual.append(usual_epoch(host_images, host_labels, ours_args, device, workers) / n)
        usual_memory = peak_memory(device)
    row(f"epoch, images/s: the usual way, {workers} workers", 1 / median(usual))
    row("epoch, images/s: ours", 1 / median(ours), median(usual) / median(ours))
    if args.compile:
        seconds, before = our_epoch(images, labels, ours_args, device, compiled=True)
        row("epoch, images/s: ours with --compile", n / seconds, median(usual) * n / seconds)
        row("  seconds that compiling took", before)
    if device.type == "cuda":
        row("peak device memory, GB: the usual way", usual_memory)
        row("peak device memory, GB: ours", ours_memory)
    else:
        row("peak memory of this process, GB", max(ours_memory, usual_memory))
    return median(ours)


def row(name, value, ratio=None):
    print(f"{name:<46}{value:>12,.1f}" + (f"   {ratio:.1f} times" if ratio else ""))


def main(argv=None):
    args = parse_args(argv)
    device = pick_device(args.device)
    amp = pick_amp(device)
    images, labels = load_data(args.data, train=True)
    n = args.images or (45_000 if device.type == "cuda" else 1280)
    images, labels = images[:n].to(device), labels[:n].to(device)
    ours_args = train.parse_args(["--blocks", *map(str, args.blocks), "--widths", *map(str, args.widths)])
    flop = flop_per_image(args)
    print(f"{train.device_name(device)}, {str(amp or torch.float32)[6:]}, torch {torch.__version__}, {time.strftime('%Y-%m-%d')}, "
          f"blocks {args.blocks}, widths {args.widths}, {len(images):,} images, batch {ours_args.batch_size}")
    augmenting = pipeline(images, labels, device, args, ours_args.group)
    if device.type == "cpu":        # an epoch augments on all cores
        augmenting = augment_seconds(images, ours_args.group) / len(images)
    whole = epochs(images, labels, device, args, ours_args)
    row("augmentation's share of our epoch, %", 100 * augmenting / whole)
    row("GFLOP of one training image", flop / 1e9)
    top = ceiling(device) if device.type == "cuda" else None
    if top:
        row("bf16 ceiling, TFLOP/s", top / 1e12)
    for batch_size in (128, 256, 512, 1024):
        ours_args.batch_size = batch_size
        seconds = our_epoch(images, labels, ours_args, device, args.compile)[0] / (len(images) // batch_size * batch_size)
        row(f"batch {batch_size}: epoch, images/s", 1 / seconds)
        row(f"batch {batch_size}: step alone, TFLOP/s", flop / (seconds - augmenting) / 1e12)
        if top:
            row(f"batch {batch_size}: step's share of the ceiling, %", 100 * flop / (seconds - augmenting) / top)
    row("seconds from starting train.py to its first step", seconds_to_first_step(args))


if __name__ == "__main__":
    run(main)
