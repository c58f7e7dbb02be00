"""Predict with a trained checkpoint, and write the class competition's CSV.

    python predict.py --ckpt best.pt                          # the test set: accuracy, submission.csv, confusion.png
    python predict.py --ckpt best.pt --input cifar_test_nolabel.pkl --tta       # the competition's unlabelled file
    python predict.py --ckpt best.pt --input my_photos/       # a folder of pictures; the ID is the file's name

What comes from strangers is checked before it is used: a pickle may hold arrays and plain values only, a
checkpoint is loaded with weights_only=True, sizes are read before memory is taken.
"""
import csv
import io
import pickle
import pickletools
import re
import warnings
import zipfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torchvision.transforms.v2 import functional as TF
from tqdm import tqdm

from data import load_data, normalisation
from model import (CLASSES, Parser, ResNet, UserError, autocast, check_file, check_size, pick_amp, pick_device, run,
                   save_figure, write_file)

MAX_IMAGES = 200_000                    # 614 MB
MAX_PICTURE = 50_000_000                # bytes of one picture file; PIL itself refuses over 89 million pixels
MAX_CHECKPOINT = 200_000_000            # bytes; last.pt of the 4.99M network has 60 to 100 MB
PICTURES = {".png", ".jpg", ".jpeg", ".bmp", ".webp"}
TENSORS = {"collections OrderedDict", "torch._utils _rebuild_tensor_v2", "torch FloatStorage", "torch HalfStorage",
           "torch LongStorage"}         # all that the pickle in a checkpoint of train.py names


@torch.no_grad()
def predict(model, images, normalise, amp=None, tta=False, batch_size=500):
    """Logits (N, 10), float32, of uint8 images (N, 3, 32, 32), on the model's device.

    amp: dtype of autocast or None. tta: average the logits of each image and its mirror image.
    """
    model.eval()
    device, logits = next(model.parameters()).device, []
    for batch in tqdm(images.split(batch_size), desc="predicting", leave=False, delay=2, disable=None):
        x = normalise(batch.to(device))                                                     # (B, 3, 32, 32)
        with autocast(device, amp):
            out = (model(x) + model(x.flip(3))) / 2 if tta else model(x)                    # (B, 10)
        logits.append(out.float())
    return torch.cat(logits)


def accuracy(logits, labels):
    """Share of right answers. Counted over all images, so a short last batch weighs what it should."""
    return (logits.argmax(1) == labels).sum().item() / len(labels)


# ---- the checkpoint ----------------------------------------------------------------------------------------


def load_checkpoint(path):
    """Read best.pt, last.pt or weights/*.pt: (the network on the CPU in eval mode, everything the file holds).

    Raises UserError if the file is missing, damaged, too large, or lacks what train.py writes.
    """
    if not Path(path).is_file():
        raise UserError(f"there is no checkpoint {path}: python train.py makes one")
    try:
        problem = archive_problem(path)
        checkpoint = None if problem else torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:      # a damaged file fails in any of a dozen ways
        raise UserError(f"{path} is no checkpoint of train.py, or damaged ({type(error).__name__})") from None
    problem = problem or checkpoint_problem(checkpoint)
    if problem:
        raise UserError(f"{path} is no checkpoint of train.py: {problem}")
    model = ResNet(**checkpoint["config"])
    problem = weights_problem(checkpoint["model"], model.state_dict())
    if problem:
        raise UserError(f"{path} does not fit its own network settings: {problem}")
    model.load_state_dict(checkpoint["model"])
    return model.eval(), checkpoint


def archive_problem(path):
    """What is wrong with the file before anything in it is loaded: its size, its check sums, what its pickle names."""
    with zipfile.ZipFile(path) as archive:
        if sum(entry.file_size for entry in archive.infolist()) > MAX_CHECKPOINT:
            return "too large"
        if archive.testzip() is not None:                       # torch.load does not look at the check sums
            return "damaged"
        for name in archive.namelist():
            if name.endswith("data.pkl"):                       # weights_only alone admits bytearray(2 * 10 ** 9)
                for opcode, argument, _ in pickletools.genops(archive.read(name)):
                    if opcode.name in ("STACK_GLOBAL", "INST", "DUP") or opcode.name == "GLOBAL" and argument not in TENSORS:
                        return f"its pickle names {argument}, which no tensor needs"


