"""Run a list of trainings, several side by side, and keep a row for each in results/runs.csv.

    python results/run.py claims                    # what the paper claims; on two cores, six hours
    python results/run.py gpu-paper --jobs 3        # the paper's training, on one GPU
    python results/run.py claims --list             # prints the commands

Each run has a folder results/LIST/NAME. One with a result.json in it is skipped, an interrupted one
resumed, so the same command can be typed until nothing is left. Flags of train.py behind LIST, such
as --data fake --epochs 1, make it a rehearsal: in results/rehearsal, which can be deleted, and
without rows in runs.csv.
"""
import argparse
import csv
import json
import os
import subprocess
import sys
from multiprocessing.pool import ThreadPool
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from data import PAPER
from model import Help, ResNet, layer_table, number, start, write_csv
from train import size_in


def each(flags, names, seeds=1):
    """{NAME-sSEED: flags} of every name and seed."""
    return {f"{name}-s{seed}": " ".join(f"{flags} {own} --seed {seed}".split())
            for name, own in names.items() for seed in range(seeds)}


def without(name):
    """The flag for the paper's augmentation without one of its transformations."""
    return f"--augment {' '.join(other for other in PAPER if other != name)}"


# Of equally many steps: every image five times; a tenth of them fifty times.
REGIMES = {"all": "--epochs 5", "tenth": "--epochs 50 --train-size 4500"}
DECAY = "--lr 1e-4 --weight-decay"
# name: (question, what the paper says of it, in brackets what it says of all six transformations
# together, the run that it is compared with, its flags)
CLAIMS = {
    "recipe": ("its recipe", "93–94% validation", None, ""),
    "no-smoothing": ("without label smoothing", '"noticeable impact"', "recipe",
                     "--label-smoothing 0"),
    "no-autoaugment": ("without AutoAugment", '"noticeable impact"', "recipe",
                       without("autoaugment")),
    "no-erasing": ("without erasing", "(worse)", "recipe", without("erasing")),
    "no-rotation": ("without rotation", "(worse)", "recipe", without("rotation")),
    "no-jitter": ("without jitter", "(worse)", "recipe", without("jitter")),
    "crop-and-flip": ("crop and flip alone", "(worse)", "recipe", "--augment crop flip"),
    "nothing": ("neither augmentation nor smoothing", "(worse)", "recipe",
                "--augment --label-smoothing 0"),
    "single-draws": ("one draw per image", "-", "recipe", "--group 1"),
    "skips-12": ("12 blocks with skips, 8-16-32 (79,314)", "-", None,
                 "--blocks 4 5 3 --widths 8 16 32"),
    "plain-12": ("12 blocks without, against that", '"degraded"', "skips-12",
                 "--plain --blocks 4 5 3 --widths 8 16 32"),
    "skips-27": ("27 blocks with skips, 5-10-20 (84,725), against 12", "-", "skips-12",
                 "--blocks 9 9 9 --widths 5 10 20"),
    "plain-27": ("27 blocks without, against that", '"degraded"', "skips-27",
                 "--plain --blocks 9 9 9 --widths 5 10 20"),
    "deep-equal-size": ("deep: 4 4 4 at 8-16-32 (93,202)", "-", None,
                        "--blocks 4 4 4 --widths 8 16 32"),
    "wide-early": ("wide early: 1 1 1 at 32-32-64 (97,514), against that", "better",
                   "deep-equal-size", "--widths 32 32 64"),
    "deep-equal-work": ("deep, 8% less arithmetic: 4 4 4 at 11-22-44 (175,405), against wide", "-",
                        "wide-early", "--blocks 4 4 4 --widths 11 22 44"),
    "decay-0.01": ("lr 1e-4, weight decay 0.01", "its setting", None, f"{DECAY} 0.01"),
    **{f"decay-{wd}": (f"decay {wd}, against 0.01", "-", "decay-0.01", f"{DECAY} {wd}")
       for wd in ("0.1", "1", "3")},
}
FLAGS = {name: flags for name, (*_, flags) in CLAIMS.items()}
# What was compared for the quick recipe, with a seventh of its arithmetic.
SCREEN = ("--blocks 1 1 1 --widths 32 128 256 --epochs 6 --sizes 20 24 32 --lr 1e-2 "
          "--weight-decay 0.1 --warmup 1.2 --ema 0.98 --augment reflect flip")
