"""Train the paper's network on CIFAR-10 (paper section 2.2), from the images to the test accuracy.

    python train.py                             # the paper's recipe; best on a GPU
    python train.py --recipe quick --out quick  # a smaller network: 0.5 to 2 hours on two CPU cores
    python train.py --blocks 1 1 1 --widths 16 32 64 --epochs 5 --lr 3e-3 --out small    # minutes
    python train.py --data fake --blocks 1 1 1 --widths 8 16 32 --epochs 3 --lr 3e-3 --out fake
    python train.py --recipe quick --out quick --resume     # continues it after an interruption

Writes into --out: best.pt (highest validation accuracy; without validation the last epoch),
last.pt (which --resume continues), log.csv (a row per epoch), curves.png, and at the end
result.json with the accuracy on the test set, which is looked at only then. Training loss and
accuracy are on augmented images; the loss includes the label smoothing, and under CutMix the label
with the larger area counts as the right one.
"""
import argparse
import copy
import json
import math
import os
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torchvision.transforms import v2
from tqdm import tqdm

from data import PAPER, augment, augmentation, load_data, split
from model import (CLASSES, Help, ResNet, add_network_flags, load_checkpoint, memory_format,
                   number, pick_device, pick_dtype, save_checkpoint, save_figure, start, write_csv,
                   write_file)
from predict import accuracy, predict

EMA_EVERY = 8       # steps between two updates of the average of the weights


def train_step(parts, x, target, label_smoothing):
    """One step on one batch: forward, loss, backward, update (paper section 2.2).

    parts: the network, its optimizer and what else training needs, see build(); x: float32
    (B, 3, H, W), normalised; target: int64 (B,), or float32 (B, 10) for mixed images.
    Returns the loss () and the logits (B, 10). Both stay on the device: to read one here would make
    the CPU wait for it in every step.
    """
    parts.optimizer.zero_grad()         # first: CUDA graphs (--compile) reuse the gradients' memory
    with torch.autocast(x.device.type, parts.dtype, enabled=parts.dtype != torch.float32):
        logits = parts.network(x)                                           # (B, 10)
        # Smoothing 0.1 asks for 91% on the right class and 1% on each other one, not for 100% and
        # 0%. Finite logits reach that, so they stop growing once an image is fitted
        # (arXiv:1512.00567, the paper's reference 2).
        loss = F.cross_entropy(logits, target, label_smoothing=label_smoothing)
    # scale() acts only in float16, where small gradients would become 0
    parts.scaler.scale(loss).backward()
    parts.scaler.step(parts.optimizer)      # AdamW: w -= lr * (mean / rms of past g + decay * w)
    parts.scaler.update()
    parts.scheduler.step()
    return loss.detach(), logits.detach()


def train_epoch(parts, images, labels, args, epoch):
    """One pass over the images, uint8 (N, 3, 32, 32), and labels: {"train_loss", "train_acc"}.

    All that is random here follows from the seed and the epoch's number: groups and draws of the
    augmentation, the order of the images, what is mixed, dropout. So an interrupted epoch can be
    repeated bit for bit (same CPU and thread count; on a GPU with --deterministic).
    SystemExit if the loss or a weight is not finite.
    """
    torch.manual_seed(args.seed * 1_000_003 + epoch)        # no two seeds share an epoch's draws
    inputs = augment(images, augmentation(args.augment, size_in(epoch, args)), args.group)
    # CutMix pastes a rectangle of one image into another and mixes the labels by area: no single
    # telltale detail is enough, because it may be covered
    cutmix = v2.RandomApply([v2.CutMix(num_classes=CLASSES)], p=args.cutmix)
    steps = len(images) // args.batch_size      # no short last batch: batch norm is noisy on few
    order = torch.randperm(len(images), device=images.device)[:steps * args.batch_size]
    losses, correct = torch.zeros(2, steps, device=images.device)       # read once, at the end
    parts.model.train()                             # batch norm uses the batch's mean and variance
    batches = tqdm(order.split(args.batch_size), f"epoch {epoch}", leave=False, disable=None)
    for step, index in enumerate(batches):
        x, target = cutmix(inputs[index], labels[index])        # (B, 3, H, W); (B,) or (B, 10)
        losses[step], logits = train_step(parts, x, target, args.label_smoothing)
        truth = target if target.dim() == 1 else target.argmax(1)       # the larger share counts
        correct[step] = (logits.argmax(1) == truth).sum()
        if args.ema and step % EMA_EVERY == 0:
            update_average(parts, args.ema)
    if not all(v.isfinite().all() for v in [losses, *parts.model.state_dict().values()]):
        raise SystemExit(f"error: the loss or a weight is not finite in epoch {epoch}: choose a "
                         "lower --lr or a longer --warmup, and a new --out; or --amp off")
    return {"train_loss": losses.mean().item(), "train_acc": correct.sum().item() / len(order)}


