"""The network of the paper: a residual network for 32x32 images, below five million parameters.

    python model.py                                     # blocks 4 5 3: 4,992,586 parameters
    python model.py --blocks 2 2 2                      # the six blocks that it draws: 2,777,674
    python model.py --blocks 1 1 1 --widths 16 32 64    # small: trained in minutes

Sources: paper sections 1.4 and 2.1; He et al., Deep Residual Learning (arXiv:1512.03385), whose
"option B" is the shortcut of Block. Below the network stands what the scripts share.
"""
import argparse
import csv
import io
import os
import pickle
import zipfile

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

CLASSES = 10
BUDGET = 5_000_000      # the competition's limit: strictly fewer trainable parameters


class Block(nn.Module):
    """Two 3x3 convolutions with batch norm, and a skip around both (section 2.1).

    In: (B, in_channels, H, W). Out: (B, out_channels, H / stride, W / stride), rounded up.
    residual=False leaves the skip out: the paper's baseline, as we read section 3.2.
    """

    def __init__(self, in_channels, out_channels, stride=1, residual=True):
        super().__init__()
        self.stride, self.residual = stride, residual
        # bias=False: batch norm subtracts the mean right after, and has a shift of its own
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut = nn.Identity()
        if residual and (stride != 1 or in_channels != out_channels):
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, bias=False), nn.BatchNorm2d(out_channels))

    def forward(self, x):
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.residual:
            # Every second pixel, then stride 1: a 1x1 filter sees one pixel, so this is the same as
            # stride 2, but avoids oneDNN's stride-2 kernels, which on AVX2 give narrow layers wrong
            # gradients, or crash (uxlfoundation/oneDNN #6035).
            out = out + self.shortcut(x[:, :, ::self.stride, ::self.stride])
        return F.relu(out)


class ResNet(nn.Module):
    """Stem, three stages of blocks, global average pooling, one linear layer (section 1.4).

    blocks: how many blocks each stage has; widths: its channels; dropout: before the classifier.
    In: (B, 3, 32, 32) float, normalised; other sizes work too. Out: (B, 10) logits.
    """

    def __init__(self, blocks=(4, 5, 3), widths=(64, 128, 256), residual=True, dropout=0.0):
        super().__init__()
        self.config = {"blocks": list(blocks), "widths": list(widths),
                       "residual": residual, "dropout": dropout}
        # Filters start as PyTorch sets them: uniform, variance 1 / (3 * inputs), where a 3x3 filter
        # has 9 inputs per channel. In front of a batch norm their scale changes no output, only how
        # far a step turns their direction.
        self.stem = nn.Sequential(nn.Conv2d(3, widths[0], 3, padding=1, bias=False),
                                  nn.BatchNorm2d(widths[0]), nn.ReLU())
        self.stages = nn.Sequential()
        before = [widths[0], *widths[:-1]]      # the channels that a stage gets
        for count, channels, width, stride in zip(blocks, before, widths, (1, 2, 2), strict=True):
            first = Block(channels, width, stride, residual)
            rest = [Block(width, width, residual=residual) for _ in range(count - 1)]
            self.stages.append(nn.Sequential(first, *rest))
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(widths[-1], CLASSES)
        self.parameter_count = sum(p.numel() for p in self.parameters())
        if self.parameter_count >= BUDGET:
            raise SystemExit(f"error: this network has {self.parameter_count:,} parameters, the "
                             f"budget is fewer than {BUDGET:,}: take smaller --blocks or --widths")

    def forward(self, x):                          # (B, 3, 32, 32); below, the default widths
        x = self.stem(x)                           # (B, 64, 32, 32)
        x = self.stages(x)                         # (B, 256, 8, 8), halved by stages 2 and 3
        x = x.mean(dim=(2, 3))                     # (B, 256), global average pooling
        return self.classifier(self.dropout(x))    # (B, 10)


