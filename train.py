"""Train the paper's network on CIFAR-10 with the paper's recipe (paper section 2.2), start to finish.

    python train.py                                                       # the paper's training; a GPU's work
    python train.py --blocks 1 1 1 --widths 16 32 64 --epochs 5 --lr 3e-3 # minutes on two CPU cores
    python train.py --data fake --blocks 1 1 1 --widths 16 32 64 --epochs 5 --lr 3e-3 --out fake   # no download
    python train.py --resume                                              # go on after an interruption

Writes into --out: log.csv and curves.png (anew each epoch), best.pt (highest validation accuracy), last.pt (what
--resume needs), result.json (at the end, with the accuracy on the test set, which is looked at only then).
"""
import copy
import csv
import io
import json
import math
import os
import shlex
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torchvision.transforms import v2
from tqdm import tqdm

from data import MEAN, NAMES, PAPER, STD, augment, augmentation, load_data, normalisation, split
from model import (CLASSES, Parser, ResNet, UserError, autocast, check_folder, check_size, parameter_count, pick_amp,
                   pick_device, run, save_figure, write_file)
from predict import accuracy, load_checkpoint, predict

RECIPES = {
    "paper": dict(lr=1e-4, weight_decay=1e-2, label_smoothing=0.1, batch_size=128, epochs=100, warmup=0, decay="all",
                  ema=0.0, mix="none", augment=PAPER),
    "strong": dict(lr=3e-3, weight_decay=0.1, label_smoothing=0.1, batch_size=128, epochs=100, warmup=5, decay="weights",
                   ema=0.999, mix="cutmix", augment=["crop", "flip", "trivial"]),
}
EMA_EVERY = 8       # steps between two updates; the average moves slowly (torchvision's reference training takes 32)


def train_epoch(model, images, labels, optimizer, scheduler, scaler, ema, precision, bar, args):
    """One pass over the training images: (mean loss, accuracy).

    images: uint8 (N, 3, 32, 32); labels: int64 (N,). The last N mod batch_size images of the random order sit this
    epoch out, so every step has one shape. Nothing in the loop waits for the device: what is counted stays there.
    Raises UserError if a loss is not finite.
    """
    inputs = augment(images, augmentation(args.augment), args.group)                    # (N, 3, 32, 32) float32
    mix = mixing(args.mix)
    steps = len(images) // args.batch_size
    order = torch.randperm(len(images), device=images.device)[:steps * args.batch_size]
    losses = torch.zeros(steps, device=images.device)
    correct = torch.zeros((), dtype=torch.int64, device=images.device)
    model.train()
    for step, index in enumerate(order.split(args.batch_size)):
        x, y = inputs[index], labels[index]                                             # (B, 3, 32, 32), (B,)
        x, target = mix(x, y)                                                           # target: (B,) or (B, 10)
        with precision:
            logits = model(x)                                                           # (B, 10)
            loss = F.cross_entropy(logits, target, label_smoothing=args.label_smoothing)
        optimizer.zero_grad()
        scaler.scale(loss).backward()       # the scale is 1 but in fp16, whose small gradients would become 0
        scaler.step(optimizer)
        scaler.update()
        scheduler.step()
        if ema and step % EMA_EVERY == 0:
            ema.update_parameters(model)
        losses[step] = loss.detach()
        correct += (logits.argmax(1) == y).sum()
        bar.update()
    finite = losses.isfinite()
    if not finite.all() or not all(tensor.isfinite().all() for tensor in model.state_dict().values()):
        step = steps if finite.all() else finite.logical_not().nonzero()[0].item() + 1
        raise UserError(f"the loss is not finite at step {step} of epoch {scheduler.last_epoch // steps}: try a lower "
                        "--lr, a --warmup or --amp off (last.pt still holds the epoch before)")
    return losses.mean().item(), correct.item() / len(order)


def mixing(name):
    """(x, y) -> (x, target): MixUp (arXiv:1710.09412), CutMix (arXiv:1905.04899), one of both a batch, or nothing."""
    mixup, cutmix = v2.MixUp(alpha=0.2, num_classes=CLASSES), v2.CutMix(alpha=1.0, num_classes=CLASSES)
    return {"none": lambda x, y: (x, y), "mixup": mixup, "cutmix": cutmix, "both": v2.RandomChoice([mixup, cutmix])}[name]