def evaluate(parts, images, labels):
    """{"val_loss", "val_acc"} of parts.predictor, {} if nothing is held out."""
    if len(images) == 0:
        return {}
    logits = predict(parts.predictor, images, parts.dtype)      # (N, 10); eval mode, no gradients
    return {"val_loss": F.cross_entropy(logits, labels).item(), "val_acc": accuracy(logits, labels)}


def main(argv=None):
    args = parse_args(argv)
    out, device = Path(args.out), pick_device(args.device)
    out.mkdir(parents=True, exist_ok=True)
    tempfile.TemporaryFile(dir=out).close()     # else a read-only folder fails only after an epoch
    if not args.resume and any((out / name).exists() for name in ("last.pt", "best.pt")):
        raise SystemExit(f"error: {str(out)!r} holds an earlier run: continue it with --resume, or "
                         "choose another folder with --out")
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # else cuBLAS is not deterministic
    torch.use_deterministic_algorithms(args.deterministic)
    torch.backends.cudnn.benchmark = not args.deterministic     # try kernels, keep the fastest
    images, labels = load_data(args.data, train=True)
    train_index, val_index = split(labels, args.val_size, args.train_size, args.seed)
    train_images, train_labels = images[train_index].to(device), labels[train_index].to(device)
    val_images, val_labels = images[val_index].to(device), labels[val_index].to(device)
    parts = build(args, len(train_index), device)
    history = restore(out / "last.pt", parts, args) if args.resume else []
    if history:
        save(out, parts, args, history)         # a kill may have come between two of its files
    if device.type == "cpu" and parts.model.parameter_count > 3e6:
        print("several minutes per epoch without a GPU: --recipe quick needs 4% of the compute")
    print(f"{parts.model.parameter_count:,} parameters, {args.epochs} epochs of {parts.steps} "
          f"steps, {machine(parts)}", flush=True)
    for epoch in range(len(history) + 1, args.epochs + 1):
        begin = time.perf_counter()
        row = {"epoch": epoch, "size": size_in(epoch, args), "lr": parts.scheduler.get_last_lr()[0]}
        row |= train_epoch(parts, train_images, train_labels, args, epoch)
        row |= evaluate(parts, val_images, val_labels)
        row["seconds"] = time.perf_counter() - begin
        history.append(row)
        save(out, parts, args, history)
        print("  ".join(f"{name} {value:.4g}" for name, value in row.items()), flush=True)
    report(out, parts, args, history)


# ---- the parts of the recipe -----------------------------------------------------------------
def build(args, count, device):
    """What training needs, in one namespace. SystemExit if `count` images are fewer than a batch.

    model: what is trained; network: the same, or compiled (on a GPU into CUDA graphs, per size);
    predictor: what is evaluated and kept in best.pt, the model or, with --ema, its average.
    """
    torch.manual_seed(args.seed)
    steps = count // args.batch_size
    dtype = pick_dtype(device, args.amp)
    if steps == 0:
        raise SystemExit(f"error: {count} images are fewer than a batch of {args.batch_size}")
    model = ResNet(args.blocks, args.widths, not args.plain, args.dropout)
    model.to(device, memory_format=memory_format(device))
    optimizer = torch.optim.AdamW(decay_groups(model, args.weight_decay), lr=args.lr, fused=True)
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: lr_factor(step, args.epochs * steps, args.warmup * steps))
    network = torch.compile(model, mode="reduce-overhead", dynamic=False) if args.compile else model
    return SimpleNamespace(
        model=model, network=network, predictor=copy.deepcopy(model) if args.ema else model,
        optimizer=optimizer, scheduler=scheduler,
        scaler=torch.amp.GradScaler(device.type, enabled=dtype == torch.float16),
        device=device, dtype=dtype, steps=steps)


def lr_factor(step, steps, warmup):
    """Share of --lr at a step: rises over `warmup` steps (ours), then section 2.2's cosine to 0.

    Adam divides by the gradients' root mean square, at first estimated from few batches: a high
    rate needs the warm-up, the paper's 1e-4 does not. Small steps at the end let weights settle.
    """
    if step < warmup:
        return min(1, (step + 1) / warmup)          # min: a warm-up may end within a step
    return 0.5 + 0.5 * math.cos(math.pi * (step - warmup) / max(1, steps - warmup))


