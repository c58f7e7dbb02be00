"""Execute the runs of results/runs.csv, several side by side, and put their results there.

    python results/run.py claims                    # what the paper claims; on two cores, six hours
    python results/run.py gpu-paper --jobs 3        # the paper's training, on one GPU
    python results/run.py claims --list             # prints the commands

A row begins with list, name and command; the rest is empty until the run has ended. The name is the
only one in its list and ends in -sSEED. Each run has a folder results/LIST/NAME. One with a
result.json in it is skipped, an interrupted one resumed, so the same command can be typed until
nothing is left; where the folders are missing, as in a clone, all runs are made anew. Flags of
train.py behind LIST, such as --data fake --epochs 1, make it a rehearsal: in results/rehearsal and
without a change of runs.csv. Delete that folder before a rehearsal with other flags.
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

from model import Help, ResNet, layer_table, number, start, write_csv
from train import size_in

RUNS = HERE / "runs.csv"


def read_rows(path):
    return list(csv.DictReader(path.read_text("utf-8-sig").splitlines()))   # -sig: saved by Excel


def run_of(row):
    """LIST/NAME: what a row's run is called, and its folder in results/."""
    return f"{row['list']}/{row['name']}"


def run_one(folder, flags):
    """Train or resume a run that has no result yet; True if it finished.

    One thread each, if the environment says nothing else: the number of threads changes the bits,
    and two jobs of two threads on two cores take three times as long.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "result.json").exists():
        command = [sys.executable, HERE.parent / "train.py", *flags, "--out", folder]
        if (folder / "last.pt").exists():
            command.append("--resume")
        with open(folder / "terminal.log", "a") as log:
            subprocess.run(command, stdout=log, stderr=log,
                           env={"OMP_NUM_THREADS": "1"} | os.environ)
    return (folder / "result.json").exists()


def flop(settings):
    """Floating-point operations of all steps: 2 per multiply-add forward, and 4 backward for the
    gradients of inputs and of weights."""
    args = argparse.Namespace(**settings)
    model = ResNet(args.blocks, args.widths, not args.plain)
    work = {size: sum(row[3] for row in layer_table(model, size)) for size in args.sizes}
    images = args.train_size or 50_000 - args.val_size
    return 6 * (images // args.batch_size * args.batch_size) * sum(
        work[size_in(epoch, args)] for epoch in range(1, args.epochs + 1))


def record(run, folder):
    """Copy a finished run's results from its folder into its row of runs.csv."""
    result = json.loads((folder / "result.json").read_text())
    best = read_rows(folder / "log.csv")[result["epoch"] - 1]
    found = result["settings"] | result | {
        "minutes": round(result["seconds"] / 60, 2), "flop": flop(result["settings"]),
        "train_acc": round(float(best["train_acc"]), 4)}
    rows = read_rows(RUNS)
    columns = list(rows[0])
    for row in rows:
        if run_of(row) == run:
            row |= {column: found[column] for column in columns if column in found}
    write_csv(RUNS, [columns, *([row[column] for column in columns] for row in rows)])


def parse_args(argv=None):
    lists = dict.fromkeys(row["list"] for row in read_rows(RUNS))
    lists.pop("refined", None)      # which needs train.py of commit 2f47335
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=Help, allow_abbrev=False)
    parser.add_argument("lists", nargs="+", choices=lists, metavar="LIST", help=", ".join(lists))
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
    rows = [row for row in read_rows(RUNS)
            if row["list"] in args.lists and args.only in row["name"]]
    rows.sort(key=lambda row: args.lists.index(row["list"]))        # lists as typed, runs as filed
    runs = {run_of(row): [*row["command"].removeprefix("python train.py").split(),
                          "--data", args.data, *args.flags] for row in rows}
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
                record(run, place / run)
    if failed:
        raise SystemExit(f"error: failed, see terminal.log in {place}: {' '.join(failed)}")


if __name__ == "__main__":
    start(main, "stopped: to resume, type the same command")
