"""Predict with a trained network, and write the class competition's CSV.

    python predict.py --ckpt weights/quick.pt                   # the test set: its accuracy
    python predict.py --ckpt best.pt --input my_cat.jpg         # says what it sees
    python predict.py --ckpt best.pt --input my_photos/         # a folder; IDs are the names
    python predict.py --ckpt best.pt --input cifar_test_nolabel.pkl --tta   # the competition's file

Writes submission.csv and, for the labelled test set, confusion.png and mistakes.png beside it.
"""
import argparse
import csv
import io
import pickle
import re
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image, ImageOps
from torchvision.transforms.v2 import functional as TF
from tqdm import tqdm

from data import class_names, load_data, normalise
from model import (CLASSES, Help, autocast, load_checkpoint, memory_format, pick_device, pick_dtype,
                   save_figure, start, whole_file)

MAX_IMAGES = 200_000        # 614 MB
PICTURES = {".png", ".jpg", ".jpeg", ".bmp", ".webp"}


@torch.no_grad()
def predict(model, images, dtype=torch.float32, tta=False):
    """Logits (N, 10), float32, of uint8 images (N, 3, 32, 32), on the model's device.

    tta: test-time augmentation, the mean of the logits of each image and of its mirror image.
    """
    # In eval mode batch norm uses the means and variances that it averaged in training, so that an
    # image's logits do not depend on which others share its batch.
    model.eval()
    device, logits = next(model.parameters()).device, []
    for batch in tqdm(images.split(500), "predicting", leave=False, delay=2, disable=None):
        x = normalise(batch.to(device))                                     # (B, 3, 32, 32)
        with autocast(device, dtype):
            out = (model(x) + model(x.flip(3))) / 2 if tta else model(x)    # (B, 10)
        logits.append(out.float())
    return torch.cat(logits)


def accuracy(logits, labels):
    """Share of right answers over all images, so that a short last batch weighs what it should."""
    return (logits.argmax(1) == labels).sum().item() / len(labels)


def main(argv=None):
    args = parse_args(argv)
    if Path(args.out).suffix != ".csv":
        raise SystemExit(f"error: --out {args.out!r} must be the name of a .csv file")
    model, _ = load_checkpoint(args.ckpt)
    Path(args.out).parent.mkdir(parents=True, exist_ok=True)
    device, names = pick_device(args.device), class_names(args.data)
    model.to(device, memory_format=memory_format(device))
    if args.input is None:
        images, labels = load_data(args.data, train=False)
        ids = range(len(images))
    else:
        ids, images = read_images(args.input)
    logits = predict(model, images, pick_dtype(device), args.tta).cpu()
    write_csv(args.out, ids, logits.argmax(1).tolist())
    print(f"{args.out}: {len(images):,} rows")
    if args.input is None:
        show_test(images, logits, labels, names, Path(args.out).parent)
    elif len(images) <= 20:
        show_images(ids, logits, names)


def write_csv(path, ids, labels):
    """The competition's format: the header ID,Labels, then whole numbers. IDs may be names, too."""
    text = io.StringIO()
    rows = [("ID", "Labels"), *zip(ids, labels, strict=True)]
    csv.writer(text, lineterminator="\n").writerows(rows)
    with whole_file(path) as file:
        file.write(text.getvalue().encode("utf-8", "backslashreplace"))


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=Help)
    flag = parser.add_argument
    flag("--ckpt", required=True, help="checkpoint of train.py: best.pt or weights/*.pt")
    flag("--data", default="data", help='folder of CIFAR-10 whose test set is predicted, or "fake"')
    flag("--input", help="predict unlabelled images instead: a .pkl, a .npy, a picture, a folder")
    flag("--out", default="submission.csv", help="the CSV; pictures are put beside it")
    flag("--tta", action="store_true", help="average each image and its mirror image")
    flag("--device", help="cpu, cuda or mps, if not the accelerator that is found")
    return parser.parse_args(argv)


# ---- what a person sees ------------------------------------------------------------------------
def show_images(ids, logits, names):
    """Print the three likeliest classes of each image."""
    for name, shares in zip(ids, logits.softmax(1)):
        top = zip(*shares.topk(3))
        print(f"{name!r:<20}" + "   ".join(f"{names[c]} {share:.0%}" for share, c in top))