LONGER = "--recipe quick --epochs 57 --cutmix 0.5 --val-size 1000"
FAST = "--recipe quick --cutmix 0 --blocks 2 2 2 --widths 64 128 256 --batch-size 512"
# Steps of 512 take 62% of the time per image (results/README.md). For four times the batch AdamW's
# rate is doubled (arXiv:2205.10287, which changes its betas and eps, too), and its decay, so that a
# quarter of the steps shrinks weights as much. The average is over somewhat more epochs.
LARGE = "--batch-size 512 --lr 6e-3 --weight-decay 0.2 --ema 0.98"
LISTS = {
    "screen": each(SCREEN, {
        "base": "", "black-border": "--augment crop flip", "batch-64": "--batch-size 64",
        "smoothing-0.2": "--label-smoothing 0.2", "lr-2e-2": "--lr 2e-2", "lr-5e-3": "--lr 5e-3"}),
    "claims": each("--blocks 1 1 1 --widths 16 32 64 --lr 3e-3", {
        f"{regime}/{name}": f"{length} {flags}"
        for regime, length in REGIMES.items() for name, flags in FLAGS.items()}, 3),
    "quick": each("--recipe quick", {"quick": "", "no-smoothing": "--label-smoothing 0",
                                     "paper-augment": f"--augment {' '.join(PAPER)}",
                                     "trivial": "--augment reflect flip trivial",
                                     "narrower": "--widths 32 80 160 --epochs 47",
                                     "shallow": "--blocks 1 1 1 --widths 40 144 288",
                                     "deep": "--blocks 2 3 3 --widths 32 72 144",
                                     "from-16": "--sizes 16 20 24 32 --epochs 40",
                                     "no-skips": "--plain"}, 3)
             | each(LONGER, {"longer": ""}, 3) | each(LONGER, {"larger": "--widths 32 128 256"})
             | each("--blocks 1 2 2 --widths 32 96 192 --epochs 34", {"paper-values": ""}),
    "gpu-paper": each("--compile", {"paper": "", "drawn": "--blocks 2 2 2"}, 3)
                 | each("--compile", {"plain": "--plain"}),
    "gpu-strong": each("--recipe strong --compile", {"strong": "", "batch-512": LARGE}, 3),
    "gpu-long": each("--recipe strong --compile --val-size 0 --epochs 200", {"long": LARGE}),
    "gpu-fast": each("", {
        "15-epochs": f"{FAST} --epochs 15", "30-epochs": f"{FAST} --epochs 30",
        "compiled": f"{FAST} --epochs 40 --sizes 32 --compile --group 1000",
        "strong-60": f"--recipe strong --compile --blocks 2 2 2 --group 1000 {LARGE} --epochs 60",
    }, 3),
    "gpu-claims": each("--compile --epochs 30", dict(list(FLAGS.items())[:8]) | {     # to "nothing"
        "plain-27": "--plain --blocks 9 9 9 --widths 38 76 152",
        "skips-27": "--blocks 9 9 9 --widths 38 76 152",
        "wide-early": "--blocks 2 2 2 --widths 128 160 320",
        "decay-0.1": "--weight-decay 0.1", "decay-1": "--weight-decay 1"}),
}


def run_one(folder, flags):
    """Train, or resume, what has no result yet; True if it came to its end.

    One thread each, if the environment says nothing else: the number of threads changes the bits,
    and two jobs of two threads on two cores take three times as long.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "result.json").exists():
        command = [sys.executable, HERE.parent / "train.py", *flags, "--out", folder]
        command += ["--resume"] * (folder / "last.pt").exists()
        with open(folder / "terminal.log", "a") as log:
            subprocess.run(command, stdout=log, stderr=log,
                           env={"OMP_NUM_THREADS": "1"} | os.environ)
    return (folder / "result.json").exists()


def read_rows(path):
    return list(csv.DictReader(path.read_text().splitlines()))


def flop(settings):
    """Floating-point operations of a training: 2 per multiply-add forward, and 4 backward for the
    gradients of inputs and of weights."""
    args = argparse.Namespace(**settings)
    model = ResNet(args.blocks, args.widths, not args.plain)
    work = {size: sum(row[3] for row in layer_table(model, size)) for size in args.sizes}
    images = args.train_size or 50_000 - args.val_size
    return 6 * (images // args.batch_size * args.batch_size) * sum(
        work[size_in(epoch, args)] for epoch in range(1, args.epochs + 1))


def record(list_name, name):
    """Put the row of a run that has ended into runs.csv, in the place of an older one."""
    folder, path = HERE / list_name / name, HERE / "runs.csv"
    result = json.loads((folder / "result.json").read_text())
    best = read_rows(folder / "log.csv")[result["epoch"] - 1]
    rows = {(row["list"], row["name"]): row for row in read_rows(path)}
    columns = list(next(iter(rows.values())))
    rows[list_name, name] = result["settings"] | result | {
        "list": list_name, "name": name, "command": f"python train.py {LISTS[list_name][name]}",
        "minutes": round(result["seconds"] / 60, 2), "flop": flop(result["settings"]),
        "train_acc": round(float(best["train_acc"]), 4)}
    write_csv(path, [columns, *([row[c] for c in columns] for _, row in sorted(rows.items()))])


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=Help, allow_abbrev=False)
    parser.add_argument("lists", nargs="+", choices=LISTS, metavar="LIST", help=", ".join(LISTS))
    parser.add_argument("--jobs", type=number(int, 1), default=2, help="runs side by side")
    parser.add_argument("--only", default="", metavar="NAME", help="runs with this in their name")
    parser.add_argument("--list", action="store_true", help="print the commands, run nothing")
    parser.add_argument("--data", default="data", help="folder of CIFAR-10")
    args, args.flags = parser.parse_known_args(argv)
    return args


def main(argv=None):
    args = parse_args(argv)
    rehearsal = args.flags or args.data == "fake"
    place = HERE / "rehearsal" if rehearsal else HERE
    runs = {f"{list_name}/{name}": [*flags.split(), "--data", args.data, *args.flags]
            for list_name in args.lists
            for name, flags in LISTS[list_name].items() if args.only in name}
    if args.list:
        for run, flags in runs.items():
            print("python train.py", *flags, "--out", (place / run).relative_to(HERE.parent))
        return
    failed = []
    with ThreadPool(args.jobs) as pool:         # which Ctrl-C leaves without starting the next run
        done = pool.imap_unordered(lambda run: (run, run_one(place / run, runs[run])), runs)
        for i, (run, ended) in enumerate(done, start=1):
            print(f"{i}/{len(runs)} {run}: {'done' if ended else 'failed'}", flush=True)
            if not ended:
                failed.append(run)
            elif not rehearsal:
                record(*run.split("/", 1))
    if failed:
        raise SystemExit(f"error: failed, see terminal.log in {place}: {' '.join(failed)}")


if __name__ == "__main__":
    start(main, "stopped: to resume, type the same command")