def checkpoint_problem(checkpoint):
    """What is wrong with the settings in a checkpoint, or None. Raises UserError for a network over the budget."""
    if not isinstance(checkpoint, dict):
        return "it holds no dict"
    for key, kind in {"config": dict, "model": dict, "classes": list, "mean": list, "std": list}.items():
        if not isinstance(checkpoint.get(key), kind):
            return f"the key {key!r} is {'of a wrong kind' if key in checkpoint else 'missing'}"
    config = checkpoint["config"]
    if set(config) != {"blocks", "widths", "residual", "dropout"}:
        return "'config' must hold blocks, widths, residual, dropout and nothing else"
    for key in ("blocks", "widths"):
        if not (isinstance(config[key], list) and len(config[key]) == 3 and all(type(n) is int for n in config[key])):
            return f"{key!r} must be three integers"
    if type(config["residual"]) is not bool or type(config["dropout"]) is not float or not 0 <= config["dropout"] < 1:
        return "'residual' must be true or false and 'dropout' a number from 0 to below 1"
    names = checkpoint["classes"]
    if len(names) != CLASSES or not all(isinstance(name, str) and re.fullmatch(r"[\w -]{1,30}", name, re.ASCII) for name in names):
        return f"'classes' must be {CLASSES} names of letters and digits"
    for key, low in (("mean", 0), ("std", 1e-6)):
        if len(checkpoint[key]) != 3 or not all(type(x) is float and low <= x <= 1 for x in checkpoint[key]):
            return f"{key!r} must be three numbers from 0 to 1"
    check_size(config["blocks"], config["widths"], config["residual"])


def weights_problem(found, wanted):
    """The first difference between two state dicts in names, shapes and kinds, or None."""
    for name in list(wanted) + list(found):
        if name not in found or name not in wanted:
            return f"the key {name!r} is {'foreign' if name in found else 'missing'}"
        tensor = found[name]
        if not isinstance(tensor, torch.Tensor) or tensor.shape != wanted[name].shape:
            return f"{name!r} must be a tensor of shape {tuple(wanted[name].shape)}"
        if tensor.is_floating_point() != wanted[name].is_floating_point() or not tensor.isfinite().all():
            return f"{name!r} holds no usable numbers"


# ---- unlabelled images -------------------------------------------------------------------------------------


def read_images(path):
    """IDs (list of int or str) and images (uint8 (N, 3, 32, 32)) of a pickle, a .npy file, a picture or a folder.

    Raises UserError for anything else, and before memory is taken for what is too large.
    """
    path = Path(path)
    if not path.is_file() and not path.is_dir():
        raise UserError(f"there is no file or folder {path}: --input takes a .pkl or .npy file, a picture, or a folder of pictures")
    try:
        if path.is_dir() or path.suffix.lower() in PICTURES:
            return read_pictures(path)
        if path.stat().st_size > MAX_IMAGES * 3072 * 1.1:
            raise UserError(f"{path} is larger than {MAX_IMAGES:,} images: split it")
        if path.suffix.lower() == ".npy":       # memory-mapped: a header that claims more than the file has fails
            images = to_images(np.load(path, mmap_mode="r", allow_pickle=False), path)
            return list(range(len(images))), images
        return read_pickle(path)
    except UserError:
        raise
    except Exception as error:                  # a damaged file fails in any of a dozen ways
        raise UserError(f"cannot read {path} as images ({type(error).__name__}: {str(error)[:200]}): "
                        "--input takes a .pkl or .npy file, a picture, or a folder of pictures") from None


def to_images(array, path):
    """uint8 (N, 3, 32, 32) from that, from (N, 32, 32, 3), or from CIFAR's own rows of planes (N, 3072)."""
    if not isinstance(array, np.ndarray) or array.dtype != np.uint8:
        kind = array.dtype if isinstance(array, np.ndarray) else type(array).__name__
        raise UserError(f"the images in {path} must be a uint8 array, not {kind}")
    shape = array.shape
    if not 1 <= (shape[0] if shape else 0) <= MAX_IMAGES or shape[1:] not in {(32, 32, 3), (3, 32, 32), (3072,)}:
        raise UserError(f"the images in {path} have shape {shape}: it must be (N, 32, 32, 3), (N, 3, 32, 32) or "
                        f"(N, 3072) with N from 1 to {MAX_IMAGES:,}")
    array = array.transpose(0, 3, 1, 2) if shape[1:] == (32, 32, 3) else array.reshape(-1, 3, 32, 32)
    return torch.from_numpy(np.array(array, order="C"))         # a copy: memory maps are read-only


def read_pickle(path):
    """The competition's file: a dict with data and, usually, ids; keys are bytes or str."""
    raw = path.read_bytes()
    check_opcodes(raw)
    content = ArrayUnpickler(io.BytesIO(raw), encoding="bytes").load()
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold a dict with the keys data and ids, not a {type(content).__name__}")
    data, ids = (value.array if isinstance(value, Array) else value for value in (
        content.get(key.encode(), content.get(key)) for key in ("data", "ids")))
    if data is None:
        raise UserError(f"{path} has no key 'data'")
    images = to_images(data, path)
    if ids is None:
        return list(range(len(images))), images
    ids = ids.tolist() if isinstance(ids, np.ndarray) and ids.ndim == 1 else ids
    if not isinstance(ids, list) or len(ids) != len(images) or len({*map(repr, ids)}) < len(ids) or not all(
            isinstance(i, str) or type(i) is int and abs(i) < 2 ** 63 for i in ids):
        raise UserError(f"the ids in {path} must be {len(images):,} different whole numbers or names, one an image")
    return ids, images


