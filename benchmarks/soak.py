"""Two safety tests of test_model.py at length, in some minutes: kill -9 in the middle of training, and damaged files.

    python benchmarks/soak.py

Every second kill waits for a write and falls into it. After each kill every checkpoint must be whole; a killed
run is resumed until it ends, then compared bit for bit with one that was never interrupted. Each damaged file
must be refused in one line or read right.
"""
import random
import shutil
import sys
import tempfile
import time
import warnings
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import train
from model import load_checkpoint, start
from test_model import RUN, assert_same_run, attack, fork, wait_for_write

KILLS, FILES = 200, 5000


def begin(out):
    return fork([*RUN, "--out", str(out), *["--resume"] * (out / "last.pt").exists()])


def kill_runs(folder):
    """Kill runs at random moments, in and between writes, and resume them."""
    killed = in_write = ended = 0
    reference, out = folder / "reference", folder / "killed"
    started = time.perf_counter()
    begin(reference).join()
    whole = time.perf_counter() - started
    while killed < KILLS or out.exists():
        process = begin(out)
        process.join(timeout=random.uniform(0, whole) if killed < KILLS else None)
        if killed % 2:
            wait_for_write(out, process.is_alive)
        if process.is_alive():
            process.kill()
            process.join()
            killed += 1
            in_write += any(out.glob("*.part"))
            for path in out.glob("*.pt"):
                load_checkpoint(path)
        elif process.exitcode == 0:
            assert_same_run(out, reference)
            shutil.rmtree(out)
            ended += 1
        else:
            raise SystemExit(f"error: a resumed run failed with status {process.exitcode}")
    print(f"{KILLS} kills, {in_write} of them in the middle of a write; {ended} runs came to their end, "
          f"all with the bits of an uninterrupted one: {(time.perf_counter() - started) / 60:.1f} min")


def main():
    torch.set_num_threads(1)            # a fork must find no pool of threads
    train.SAVE_EVERY = -1               # last.pt every epoch: more writes to fall into
    warnings.simplefilter("ignore")     # numpy's, of damaged headers
    with tempfile.TemporaryDirectory() as folder:
        kill_runs(Path(folder))
        files = Path(folder, "files")
        files.mkdir()
        refused, read = attack(files, Path(folder, "reference/best.pt"), FILES, seed=0)
        print(f"{refused + read:,} damaged files: {refused:,} refused in a line, {read:,} read right; no traceback")


if __name__ == "__main__":
    start(main)
