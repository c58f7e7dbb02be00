"""Write the tables of both READMEs from results/runs.csv and *.txt: no result is typed by hand.

    python results/tables.py            # fills what stands between <!-- NAME --> and <!-- /NAME -->
    python results/tables.py --check    # changes nothing; status 1 if a table is out of date
"""
import argparse
import math
import re
import sys
from collections import defaultdict
from pathlib import Path
from statistics import mean, stdev, variance

sys.path.insert(0, str(Path(__file__).parent))

from run import CLAIMS, HERE, REGIMES, SCREEN, read_rows        # first: it finds the main scripts
from model import Help, start, write_file


def load_runs():
    """{list: {name without -sSEED: its rows}}; claims/all and claims/tenth are two lists."""
    runs = defaultdict(lambda: defaultdict(list))
    for row in read_rows(HERE / "runs.csv"):
        list_name, name = f"{row['list']}/{row['name']}".rsplit("/", 1)
        runs[list_name][name.rpartition("-s")[0]].append(row)
    return runs


def accuracies(rows, column="test_acc"):
    return [100 * float(row[column]) for row in rows if row[column]]


def percent(values):
    """Mean, and the standard deviation of two or more; a dash for none."""
    spread = f" ± {stdev(values):.2f}" if len(values) > 1 else ""
    return f"{mean(values):.2f}{spread}" if values else "-"


def first_row(name):
    """The run of CLAIMS which this one is compared with, directly or through others."""
    return first_row(CLAIMS[name][2]) if CLAIMS[name][2] else name


def difference(runs, name, baseline):
    """(difference of the means in points, twice its standard error), or None without a baseline.

    The error follows from the noise from seed to seed, pooled over the runs with the same first
    row: three seeds are 4 to 11 points apart without skips, one or two in the recipe.
    """
    a, b = accuracies(runs[name]), accuracies(runs[baseline])
    if not b:
        return None
    spreads = [variance(accuracies(rows)) for run, rows in runs.items()
               if len(rows) > 1 and first_row(run) == first_row(name)]
    return mean(a) - mean(b), 2 * math.sqrt(mean(spreads) * (1 / len(a) + 1 / len(b)))


def table(head, rows):
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("|" + "|".join(map(str, line)) + "|" for line in lines)


def claims(runs):
    lines = []
    for name, (question, paper, baseline, _) in CLAIMS.items():
        cells, verdicts = [], []
        for regime in REGIMES:
            of_regime = runs[f"claims/{regime}"]
            text = f"{mean(accuracies(of_regime[name])):.1f}"
            if found := difference(of_regime, name, baseline):
                gain, bound = (round(x, 1) for x in found)      # judged as they are printed
                text += f" ({gain:+.1f}±{bound:.1f})"
                verdict = "better" if gain > bound else "worse" if gain < -bound else "within noise"
                if paper != "-" and verdict != "within noise":
                    holds = verdict == ("better" if paper == "better" else "worse")
                    verdict = "holds" if holds else "the opposite"
                verdicts.append(verdict)
            cells.append(text)
        verdict = "; ".join(f"({r}) {v}" for r, v in zip("ab", verdicts))
        verdict = verdicts[0] if len(set(verdicts)) == 1 else verdict or "-"
        lines.append([question, paper, *cells, verdict])
    return table(["question", "the paper", "(a) test %", "(b) test %", "verdict"], lines)


RECIPES = {"gpu-long": "strong, all 50,000 images, 200 epochs", "gpu-strong": "strong",
           "gpu-paper": "paper", "gpu-claims": "paper, 30 epochs", "gpu-fast": "shortened",
           "quick": "quick"}


def recipes(runs):
    """What ran at full length, best first."""
    found = [(f"{title}: `{name}`", rows)
             for list_name, title in RECIPES.items() for name, rows in runs[list_name].items()]
    found.sort(key=lambda recipe: -mean(accuracies(recipe[1])))
    head = ["recipe", "parameters", "test %", "validation %", "seeds", "operations", "minutes",
            "measured on"]
    return table(head, [
        [title, f"{int(rows[0]['parameters']):,}", percent(accuracies(rows)),
         percent(accuracies(rows, "val_acc")), len(rows), f"{float(rows[0]['flop']):.1e}",
         ", ".join(f"{float(row['minutes']):.3g}" for row in rows),
         "; ".join(dict.fromkeys(row["machine"] for row in rows))]
        for title, rows in found])


def headline(runs):
    """The first screen's numbers: the shipped weights, and the three recipes."""
    rows = []
    for list_name in ("gpu-long", "gpu-strong", "gpu-paper", "quick"):
        seeds = runs[list_name][list_name.removeprefix("gpu-")]
        row = min(seeds, key=lambda row: float(row["minutes"]))
        rows.append([f"**{mean(accuracies(seeds)):.1f}%**", len(seeds),
                     f"{int(row['parameters']):,}", f"{float(row['minutes']):.0f}",
                     row["machine"].rpartition(", torch")[0],
                     f"`{row['command'].partition(' --seed')[0]}`"])
    head = ["test accuracy", "seeds", "parameters", "minutes, fastest", "on", "command"]
    return table(head, rows)


def screening(runs):
    """Validation accuracy of everything that was tried for the quick recipe, best first."""
    own = {"screen": SCREEN, "refined": "--recipe quick"}
    rows = [row for name in own for seeds in runs[name].values() for row in seeds]
    rows.sort(key=lambda row: -float(row["val_acc"]))
    return table(["list", "flags beside the list's own", "validation", "operations"], [
        [row["list"], f"`{row['command'].partition(own[row['list']])[2].strip()}`",
         f"{float(row['val_acc']):.2%}", f"{float(row['flop']):.1e}"] for row in rows])


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=Help)
    parser.add_argument("--check", action="store_true", help="change nothing, only compare")
    return parser.parse_args(argv)


def main(argv=None):
    args, runs = parse_args(argv), load_runs()
    parts = {part.__name__: part(runs) for part in (headline, claims, recipes, screening)}
    for path in HERE.glob("*.txt"):             # what a command printed stands there as it is
        parts[path.stem] = f"```\n{path.read_text('utf-8').strip()}\n```"
    for path in (HERE.parent / "README.md", HERE / "README.md"):
        old = path.read_text("utf-8")
        new = re.sub(r"(?s)(<!-- ([\w-]+) -->\n).*?(?=<!-- /\2 -->)",
                     lambda m: f"{m[1]}{parts[m[2]]}\n", old)
        if args.check and new != old:
            raise SystemExit(f"error: {path.name} is out of date: python results/tables.py")
        if new != old:
            write_file(path, new.encode())


if __name__ == "__main__":
    start(main)