def check_opcodes(raw):
    """Walk through a pickle without running it. Raises ValueError for what the file of a dict of arrays never has.

    Such a file builds some 14 tuples and calls some 10 functions. More could double a tuple 40 times over, whose hash
    takes 2^40 steps, or decode one string again and again; a memo index of four bytes could claim 32 GB.
    """
    built = 0
    for opcode, argument, _ in pickletools.genops(raw):
        built += opcode.name in ("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "REDUCE", "BUILD")
        if built > 40 or opcode.name in ("DUP", "FROZENSET", "ADDITEMS", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX") or (
                "PUT" in opcode.name and int(argument) > len(raw)):
            raise ValueError(f"not a plain dict of arrays: {opcode.name}")


class ArrayUnpickler(pickle.Unpickler):
    """Loads arrays of numbers, bytes, strings, numbers, lists and dicts; refuses every other name before it runs.

    numpy's own functions are not among what it admits: their __setstate__ takes a stranger's word for where objects
    lie in memory. Dtype and Array below stand in for them.
    """

    def find_class(self, module, name):
        admitted = {
            ("numpy", "dtype"): Dtype, ("numpy", "ndarray"): None, ("_codecs", "encode"): encode_latin1,
            ("numpy.core.multiarray", "_reconstruct"): Array, ("numpy.core.numeric", "_frombuffer"): array_from_buffer}
        key = module.replace("numpy._core", "numpy.core"), name         # numpy 2 and numpy 1
        if key not in admitted:
            raise UserError(f"the pickle wants to load {module}.{name}, which no array needs: refused, nothing was run")
        return admitted[key]


class Dtype:
    """A pickled numpy dtype, if it is one of plain numbers or text."""

    def __init__(self, kind, *_):
        kind = kind.decode() if isinstance(kind, bytes) else kind       # bytes: written by Python 2
        if not re.fullmatch(r"[iu][1248]|f[248]|b1|[US]\d{1,3}", kind):
            raise ValueError(f"arrays of {kind}")
        self.dtype = np.dtype(kind)

    def __setstate__(self, state):
        self.dtype = self.dtype.newbyteorder(">") if state[1] in (">", b">") else self.dtype


class Array:
    """A pickled numpy array: its content is looked at as numbers, whatever the file says it is."""

    def __init__(self, *_):
        self.array = None

    def __setstate__(self, state):
        _, shape, dtype, fortran, raw = state
        self.array = np.frombuffer(raw, dtype.dtype).reshape(shape, order="F" if fortran else "C")


def array_from_buffer(raw, dtype, shape, order, axes=None):
    """How protocol 5 holds an array."""
    array = np.frombuffer(raw, dtype.dtype)
    return array.reshape(shape).transpose(axes) if axes else array.reshape(shape, order="F" if order == "F" else "C")


def encode_latin1(text, encoding):
    """How protocol 2 holds bytes."""
    return text.encode("latin1")


def read_pictures(path):
    """A picture, or all pictures of a folder in natural order (2 before 10), as RGB 32x32."""
    files = [path] if path.is_file() else [
        file for file in path.iterdir() if file.suffix.lower() in PICTURES and file.is_file()]
    files.sort(key=lambda file: [int(s) if i % 2 else s for i, s in enumerate(re.split(r"(\d+)", file.stem))])
    ids = [file.stem for file in files]
    if not 1 <= len(files) <= MAX_IMAGES:
        raise UserError(f"{path} holds {len(files):,} pictures ({' '.join(sorted(PICTURES))}); it needs 1 to {MAX_IMAGES:,}")
    if len(set(ids)) < len(ids):
        raise UserError(f"two pictures in {path} have the same name {max(ids, key=ids.count)!r}, which is the ID: rename one")
    images = [read_picture(file) for file in tqdm(files, desc="reading", leave=False, delay=2, disable=None)]
    return ids, torch.stack(images)


def read_picture(file):
    """uint8 (3, 32, 32) of one picture file, resized if it has another size."""
    try:
        if file.stat().st_size > MAX_PICTURE:
            raise ValueError(f"over {MAX_PICTURE:,} bytes")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)      # over 89 million pixels by its header
            with Image.open(file, formats=["PNG", "JPEG", "BMP", "WEBP"]) as picture:       # EPS would run programs
                if picture.mode.startswith("I"):
                    raise ValueError("16 bits a pixel: save it with 8")
                upright = ImageOps.exif_transpose(picture).convert("RGB")
                return TF.pil_to_tensor(upright.resize((32, 32), Image.Resampling.BICUBIC))
    except Exception as error:                  # a damaged file fails in any of a dozen ways
        raise UserError(f"{file} is no picture that can be read ({str(error)[:200]})") from None


