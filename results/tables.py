"""Write the tables of README.md and results/README.md anew from the logs: no number in them is typed by hand.

    python results/tables.py            # fills what stands between <!-- NAME --> and <!-- /NAME -->
    python results/tables.py --check    # changes nothing; says what is out of date and exits with 2
"""
import csv
import json
import re
import statistics
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
sys.path.insert(0, str(ROOT / "results"))

from model import Parser, UserError, run, write_file        # noqa: E402
from run import SETS                                        # noqa: E402


def load_runs():
    """{set/name: what result.json and log.csv say} of every finished run."""
    runs = {}
    for path in sorted((ROOT / "results").glob("*/*/result.json")):
        with open(path.with_name("log.csv"), newline="") as file:
            runs[f"{path.parent.parent.name}/{path.parent.name}"] = json.loads(path.read_text()) | {"log": list(csv.DictReader(file))}
    return runs


def table(head, rows):
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def percent(values):
    """Mean, and the standard deviation of two or more."""
    values = [100 * value for value in values]
    return f"{statistics.mean(values):.2f}" + (f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else "")


# One row a question: (question, what the paper says, runs of claims-cpu, runs of claims-gpu, verdict on the small setting).
CLAIMS = [
    ("its recipe", "93 to 94 validation, 95 training by epoch 70", "base-s0 base-s1", "paper-s0 paper-s1 paper-s2", "cannot be told in 5 epochs"),
    ("its drawing, blocks 2 2 2", "the same", "", "drawn-2-2-2", "open"),
    ("12 blocks with skips", "93 to 94", "residual-4-5-3", "paper-s0 paper-s1 paper-s2", "the baseline of the next row"),
    ("12 blocks, plain", "about 75", "plain-4-5-3", "plain-4-5-3", "holds, and more: 19 points below"),
    ("27 blocks with skips", "-", "residual-9-9-9", "residual-9-9-9", "deeper is no worse"),
    ("27 blocks, plain", "slower, degraded", "plain-9-9-9", "plain-9-9-9", "holds: 32 points below"),
    ("without label smoothing", "notably worse", "no-smoothing", "no-smoothing", "cannot be told: no difference"),
    ("without AutoAugment", "notably worse", "no-autoaugment", "no-autoaugment", "the other way in 5 epochs"),
    ("without erasing", "worse", "no-erasing", "no-erasing", "the other way in 5 epochs"),
    ("without rotation", "worse", "no-rotation", "no-rotation", "the other way in 5 epochs"),
    ("without jitter", "worse", "no-jitter", "no-jitter", "the other way in 5 epochs"),
    ("crop and flip alone", "worse", "crop-and-flip", "crop-and-flip", "the other way: 8 points better"),
    ("wider early, equal size", "better", "wide-early", "wide-early", "better than deeper, worse than in between"),
    ("in between, equal size", "-", "middle", "base-30", "best of the three"),
    ("deeper, equal size", "-", "deep", "residual-9-9-9", "worst of the three"),
    ("lr 1e-4, weight decay 0.01", "its setting", "decay-0.01", "base-30 base-30-s1", "the baseline of the next three"),
    ("lr 1e-4, weight decay 0.1", "-", "decay-0.1", "decay-0.1", "no difference: the decay does nothing"),
    ("lr 1e-4, weight decay 1", "-", "decay-1", "decay-1", "no difference, at 100 times the decay"),
    ("lr 1e-4, weight decay 3", "-", "decay-3", "decay-3", "1 point worse"),
    ("one draw an image", "-", "single-draws-s0 single-draws-s1", "single-draws-s0 single-draws-s1", "no difference beyond the seeds"),
]


def claims(runs):
    def number(set_name, names):
        found = [runs.get(f"{set_name}/{name}") for name in names.split()]
        return percent([run["test_acc"] for run in found]) if found and all(found) else "open" if names else "-"

    def minutes(names):
        found = [runs.get(f"claims-cpu/{name}") for name in names.split()]
        return round(sum(run["seconds"] for run in found) / 60) if found and all(found) else "-"
    return table(
        ["question", "the paper, %", "small, test %", "verdict on the small setting", "minutes, one busy core", "`--only` of `claims-cpu`",
         "full size, test %", "`--only` of `claims-gpu`"],
        [[question, paper, number("claims-cpu", small), verdict, minutes(small), small and f"`{small}`", number("claims-gpu", full),
          f"`{full}`"] for question, paper, small, full, verdict in CLAIMS])