def decay_groups(model, decay):
    """Weight decay for filters and matrices, none for batch norm and biases, the 1-d parameters.
    This is usual (the paper does not mention it): these are few, and only scale and shift.

    AdamW shrinks a weight by lr * decay per step. In front of a batch norm a smaller filter
    gives the same output, but a step rotates it more: decay keeps filters from growing until they
    hardly learn (arXiv:1706.05350). The paper's 1e-4 * 1e-2 removes only 2% in its whole run;
    the quick recipe's product is a thousand times as large.
    """
    return [{"params": [p for p in model.parameters() if p.dim() > 1], "weight_decay": decay},
            {"params": [p for p in model.parameters() if p.dim() <= 1], "weight_decay": 0}]


def update_average(parts, decay):
    """Move the predictor a little towards the model: weights and batch norm's statistics.

    At a high rate the weights jump around a good point, and their average lies nearer to it. decay,
    the share of the old average that is kept, rises to its final value: 0.992 from the start would
    leave the untrained weights a share of 70% after the 44 updates of an epoch.
    """
    updates = parts.scheduler.last_epoch // EMA_EVERY       # last_epoch is the steps so far
    decay = min(decay, (1 + updates) / (10 + updates))
    now = parts.model.state_dict()
    for name, average in parts.predictor.state_dict().items():
        if average.is_floating_point():         # all but batch norm's counts of steps
            average.lerp_(now[name], 1 - decay)