# ---- what comes out ----------------------------------------------------------------------------------------


def write_csv(path, ids, labels):
    """The competition's format: the header ID,Labels and integer labels. Names are quoted, numbers are not."""
    text = io.StringIO("ID,Labels\n")
    text.seek(0, io.SEEK_END)
    writer = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
    writer.writerows([safe_cell(name), label] for name, label in zip(ids, labels, strict=True))
    write_file(path, text.getvalue().encode("utf-8", "backslashreplace"))


def safe_cell(name):
    """An ID that no spreadsheet takes for a formula: a name that begins like one gets a leading apostrophe."""
    if isinstance(name, str) and re.match(r"\s*[=+\-@＝＋－＠]", name) and not re.fullmatch(r"[+-]?\d+(\.\d+)?", name):
        return "'" + name
    return name


def confusion_matrix(predicted, labels):
    """(10, 10) counts: row = true class, column = predicted class."""
    return torch.bincount(labels * CLASSES + predicted, minlength=CLASSES ** 2).view(CLASSES, CLASSES)


def print_classes(matrix, names):
    print(f"{'class':<12}{'images':>7}{'right':>8}   most often taken for")
    for c, (name, row) in enumerate(zip(names, matrix)):
        others = row.clone()
        others[c] = 0
        mistaken = f"{names[others.argmax()]} ({others.max().item()})" if others.any() else "-"
        print(f"{name:<12}{row.sum().item():>7,}{row[c].item() / max(row.sum().item(), 1):>8.1%}   {mistaken}")


def draw_confusion(matrix, names, path, title):
    from matplotlib.figure import Figure       # here, because only this picture needs it and it takes a second

    figure = Figure(figsize=(7, 6.2), layout="constrained")
    axes = figure.subplots()
    share = matrix / matrix.sum(1, keepdim=True).clamp(min=1)
    axes.imshow(share.numpy(), cmap="Blues", vmin=0, vmax=1)
    for row in range(CLASSES):
        for column in range(CLASSES):
            axes.text(column, row, f"{matrix[row, column].item()}", ha="center", va="center", fontsize=8,
                      color="white" if share[row, column] > 0.5 else "black")
    axes.set(xticks=range(CLASSES), yticks=range(CLASSES), yticklabels=names, xlabel="predicted", ylabel="true", title=title)
    axes.set_xticks(range(CLASSES), names, rotation=45, ha="right")
    save_figure(figure, path)


def parse_args(argv=None):
    parser = Parser(__doc__)
    parser.add_argument("--ckpt", required=True, metavar="PT", help="checkpoint of train.py: best.pt or weights/*.pt")
    parser.add_argument("--data", default="data", help='folder of CIFAR-10, or "fake": predict its test set (default: data)')
    parser.add_argument("--input", metavar="PATH", help="predict these unlabelled images instead: .pkl, .npy, picture, folder")
    parser.add_argument("--out", default="submission.csv", metavar="CSV", help="the CSV (default: submission.csv)")
    parser.add_argument("--tta", action="store_true", help="average each image and its mirror image: twice the time")
    parser.add_argument("--device", help="cpu, cuda or mps (default: the accelerator if there is one)")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    device = pick_device(args.device)
    model, checkpoint = load_checkpoint(args.ckpt)
    check_file(args.out)
    picture = Path(args.out).with_name("confusion.png")
    if Path(args.out).resolve() in [Path(other).resolve() for other in (args.ckpt, args.input or args.ckpt, picture)]:
        raise UserError(f"--out {args.out} would overwrite what is read, or the picture: choose another name")
    if args.input is not None:
        ids, images = read_images(args.input)
    else:
        images, labels = load_data(args.data, train=False)
        ids = list(range(len(images)))
    model.to(device, memory_format=torch.channels_last)
    normalise = normalisation(checkpoint["mean"], checkpoint["std"])
    logits = predict(model, images, normalise, pick_amp(device), args.tta).cpu()
    if not logits.isfinite().all():
        raise UserError(f"the network in {args.ckpt} gives no numbers for these images: train it again")
    predicted = logits.argmax(1)
    write_csv(args.out, ids, predicted.tolist())
    if args.input is None:
        matrix = confusion_matrix(predicted, labels)
        print_classes(matrix, checkpoint["classes"])
        title = f"accuracy {accuracy(logits, labels):.2%} on {len(images):,} test images"
        draw_confusion(matrix, checkpoint["classes"], picture, title)
        print(f"{title}; confusion.png beside the CSV")
    print(f"{args.out}: {len(ids):,} rows")


if __name__ == "__main__":
    run(main)