def layer_table(model, size=32):
    """[(part, shape of its output, parameters, multiply-adds)] for one image, on the CPU; it leaves
    the model in eval mode."""
    parts = {"stem": model.stem} | {f"stage {i + 1}": s for i, s in enumerate(model.stages)}
    parts |= {"pooling": nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
              "classifier": model.classifier}
    rows, x = [], torch.zeros(1, 3, size, size)
    for name, part in parts.items():
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            x = part.eval()(x)
        count = sum(p.numel() for p in part.parameters())
        rows.append((name, tuple(x.shape[1:]), count, counter.get_total_flops() // 2))
    return rows


# ---- files -----------------------------------------------------------------------------------
def write_file(path, content):
    """Write bytes so that at any moment `path` is the whole old file or the whole new one: they go
    into PATH.part, are flushed to the disk, and then take the name in one step."""
    with open(f"{path}.part", "wb") as file:    # kill -9 in here: the old file, and a .part
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(f"{path}.part", path)


def write_csv(path, rows):
    """Write rows of cells. An undecodable byte of a file's name becomes an escape."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    write_file(path, text.getvalue().encode("utf-8", "backslashreplace"))


def save_checkpoint(path, model, **more):
    """Write the network's weights, the config that rebuilds it, and whatever else is given."""
    buffer = io.BytesIO()       # torch.save(path) calls a full disk a RuntimeError, not an OSError
    torch.save({"config": model.config, "weights": model.state_dict()} | more, buffer)
    write_file(path, buffer.getbuffer())


def load_checkpoint(path, device=torch.device("cpu")):
    """best.pt, last.pt or weights/*.pt: (the network on the device, in eval mode; the whole file).

    The file may come from anybody: weights_only admits tensors and plain values, no code (before
    torch 2.10 a crafted file could get past it: CVE-2026-24747).
    SystemExit if it is missing, damaged, or not a checkpoint of train.py.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if archive.testzip():                   # torch.load verifies no checksum
                raise ValueError("a checksum is wrong")
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        model = ResNet(**checkpoint["config"])
        model.load_state_dict(checkpoint["weights"])    # strict: every name and shape must fit
    except pickle.UnpicklingError:
        raise SystemExit(f"error: {str(path)!r} holds more than tensors and plain values, and "
                         "could run code: refused") from None
    except Exception as error:                      # a damaged file fails in any of a dozen ways
        raise SystemExit(f"error: cannot load checkpoint {str(path)!r} ({error!r:.300})") from None
    return model.to(device, memory_format=memory_format(device)).eval(), checkpoint


def save_figure(figure, path):
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    write_file(path, buffer.getbuffer())


# ---- the machine -----------------------------------------------------------------------------
def pick_device(name):
    """The device called `name`; if None the GPU that torch can use, or else the CPU."""
    if name is None:
        mps = torch.backends.mps.is_available()
        # here torch warns if the NVIDIA driver is too old for it
        name = "cuda" if torch.cuda.is_available() else "mps" if mps else "cpu"
    try:
        torch.zeros(1, device=name).cpu()           # fails on "meta", too
    except Exception as error:                      # each device has errors of its own
        raise SystemExit(f"error: no device {name!r} can be used here ({error!r:.200}): "
                         "try --device cpu") from None
    return torch.device(name)


def pick_dtype(device, amp="auto"):
    """What convolutions compute in: bfloat16 or float16 (mixed precision), or float32.

    auto is bfloat16 where a CUDA card or an x86 CPU has it natively, float16 on older cards (the T4
    of Kaggle and Colab), else float32. bfloat16 has float32's range: only float16 needs a scaler.
    """
    if amp != "auto":
        return {"bf16": torch.bfloat16, "fp16": torch.float16, "off": torch.float32}[amp]
    if device.type == "cuda":       # a T4 claims bfloat16, and emulates it slowly
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if native else torch.float16
    native = device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if native else torch.float32


def memory_format(device):
    """channels_last: a pixel's channels lie side by side, so that convolutions read them in one go.
    Not on MPS, whose batch norm got wrong gradients from it, or crashed, until torch's fix of June
    2026 (pytorch/pytorch #175189, #188371)."""
    return torch.channels_last if device.type in ("cpu", "cuda") else torch.contiguous_format


# ---- the command line ------------------------------------------------------------------------
def start(main, stopped="stopped"):
    """Call a script's main(). An error from outside ends in one line, a bug in a traceback."""
    try:
        main()
    except KeyboardInterrupt:
        raise SystemExit(f"\n{stopped}")
    except OSError as error:                        # no such folder, no permission, a full disk
        raise SystemExit(f"error: {error}")
    except torch.OutOfMemoryError:
        raise SystemExit("error: the GPU's memory is full: try smaller batches, or --device cpu")
    except RuntimeError as error:
        if type(error).__module__ not in ("torch._dynamo.exc", "torch._inductor.exc"):
            raise                                   # a bug
        raise SystemExit("error: --compile failed (it needs a C++ compiler, and on a GPU Triton): "
                         f"go without it ({error!r:.200})")


class Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """--help with each flag's default, and the docstring as it stands."""


def number(kind, low, high=10 ** 9):
    """An argparse type: an int or a float from low to high; neither inf nor nan."""
    def parse(text):
        if not low <= kind(text) <= high:
            raise ValueError
        return kind(text)
    parse.__name__ = f"{kind.__name__} from {low} to {high}"        # for argparse's message
    return parse


def add_network_flags(flag):
    three = {"nargs": 3, "type": number(int, 1, 1000), "metavar": "N"}
    flag("--blocks", **three, default=[4, 5, 3], help="blocks per stage")
    flag("--widths", **three, default=[64, 128, 256], help="channels per stage")
    flag("--plain", action="store_true", help="no skips: our reading of section 3.2's baseline")


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=Help)
    add_network_flags(parser.add_argument)
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    rows = layer_table(ResNet(args.blocks, args.widths, not args.plain))
    total = ("total", (), sum(row[2] for row in rows), sum(row[3] for row in rows))
    print(f"{'part':<12}{'output':<14}{'parameters':>12}{'multiply-adds':>16}")
    for name, shape, count, work in [*rows, total]:
        print(f"{name:<12}{' x '.join(map(str, shape)):<14}{count:>12,}{work:>16,}")
    print(f"{total[2] / BUDGET:.1%} of the budget of {BUDGET:,} parameters")


if __name__ == "__main__":
    start(main)