def size_in(epoch, args):
    """Height and width of an epoch's images: each of --sizes has an equal share of the epochs. At
    20 x 20 an epoch costs 39% as much: the quick recipe learns coarse shapes first, fine last."""
    return args.sizes[(epoch - 1) * len(args.sizes) // args.epochs]


# ---- saving and resuming ---------------------------------------------------------------------
def save(out, parts, args, history):
    """Write what an epoch leaves: last.pt to resume from, best.pt to predict with, log.csv."""
    # "weights" are the predictor's, as in best.pt; those that are trained are in "states"
    trained = ("model", "optimizer", "scheduler", "scaler")
    states = {name: getattr(parts, name).state_dict() for name in trained}
    save_checkpoint(out / "last.pt", parts.predictor, states=states, history=history,
                    settings=settings(args))
    if best_epoch(history) == len(history):
        save_checkpoint(out / "best.pt", parts.predictor, row=history[-1])
    write_csv(out / "log.csv", [history[0].keys(), *(row.values() for row in history)])
    save_figure(draw_curves(history), out / "curves.png")


def restore(path, parts, args):
    """Put back what save() wrote into last.pt; returns its history. SystemExit if it belongs to
    another run."""
    _, checkpoint = load_checkpoint(path)
    saved = checkpoint.get("settings", {})          # a best.pt renamed to last.pt has none
    for name, value in settings(args).items():
        if saved.get(name) != value:
            raise SystemExit(f"error: {str(path)!r} is of a run with {name} = {saved.get(name)}, "
                             f"not {value}: resume with that run's flags, or start anew with --out")
    parts.predictor.load_state_dict(checkpoint["weights"])
    for name, state in checkpoint["states"].items():
        if state:           # a disabled scaler saves {}, which an enabled one refuses
            getattr(parts, name).load_state_dict(state)
    # AdamW's fused step assumes that its averages have the weights' memory format, but they are
    # loaded in the format of the machine that saved them, and MPS uses another one.
    for p, state in parts.optimizer.state.items():
        for name in ("exp_avg", "exp_avg_sq"):
            state[name] = torch.empty_like(p).copy_(state[name])
    return checkpoint["history"]


def settings(args):
    """Flags that a result depends on. Left out: --recipe, which sets others, and the machine's."""
    free = ("recipe", "out", "resume", "device", "amp", "compile", "deterministic")
    kept = {name: value for name, value in vars(args).items() if name not in free}
    return kept | {"data": "fake" if args.data == "fake" else "cifar10"}


def best_epoch(history):
    """The first epoch with the highest validation accuracy; without validation the last."""
    return max(history, key=lambda row: row.get("val_acc", row["epoch"]))["epoch"]


# ---- what a person sees ----------------------------------------------------------------------
def machine(parts):
    """What it runs on: the device's usual name, the precision, torch's version."""
    name = parts.device.type
    if name == "cuda":
        name = torch.cuda.get_device_name(parts.device)
    elif name == "cpu":
        name = (f"CPU with {torch.backends.cpu.get_cpu_capability()}, "
                f"threads: {torch.get_num_threads()}")
    return f"{name}, {str(parts.dtype)[6:]}, torch {torch.__version__}"


def draw_curves(history):
    """The paper's figures 2 and 3: loss and accuracy by epoch, training against validation."""
    figure = Figure(figsize=(12, 4))        # layout="tight" takes half as long again
    for axes, name in zip(figure.subplots(1, 2), ("loss", "acc")):
        for part, label in (("train", "training (augmented)"), ("val", "validation")):
            if f"{part}_{name}" in history[0]:          # perhaps nothing is held out
                axes.plot([row["epoch"] for row in history],
                          [row[f"{part}_{name}"] for row in history], ".-", label=label)
        axes.set(xlabel="epoch", ylabel={"loss": "loss", "acc": "accuracy"}[name])
        axes.grid(alpha=0.3)
        axes.legend()
    return figure


def report(out, parts, args, history):
    """Evaluate best.pt on the test set, once, and write and print what came out."""
    model, checkpoint = load_checkpoint(out / "best.pt", parts.device)
    best = checkpoint["row"]
    seconds = sum(row["seconds"] for row in history)
    if best != history[best_epoch(history) - 1]:
        raise SystemExit(f"error: the best.pt in {str(out)!r} is another run's: use a new --out")
    images, labels = load_data(args.data, train=False)
    test_acc = accuracy(predict(model, images).cpu(), labels)       # in float32, as predict.py
    result = {"test_acc": test_acc, "val_acc": best.get("val_acc"), "epoch": best["epoch"],
              "parameters": model.parameter_count, "seconds": seconds,
              "machine": machine(parts), "settings": settings(args)}
    write_file(out / "result.json", (json.dumps(result, indent=1) + "\n").encode())
    print(f"test accuracy {test_acc:.2%} (epoch {best['epoch']}), {seconds / 60:.1f} minutes")
    print(f'next: python predict.py --ckpt "{out / "best.pt"}" --data "{args.data}"')


# ---- the command line ------------------------------------------------------------------------
RECIPES = {         # defaults; a flag that is typed wins; results/README.md: what was tried
    "paper": {},    # the defaults below
    "quick": dict(blocks=[1, 2, 2], widths=[32, 96, 192], epochs=34, sizes=[20, 24, 32],
                  lr=1e-2, weight_decay=0.1, warmup=3.0, ema=0.98,
                  augment=["reflect", "flip"], cutmix=0.3),
    "strong": dict(lr=3e-3, weight_decay=0.1, warmup=5.0, ema=0.992,
                   augment=["reflect", "flip", "trivial"], cutmix=0.5),
}


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=Help)
    flag = parser.add_argument
    flag("--data", default="data", help='folder of CIFAR-10, or "fake" for made-up images')
    flag("--out", default=".", help="folder of the results")
    flag("--resume", action="store_true", help="continue from last.pt in --out, flags as before")
    flag("--val-size", type=number(int, 0), default=5000, help="images held out, balanced by class")
    flag("--train-size", type=number(int, 0), help="how many of the rest to train on; None: all")
    flag("--seed", type=number(int, 0), default=0, help="of everything random")
    flag("--device", help="cpu, cuda or mps; None: the accelerator found, else the CPU")
    flag("--amp", choices=["auto", "bf16", "fp16", "off"], default="auto",
         help="mixed precision; auto: bf16 where native, fp16 on older CUDA cards, else off")
    flag("--compile", action="store_true", help="faster after a minute; needs a C++ compiler")
    flag("--deterministic", action="store_true", help="bit-identical reruns on a GPU, too; slower")
    flag("--recipe", choices=RECIPES, default="paper",
         help="a set of defaults, see RECIPES in train.py; those shown are paper's")
    add_network_flags(flag)
    count, positive, share = number(int, 1), number(float, 0), number(float, 0, 1)
    flag("--epochs", type=count, default=100, help="passes over the training images")
    flag("--batch-size", type=count, default=128, help="images per step")
    flag("--lr", type=positive, default=1e-4, help="AdamW's highest learning rate")
    flag("--warmup", type=positive, default=0.0, help="epochs of rising rate: fewer than --epochs")
    flag("--weight-decay", type=positive, default=1e-2, help="AdamW's, of filters and matrices")
    flag("--label-smoothing", type=share, default=0.1, help="share spread over all classes")
    flag("--dropout", type=share, default=0.0, help="rate before the classifier")
    flag("--ema", type=share, default=0.0, help="decay of the weights' average; 0: no average")
    flag("--augment", nargs="*", choices=[*PAPER, "reflect", "trivial"], default=PAPER,
         help="transformations, in the order given")
    flag("--cutmix", type=share, default=0.0, help="share of batches mixed (arXiv:1905.04899)")
    flag("--sizes", type=number(int, 8, 32), nargs="+", default=[32],
         help="image sizes, for equal shares of the epochs: take no more sizes than epochs; "
         "evaluation is always at 32")
    flag("--group", type=count, default=250, help="images that share one random augmentation")
    parser.set_defaults(**RECIPES[parser.parse_args(argv).recipe])      # typed flags still win
    return parser.parse_args(argv)


if __name__ == "__main__":
    start(main, "stopped: --resume continues after the last whole epoch, if there is one")
