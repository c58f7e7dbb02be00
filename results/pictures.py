"""Draw two of results/pictures; the others are as the main scripts write them.

    python results/pictures.py      # architecture.png, the paper's figure 1; claims.png
"""
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from tables import CLAIMS, difference, load_runs        # first: it finds the main scripts
from model import ResNet, layer_table, save_figure, start

MIDDLE = {"ha": "center", "va": "center", "fontsize": 9}


def draw_architecture(model):
    """The paper's figure 1, from the shapes that the network really has."""
    figure = Figure(figsize=(10, 3.2), layout="constrained")
    axes = figure.subplots()
    rows = [("image", (3, 32, 32), 0, 0), *layer_table(model)]
    for i, (name, shape, count, work) in enumerate(rows):
        height = shape[1] / 32 if len(shape) == 3 else 0.12
        corner = (i - 0.35, -height / 2)
        axes.add_patch(Rectangle(corner, 0.7, height, facecolor=f"C{i}", alpha=0.35, edgecolor="k"))
        shape = " x ".join(map(str, shape))
        axes.text(i, -0.76, f"{name}\n{shape}\n{count:,}\n{work / 1e6:.1f} M", **MIDDLE)
        if i:
            axes.annotate("", (i - 0.36, 0), (i - 0.64, 0), arrowprops={"arrowstyle": "->"})
    for i, blocks in enumerate(model.config["blocks"], start=2):
        axes.text(i, 0, f"{blocks} blocks", **MIDDLE)
    total, work = (f"{sum(row[k] for row in rows):,}" for k in (2, 3))
    axes.set(xlim=(-0.6, len(rows) - 0.4), ylim=(-1.05, 0.6),
             title=f"{total} parameters, {work} multiply-adds; a skip around each block")
    axes.text(-0.65, -0.76, "part\noutput\nparameters\nmultiply-adds", **MIDDLE | {"ha": "right"})
    axes.axis("off")
    return figure


def draw_claims(runs):
    """Gain or loss of each part of the recipe in both regimes, with twice the standard error."""
    figure = Figure(figsize=(9, 4), layout="constrained")
    axes = figure.subplots()
    parts = {name: row[0] for name, row in CLAIMS.items() if row[2] == "recipe"}
    for regime, label, shift in (("all", "(a) all images, 5 epochs", -0.2),
                                 ("tenth", "(b) a tenth, 50 epochs", 0.2)):
        gains, errors = zip(*(difference(runs[f"claims/{regime}"], n, "recipe") for n in parts))
        axes.barh([y + shift for y in range(len(parts))], gains, 0.38, xerr=errors, label=label)
    axes.set_yticks(range(len(parts)), parts.values())
    axes.invert_yaxis()
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_xlabel("change of the test accuracy in points, and twice its standard error")
    axes.legend()
    return figure


def main():
    folder = Path(__file__).with_name("pictures")
    save_figure(draw_architecture(ResNet()), folder / "architecture.png")
    save_figure(draw_claims(load_runs()), folder / "claims.png")


if __name__ == "__main__":
    start(main)
