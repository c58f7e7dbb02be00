"""Two safety tests of test_model.py at length: kill -9 in the middle of training, and damaged files.

    python benchmarks/soak.py                       # 200 kills, 5,000 damaged files
    python benchmarks/soak.py --kills 20 --files 500

Each killed run is resumed until it ends, then compared bit for bit with a run that was never interrupted; after
each kill every checkpoint must be whole. Each damaged file must be refused in one line or read right. Output:

    200 kills, 0 of them in the middle of a write; 34 runs came to their end, all with the bits of an
        uninterrupted one: 9 min
    5,000 damaged files: 3,090 refused in a line, 1,910 read right; no traceback, no hang: 3 s
"""
import multiprocessing
import random
import shutil
import sys
import tempfile
import time
import warnings
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import predict                                                          # noqa: E402
import train                                                            # noqa: E402
from model import Parser, run                                           # noqa: E402
from test_model import RUN, assert_same_run, attack, history, wait_for_write        # noqa: E402


def quiet_main(argv):
    sys.stdout = open("/dev/null", "w")
    train.main(argv)


def start(out):
    """A training process of its own, forked so that it need not import torch again."""
    argv = [*RUN, "--out", str(out), *["--resume"] * (out / "last.pt").exists()]
    process = multiprocessing.get_context("fork").Process(target=quiet_main, args=(argv,))
    process.start()
    return process


def kill_runs(kills, folder, seed):
    """Kill runs at random moments and resume them; returns (kills, kills during a write, runs that came to their end)."""
    moments, killed, in_write, ended = random.Random(seed), 0, 0, 0
    reference, out = folder / "reference", folder / "killed"
    started = time.perf_counter()
    start(reference).join()
    whole = time.perf_counter() - started
    while killed < kills:
        process = start(out)
        process.join(timeout=moments.uniform(0, whole))
        if killed % 2:                  # every second kill waits for the next write and falls into it
            wait_for_write(out, process.is_alive)
        if process.is_alive():
            process.kill()
            process.join()
            killed += 1
            in_write += any(out.glob("*.part"))
            for path in (path for path in (out / "last.pt", out / "best.pt") if path.exists()):
                predict.load_checkpoint(path)
        elif process.exitcode == 0:
            assert_same_run(out, reference)
            shutil.rmtree(out)
            ended += 1
        else:
            raise SystemExit(f"a resumed run failed with status {process.exitcode}, see {out}")
        assert not (out / "log.csv").exists() or [int(row["epoch"]) for row in history(out)] == list(range(1, len(history(out)) + 1))
    start(out).join()
    assert_same_run(out, reference)
    return killed, in_write, ended + 1


def parse_args(argv=None):
    parser = Parser(__doc__.split("Output:")[0])
    parser.add_argument("--kills", type=int, default=200, help="(default: 200)")
    parser.add_argument("--files", type=int, default=5000, help="damaged files (default: 5000)")
    parser.add_argument("--seed", type=int, default=0, help="(default: 0)")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    torch.set_num_threads(1)        # a fork must find no pool of threads
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        begin = time.perf_counter()
        killed, in_write, ended = kill_runs(args.kills, folder, args.seed)
        print(f"{killed} kills, {in_write} of them in the middle of a write; {ended} runs came to their end, all with the bits of an "
              f"uninterrupted one: {train.duration(time.perf_counter() - begin)}")
        begin = time.perf_counter()
        (folder / "files").mkdir()
        warnings.simplefilter("ignore")     # numpy's, of damaged headers
        refused, read = attack(folder / "files", folder / "reference/best.pt", args.files, args.seed)
        print(f"{refused + read:,} damaged files: {refused:,} refused in a line, {read:,} read right; no traceback, no hang: "
              f"{train.duration(time.perf_counter() - begin)}")


if __name__ == "__main__":
    run(main)
