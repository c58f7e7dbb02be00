"""Draw the pictures of the READMEs into results/pictures.

    python results/pictures.py          # architecture.png: the paper's figure 1; claims.png: its claims, measured
"""
import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "results")]

from matplotlib.figure import Figure                                    # noqa: E402
from matplotlib.patches import Rectangle                                # noqa: E402

from model import Help, ResNet, layer_table, save_figure, start         # noqa: E402
from tables import CLAIMS, difference, load_runs, regime                # noqa: E402


def draw_architecture(model):
    """The paper's figure 1, from the shapes that the network really has."""
    figure = Figure(figsize=(10, 3.2), layout="constrained")
    axes = figure.subplots()
    rows = [("image", (3, 32, 32), 0, 0), *layer_table(model)]
    for i, (name, shape, count, _) in enumerate(rows):
        height = shape[1] / 32 if len(shape) == 3 else 0.12
        axes.add_patch(Rectangle((i - 0.35, -height / 2), 0.7, height, facecolor=f"C{i}", alpha=0.35, edgecolor="black"))
        axes.text(i, -0.72, f"{name}\n{' x '.join(map(str, shape))}\n{count:,}", ha="center", va="center", fontsize=9)
        if i:
            axes.annotate("", (i - 0.36, 0), (i - 0.64, 0), arrowprops={"arrowstyle": "->"})
        if name.startswith("stage"):
            axes.text(i, 0, f"{model.config['blocks'][int(name[-1]) - 1]} blocks", ha="center", va="center", fontsize=9)
            axes.annotate("", (i + 0.3, height / 2), (i - 0.3, height / 2),
                          arrowprops={"arrowstyle": "->", "connectionstyle": "arc3,rad=-0.5"})
    total = sum(row[2] for row in rows)
    axes.set(xlim=(-0.6, len(rows) - 0.4), ylim=(-0.95, 0.8), title=f"blocks {model.config['blocks']}, {total:,} parameters")
    axes.axis("off")
    return figure


def draw_claims(runs):
    """Gain or loss of each part of the recipe in both regimes, with twice the standard error."""
    figure = Figure(figsize=(9, 4), layout="constrained")
    axes = figure.subplots()
    questions = [(question, name) for question, _, name, baseline in CLAIMS if baseline == "recipe"]
    for shift, color, name, label in ((-0.2, "C0", "all", "(a) all images, 5 epochs"), (0.2, "C1", "tenth", "(b) a tenth, 50 epochs")):
        part = regime(runs, name)
        found = [(y, difference(part, run, "recipe")) for y, (_, run) in enumerate(questions)]
        found = [(y, *pair) for y, pair in found if pair]
        axes.barh([y + shift for y, *_ in found], [gain for _, gain, _ in found], 0.38, color=color,
                  xerr=[2 * error for *_, error in found], label=label)
    axes.set_yticks(range(len(questions)), [question for question, _ in questions])
    axes.invert_yaxis()
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_xlabel("change of the test accuracy in points, with twice its standard error")
    axes.legend()
    return figure


def parse_args(argv=None):
    return argparse.ArgumentParser(description=__doc__, formatter_class=Help).parse_args(argv)


def main(argv=None):
    parse_args(argv)
    save_figure(draw_architecture(ResNet()), ROOT / "results/pictures/architecture.png")
    save_figure(draw_claims(load_runs()), ROOT / "results/pictures/claims.png")


if __name__ == "__main__":
    start(main)
