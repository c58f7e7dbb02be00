"""Write the tables of both READMEs from results/runs.csv.

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

from run import HERE, RUNS, read_rows, run_of       # first: it finds the main scripts
from model import Help, start, write_file

# Of equally many steps: every image five times; a tenth of them fifty times.
REGIMES = ("all", "tenth")
# name: (question, what the paper says of it, in brackets what it says of all six transformations
# together, the run that it is compared with)
CLAIMS = {
    "recipe": ("its recipe", "93–94% validation", None),
    "no-smoothing": ("without label smoothing", '"noticeable impact"', "recipe"),
    "no-autoaugment": ("without AutoAugment", '"noticeable impact"', "recipe"),
    "no-erasing": ("without erasing", "(worse)", "recipe"),
    "no-rotation": ("without rotation", "(worse)", "recipe"),
    "no-jitter": ("without jitter", "(worse)", "recipe"),
    "crop-and-flip": ("crop and flip alone", "(worse)", "recipe"),
    "nothing": ("neither augmentation nor smoothing", "(worse)", "recipe"),
    "single-draws": ("one draw per image", "-", "recipe"),
    "skips-12": ("12 blocks with skips, 8-16-32 (79,314)", "-", None),
    "plain-12": ("the same 12 without skips", '"degraded"', "skips-12"),
    "skips-27": ("27 blocks with skips, 5-10-20 (84,725), against 12", "-", "skips-12"),
    "plain-27": ("the same 27 without skips", '"degraded"', "skips-27"),
    "deep-equal-size": ("deep: 4 4 4 at 8-16-32 (93,202)", "-", None),
    "wide-early": ("wide early: 1 1 1 at 32-32-64 (97,514), against deep", "better",
                   "deep-equal-size"),
    "deep-equal-work": ("deep, 8% less compute: 4 4 4 at 11-22-44 (175,405), against wide", "-",
                        "wide-early"),
    "decay-0.01": ("lr 1e-4, weight decay 0.01", "its setting", None),
    **{f"decay-{decay}": (f"decay {decay}, against 0.01", "-", "decay-0.01")
       for decay in ("0.1", "1", "3")},
}


def load_runs():
    """{list: {name without -sSEED: its rows}} of what has ended; claims/all and claims/tenth are
    two lists. The machine comes without torch's version."""
    runs = defaultdict(lambda: defaultdict(list))
    for row in filter(lambda row: row["test_acc"], read_rows(RUNS)):
        list_name, name = run_of(row).rsplit("/", 1)
        row["machine"] = row["machine"].rpartition(", torch")[0]
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
    """The difference of the means in points, and twice its standard error.

    The error follows from the noise from seed to seed, pooled over the runs with the same first
    row: three seeds are 4 to 11 points apart without skips, one or two in the recipe.
    """
    a, b = accuracies(runs[name]), accuracies(runs[baseline])
    noise = mean(variance(accuracies(runs[run])) for run in CLAIMS
                 if len(runs[run]) > 1 and first_row(run) == first_row(name))
    return mean(a) - mean(b), 2 * math.sqrt(noise * (1 / len(a) + 1 / len(b)))


def verdict(gain, bound, paper):
    if abs(gain) <= bound:
        return "within noise"
    found = "better" if gain > 0 else "worse"
    if paper == "-":
        return found
    return "holds" if (found == "better") == (paper == "better") else "the opposite"


def table(head, rows):
    """Markdown. head: the titles of the columns, with a bar between two."""
    line = "|".join(["---"] * len(head.split("|")))
    return "\n".join(f"|{row}|" for row in [head, line, *("|".join(map(str, r)) for r in rows)])


def claims(runs):
    rows = []
    for name, (question, paper, baseline) in CLAIMS.items():
        cells, verdicts = [], []
        for regime in REGIMES:
            of_regime = runs[f"claims/{regime}"]
            cell, judged = f"{mean(accuracies(of_regime[name])):.1f}", "-"
            if baseline:
                gain, bound = (round(x, 1) for x in difference(of_regime, name, baseline))
                cell += f" ({gain:+.1f}±{bound:.1f})"
                judged = verdict(gain, bound, paper)        # of the numbers as they are printed
            cells.append(cell)
            verdicts.append(judged)
        a, b = verdicts
        rows.append([question, paper, *cells, a if a == b else f"(a) {a}; (b) {b}"])
    return table("question|the paper|(a) test %|(b) test %|verdict", rows)


RECIPES = {"gpu-long": "strong, all 50,000 images, 200 epochs", "gpu-strong": "strong",
           "gpu-paper": "paper", "gpu-claims": "paper, 30 epochs", "gpu-fast": "shortened",
           "quick": "quick"}


def recipes(runs):
    """What ran at full length, best first."""
    found = [(f"{title}: `{name}`", rows)
             for list_name, title in RECIPES.items() for name, rows in runs[list_name].items()]
    found.sort(key=lambda recipe: -mean(accuracies(recipe[1])))
    return table("recipe|parameters|test %|validation %|seeds|operations|minutes|measured on", [
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
                     f"{int(row['parameters']):,}", f"{float(row['minutes']):.0f}", row["machine"],
                     f"`{row['command'].partition(' --seed')[0]}`"])
    return table("test accuracy|seeds|parameters|minutes (fastest)|machine|command", rows)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=Help)
    parser.add_argument("--check", action="store_true", help="change nothing, only compare")
    args, runs = parser.parse_args(argv), load_runs()
    tables = {part.__name__: part(runs) for part in (headline, claims, recipes)}
    for path in (HERE.parent / "README.md", HERE / "README.md"):
        old = path.read_text("utf-8")
        new = re.sub(r"(?s)(<!-- (\w+) -->\n).*?(?=<!-- /\2 -->)",
                     lambda m: f"{m[1]}{tables[m[2]]}\n", old)
        if args.check and new != old:
            raise SystemExit(f"error: {path.name} is out of date: python results/tables.py")
        if new != old:
            write_file(path, new.encode())


if __name__ == "__main__":
    start(main)
