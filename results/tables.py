"""Write the tables of README.md and results/README.md from results/runs.csv: no number in them is typed by hand.

    python results/tables.py            # fills what stands between <!-- NAME --> and <!-- /NAME -->
    python results/tables.py --check    # changes nothing; status 1 if a table is out of date
"""
import argparse
import math
import re
import statistics
import sys
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "results")]

from model import Help, start, whole_file                   # noqa: E402
from run import read_rows                                   # noqa: E402

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
    ("27 blocks without", "\"degraded\"", "plain-27", "skips-27"),
    ("deep, equal size (93,202)", "-", "deep-equal-size", None),
    ("wide early (97,514), against that", "better", "wide-early", "deep-equal-size"),
    ("deep, equal arithmetic (175,405), against wide", "-", "deep-equal-work", "wide-early"),
    ("lr 1e-4, weight decay 0.01", "its setting", "decay-0.01", None),
    ("weight decay 0.1", "-", "decay-0.1", "decay-0.01"),
    ("weight decay 1", "-", "decay-1", "decay-0.01"),
    ("weight decay 3", "-", "decay-3", "decay-0.01"),
]


def load_runs():
    """{list: {name without -sSEED: [row of each seed]}} of results/runs.csv."""
    runs = defaultdict(lambda: defaultdict(list))
    for row in read_rows(ROOT / "results/runs.csv"):
        runs[row["list"]][re.sub(r"-s\d+$", "", row["name"])].append(row)
    return runs


def accuracies(rows, column="test_acc"):
    return [100 * float(row[column]) for row in rows]


def percent(values):
    """Mean, and the standard deviation of two or more; a dash for none."""
    spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}{spread}" if values else "-"


def noise(runs):
    """Standard deviation from seed to seed, pooled over all rows with several seeds, in percent points."""
    spreads = [statistics.variance(accuracies(rows)) for rows in runs.values() if len(rows) > 1]
    return math.sqrt(statistics.mean(spreads)) if spreads else math.inf


def difference(runs, name, baseline):
    """(difference of the means, its standard error) by the pooled noise, or None where a run is missing."""
    a, b = accuracies(runs.get(name, [])), accuracies(runs.get(baseline, []))
    if not a or not b:
        return None
    return statistics.mean(a) - statistics.mean(b), noise(runs) * math.sqrt(1 / len(a) + 1 / len(b))


def verdict(found):
    """A difference counts when it is more than twice its standard error."""
    return f"{found[0]:+.1f}" if abs(found[0]) > 2 * found[1] else "no difference seen"


def cell(runs, name, baseline):
    """Test accuracy of a run and how it differs from another one: 72.4 (+7.9)."""
    rows = runs.get(name)
    if not rows:
        return "open"
    found = difference(runs, name, baseline) if baseline else None
    return f"{statistics.mean(accuracies(rows)):.1f}" + (f" ({verdict(found)})" if found else "")


def table(head, rows):
    return "\n".join("|" + "|".join(map(str, line)) + "|" for line in [head, ["---"] * len(head), *rows])


def regime(runs, name):
    """The runs of one of the two regimes of the list claims."""
    return {run.split("/")[1]: rows for run, rows in runs["claims"].items() if run.startswith(name + "/")}


def claims(runs):
    regimes = [regime(runs, "all"), regime(runs, "tenth")]
    return table(["question", "the paper", "(a) test %", "(b) test %", "`--only`"], [
        [question, paper, *(cell(part, name, baseline) for part in regimes), f"`{name}`"]
        for question, paper, name, baseline in CLAIMS])


RECIPES = {"gpu-long": "strong, all 50,000 images, 600 epochs", "gpu-strong": "strong", "gpu-paper": "paper",
           "quick": "quick"}


def reached(runs):
    """[(mean test accuracy, recipe, rows)] of the recipes that were run at full length, best first."""
    found = [(statistics.mean(accuracies(rows)), f"{title}: `{name}`", rows)
             for list_name, title in RECIPES.items() for name, rows in runs[list_name].items()]
    return sorted(found, key=lambda recipe: -recipe[0])


def recipes(runs):
    rows = []
    for _, title, found in reached(runs):
        minutes = statistics.mean(float(row["minutes"]) for row in found)
        val = percent(accuracies([row for row in found if row["val_acc"]], "val_acc"))
        rows.append([title, f"{int(found[0]['parameters']):,}", percent(accuracies(found)), val, len(found),
                     f"{float(found[0]['flop']):.1e}", f"{minutes:.0f}", found[0]["machine"]])
    return table(["recipe", "parameters", "test %", "validation %", "seeds", "operations", "minutes", "measured on"], rows)


def headline(runs):
    """The first screen's sentence: the best number that was measured."""
    if not reached(runs):
        return "No recipe has been run at full length yet."
    test, _, rows = reached(runs)[0]
    seeds = f"mean of {len(rows)} seeds" if len(rows) > 1 else "one seed"
    return (f"**{test:.1f}% on the test set** ({seeds}) from {int(rows[0]['parameters']):,} parameters in "
            f"{float(rows[0]['minutes']):.0f} minutes on {rows[0]['machine']}: `{rows[0]['command']}`. The paper claims 93 to 94%.")


def screening(runs):
    """Validation accuracy of everything that was tried for the quick recipe, best first."""
    rows = [[f"`{row['command'].removeprefix('python train.py ')}`", f"{float(row['val_acc']):.2%}", f"{float(row['flop']):.1e}"]
            for found in runs["screen"].values() for row in found]
    return table(["flags", "validation", "operations"], sorted(rows, key=lambda row: row[1], reverse=True))


def robustness(runs):
    columns = defaultdict(dict)
    paths = sorted((ROOT / "results/robustness").glob("*.csv"))
    for path in paths:
        for row in read_rows(path):
            columns[row["corruption"], row["strength"]][path.stem] = f"{float(row['test_acc']):.1%}"
    return table(["images", *(path.stem for path in paths)], [
        [kind if kind == "as they are" else f"{kind} {strength}", *(found.get(path.stem, "-") for path in paths)]
        for (kind, strength), found in columns.items()])


def fill(path, parts, check):
    """Put each part between its markers; returns the names whose text changed."""
    text, changed = path.read_text(), []
    for name, content in parts.items():
        new = re.sub(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", lambda m: f"{m[1]}{content}\n{m[2]}", text, flags=re.DOTALL)
        changed += [f"{path.name}: {name}"] * (new != text)
        text = new
    if changed and not check:
        with whole_file(path) as file:
            file.write(text.encode())
    return changed


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=Help)
    parser.add_argument("--check", action="store_true", help="change nothing; status 1 if a table is out of date")
    return parser.parse_args(argv)


def main(argv=None):
    args, runs = parse_args(argv), load_runs()
    parts = {function.__name__: function(runs) for function in (headline, claims, recipes, screening, robustness)}
    for path in (ROOT / "results").glob("*.txt"):       # what a command printed stands there as it is
        parts[path.stem] = f"```\n{path.read_text().strip()}\n```"
    changed = [name for path in (ROOT / "README.md", ROOT / "results/README.md") for name in fill(path, parts, args.check)]
    if args.check and changed:
        raise SystemExit(f"error: out of date: {', '.join(changed)}; python results/tables.py writes them anew")
    print("\n".join(changed) or "every table is up to date")


if __name__ == "__main__":
    start(main)
