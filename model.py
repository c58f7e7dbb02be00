"""The network of the paper: a residual network for 32x32 images with fewer than five million parameters.

    python model.py                                      # the paper's network: 4,992,586 parameters
    python model.py --blocks 2 2 2                       # the six blocks that the paper draws: 2,777,674
    python model.py --blocks 1 1 1 --widths 16 32 64     # small enough to train on two CPU cores
    python model.py --figure architecture.png            # the paper's figure 1, from the real shapes

Sources: paper sections 1.4 and 2.1; the block is He et al., Deep Residual Learning (arXiv:1512.03385), whose
"option B" is the 1x1 convolution where the shape changes. The second half of this file is what the four
scripts share: the checkpoint file, the choice of device and the one way in which they fail.
"""
import argparse
import io
import os
import re
import signal
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

BUDGET = 5_000_000      # the competition's limit: strictly fewer trainable parameters than this
CLASSES = 10


class Block(nn.Module):
    """Two 3x3 convolutions, each with batch norm and ReLU, and a skip around both (paper section 2.1).

    In: (B, in_channels, H, W). Out: (B, out_channels, H / stride, W / stride).
    residual=False leaves the skip away: the paper's baseline (section 3.2).
    """

    def __init__(self, in_channels, out_channels, stride=1, residual=True):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)  # BN has the bias
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut = None
        if residual and (stride != 1 or in_channels != out_channels):
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels))
        elif residual:
            self.shortcut = nn.Identity()

    def forward(self, x):
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.shortcut is not None:
            out = out + self.shortcut(x)
        return F.relu(out)


class ResNet(nn.Module):
    """Stem, three stages of blocks, global average pooling, one linear layer (paper section 1.4).

    blocks: how many blocks each stage has; widths: its channels; dropout: rate before the classifier.
    In: (B, 3, 32, 32) float, normalised. Out: (B, 10) logits.
    """

    def __init__(self, blocks=(4, 5, 3), widths=(64, 128, 256), residual=True, dropout=0.0):
        super().__init__()
        self.config = {"blocks": list(blocks), "widths": list(widths), "residual": residual, "dropout": dropout}
        self.stem = nn.Sequential(
            nn.Conv2d(3, widths[0], 3, padding=1, bias=False), nn.BatchNorm2d(widths[0]), nn.ReLU())
        self.stages = nn.ModuleList()
        channels = widths[0]
        for count, width in zip(blocks, widths, strict=True):
            first = Block(channels, width, stride=2 if len(self.stages) else 1, residual=residual)
            rest = [Block(width, width, residual=residual) for _ in range(count - 1)]
            self.stages.append(nn.Sequential(first, *rest))
            channels = width
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(channels, CLASSES)

    def forward(self, x):                          # (B, 3, 32, 32)
        x = self.stem(x)                           # (B, 64, 32, 32)
        for stage in self.stages:
            x = stage(x)                           # (B, 64, 32, 32), (B, 128, 16, 16), (B, 256, 8, 8)
        x = x.mean(dim=(2, 3))                     # (B, 256), global average pooling
        return self.classifier(self.dropout(x))    # (B, 10)


def parameter_count(blocks, widths, residual=True):
    """The network's trainable parameters by arithmetic, so that a size can be refused before it is built."""
    def conv_bn(inputs, outputs, kernel):
        return kernel * kernel * inputs * outputs + 2 * outputs     # no bias; BN has a scale and a shift
    total, channels = conv_bn(3, widths[0], 3), widths[0]
    for stage, (count, width) in enumerate(zip(blocks, widths, strict=True)):
        total += conv_bn(channels, width, 3) + (2 * count - 1) * conv_bn(width, width, 3)
        if residual and stage > 0:                                  # stride 2: the skip needs its 1x1 convolution
            total += conv_bn(channels, width, 1)
        channels = width
    return total + channels * CLASSES + CLASSES


