"""Run a list of trainings, several side by side, and keep a row for each in results/runs.csv.

    python results/run.py claims                    # what the paper claims, on two cores: about six hours
    python results/run.py gpu-paper --jobs 3        # the paper's own training, three seeds on one GPU
    python results/run.py --list                    # every command of every list

What is done is skipped and what was interrupted is resumed, so the same command can be typed until nothing is
left. Each run has a folder results/LIST/NAME.
"""
import argparse
import codecs
import csv
import json
import os
import shlex
import subprocess
import sys
import time
from datetime import timedelta
from multiprocessing.pool import ThreadPool
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import train
from data import PAPER
from model import Help, ResNet, flop_per_image, number, start, whole_file

ROOT = Path(train.__file__).parent
COLUMNS = ["list", "name", "command", "seed", "machine", "minutes", "flop", "parameters", "epoch", "epochs",
           "train_acc", "val_acc", "test_acc"]


def each(flags, names, seeds=1):
    """{NAME-sSEED: flags} of every name and seed."""
    return {f"{name}-s{seed}": " ".join(f"{flags} {own} --seed {seed}".split())
            for name, own in names.items() for seed in range(seeds)}


# Two of equal cost: every image five times; a tenth of them fifty times, so that even a small network can overfit.
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
# The quick recipe's values, to be chosen by validation accuracy: with a seventh of its arithmetic, then with all.
SCREEN = ("--blocks 1 1 1 --widths 32 128 256 --epochs 6 --sizes 20 24 32 --lr 1e-2 --weight-decay 0.1 --warmup 1.2 "
          "--ema 0.98 --augment reflect flip")
SCREENED = {
    "base": "", "black-border": "--augment crop flip",
    "black-border-decay-0.2": "--augment crop flip --weight-decay 0.2", "smoothing-0.2": "--label-smoothing 0.2",
    "lr-2e-2": "--lr 2e-2", "lr-5e-3": "--lr 5e-3", "batch-64": "--batch-size 64",
}
FULL = ("--blocks 1 2 2 --widths 32 96 192 --whiten --epochs 34 --sizes 20 24 32 --lr 1e-2 --weight-decay 0.1 "
        "--warmup 3 --ema 0.98 --augment reflect flip --cutmix 0.3 --refine 0.15")
TRIED = {
    "batch-64": "--batch-size 64", "lr-2e-2": "--lr 2e-2", "smoothing-0.2": "--label-smoothing 0.2",
    "no-cutmix": "--cutmix 0", "cutmix-0.5": "--cutmix 0.5", "unrefined": "--refine 0", "no-ema": "--ema 0",
    "full-size": "--sizes 32 --epochs 22", "sizes-24-32": "--sizes 24 32 --epochs 28",
    "sizes-16-24-32": "--sizes 16 24 32 --epochs 37", "1-1-1": "--blocks 1 1 1 --widths 32 128 256 --epochs 44",
    "1-3-3": "--blocks 1 3 3 --widths 32 80 160 --epochs 31", "2-2-2": "--blocks 2 2 2 --widths 32 64 128 --epochs 52",
    "wide": "--widths 32 128 256 --epochs 20", "1000-held-out": "--val-size 1000 --epochs 31",
    "wide-erasing": "--widths 32 128 256 --epochs 20 --warmup 2 --augment reflect flip erasing --cutmix 0 --refine 0",
}
LISTS = {
    "screen": each(f"{SCREEN} --whiten", SCREENED) | each(SCREEN, {"no-whitening": ""}),
    "claims": {f"{regime}/{name}": f"{SMALL} {length} {flags}" for regime, length in REGIMES.items()
               for name, flags in each("", REGULARISATION | SHAPES, 3).items()},
    "quick": each("--recipe quick", {"quick": ""}, 3) | each("", {
        "paper-values": "--blocks 1 2 2 --widths 32 96 192 --epochs 34"}),
    # to be shipped: a wider network, more CutMix, 4,000 more images, three times the arithmetic
    "weights": each("--recipe quick", {"triple": "--widths 32 128 256 --epochs 57 --cutmix 0.5 --val-size 1000"}),
    "tried": each(FULL, TRIED),
    "gpu-paper": each("", {"paper": "", "drawn": "--blocks 2 2 2"}, 3) | each("", {"plain": "--plain"}),
    "gpu-strong": each("--recipe strong", {"strong": ""}, 3),
    "gpu-long": each("--recipe strong --val-size 0 --epochs 600", {"long": ""}),
    "gpu-fast": each("--recipe quick --cutmix 0 --refine 0 --blocks 2 2 2 --widths 64 128 256 --batch-size 512",
                     {f"{n}-epochs": f"--epochs {n}" for n in (10, 15, 30)}, 3),
    "gpu-claims": each(HALF, REGULARISATION) | each(HALF, {
        "plain-27": "--plain --blocks 9 9 9 --widths 38 76 152", "skips-27": "--blocks 9 9 9 --widths 38 76 152",
        "wide-early": "--blocks 2 2 2 --widths 128 160 320",
        "decay-0.1": "--weight-decay 0.1", "decay-1": "--weight-decay 1"}),
}