def all_runs(runs):
    rows = [[name, f"`{run['command']}`", run["settings"]["seed"], f"{run['parameters']:,}", run["device"], run["torch"],
             f"{run['seconds'] / 60:.1f}", "-" if run["val_acc"] is None else f"{run['val_acc']:.2%}", f"{run['test_acc']:.2%}",
             f"{run['epoch']}/{run['settings']['epochs']}"] for name, run in runs.items()]
    return table(["run", "command", "seed", "parameters", "device", "torch", "minutes", "validation", "test", "epoch"], rows)


def open_runs(runs):
    """Commands of the runs that nobody has finished, set by set."""
    lines = []
    for name, (base, own) in SETS.items():
        missing = [run_name for run_name in own if f"{name}/{run_name}" not in runs]
        if missing:
            lines.append(f"- `python results/run.py {name}`: {len(missing)} of {len(own)} runs are open ({', '.join(missing)})")
    return "\n".join(lines) or "none"


def tuning(runs):
    """Validation accuracy of every recipe that was tried, best first."""
    rows = [[name, f"`{SETS[name.split('/')[0]][1][name.split('/')[1]]}`", f"{run['val_acc']:.2%}", run["settings"]["epochs"]]
            for name, run in runs.items() if name.startswith("tune-")]
    return table(["run", "flags beside those of its set", "validation", "epochs"], sorted(rows, key=lambda row: row[2], reverse=True))


def headline(runs):
    """The first screen's table: what each recipe reaches, and what is still open."""
    rows = []
    for what, names in (("the paper's recipe, 4.99M network", [f"claims-gpu/paper-s{i}" for i in range(3)]),
                        ("strong recipe, 4.99M network", [f"strong-gpu/split-s{i}" for i in range(3)]),
                        ("strong recipe, 4.99M network, all 50,000 images", [f"strong-gpu/all-s{i}" for i in range(3)]),
                        ("`weights/strong.pt`: strong recipe on a CPU", ["strong-cpu/twelve-epochs"]),
                        ("the paper's recipe in two minutes on a CPU", ["quick/small"])):
        found = [runs[name] for name in names if name in runs]
        if len(found) < len(names):
            rows.append([what, *["open"] * 6])
            continue
        run = found[0]
        rows.append([what, f"{run['parameters']:,}", run["settings"]["epochs"], percent([run["test_acc"] for run in found]),
                     "-" if run["val_acc"] is None else percent([run["val_acc"] for run in found]), f"{run['seconds'] / 60:.0f}",
                     f"{run['device']}, torch {run['torch']}, {len(found)} seed{'s' * (len(found) > 1)}"])
    return table(["what", "parameters", "epochs", "test %", "validation %", "minutes", "measured on"], rows)


def sentence(runs, name):
    """What one quick run reached, and in what time."""
    run = runs.get(name)
    return "open" if run is None else (
        f"Measured: {run['test_acc']:.2%} test accuracy ({run['val_acc']:.2%} validation) in {run['seconds']:.0f} seconds on "
        f"{run['device']}, torch {run['torch']}, seed {run['settings']['seed']}.")


def robustness():
    names, columns = [], {}
    for path in sorted((ROOT / "results/robustness").glob("*.csv")):
        names.append(path.stem)
        with open(path, newline="") as file:
            for row in csv.DictReader(file):
                columns.setdefault((row["corruption"], row["strength"]), {})[path.stem] = f"{float(row['test_acc']):.2%}"
    return table(["pictures", *names], [
        [f"{kind} {strength}" if kind != "none" else "as they are", *(found.get(name, "open") for name in names)]
        for (kind, strength), found in columns.items()])


def fill(path, parts, check):
    """Put each part between its markers; returns the names whose text changed."""
    text, changed = path.read_text(), []
    for name, content in parts.items():
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        if pattern.search(text):
            new = pattern.sub(lambda found: f"{found[1]}{content}\n{found[2]}", text)
            changed += [name] if new != text else []
            text = new
    if changed and not check:
        write_file(path, text.encode())
    return changed


def parse_args(argv=None):
    parser = Parser(__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; exit with 2 if a table is out of date")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    runs = load_runs()
    parts = {"claims": claims(runs), "runs": all_runs(runs), "open": open_runs(runs), "tuning": tuning(runs),
             "robustness": robustness(), "headline": headline(runs), "small": sentence(runs, "quick/small"),
             "fake": sentence(runs, "quick/fake")}
    for path in (ROOT / "results").glob("*.txt"):       # what a benchmark printed stands in the README as it is
        parts[path.stem] = f"```\n{path.read_text().strip()}\n```"
    changed = [f"{path.name}: {name}" for path in (ROOT / "README.md", ROOT / "results/README.md")
               for name in fill(path, parts, args.check)]
    if args.check and changed:
        raise UserError(f"out of date: {', '.join(changed)}; python results/tables.py writes them anew")
    print("\n".join(changed) or "every table is up to date")


if __name__ == "__main__":
    run(main)