def check_size(blocks, widths, residual=True):
    """Raise UserError if the numbers make no network or one over the budget."""
    if not all(1 <= count <= 100 for count in blocks) or not all(1 <= width <= 10_000 for width in widths):
        raise UserError("these --blocks and --widths make no network: 1 to 100 blocks a stage, widths from 1 to 10,000")
    count = parameter_count(blocks, widths, residual)
    if count >= BUDGET:
        raise UserError(f"this network has {count:,} parameters, the budget is fewer than {BUDGET:,}: "
                        "take smaller --blocks or --widths")


def layer_shapes(model):
    """The network's parts in order: [(name, output shape without the batch, blocks, parameters)]."""
    rows, x = [], torch.zeros(1, 3, 32, 32)
    parts = [("stem", model.stem, "-")] + [
        (f"stage {i + 1}", stage, len(stage)) for i, stage in enumerate(model.stages)]
    model.eval()
    with torch.no_grad():
        for name, part, blocks in parts:
            x = part(x)
            rows.append((name, tuple(x.shape[1:]), blocks, sum(p.numel() for p in part.parameters())))
    rows.append(("pooling", (x.shape[1],), "-", 0))
    rows.append(("classifier", (CLASSES,), "-", sum(p.numel() for p in model.classifier.parameters())))
    return rows


def draw_architecture(model, path):
    """Draw the paper's figure 1 from the shapes that the network really has."""
    from matplotlib.figure import Figure       # here, because only the pictures need it and it takes a second

    figure = Figure(figsize=(10, 3.2), layout="constrained")
    axes = figure.subplots()
    rows = [("image", (3, 32, 32), "-", 0)] + layer_shapes(model)
    for i, (name, shape, blocks, count) in enumerate(rows):
        height = shape[1] / 32 if len(shape) == 3 else 0.12
        axes.add_patch(_rectangle(i, height, f"C{min(i, 9)}"))
        inside = f"{blocks} block{'s' if blocks != 1 else ''}" if blocks != "-" else ""
        axes.text(i, 0, inside, ha="center", va="center", fontsize=9)
        axes.text(i, -0.72, f"{name}\n{' x '.join(map(str, shape))}\n{count:,}", ha="center", va="center", fontsize=9)
        if i:
            axes.annotate("", (i - 0.36, 0), (i - 0.64, 0), arrowprops={"arrowstyle": "->"})
        if blocks != "-" and model.config["residual"]:
            axes.annotate("", (i + 0.3, height / 2), (i - 0.3, height / 2),
                          arrowprops={"arrowstyle": "->", "connectionstyle": "arc3,rad=-0.5"})
    total = sum(row[3] for row in rows)
    axes.set(xlim=(-0.6, len(rows) - 0.4), ylim=(-0.95, 0.8), title=f"blocks {model.config['blocks']}, {total:,} parameters")
    axes.axis("off")
    save_figure(figure, path)


def _rectangle(x, height, color):
    from matplotlib.patches import Rectangle
    return Rectangle((x - 0.35, -height / 2), 0.7, height, facecolor=color, alpha=0.35, edgecolor="black")


# ---- what the four scripts share ---------------------------------------------------------------------------


class UserError(Exception):
    """Something the user can mend: one line that says what is wrong and what to do."""


class Terminated(KeyboardInterrupt):
    """SIGTERM: what Kaggle, Colab and Slurm send before they take the machine away."""


class Parser(argparse.ArgumentParser):
    """argparse, but an error is one line and names --help instead of printing the whole usage."""

    def __init__(self, description):
        super().__init__(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)

    def error(self, message):
        raise UserError(f"{message} (see python {self.prog} --help)")


def run(main):
    """Call main() as a script: a user's error is one line on stderr and exit status 2, never a traceback."""
    def terminate(*_):
        raise Terminated
    signal.signal(signal.SIGTERM, terminate)
    sys.stdout = sys.stdout or open(os.devnull, "w")                # None where the shell closed it
    sys.stdout.reconfigure(line_buffering=True, errors="backslashreplace")      # lines appear as they are printed
    try:
        main()
    except (UserError, OSError) as error:
        fail(error)
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "memory" not in str(error):
            raise
        fail("the memory is full: try a smaller --batch-size or a smaller network")
    except KeyboardInterrupt as stop:
        print(str(stop) or "stopped", file=sys.stderr)
        sys.exit(143 if isinstance(stop, Terminated) else 130)


