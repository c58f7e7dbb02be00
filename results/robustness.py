"""The test accuracy of a trained network on damaged images: noise, blur, JPEG, other brightness.

    python results/robustness.py --ckpt weights/strong.pt

Of predict.py's flags it takes --data, --device and --tta, too.
"""
import sys
from pathlib import Path

import torch
from torchvision.transforms.v2 import functional as TF

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data import load_data
from model import load_checkpoint, pick_device, start
from predict import accuracy, parse_args, predict


def noisy(images, sigma):
    """Gaussian noise whose standard deviation is sigma of the full range."""
    values = TF.to_dtype(images, scale=True) + sigma * torch.randn(images.shape)
    return TF.to_dtype(values.clamp(0, 1), torch.uint8, scale=True)


DAMAGES = {         # kind: (function of images and strength, strengths)
    "as they are": (lambda x, _: x, [""]),
    "noise, sigma": (noisy, [0.02, 0.05, 0.1]),
    "blur, sigma in pixels": (lambda x, s: TF.gaussian_blur(x, [5, 5], [s, s]), [0.5, 1.0]),
    "JPEG, quality": (lambda x, q: torch.stack([TF.jpeg(image, q) for image in x]), [75, 40, 15]),
    "brightness, factor": (TF.adjust_brightness, [0.5, 0.75, 1.5]),
}


def main(argv=None):
    args = parse_args(argv)
    device = pick_device(args.device)
    model, _ = load_checkpoint(args.ckpt, device)
    images, labels = load_data(args.data, train=False)
    for kind, (damage, strengths) in DAMAGES.items():
        for strength in strengths:
            torch.manual_seed(0)
            worse = damage(images, strength)
            logits = predict(model, worse, tta=args.tta).cpu()
            print(f"{kind} {strength}".ljust(30), f"{accuracy(logits, labels):.1%}", flush=True)


if __name__ == "__main__":
    start(main)
