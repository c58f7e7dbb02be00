"""Predict with a trained network, and write the class competition's CSV.

    python predict.py --ckpt weights/strong.pt                  # the test set: its accuracy
    python predict.py --ckpt best.pt --input my_cat.jpg         # says what it sees
    python predict.py --ckpt best.pt --input my_photos/         # a folder; IDs are the names
    python predict.py --ckpt best.pt --input cifar_test_nolabel.pkl --tta   # the competition's file

Writes submission.csv (not for a single image) and, for the labelled test set, confusion.png and
mistakes.png beside it.
"""
import argparse
import pickle
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image, ImageOps
from torchvision.transforms.v2 import functional as TF
from tqdm import tqdm

from data import class_names, load_data, normalise
from model import CLASSES, Help, load_checkpoint, pick_device, save_figure, start, write_csv

MAX_IMAGES = 200_000        # 614 MB
PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")


@torch.no_grad()
def predict(model, images, dtype=torch.float32, tta=False):
    """Float32 logits (N, 10), on the model's device, of uint8 images (N, 3, 32, 32).

    tta: test-time augmentation, the mean of the logits of each image and of its mirror image.
    """
    # In eval mode batch norm uses the means and variances that it averaged in training, so that an
    # image's logits do not depend on which others share its batch.
    model.eval()
    device = next(model.parameters()).device
    logits = []
    # 125 images of 64 x 32 x 32 floats stay just below the 32 MiB from which glibc maps fresh pages
    # for every tensor: on two CPU cores a third faster than 500 at once.
    batches = tqdm(images.split(125), "predicting", leave=False, delay=2, disable=None)
    with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        for batch in batches:
            x = normalise(batch.to(device))                                 # (B, 3, 32, 32)
            views = [x, x.flip(3)] if tta else [x]
            logits.append(sum(model(view).float() for view in views) / len(views))      # (B, 10)
    return torch.cat(logits)


def accuracy(logits, labels):
    """Share of right answers."""
    return (logits.argmax(1) == labels).sum().item() / len(labels)


def main(argv=None):
    args = parse_args(argv)
    if args.out.suffix != ".csv":
        raise SystemExit(f"error: --out {str(args.out)!r} must be the name of a .csv file")
    device, names = pick_device(args.device), class_names(args.data)
    model, _ = load_checkpoint(args.ckpt, device)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    if args.input is None:
        images, labels = load_data(args.data, train=False)
        ids = range(len(images))
    else:
        ids, images = read_images(args.input)
    logits = predict(model, images, tta=args.tta).cpu()     # float32, on GPUs perhaps TF32
    if len(images) > 1:                 # one image is only named; the CSV is in Kaggle's format
        write_csv(args.out, [("ID", "Labels"), *zip(ids, logits.argmax(1).tolist())])
        print(f"{args.out}: {len(images):,} rows")
    if args.input is None:
        show_test(images, logits, labels, names, args.out.parent)
    elif len(images) <= 20:
        for name, shares in zip(ids, logits.softmax(1)):
            top = zip(*shares.topk(3))          # the three likeliest classes
            print(f"{name!r:<20}  " + "   ".join(f"{names[c]} {share:.0%}" for share, c in top))


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=Help)
    flag = parser.add_argument
    flag("--ckpt", required=True, help="checkpoint of train.py: best.pt or weights/*.pt")
    flag("--data", default="data", help='folder of CIFAR-10 for its test set, or "fake"')
    flag("--input", type=Path, help="a .pkl, picture or folder of pictures instead of the test set")
    flag("--out", type=Path, default="submission.csv", help="the CSV (none for a single image)")
    flag("--tta", action="store_true", help="average the logits of each image and its mirror image")
    flag("--device", help="cpu, cuda or mps; None: the accelerator found, else the CPU")
    return parser.parse_args(argv)


# ---- what a person sees ------------------------------------------------------------------------
def show_test(images, logits, labels, names, folder):
    """Print the accuracy of each class; draw confusion.png and mistakes.png."""
    pairs = torch.bincount(labels * CLASSES + logits.argmax(1), minlength=CLASSES ** 2)
    matrix = pairs.view(CLASSES, CLASSES)                   # row: true class, column: predicted
    print(f"{'class':<12}{'images':>7}{'right':>8}   most often taken for")
    for c, row in enumerate(matrix):
        most, other = max((count.item(), names[k]) for k, count in enumerate(row) if k != c)
        taken = f"{other} ({most})" if most else "-"
        print(f"{names[c]:<12}{row.sum():>7,}{row[c] / row.sum():>8.1%}   {taken}")
    title = f"accuracy {accuracy(logits, labels):.2%} on {len(images):,} test images"
    save_figure(draw_confusion(matrix, names, title), folder / "confusion.png")
    save_figure(draw_mistakes(images, logits, labels, names), folder / "mistakes.png")
    print(f"{title}; confusion.png and mistakes.png beside the CSV")


def draw_confusion(matrix, names, title):
    figure = Figure(figsize=(7, 6.2), layout="constrained")
    axes = figure.subplots()
    share = (matrix / matrix.sum(1, keepdim=True)).numpy()
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1, alpha=0.6)
    for (row, column), count in np.ndenumerate(matrix.numpy()):
        axes.text(column, row, count, ha="center", va="center", fontsize=8)
    axes.set(xlabel="predicted", ylabel="true", title=title)
    axes.set_xticks(range(CLASSES), names, rotation=45, ha="right")
    axes.set_yticks(range(CLASSES), names)
    return figure