def lr_factor(step, steps, warmup):
    """Share of the highest learning rate at a step: linear up over `warmup` steps, then a cosine down to 0."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 + 0.5 * math.cos(math.pi * (step - warmup) / max(1, steps - warmup))


def parameter_groups(model, weight_decay, decay):
    """The optimizer's two groups. decay "weights" leaves batch norm and biases (the 1-d tensors) without decay."""
    decayed = [p for p in model.parameters() if decay == "all" or p.dim() > 1]
    others = [p for p in model.parameters() if decay != "all" and p.dim() <= 1]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]


def build(args, steps, device, amp):
    """The network and what trains it: (model, optimizer, scheduler, scaler, ema or None). steps: of an epoch."""
    torch.manual_seed(args.seed)
    model = ResNet(args.blocks, args.widths, not args.plain, args.dropout).to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(parameter_groups(model, args.weight_decay, args.decay), lr=args.lr, fused=True)
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: lr_factor(step, args.epochs * steps, round(args.warmup * steps)))
    scaler = torch.amp.GradScaler(device.type, enabled=amp == torch.float16)
    ema = None
    if args.ema:        # use_buffers: the averaged network needs averaged batch norm statistics too
        ema = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(args.ema ** EMA_EVERY), use_buffers=True)
    return model, optimizer, scheduler, scaler, ema


def seconds_a_step(model, batch_size, precision):
    """Time two training steps on a copy of the network, to say beforehand how long the run will take."""
    device, model = next(model.parameters()).device, copy.deepcopy(model).train()
    x = torch.zeros(batch_size, 3, 32, 32, device=device)                               # (B, 3, 32, 32)
    for step in range(3):
        with precision:
            loss = model(x).square().mean()
        loss.backward()
        loss.item()                         # waits for the device
        if step == 0:                       # the first step chooses kernels
            start = time.perf_counter()
    return (time.perf_counter() - start) / 2


# ---- saving and restoring ----------------------------------------------------------------------------------


def save(out, model, optimizer, scheduler, scaler, ema, args, history):
    """Write what an epoch leaves behind: first last.pt, which holds all, then the files that are made from it."""
    checkpoint = on_cpu({
        "model": (ema.module if ema else model).state_dict(), "config": model.config, "classes": NAMES, "mean": MEAN, "std": STD,
        "epoch": len(history), "settings": settings(args), "training": {
            "model": model.state_dict(), "optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict(),
            "scaler": scaler.state_dict(), "ema": ema.state_dict() if ema else None, "history": history}})
    write_checkpoint(out / "last.pt", checkpoint)
    write_results(out, checkpoint)


