"""How a trained network fares on worse pictures: the test set under noise, blur, JPEG and brightness shifts.

    python results/robustness.py --ckpt weights/strong.pt       # writes results/robustness/strong.csv

The paper's network scored 82.79% on the competition's pictures, 8 to 13 points below everyone's test accuracy
(paper section 3.3): what in those pictures was worse is not known, so this measures several things that may be.
"""
import csv
import io
import sys
from pathlib import Path

import torch
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as TF

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from data import load_data, normalisation                                               # noqa: E402
from model import Parser, check_folder, pick_amp, pick_device, run, write_file          # noqa: E402
from predict import accuracy, load_checkpoint, predict                                  # noqa: E402


def noisy(images, sigma):
    """Gaussian noise whose standard deviation is sigma of the full range."""
    return TF.to_dtype(v2.GaussianNoise(sigma=sigma)(TF.to_dtype(images, torch.float32, scale=True)), torch.uint8, scale=True)


CORRUPTIONS = {     # name: ({strength: corrupted uint8 (N, 3, 32, 32)})
    "none": {0: lambda x: x},
    "noise, sigma": {s: lambda x, s=s: noisy(x, s) for s in (0.02, 0.05, 0.1)},
    "blur, sigma in pixels": {s: lambda x, s=s: TF.gaussian_blur(x, [5, 5], [s, s]) for s in (0.5, 1.0, 1.5)},
    "JPEG, quality": {q: lambda x, q=q: torch.stack([TF.jpeg(image, q) for image in x]) for q in (75, 40, 15)},
    "brightness, factor": {f: lambda x, f=f: TF.adjust_brightness(x, f) for f in (0.5, 0.75, 1.5)},
}


def parse_args(argv=None):
    parser = Parser(__doc__)
    parser.add_argument("--ckpt", required=True, metavar="PT", help="a checkpoint of train.py")
    parser.add_argument("--data", default="data", help='folder of CIFAR-10, or "fake" (default: data)')
    parser.add_argument("--name", help="name of the CSV (default: the checkpoint's)")
    parser.add_argument("--device", help="(default: the accelerator if there is one)")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    device = pick_device(args.device)
    model, checkpoint = load_checkpoint(args.ckpt)
    model.to(device, memory_format=torch.channels_last)
    images, labels = load_data(args.data, train=False)
    normalise = normalisation(checkpoint["mean"], checkpoint["std"])
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["corruption", "strength", "test_acc"])
    for name, strengths in CORRUPTIONS.items():
        for strength, corrupt in strengths.items():
            torch.manual_seed(0)
            right = accuracy(predict(model, corrupt(images), normalise, pick_amp(device)).cpu(), labels)
            writer.writerow([name, strength, right])
            print(f"{name:<24}{strength:>6}{right:>9.2%}")
    folder = ROOT / "results/robustness"
    check_folder(folder)
    write_file(folder / f"{args.name or Path(args.ckpt).stem}.csv", text.getvalue().encode())


if __name__ == "__main__":
    run(main)
