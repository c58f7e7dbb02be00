"""Write the tables of both READMEs from results/runs.csv: no number in them is typed by hand.

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

from run import HERE, REGIMES, SCREEN, read_rows            # first: it finds the main scripts
from model import Help, start, whole_file

# question, the paper's words, run, the run that it is compared with
CLAIMS = [
    ("its recipe", "93 to 94% validation", "recipe", None),
    ("without label smoothing", "notably worse", "no-smoothing", "recipe"),
    ("without AutoAugment", "notably worse", "no-autoaugment", "recipe"),
    ("without erasing", "worse", "no-erasing", "recipe"),
    ("without rotation", "worse", "no-rotation", "recipe"),
    ("without jitter", "worse", "no-jitter", "recipe"),
    ("crop and flip alone", "worse", "crop-and-flip", "recipe"),
    ("neither augmentation nor smoothing", "worse", "nothing", "recipe"),
    ("one draw per image", "-", "single-draws", "recipe"),
    ("12 blocks with skips (79,314 parameters)", "-", "skips-12", None),
    ("12 blocks without", "about 75%", "plain-12", "skips-12"),
    ("27 blocks with skips (84,725), against 12", "-", "skips-27", "skips-12"),
    ("27 blocks without, against that", "\"degraded\"", "plain-27", "skips-27"),
    ("deep: 4 4 4 at 8-16-32 (93,202)", "-", "deep-equal-size", None),
    ("wide early: 1 1 1 at 32-32-64 (97,514), against that", "better", "wide-early",
     "deep-equal-size"),
    ("deep, as much arithmetic: 4 4 4 at 11-22-44 (175,405), against wide", "-", "deep-equal-work",
     "wide-early"),
    ("lr 1e-4, weight decay 0.01", "its setting", "decay-0.01", None),
    ("weight decay 0.1", "-", "decay-0.1", "decay-0.01"),
    ("weight decay 1", "-", "decay-1", "decay-0.01"),
    ("weight decay 3", "-", "decay-3", "decay-0.01"),
]


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
    baselines = {run: baseline for _, _, run, baseline in CLAIMS}
    while baselines[name]:
        name = baselines[name]
    return name


def difference(runs, name, baseline):
    """(difference of the means in points, its standard error), or None where one cannot be told.

    The error follows from the noise from seed to seed, pooled over the runs with the same first
    row: three seeds are 4 to 11 points apart without skips, one or two in the recipe.
    """
    a, b = accuracies(runs[name]), accuracies(runs[baseline])
    spreads = [variance(accuracies(rows)) for run, rows in runs.items()
               if len(rows) > 1 and first_row(run) == first_row(name)]
    if not (a and b and spreads):
        return None
    return mean(a) - mean(b), math.sqrt(mean(spreads) * (1 / len(a) + 1 / len(b)))


def compared(runs, name, baseline):
    """(test accuracy and its difference ± twice the standard error; does it exceed that?)."""
    text, found = f"{mean(accuracies(runs[name])):.1f}", difference(runs, name, baseline)
    if not found:
        return text, "-"
    gain, bound = found[0], 2 * found[1]
    verdict = "within noise" if abs(gain) <= bound else "better" if gain > 0 else "worse"
    return f"{text} ({gain:+.1f}±{bound:.1f})", verdict


def table(head, rows):
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("|" + "|".join(map(str, line)) + "|" for line in lines)


def claims(runs):
    rows = []
    for question, paper, name, baseline in CLAIMS:
        (a, of_a), (b, of_b) = (compared(runs[f"claims/{regime}"], name, baseline)
                                for regime in REGIMES)
        verdict = of_a if of_a == of_b else f"(a) {of_a}, (b) {of_b}"
        if paper != "-":
            claimed = "better" if paper == "better" else "worse"
            verdict = re.sub("better|worse", lambda word: f"{word[0]}, not as claimed", verdict)
            verdict = verdict.replace(f"{claimed}, not as claimed", f"{claimed}, as claimed")
        rows.append([question, paper, a, b, verdict, f"`{name}`"])
    return table(["question", "the paper", "(a) test %", "(b) test %", "verdict", "`--only`"], rows)


RECIPES = {"gpu-long": "strong, all 50,000 images, 600 epochs", "gpu-strong": "strong",
           "gpu-paper": "paper", "gpu-claims": "paper, 30 epochs", "gpu-fast": "quick, shortened",
           "weights": "quick, three times the arithmetic", "quick": "quick"}


def reached(runs):
    """[(mean test accuracy, recipe, rows of its seeds)] of what ran at full length, best first."""
    found = [(mean(accuracies(rows)), f"{title}: `{name}`", rows)
             for list_name, title in RECIPES.items() for name, rows in runs[list_name].items()]
    return sorted(found, reverse=True, key=lambda recipe: recipe[0])


def recipes(runs):
    head = ["recipe", "parameters", "test %", "validation %", "seeds", "operations", "minutes",
            "measured on"]
    return table(head, [
        [title, f"{int(rows[0]['parameters']):,}", percent(accuracies(rows)),
         percent(accuracies(rows, "val_acc")), len(rows), f"{float(rows[0]['flop']):.1e}",
         ", ".join(f"{float(row['minutes']):.3g}" for row in rows),
         "; ".join(dict.fromkeys(row["machine"] for row in rows))]
        for _, title, rows in reached(runs)])


def headline(runs):
    """The first screen's numbers: the best that was measured, and what the quick recipe reaches."""
    rows, (best, *others) = [], reached(runs)
    for test, _, seeds in [best, *(o for o in others if o[2] is runs["quick"]["quick"])]:
        row = min(seeds, key=lambda row: float(row["minutes"]))
        rows.append([f"**{test:.1f}%**", len(seeds), f"{int(row['parameters']):,}",
                     f"{float(row['minutes']):.0f}", row["machine"].rpartition(", torch")[0],
                     f"`{row['command'].partition(' --seed')[0]}`"])
    head = ["test accuracy", "seeds", "parameters", "minutes, fastest", "on", "command"]
    return table(head, rows)


def screening(runs):
    """Validation accuracy of everything that was tried for the quick recipe, best first."""
    own = {"screen": SCREEN, "tried": "--recipe quick"}
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
        with whole_file(path) as file:
            file.write(new.encode())


if __name__ == "__main__":
    start(main)
