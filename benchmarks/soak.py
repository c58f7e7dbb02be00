"""Two safety tests of test_model.py at length: kill -9 in the middle of training, and damaged files.

    python benchmarks/soak.py                       # 200 kills, 5,000 damaged files: a quarter of an hour
    python benchmarks/soak.py --kills 12 --files 400

Every second kill waits for a write and falls into it. After each kill every checkpoint must be whole; a killed
run is resumed until it ends, then compared bit for bit with one that was never interrupted. Each damaged file
must be refused in one line or read right.
"""
import argparse
import random
import shutil
import sys
import tempfile
import time
import warnings
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import train                                                                    # noqa: E402
from model import Help, load_checkpoint, number, start                          # noqa: E402
from test_model import RUN, assert_same_run, attack, fork, wait_for_write       # noqa: E402


def begin(out):
    return fork([*RUN, "--out", str(out), *["--resume"] * (out / "last.pt").exists()])


def kill_runs(kills, folder, seed):
    """Kill runs at random moments and resume them; returns (kills during a write, runs that came to their end)."""
    moments, killed, in_write, ended = random.Random(seed), 0, 0, 0
    reference, out = folder / "reference", folder / "killed"
    started = time.perf_counter()
    begin(reference).join()
    whole = time.perf_counter() - started
    while killed < kills or out.exists():
        process = begin(out)
        process.join(timeout=moments.uniform(0, whole) if killed < kills else None)
        if killed % 2:
            wait_for_write(out, process.is_alive)
        if process.is_alive():
            process.kill()
            process.join()
            killed += 1
            in_write += any(out.glob("*.part"))
            for path in (path for path in (out / "last.pt", out / "best.pt") if path.exists()):
                load_checkpoint(path)
        elif process.exitcode == 0:
            assert_same_run(out, reference)
            shutil.rmtree(out)
            ended += 1
        else:
            raise SystemExit(f"error: a resumed run failed with status {process.exitcode}, see {out}")
    return in_write, ended


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=Help)
    parser.add_argument("--kills", type=number(int, 0), default=200, help="of trainings")
    parser.add_argument("--files", type=number(int, 0), default=5000, help="damaged ones")
    parser.add_argument("--seed", type=number(int, 0), default=0, help="of moments and damages")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    torch.set_num_threads(1)            # a fork must find no pool of threads
    train.SAVE_EVERY = -1               # last.pt every epoch: more writes to fall into
    warnings.simplefilter("ignore")     # numpy's, of damaged headers
    with tempfile.TemporaryDirectory() as folder:
        start_time = time.perf_counter()
        in_write, ended = kill_runs(args.kills, Path(folder), args.seed)
        print(f"{args.kills} kills, {in_write} of them in the middle of a write; {ended} runs came to their end, all with the "
              f"bits of an uninterrupted one: {(time.perf_counter() - start_time) / 60:.1f} min")
        files = Path(folder, "files")
        files.mkdir()
        refused, read = attack(files, Path(folder, "reference/best.pt"), args.files, args.seed)
        print(f"{refused + read:,} damaged files: {refused:,} refused in a line, {read:,} read right; no traceback")


if __name__ == "__main__":
    start(main)
