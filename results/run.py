"""Run a list of trainings, several side by side, and keep a row for each in results/runs.csv.

    python results/run.py claims                    # what the paper claims, on two cores: about three hours
    python results/run.py gpu-paper --jobs 3        # the paper's own training, three seeds on one GPU
    python results/run.py --list                    # every command of every list

What is done is skipped and what was interrupted is resumed, so the same command can be typed until nothing is
left. Each run has a folder results/LIST/NAME. results/tables.py writes the tables from results/runs.csv.
"""
import argparse
import csv
import io
import json
import os
import shlex
import subprocess
import sys
import time
from datetime import timedelta
from multiprocessing.pool import ThreadPool
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch                                                    # noqa: E402

import train                                                    # noqa: E402
from data import PAPER                                          # noqa: E402
from model import Help, ResNet, flop_per_image, number, start, whole_file       # noqa: E402

COLUMNS = ["list", "name", "command", "seed", "machine", "minutes", "flop", "parameters", "epoch", "epochs",
           "train_acc", "val_acc", "test_acc"]


def each(flags, names, seeds=(0,)):
    """{name-sSEED: flags} of every name and seed."""
    return {f"{name}-s{seed}": f"{flags} {own} --seed {seed}" for name, own in names.items() for seed in seeds}


# Two regimes of equal cost: (a) every image five times; (b) a tenth of the images, each fifty times, so that
# even a small network can overfit.
REGIMES = {"all": "--epochs 5", "tenth": "--epochs 50 --train-size 4500"}
SMALL = "--blocks 1 1 1 --widths 16 32 64 --lr 3e-3"
REGULARISATION = {
    "recipe": "", "no-smoothing": "--label-smoothing 0",
    **{f"no-{part}": f"--augment {' '.join(name for name in PAPER if name != part)}"
       for part in ("autoaugment", "erasing", "rotation", "jitter")},
    "crop-and-flip": "--augment crop flip", "nothing": "--augment --label-smoothing 0", "single-draws": "--group 1",
}
SHAPES = {
    "skips-12": "--blocks 4 5 3 --widths 8 16 32", "plain-12": "--plain --blocks 4 5 3 --widths 8 16 32",
    "skips-27": "--blocks 9 9 9 --widths 5 10 20", "plain-27": "--plain --blocks 9 9 9 --widths 5 10 20",
    "wide-early": "--widths 32 32 64", "deep-equal-size": "--blocks 4 4 4 --widths 8 16 32",
    "deep-equal-work": "--blocks 4 4 4 --widths 11 22 44",
    **{f"decay-{wd}": f"--lr 1e-4 --weight-decay {wd}" for wd in ("0.01", "0.1", "1", "3")},
}
HALF = "--epochs 30"            # the ablations of the full size: equal epochs within a comparison
# A tenth of the quick recipe's arithmetic, to choose its values by validation accuracy.
SCREEN = ("--blocks 1 1 1 --widths 32 128 256 --epochs 6 --sizes 20 24 32 --lr 1e-2 --weight-decay 0.1 --warmup 1.2 "
          "--ema 0.98 --augment reflect flip")
TRIED = {
    "base": "", "black-border": "--augment crop flip", "black-border-decay-0.2": "--augment crop flip --weight-decay 0.2",
    "erasing": "--augment reflect flip erasing", "cutmix": "--cutmix 0.3", "smoothing-0.2": "--label-smoothing 0.2",
    "lr-2e-2": "--lr 2e-2", "lr-5e-3": "--lr 5e-3", "batch-64": "--batch-size 64", "no-ema": "--ema 0",
    "full-size": "--sizes 32 --epochs 4", "sizes-16": "--sizes 16 24 32", "1-2-2": "--blocks 1 2 2 --widths 32 96 192 --epochs 5",
}
LISTS = {
    "screen": each(f"{SCREEN} --whiten", TRIED) | each(SCREEN, {"no-whitening": ""}),
    "claims": {f"{regime}/{name}": f"{SMALL} {length} {flags}" for regime, length in REGIMES.items() for name, flags in (
        each("", REGULARISATION, range(3)) | each("", SHAPES)).items()},
    "quick": each("--recipe quick", {"quick": ""}, (0, 1)) | each("", {
        "half": "--recipe quick --epochs 15", "paper-values": "--blocks 1 2 2 --widths 32 96 192 --epochs 34"}),
    "gpu-paper": each("", {"paper": "", "drawn": "--blocks 2 2 2"}, range(3)) | each("", {"plain": "--plain"}),
    "gpu-strong": each("--recipe strong", {"strong": ""}, range(3)),
    "gpu-long": each("--recipe strong --val-size 0 --epochs 600", {"long": ""}),
    "gpu-fast": each("--recipe quick", {f"{n}-epochs": f"--blocks 2 2 2 --widths 64 128 256 --batch-size 512 --epochs {n}"
                                        for n in (10, 15, 30)}, range(3)),
    "gpu-claims": each(HALF, REGULARISATION) | each(HALF, {
        "plain-27": "--plain --blocks 9 9 9 --widths 38 76 152", "skips-27": "--blocks 9 9 9 --widths 38 76 152",
        "wide-early": "--blocks 2 2 2 --widths 128 160 320", "decay-0.1": "--weight-decay 0.1", "decay-1": "--weight-decay 1"}),
}


