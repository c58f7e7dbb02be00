"""Run a set of experiments: each is one train.py command into its own folder, results/SET/NAME.

    python results/run.py claims-gpu                # what the paper claims, at full size: a GPU's work
    python results/run.py claims-cpu --jobs 2       # the same questions, small enough for two cores
    python results/run.py --list                    # every command of every set

What is done already is left alone and what was interrupted is resumed, so the same command can be typed until
nothing is left. results/tables.py turns the folders into the tables of the README.
"""
import os
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from model import Parser, UserError, run      # noqa: E402  (the scripts lie one folder up)

CPU = "--blocks 1 1 1 --widths 16 32 64 --epochs 5"
ABLATIONS = {
    "no-smoothing": "--label-smoothing 0",
    "no-autoaugment": "--augment crop flip rotation jitter erasing",
    "no-erasing": "--augment crop flip rotation jitter autoaugment",
    "no-rotation": "--augment crop flip jitter autoaugment erasing",
    "no-jitter": "--augment crop flip rotation autoaugment erasing",
    "crop-and-flip": "--augment crop flip",
}
SETS = {    # set: (flags of all its runs, {run: its own flags})
    "claims-cpu": (f"{CPU} --lr 3e-3", {
        "base-s0": "", "base-s1": "--seed 1", **ABLATIONS,
        "plain-4-5-3": "--plain --blocks 4 5 3 --widths 8 16 32", "residual-4-5-3": "--blocks 4 5 3 --widths 8 16 32",
        "plain-9-9-9": "--plain --blocks 9 9 9 --widths 8 16 32", "residual-9-9-9": "--blocks 9 9 9 --widths 8 16 32",
        "single-draws-s0": "--group 1", "single-draws-s1": "--group 1 --seed 1",
        "wide-early": "--widths 32 32 64", "middle": "--blocks 2 2 2 --widths 12 24 46", "deep": "--blocks 4 4 4 --widths 8 16 32",
        "decay-0.01": "--lr 1e-4", "decay-0.1": "--lr 1e-4 --weight-decay 0.1", "decay-1": "--lr 1e-4 --weight-decay 1",
        "decay-3": "--lr 1e-4 --weight-decay 3",
    }),
    "claims-gpu": ("", {
        "paper-s0": "", "paper-s1": "--seed 1", "paper-s2": "--seed 2", "drawn-2-2-2": "--blocks 2 2 2",
        "plain-4-5-3": "--plain", "residual-9-9-9": "--blocks 9 9 9 --widths 38 76 152",
        "plain-9-9-9": "--plain --blocks 9 9 9 --widths 38 76 152", "wide-early": "--blocks 2 2 2 --widths 128 160 320",
        **{name: f"--epochs 30 {flags}" for name, flags in ({"base-30": ""} | ABLATIONS).items()},
        **{f"decay-{wd}": f"--epochs 30 --weight-decay {wd}" for wd in ("0.1", "1", "3")},
        "single-draws-s0": "--epochs 30 --group 1", "single-draws-s1": "--epochs 30 --group 1 --seed 1",
        "base-30-s1": "--epochs 30 --seed 1",
    }),
    "tune-cpu": (f"--recipe strong {CPU} --augment crop flip --mix none --warmup 1 --ema 0.99", {
        "light": "", "no-ema": "--ema 0", "lr-1e-2": "--lr 1e-2", "cutmix": "--mix cutmix", "trivial": "--augment crop flip trivial",
        "batch-64": "--batch-size 64",
    }),
    "strong-cpu": ("--recipe strong --blocks 2 2 2 --widths 32 64 128 --augment crop flip --mix none --warmup 1 --ema 0.99", {
        "twelve-epochs": "--epochs 12",
    }),
    "tune-gpu": ("--recipe strong --epochs 25", {
        "as-it-is": "", "light": "--augment crop flip", "autoaugment": "--augment crop flip autoaugment",
        "erasing": "--augment crop flip trivial erasing", "no-mix": "--mix none", "mixup": "--mix mixup", "both": "--mix both",
        "lr-1e-3": "--lr 1e-3", "lr-6e-3": "--lr 6e-3", "decay-0.03": "--weight-decay 0.03", "decay-0.3": "--weight-decay 0.3",
        "batch-256": "--batch-size 256", "no-smoothing": "--label-smoothing 0", "no-ema": "--ema 0", "decay-all": "--decay all",
    }),
    "strong-gpu": ("--recipe strong", {
        **{f"split-s{seed}": f"--seed {seed}" for seed in range(3)},
        **{f"all-s{seed}": f"--val-size 0 --seed {seed}" for seed in range(3)},
        "long": "--val-size 0 --epochs 600",
        **{f"{epochs}-epochs-s{seed}": f"--augment crop flip --mix none --warmup 2 --epochs {epochs} --seed {seed}"
           for epochs in (10, 15, 30) for seed in range(3)},
    }),
}


def train(name, flags, folder, data, threads):
    """Run one experiment to its end, unless it has ended before; returns the line that says how it went."""
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / "result.json").exists():
        return f"{name}: done before"
    where = ["--data", data] if data != "data" else []
    command = ["train.py", *shlex.split(flags), *where, "--out", os.path.relpath(folder, ROOT)]
    command += ["--resume"] * (folder / "last.pt").exists()
    with open(folder / "terminal.log", "a") as log:
        status = subprocess.run([sys.executable, *command], cwd=ROOT, stdout=log, stderr=log,
                                env=os.environ | {"OMP_NUM_THREADS": str(threads)}).returncode
    return f"{name}: {'done' if status == 0 else f'failed with status {status}, see {folder}/terminal.log'}"


def parse_args(argv=None):
    parser = Parser(__doc__)
    parser.add_argument("set", nargs="?", help=f"one of {' '.join(SETS)}")
    parser.add_argument("--data", default="data", help="folder of CIFAR-10 (default: data)")
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side, sharing the CPU's cores (default: 1)")
    parser.add_argument("--only", nargs="*", metavar="NAME", help="these runs of the set (default: all)")
    parser.add_argument("--list", action="store_true", help="print the commands, run nothing")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    if args.list:
        for name, (base, runs) in SETS.items():
            for run_name, flags in runs.items():
                print(f"python train.py {base} {flags} --out results/{name}/{run_name}".replace("  ", " "))
        return
    if args.set not in SETS:
        raise UserError(f"name a set: {' '.join(SETS)}")
    base, runs = SETS[args.set]
    threads = max(1, (os.cpu_count() or 1) // args.jobs)
    with ThreadPoolExecutor(args.jobs) as pool:
        todo = [pool.submit(train, name, f"{base} {flags}", ROOT / "results" / args.set / name, args.data, threads)
                for name, flags in runs.items() if not args.only or name in args.only]
        for future in todo:
            print(future.result(), flush=True)


if __name__ == "__main__":
    run(main)