def show_test(images, logits, labels, names, folder):
    """Print the accuracy of each class; draw confusion.png and mistakes.png."""
    matrix = confusion_matrix(logits.argmax(1), labels)
    print(f"{'class':<12}{'images':>7}{'right':>8}   most often taken for")
    for c, row in enumerate(matrix):
        most, other = max((count.item(), names[k]) for k, count in enumerate(row) if k != c)
        taken = f"{other} ({most})" if most else "-"
        print(f"{names[c]:<12}{row.sum():>7,}{row[c] / row.sum():>8.1%}   {taken}")
    title = f"accuracy {accuracy(logits, labels):.2%} on {len(images):,} test images"
    save_figure(draw_confusion(matrix, names, title), folder / "confusion.png")
    save_figure(draw_mistakes(images, logits, labels, names), folder / "mistakes.png")
    print(f"{title}; confusion.png and mistakes.png beside the CSV")


def confusion_matrix(predicted, labels):
    """(10, 10) counts: row = true class, column = predicted class."""
    pairs = torch.bincount(labels * CLASSES + predicted, minlength=CLASSES ** 2)
    return pairs.view(CLASSES, CLASSES)


def draw_confusion(matrix, names, title):
    figure = Figure(figsize=(7, 6.2), layout="constrained")
    axes = figure.subplots()
    share = (matrix / matrix.sum(1, keepdim=True)).numpy()
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for (row, column), part in np.ndenumerate(share):
        axes.text(column, row, f"{matrix[row, column]}", ha="center", va="center", fontsize=8,
                  color="white" if part > 0.5 else "black")
    axes.set(xlabel="predicted", ylabel="true", title=title)
    axes.set_xticks(range(CLASSES), names, rotation=45, ha="right")
    axes.set_yticks(range(CLASSES), names)
    return figure


def draw_mistakes(images, logits, labels, names):
    """The 24 mistakes that the network is surest of."""
    sure, predicted = logits.softmax(1).max(1)
    wrong = (predicted != labels).nonzero().flatten()
    wrong = wrong[sure[wrong].argsort(descending=True)][:24]
    figure = Figure(figsize=(12, 8.5), layout="constrained")
    for axes in figure.subplots(4, 6).flat:
        axes.axis("off")
    for axes, i in zip(figure.axes, wrong):
        axes.imshow(images[i].permute(1, 2, 0).numpy())
        said = f"said {names[predicted[i]]} ({sure[i]:.0%}),\nis {names[labels[i]]}"
        axes.set_title(said, fontsize=9)
    return figure


# ---- reading untrusted files: a class can skip this, or study it -------------------------------
def read_images(path):
    """IDs (int or str) and images (uint8 (N, 3, 32, 32)) of a pickle, a .npy, a picture, a folder.

    SystemExit for anything else, and before memory is taken for a file that is too large.
    """
    path = Path(path)
    try:
        if path.is_dir() or path.suffix.lower() in PICTURES:
            return read_pictures(path)
        if not path.is_file() or path.stat().st_size > MAX_IMAGES * 3072 * 1.1:
            raise ValueError(f"no file, or larger than {MAX_IMAGES:,} images")
        if path.suffix.lower() == ".npy":       # mapped: a header that claims too much fails
            images = to_images(np.load(path, mmap_mode="r", allow_pickle=False))
            return list(range(len(images))), images
        return read_pickle(path.read_bytes())
    except Exception as error:                  # a damaged file fails in any of a dozen ways
        why = " ".join(str(error).split())[:200]
        raise SystemExit(f"error: cannot read images from {str(path)!r} ({why}): --input takes a "
                         ".pkl or .npy file, a picture, or a folder of pictures") from None


def to_images(array):
    """uint8 (N, 3, 32, 32) from that, from (N, 32, 32, 3), or from CIFAR's own rows (N, 3072)."""
    if not isinstance(array, np.ndarray) or array.dtype != np.uint8:
        raise ValueError(f"not a uint8 array but {getattr(array, 'dtype', type(array).__name__)}")
    if array.shape[1:] not in {(32, 32, 3), (3, 32, 32), (3072,)} or not len(array):
        raise ValueError(f"shape {array.shape}, not (N, 32, 32, 3), (N, 3, 32, 32) or (N, 3072)")
    if array.shape[1:] == (32, 32, 3):
        array = array.transpose(0, 3, 1, 2)
    return torch.from_numpy(np.array(array, order="C")).view(-1, 3, 32, 32)     # a copy


