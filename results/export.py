"""Make a small file of a checkpoint's weights: half precision, nothing but what predict.py needs.

    python results/export.py results/strong-cpu/twelve-epochs/best.pt weights/strong.pt
"""
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from model import Parser, check_folder, run     # noqa: E402
from predict import load_checkpoint             # noqa: E402
from train import write_checkpoint              # noqa: E402


def parse_args(argv=None):
    parser = Parser(__doc__)
    parser.add_argument("checkpoint", help="best.pt of a run")
    parser.add_argument("out", help="the file to write")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    _, checkpoint = load_checkpoint(args.checkpoint)
    checkpoint.pop("training", None)
    checkpoint["model"] = {name: tensor.half() if tensor.is_floating_point() else tensor
                           for name, tensor in checkpoint["model"].items()}
    check_folder(Path(args.out).parent)
    write_checkpoint(args.out, checkpoint)
    print(f"{args.out}: {Path(args.out).stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    run(main)