def write_results(out, checkpoint):
    """log.csv, curves.png and, if the epoch is the best so far, best.pt: what last.pt holds without --resume's part."""
    history = checkpoint["training"]["history"]
    if best_epoch(history) == len(history):
        write_checkpoint(out / "best.pt", {key: value for key, value in checkpoint.items() if key != "training"})
    text = io.StringIO()
    writer = csv.DictWriter(text, history[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    write_file(out / "log.csv", text.getvalue().encode())
    draw_curves(history, out / "curves.png")


def restore(path, model, optimizer, scheduler, scaler, ema, args):
    """Put back what save() wrote into last.pt; returns the history. Raises UserError if the settings differ."""
    _, checkpoint = load_checkpoint(path)
    if not isinstance(checkpoint.get("training"), dict) or not isinstance(checkpoint.get("settings"), dict):
        raise UserError(f"{path} cannot be resumed: it is not the last.pt of a run")
    for name, value in settings(args).items():
        if repr(checkpoint["settings"].get(name)) != repr(value):
            raise UserError(f"{path} is of a run with {name} = {checkpoint['settings'].get(name)}, not {value}: "
                            f"resume with that run's own settings, or start another with --out")
    training, history = checkpoint["training"], checkpoint["training"].get("history")
    try:
        if [row["epoch"] for row in history] != list(range(1, checkpoint["epoch"] + 1)) or not 1 <= len(history) <= args.epochs:
            raise ValueError("its history does not fit its epoch")
        for name, part in (("model", model), ("optimizer", optimizer), ("scheduler", scheduler), ("scaler", scaler), ("ema", ema)):
            if part is not None:
                part.load_state_dict(training[name])
        for p in model.parameters():        # the fused optimizer trusts these shapes
            if any(optimizer.state[p][name].shape != p.shape for name in ("exp_avg", "exp_avg_sq")):
                raise ValueError("its optimizer is of another network")
        if best_epoch(history) != len(history) and load_checkpoint(path.with_name("best.pt"))[1].get("epoch") != best_epoch(history):
            raise ValueError("best.pt beside it is of another run")
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError, IndexError) as error:
        raise UserError(f"{path} cannot be resumed: {error}") from None
    write_results(path.parent, checkpoint)          # the run may have been killed before it wrote them
    return history


def on_cpu(state):
    """The same with every tensor on the CPU, so that any machine can load it, and with plain dicts and lists."""
    if isinstance(state, dict):
        return {key: on_cpu(value) for key, value in state.items()}
    if isinstance(state, list):
        return [on_cpu(value) for value in state]
    return state.cpu() if isinstance(state, torch.Tensor) else state


def write_checkpoint(path, checkpoint):
    buffer = io.BytesIO()       # torch.save into a file hides a full disk behind an error of its own
    torch.save(checkpoint, buffer)
    write_file(path, buffer.getbuffer())


def settings(args):
    """The arguments that a run's result depends on, as plain types."""
    own = {name: value for name, value in vars(args).items() if name not in ("out", "device", "resume", "compile")}
    return own | {"data": "fake" if args.data == "fake" else "cifar10"}


def best_epoch(history):
    """Number of the epoch with the highest validation accuracy, the first of equals; without validation the last."""
    if history[-1]["val_acc"] is None:
        return len(history)
    return max(history, key=lambda row: (row["val_acc"], -row["epoch"]))["epoch"]


def draw_curves(history, path):
    """The paper's figures 2 and 3: loss and accuracy by epoch, training against validation."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(10, 4))
    figure.subplots_adjust(0.07, 0.12, 0.98, 0.96)      # by hand: an automatic layout doubles the time, every epoch
    epochs = [row["epoch"] for row in history]
    for axes, name, label in zip(figure.subplots(1, 2), ("loss", "acc"), ("loss", "accuracy")):
        axes.plot(epochs, [row[f"train_{name}"] for row in history], ".-", label="training (augmented images)")
        if history[0][f"val_{name}"] is not None:
            axes.plot(epochs, [row[f"val_{name}"] for row in history], ".-", label="validation")
        axes.set(xlabel="epoch", ylabel=label)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.legend()
    save_figure(figure, path)


# ---- the command line --------------------------------------------------------------------------------------


def number(kind, low, high=math.inf, open_end=False):
    """An argparse type: a number from low to high (below high if open_end); nan is none."""
    def parse(text):
        value = kind(text)
        if not low <= value <= high or (open_end and value == high) or value == math.inf:
            raise ValueError
        return value
    parse.__name__ = f"{'integer' if kind is int else 'number'} from {low:g}" + (
        f" to {'below ' * open_end}{high:,}" if high < math.inf else "")
    return parse


def parse_args(argv=None):
    parser = Parser(__doc__)
    parser.add_argument("--recipe", choices=RECIPES, default="paper", help="a set of defaults for the flags below; "
                        "paper: the paper's values; strong: ours, chosen on the validation split (default: paper)")
    group = parser.add_argument_group("data and files")
    group.add_argument("--data", default="data", help='folder of CIFAR-10, or "fake" for synthetic images (default: data)')
    group.add_argument("--out", default=".", help="folder of the results (default: the current one)")
    group.add_argument("--resume", action="store_true", help="go on from last.pt in --out, with the run's own flags")
    group.add_argument("--val-size", type=number(int, 0), default=5000, metavar="N",
                       help="training images held out to choose by, in tens; 0 trains on all (default: 5000)")
    group = parser.add_argument_group("network")
    group.add_argument("--blocks", type=int, nargs=3, default=[4, 5, 3], help="blocks a stage (default: 4 5 3)")
    group.add_argument("--widths", type=int, nargs=3, default=[64, 128, 256], help="channels a stage (default: 64 128 256)")
    group.add_argument("--plain", action="store_true", help="no skips: the paper's baseline (section 3.2)")
    group.add_argument("--dropout", type=number(float, 0, 1, open_end=True), default=0.0, metavar="RATE",
                       help="before the classifier; the paper names no rate (default: 0)")
    group = parser.add_argument_group("optimisation (defaults: the recipe's; in brackets: paper / strong)")
    group.add_argument("--epochs", type=number(int, 1, 10 ** 6), help=both("epochs"))
    group.add_argument("--batch-size", type=number(int, 2, 10 ** 6), metavar="N", help="images a step " + both("batch_size"))
    group.add_argument("--lr", type=number(float, 0), help="highest learning rate of AdamW " + both("lr"))
    group.add_argument("--warmup", type=number(float, 0), metavar="EPOCHS", help="linear rise of the rate " + both("warmup"))
    group.add_argument("--weight-decay", type=number(float, 0), metavar="WD",
                       help="AdamW shrinks weights by lr x WD a step " + both("weight_decay"))
    group.add_argument("--decay", choices=["all", "weights"],
                       help="weights: spare batch norm and biases, whose size carries no complexity " + both("decay"))
    group.add_argument("--label-smoothing", type=number(float, 0, 1, open_end=True), metavar="EPS",
                       help="share of the target spread over all classes " + both("label_smoothing"))
    group.add_argument("--ema", type=number(float, 0, 1, open_end=True), metavar="DECAY",
                       help="use an average of the weights with this decay a step; 0: none " + both("ema"))
    group = parser.add_argument_group("augmentation")
    group.add_argument("--augment", nargs="*", metavar="NAME", choices=[*PAPER, "trivial"],
                       help="in this order, of crop flip rotation jitter autoaugment trivial erasing " + both("augment"))
    group.add_argument("--mix", choices=["none", "mixup", "cutmix", "both"], help="mix pairs of images " + both("mix"))
    group.add_argument("--group", type=number(int, 1, 10 ** 6), default=250, metavar="N",
                       help="images that share one draw; 1: a draw for each, ten times slower (default: 250)")
    group = parser.add_argument_group("machine")
    group.add_argument("--seed", type=number(int, 0, 10 ** 9), default=0, help="of everything random (default: 0)")
    group.add_argument("--device", help="cpu, cuda or mps (default: the accelerator if there is one)")
    group.add_argument("--amp", choices=["auto", "bf16", "fp16", "off"], default="auto",
                       help="mixed precision; auto: bf16 where native, fp16 on older CUDA cards, else off (default: auto)")
    group.add_argument("--compile", action="store_true", help="torch.compile: costs a minute or more, then steps are faster")
    group.add_argument("--deterministic", action="store_true", help="the same bits again on a GPU too; slower there")
    recipe = parser.parse_known_args(argv)[0].recipe
    parser.set_defaults(**RECIPES[recipe])
    return parser.parse_args(argv)


def both(name):
    """How a flag's help shows its default in the two recipes."""
    shown = [" ".join(map(str, value)) if isinstance(value, list) else str(value).replace("%", "%%")
             for value in (recipe[name] for recipe in RECIPES.values())]
    return f"({shown[0]} / {shown[1]})"


def check_args(args):
    """Raise UserError, before anything is loaded, for flags that contradict each other or what lies in --out."""
    check_size(args.blocks, args.widths, not args.plain)
    if args.val_size % CLASSES:
        raise UserError(f"--val-size {args.val_size} must be a multiple of {CLASSES}: as many images of each class")
    if args.warmup >= args.epochs:
        raise UserError(f"--warmup {args.warmup:g} must be shorter than the run of {args.epochs} epochs")
    check_folder(args.out)
    if args.resume and not Path(args.out, "last.pt").is_file():
        raise UserError(f"there is no last.pt in {args.out} to resume from: leave --resume out, or name the run's folder with --out")
    earlier = [name for name in ("last.pt", "best.pt", "log.csv", "result.json") if Path(args.out, name).exists()]
    if earlier and not args.resume:
        raise UserError(f"{args.out} holds an earlier run's {earlier[0]}: go on with --resume, or choose another --out")


def say_row(row, args, seconds_left):
    """The line of an epoch."""
    val = "" if row["val_acc"] is None else f"  val {row['val_loss']:.4f} {row['val_acc']:6.2%}"
    tqdm.write(f"epoch {row['epoch']:>{len(str(args.epochs))}}/{args.epochs}  lr {row['lr']:.2e}"
               f"  train {row['train_loss']:.4f} {row['train_acc']:6.2%}{val}"
               f"  {row['images_per_s']:,.0f} images/s  {duration(seconds_left)} left")


def duration(seconds):
    """Seconds as a person says them: 42 s, 7 min, 3 h 05 min."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"


def main(argv=None):
    args = parse_args(argv)
    argv = sys.argv[1:] if argv is None else argv
    start = time.perf_counter()
    if args.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")     # cuBLAS asks for it
    torch.use_deterministic_algorithms(args.deterministic)
    torch.backends.cudnn.benchmark = not args.deterministic
    device = pick_device(args.device)
    amp = pick_amp(device, args.amp)
    check_args(args)
    images, labels = load_data(args.data, train=True)
    train, val = split(labels, args.val_size, args.seed)
    train_images, train_labels = images[train].to(device), labels[train].to(device)     # uint8 (45000, 3, 32, 32), (45000,)
    val_images, val_labels = images[val].to(device), labels[val].to(device)
    out, steps = Path(args.out), len(train) // args.batch_size
    if steps == 0:
        raise UserError(f"--val-size {args.val_size} leaves {len(train):,} of {len(images):,} images to train on: "
                        f"less than one batch of {args.batch_size}")
    model, *trainer = build(args, steps, device, amp)       # trainer: optimizer, scheduler, scaler, ema
    precision, ema = autocast(device, amp), trainer[-1]
    history = restore(out / "last.pt", model, *trainer, args) if args.resume else []
    network = torch.compile(model, mode="reduce-overhead") if args.compile else model   # shares the weights of model

    todo = args.epochs - len(history)
    print(f"{parameter_count(args.blocks, args.widths, not args.plain):,} parameters, {len(train):,} training and "
          f"{len(val):,} validation images, {device_name(device)}, {str(amp or torch.float32)[6:]}, torch {torch.__version__}")
    print(f"{todo} epochs of {steps} steps: about {duration(todo * steps * seconds_a_step(model, args.batch_size, precision))}")
    begin, done = time.perf_counter(), len(history)
    bar = tqdm(total=args.epochs * steps, initial=done * steps, desc="training", unit="step", smoothing=0, disable=None)
    try:
        for epoch in range(done + 1, args.epochs + 1):
            torch.manual_seed(args.seed * 1_000_003 + epoch)    # an epoch's randomness is (seed, epoch), so it can be redone
            lr, tick = trainer[0].param_groups[0]["lr"], time.perf_counter()
            train_loss, train_acc = train_epoch(network, train_images, train_labels, *trainer, precision, bar, args)
            seconds = time.perf_counter() - tick
            row = {"epoch": epoch, "lr": lr, "train_loss": train_loss, "train_acc": train_acc, "val_loss": None, "val_acc": None}
            if len(val):
                logits = predict(ema.module if ema else model, val_images, normalisation(), amp)
                row["val_loss"] = F.cross_entropy(logits, val_labels).item()
                row["val_acc"] = accuracy(logits, val_labels)
            row |= {"images_per_s": round(steps * args.batch_size / seconds, 1), "seconds": round(seconds, 3)}
            history.append(row)
            save(out, model, *trainer, args, history)
            say_row(row, args, (time.perf_counter() - begin) / (epoch - done) * (args.epochs - epoch))
        bar.close()
        report(out, args, device, amp, time.perf_counter() - start, argv)
    except KeyboardInterrupt as stop:
        saved = f"{out / 'last.pt'} holds epoch {len(history)}" if history else "no epoch is saved yet"
        more = ["--resume"] if history and not args.resume else []
        stop.args = (f"stopped: {saved}; go on with: python train.py {shlex.join([*argv, *more])}",)
        raise
    finally:
        bar.close()


def report(out, args, device, amp, seconds, argv):
    """Evaluate best.pt on the test set, once, and say and write what came out."""
    model, checkpoint = load_checkpoint(out / "best.pt")
    images, labels = load_data(args.data, train=False)
    logits = predict(model.to(device, memory_format=torch.channels_last), images, normalisation(), amp).cpu()
    with open(out / "log.csv", newline="") as file:
        row = list(csv.DictReader(file))[checkpoint["epoch"] - 1]
    result = {
        "command": "python train.py " + shlex.join(argv), "test_acc": accuracy(logits, labels),
        "val_acc": float(row["val_acc"]) if row["val_acc"] else None, "epoch": checkpoint["epoch"],
        "parameters": sum(p.numel() for p in model.parameters()), "seconds": round(seconds, 1),
        "device": device_name(device), "torch": torch.__version__, "settings": checkpoint["settings"]}
    write_file(out / "result.json", (json.dumps(result, indent=1) + "\n").encode())
    val = f"{result['val_acc']:.2%} on the validation set" if row["val_acc"] else "no validation set"
    print(f"\ntest accuracy {result['test_acc']:.2%} on {len(labels):,} images; {val}; epoch {result['epoch']} of {args.epochs}")
    print(f"{result['parameters']:,} parameters, {seconds / 60:.1f} minutes on {result['device']}")
    print(f"files in {out}: best.pt last.pt log.csv curves.png result.json")
    data = f" --data {shlex.quote(args.data)}" if args.data != "data" else ""
    print(f"next: python predict.py --ckpt {shlex.quote(str(out / 'best.pt'))}{data}")


def device_name(device):
    """What the results were measured on, as people call it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} ({torch.get_num_threads()} threads)"


if __name__ == "__main__":
    run(main)