def fail(message):
    line = " ".join(str(message).split())
    print("error:", re.sub(r"[\x00-\x1f\x7f-\x9f]", "?", line)[:1000], file=sys.stderr)    # no escapes of a file name
    sys.exit(2)


def pick_device(name=None):
    """The device called `name`; without one the accelerator if there is one, else the CPU."""
    if name is None:        # current_accelerator() alone can name cuda on a machine that has no GPU
        name = torch.accelerator.current_accelerator().type if torch.accelerator.is_available() else "cpu"
    try:
        if name.split(":")[0] not in ("cpu", "cuda", "mps", "xpu"):
            raise RuntimeError("a device that cannot train")
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError, NotImplementedError):
        raise UserError(f"there is no device {name!r} here: leave --device out to take what there is") from None


def pick_amp(device, choice="auto"):
    """The dtype of mixed precision, or None for float32. choice: auto, bf16, fp16 or off.

    auto is bf16 where the device computes in it natively, fp16 on older CUDA cards, else float32. Two CPU cores
    with AVX512-BF16 train the 4.99M network at 72 images/s in bf16 against 38 in float32, and 30 in NCHW float32.
    """
    if choice != "auto":
        return {"bf16": torch.bfloat16, "fp16": torch.float16, "off": None}[choice]
    if device.type == "cuda":       # a T4 says True unless asked without emulation
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    if device.type == "cpu" and (torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()):
        return torch.bfloat16
    return None


def autocast(device, amp):
    """The context in which the network computes in `amp`, or in float32 if that is None."""
    return torch.autocast(device.type, amp, enabled=amp is not None)


def check_folder(folder):
    """Make the folder for results if need be; raise UserError if nothing can be written there."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror}; choose another folder with --out") from None


def check_file(path):
    """Raise UserError if `path` cannot become a file: before the work, not after it."""
    path = Path(path)
    if not path.name or path.exists() and not path.is_file():
        raise UserError(f"{str(path)!r} cannot be written as a file: choose another name")
    check_folder(path.parent)


def write_file(path, content):
    """Write bytes so that `path` is always the whole old file or the whole new one, also under kill -9."""
    path = Path(path)
    part = path.with_name(path.name + ".part")
    try:
        with open(part, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException as error:
        with suppress(OSError):
            part.unlink()
        if isinstance(error, OSError):
            raise UserError(f"cannot write {path}: {error.strerror}; free some space or choose another place "
                            "with --out (what was there before is untouched)") from None
        raise


def save_figure(figure, path):
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    write_file(path, buffer.getvalue())


def parse_args(argv=None):
    parser = Parser(__doc__)
    parser.add_argument("--blocks", type=int, nargs=3, default=[4, 5, 3], help="blocks a stage (default: 4 5 3)")
    parser.add_argument("--widths", type=int, nargs=3, default=[64, 128, 256], help="channels (default: 64 128 256)")
    parser.add_argument("--plain", action="store_true", help="no skips: the paper's baseline")
    parser.add_argument("--figure", metavar="PNG", help="also draw the network into this file")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    if args.figure is not None:
        check_file(args.figure)
    check_size(args.blocks, args.widths, not args.plain)
    model = ResNet(args.blocks, args.widths, residual=not args.plain)
    print(f"{'stage':<12}{'output':<16}{'blocks':>6}{'parameters':>12}")
    for name, shape, blocks, count in layer_shapes(model):
        print(f"{name:<12}{' x '.join(map(str, shape)):<16}{blocks:>6}{count:>12,}")
    total = parameter_count(args.blocks, args.widths, not args.plain)
    print(f"{'total':<12}{'':<22}{total:>12,}   {total / BUDGET:.1%} of {BUDGET:,}")
    if args.figure is not None:
        draw_architecture(model, args.figure)


if __name__ == "__main__":
    run(main)