def flop_of(flags):
    args = train.parse_args(shlex.split(flags))
    images, epochs = args.train_size or 50_000 - args.val_size, range(1, args.epochs + 1)
    with torch.device("meta"):                  # shapes without numbers
        model = ResNet(args.blocks, args.widths)
        flop = {size: flop_per_image(model, size) for size in args.sizes}
    return sum(images * flop[train.size_in(epoch, args)] for epoch in epochs)


def run_one(flags, folder):
    """Run or resume one training; returns True if it came to its end.

    One thread each, because the number of threads changes the bits, and two jobs of two threads on two cores
    take three times as long.
    """
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "train.py", *shlex.split(flags), "--out", str(folder)]
    command += ["--resume"] * (folder / "last.pt").exists()
    with open(folder / "terminal.log", "a") as log:
        one_thread = os.environ | {"OMP_NUM_THREADS": "1"}
        return subprocess.run(command, cwd=ROOT, stdout=log, stderr=log, env=one_thread).returncode == 0


def row_of(list_name, name, folder):
    """The row of runs.csv of a run that has ended."""
    result = json.loads((folder / "result.json").read_text())
    with open(folder / "log.csv", newline="") as file:
        best = list(csv.DictReader(file))[result["epoch"] - 1]
    return result | {
        "list": list_name, "name": name, "command": " ".join(f"python train.py {LISTS[list_name][name]}".split()),
        "seed": result["settings"]["seed"], "epochs": result["settings"]["epochs"],
        "minutes": round(result["seconds"] / 60, 1), "train_acc": round(float(best["train_acc"]), 4)}


def write_rows(path, new):
    """Add rows to the CSV, in the place of older ones of the same name."""
    rows = {(row["list"], row["name"]): row for row in [*read_rows(path), *new]}
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows[key] for key in sorted(rows))
    with whole_file(path) as file:
        file.write(text.getvalue().encode())


def read_rows(path):
    if not path.exists():
        return []
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=Help)
    parser.add_argument("lists", nargs="*", metavar="LIST", help=f"of {' '.join(LISTS)}")
    parser.add_argument("--jobs", type=number(int, 1), default=2, help="runs side by side, one CPU thread each")
    parser.add_argument("--only", nargs="*", metavar="NAME", help="only runs with this in their name")
    parser.add_argument("--flags", default="", help='for every run: "--data DIR", or "--data fake --epochs 1" to rehearse')
    parser.add_argument("--out", default=str(ROOT / "results"), help="where the folders and runs.csv go")
    parser.add_argument("--list", action="store_true", help="print the commands, run nothing")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    if unknown := set(args.lists) - set(LISTS):
        raise SystemExit(f"error: there is no list {unknown.pop()!r}: take {' '.join(LISTS)}")
    todo = [(list_name, name, f"{flags} {args.flags}") for list_name in (args.lists or LISTS)
            for name, flags in LISTS[list_name].items() if not args.only or any(part in name for part in args.only)]
    if args.list or not args.lists:
        print("\n".join(" ".join(f"python train.py {flags} --out results/{list_name}/{name}".split()) for list_name, name, flags in todo))
        return
    out = Path(args.out).resolve()
    out.mkdir(parents=True, exist_ok=True)
    ended = [run for run in todo if (out / run[0] / run[1] / "result.json").exists()]
    write_rows(out / "runs.csv", [row_of(*run[:2], out / run[0] / run[1]) for run in ended])
    todo = [run for run in todo if run not in ended]
    total, done, begin = sum(flop_of(flags) for *_, flags in todo), 0, time.perf_counter()
    print(f"{len(todo)} runs to do, {total:.1e} operations")
    with ThreadPool(args.jobs) as pool:         # which Ctrl-C leaves without starting the next run
        for (list_name, name, flags), ended in pool.imap_unordered(
                lambda run: (run, run_one(run[2], out / run[0] / run[1])), todo):
            if ended:
                write_rows(out / "runs.csv", [row_of(list_name, name, out / list_name / name)])
            done += flop_of(flags)
            left = timedelta(seconds=round((time.perf_counter() - begin) * (total - done) / done))
            print(f"{name}: {'done' if ended else 'failed, see terminal.log in its folder'}; about {left} left")


if __name__ == "__main__":
    start(main, "stopped: to resume, type the same command")