def read_pickle(raw):
    """The competition's file: a dict with data and, usually, ids; keys are bytes or str."""
    content = ArrayUnpickler(io.BytesIO(raw), encoding="bytes").load()
    data, ids = (content.get(key.encode(), content.get(key)) for key in ("data", "ids"))
    images = to_images(to_array(data) if isinstance(data, Record) else data)
    if ids is None:
        ids = list(range(len(images)))
    ids = to_array(ids).tolist() if isinstance(ids, Record) else ids
    plain = all(isinstance(i, str) or isinstance(i, int) and abs(i) < 2 ** 64 for i in ids)
    if not plain or len(ids) != len(images) or len(set(ids)) < len(ids):
        raise ValueError(f"ids must be {len(images):,} different whole numbers or names")
    return ids, images


class Record:
    """What numpy's names in a pickle become: it keeps what it is given, and does nothing."""

    def __init__(self, *args):
        self.args, self.state = args, None

    def __setstate__(self, state):
        self.state = state


class ArrayUnpickler(pickle._Unpickler):
    """Loads plain values and Records; refuses any other name before anything of it runs.

    A pickle is a program: it may name any function of Python and have it called. Not even numpy's
    own are: an array's __setstate__ believes what the file says of the type and size of its
    content, even that its bytes are addresses of Python objects. _Unpickler is the one written in
    Python: the one in C takes as much memory for its memo as the file says. Bytearrays are read as
    bytes, because the loader of bytearrays takes their memory before it looks for their content.
    """

    dispatch = pickle._Unpickler.dispatch | {
        pickle.BYTEARRAY8[0]: pickle._Unpickler.load_binbytes8}

    def find_class(self, module, name):
        if (module, name) == ("_codecs", "encode"):         # how protocol 2 writes bytes
            return lambda text, _: text.encode("latin1")
        if module.partition(".")[0] != "numpy":
            raise ValueError(f"it wants to load {module}.{name}, which no array needs: refused")
        return Record


def to_array(record):
    """The array that numpy wrote so, of plain numbers or text; frombuffer counts its bytes."""
    if record.state:
        _, shape, dtype, fortran, raw = record.state
        order, axes = "F" if fortran else "C", None
    else:                                                   # protocol 5; older numpy has no axes
        raw, dtype, shape, order, axes = (*record.args, None)[:5]
    kind = dtype.args[0].decode() if isinstance(dtype.args[0], bytes) else dtype.args[0]
    if not re.fullmatch(r"[iu][1248]|f[248]|b1|[US]\d{1,3}", kind):
        raise ValueError(f"arrays of {kind}")
    kind = np.dtype(kind).newbyteorder(">" if dtype.state[1] in (">", b">") else "=")
    array = np.frombuffer(raw, kind).reshape(shape, order="C" if axes else order)
    return array.transpose(axes) if axes else array


def read_pictures(path):
    """A picture, or all of a folder; the ID is the file's name."""
    files = path.iterdir() if path.is_dir() else [path]
    files = [file for file in files if file.suffix.lower() in PICTURES and file.name[0] != "."]
    files.sort(key=lambda f: re.sub(r"\d+", lambda n: n[0].zfill(20), f.stem))       # 2 before 10
    ids = [file.stem for file in files]
    if not files or len(set(ids)) < len(ids):
        raise ValueError(f"{len(ids)} pictures, {len(set(ids))} names: each needs one of its own")
    reading = tqdm(files, "reading", leave=False, delay=2, disable=None)
    return ids, torch.stack([read_picture(file) for file in reading])


def read_picture(file):
    """uint8 (3, 32, 32) of one picture, resized if it has another size."""
    with Image.open(file, formats=["PNG", "JPEG", "BMP", "WEBP"]) as picture:  # EPS runs programs
        if picture.mode.startswith("I"):
            raise ValueError(f"{file.name!r} has 16 bits per pixel: save it with 8")
        upright = ImageOps.exif_transpose(picture).convert("RGB")       # phones store the rotation
        return TF.pil_to_tensor(upright.resize((32, 32), Image.Resampling.BICUBIC))


if __name__ == "__main__":
    start(main)