def draw_mistakes(images, logits, labels, names):
    """The 24 mistakes that the network is surest of, and how many there are."""
    sure, predicted = logits.softmax(1).max(1)
    wrong = (predicted != labels).nonzero().flatten()
    wrong = wrong[sure[wrong].argsort(descending=True)]
    figure = Figure(figsize=(12, 8.5), layout="constrained")
    figure.suptitle(f"{len(wrong):,} mistakes in {len(images):,} images, the surest first")
    bare = {"frame_on": False, "xticks": [], "yticks": []}
    for axes, i in zip(figure.subplots(4, 6, subplot_kw=bare).flat, wrong):
        axes.imshow(images[i].permute(1, 2, 0).numpy())
        said = f"said {names[predicted[i]]} ({sure[i]:.0%}),\nis {names[labels[i]]}"
        axes.set_title(said, fontsize=9)
    return figure


# ---- reading untrusted files: a class can skip this, or study it -------------------------------
def read_images(path):
    """IDs (int or str) and images (uint8 (N, 3, 32, 32)) of a pickle, a picture, or a folder.

    SystemExit for anything else, and before memory is taken for a pickle that is too large.
    """
    try:
        pictures = path.is_dir() or path.suffix.lower() in PICTURES
        ids, images = read_pictures(path) if pictures else read_pickle(path)
        if not len(images) == len(ids) == len(set(ids)):
            raise ValueError(f"{len(images):,} images need as many different ids")
    except Exception as error:                  # a damaged file fails in any of a dozen ways
        raise SystemExit(f"error: cannot read images from {str(path)!r} ({error!r:.300}): --input "
                         f"takes .pkl, {', '.join(PICTURES)}, or a folder of pictures") from None
    return ids, images


def read_pickle(path):
    """The competition's file: a dict with data and, usually, ids; keys are bytes or str."""
    if path.stat().st_size > MAX_IMAGES * 3072 * 1.1:
        raise ValueError(f"larger than {MAX_IMAGES:,} images")
    with open(path, "rb") as file:
        content = ArrayUnpickler(file, encoding="bytes").load()
    content = {as_text(key): value for key, value in content.items()}
    data = np.asarray(content["data"])
    if data.dtype != np.uint8 or data.shape[1:] not in {(32, 32, 3), (3072,)} or len(data) == 0:
        raise ValueError(f"data is {data.dtype} {data.shape}, not uint8 (N, 32, 32, 3), (N, 3072)")
    if data.ndim == 4:                          # else CIFAR's own rows, already plane by plane
        data = data.transpose(0, 3, 1, 2)
    ids = np.asarray(content.get("ids", range(len(data)))).tolist()
    return [as_text(i) for i in ids], torch.tensor(data).reshape(-1, 3, 32, 32)


def as_text(value):
    return value.decode() if isinstance(value, bytes) else value        # of Python 2, for example


class Record:
    """Stands in for numpy's objects in a pickle: keeps its arguments until np.asarray() asks."""

    def __init__(self, *args):
        self.args, self.state = args, None

    def __setstate__(self, state):
        self.state = state

    def __array__(self, dtype=None, copy=None):
        """The array. np.frombuffer counts the bytes, and makes no Python objects."""
        if self.state:
            _, shape, kind, fortran, raw = self.state
            order, axes = "F" if fortran else "C", None
        else:                                               # protocol 5; older numpy has no axes
            raw, kind, shape, order, axes = (*self.args, None)[:5]
        # the dtype is a Record, too: of "i4" and ">", for example
        kind = np.dtype(kind.args[0]).newbyteorder(kind.state[1])
        array = np.frombuffer(raw, kind).reshape(shape, order="C" if axes else order)
        return array.transpose(axes) if axes else array


class ArrayUnpickler(pickle.Unpickler):
    """Loads plain values and Records; refuses any other name before anything of it runs.

    A pickle is a program: it may name any function of Python and have it called. Not even numpy's
    own are safe: an array's __setstate__ trusts the dtype in the file, even one which says that
    the bytes are addresses of Python objects.
    """

    def find_class(self, module, name):
        if (module, name) == ("_codecs", "encode"):         # how protocol 2 writes bytes
            return lambda text, _: text.encode("latin1")
        if module.partition(".")[0] != "numpy":
            raise ValueError(f"it wants to load {module}.{name}, which no array needs: refused")
        return Record


def read_pictures(path):
    """A picture, or all of a folder: the middle square at 32x32. IDs are names without suffix."""
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    # macOS leaves ._NAME.png in archives
    files = [f for f in files if f.suffix.lower() in PICTURES and f.name[0] != "."]
    images = []
    for file in tqdm(files, "reading", leave=False, delay=2, disable=None):
        try:
            picture = Image.open(file, formats=["PNG", "JPEG", "BMP", "WEBP"])      # EPS runs code
            upright = ImageOps.exif_transpose(picture).convert("RGBA")  # phones store the rotation
            small = ImageOps.fit(upright, (32, 32))
            white = Image.new("RGBA", small.size, "white")      # else hidden colours would show
            opaque = Image.alpha_composite(white, small).convert("RGB")
        except Exception as error:              # one of many may be cut short
            raise ValueError(f"{file.name}: {error}") from None
        images.append(TF.pil_to_tensor(opaque))
    return [file.stem for file in files], torch.stack(images)


if __name__ == "__main__":
    start(main)