def flop_of(flags):
    args = train.parse_args(shlex.split(flags))
    with torch.device("meta"):                  # shapes without numbers
        model = ResNet(args.blocks, args.widths)
        flop = {size: flop_per_image(model, size) for size in args.sizes}
    per_image = sum(flop[train.size_in(epoch, args)] for epoch in range(1, args.epochs + 1))
    return per_image * (args.train_size or 50_000 - args.val_size)


def run_one(flags, folder):
    """Run or resume one training; returns True if it came to its end.

    One thread each, if the environment says nothing else: the number of threads changes the bits, and two jobs
    of two threads on two cores take three times as long.
    """
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "train.py", *shlex.split(flags), "--out", str(folder)]
    command += ["--resume"] * (folder / "last.pt").exists()
    with open(folder / "terminal.log", "a") as log:
        one_thread = {"OMP_NUM_THREADS": "1"} | os.environ
        return subprocess.run(command, cwd=ROOT, stdout=log, stderr=log, env=one_thread).returncode == 0


def read_rows(path):
    return list(csv.DictReader(path.read_text().splitlines())) if path.exists() else []


def record(out, runs):
    """Add a row to runs.csv for each of these runs that has ended, in the place of an older one of its name."""
    rows = {f"{row['list']}/{row['name']}": row for row in read_rows(out / "runs.csv")}
    for run in runs:
        if not (out / run / "result.json").exists():
            continue
        list_name, name = run.split("/", 1)
        result = json.loads((out / run / "result.json").read_text())
        best = read_rows(out / run / "log.csv")[result["epoch"] - 1]
        rows[run] = result["settings"] | result | {
            "list": list_name, "name": name, "command": f"python train.py {LISTS[list_name][name]}",
            "minutes": round(result["seconds"] / 60, 2), "train_acc": round(float(best["train_acc"]), 4)}
    with whole_file(out / "runs.csv") as file:
        text = codecs.getwriter("utf-8")(file)
        writer = csv.DictWriter(text, COLUMNS, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows[run] for run in sorted(rows))


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=Help)
    parser.add_argument("lists", nargs="*", metavar="LIST", help=f"of {' '.join(LISTS)}")
    parser.add_argument("--jobs", type=number(int, 1), default=2, help="runs side by side, one CPU thread each")
    parser.add_argument("--only", nargs="*", metavar="NAME", help="only runs with this in their name")
    parser.add_argument("--flags", default="",
                        help='for every run: "--data DIR", or "--data fake --epochs 1" to rehearse')
    parser.add_argument("--out", type=Path, default=ROOT / "results", help="where the folders and runs.csv go")
    parser.add_argument("--list", action="store_true", help="print the commands, run nothing")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    if unknown := set(args.lists) - set(LISTS):
        raise SystemExit(f"error: there is no list {unknown.pop()!r}: take {' '.join(LISTS)}")
    runs = {f"{list_name}/{name}": f"{flags} {args.flags}".strip() for list_name in args.lists or LISTS
            for name, flags in LISTS[list_name].items() if not args.only or any(part in name for part in args.only)}
    if args.list or not args.lists:
        print("\n".join(f"python train.py {flags} --out results/{run}" for run, flags in runs.items()))
        return
    out = args.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    record(out, runs)
    todo = {run: flop_of(flags) for run, flags in runs.items() if not (out / run / "result.json").exists()}
    total, done, failed, begin = sum(todo.values()), 0, [], time.perf_counter()
    print(f"{len(todo)} runs to do, {total:.1e} operations")
    with ThreadPool(args.jobs) as pool:         # which Ctrl-C leaves without starting the next run
        for run, ended in pool.imap_unordered(lambda run: (run, run_one(runs[run], out / run)), todo):
            record(out, [run])
            done += todo[run]
            failed += [run] * (not ended)
            left = timedelta(seconds=round((time.perf_counter() - begin) * (total - done) / done))
            print(f"{run}: {'done' if ended else 'failed'}; about {left} left")
    if failed:
        raise SystemExit(f"error: failed, see terminal.log in their folders: {' '.join(failed)}")


if __name__ == "__main__":
    start(main, "stopped: to resume, type the same command")
