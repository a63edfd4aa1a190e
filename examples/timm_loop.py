"""timm's network, optimizer, schedule and average of the weights, with our loader in place of its own.

    python examples/timm_loop.py train.beton val.beton --model=resnet50 --epochs=16

In timm's own ``train.py`` the same replaces its ``create_loader``: batches are normalised and on the device.
"""

import argparse
import sys
from typing import Any

import timm
import torch
from timm.loss import LabelSmoothingCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import AverageMeter, ModelEmaV3, accuracy

import ffcv_r50


def main(argv: list[str]) -> float:
    """Train, and return the top-1 of the averaged weights in %."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("train")
    parser.add_argument("val")
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--epochs", type=int, default=16)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--resolution", type=int, default=176)
    parser.add_argument("--opt", default="lamb")
    parser.add_argument("--lr", type=float, default=5e-3)
    args = parser.parse_args(argv)

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    images: dict[str, Any] = {
        "device": device,
        "dtype": torch.float32,
        "resolution": args.resolution,
    }
    train_set, val_set = ffcv_r50.Dataset(args.train), ffcv_r50.Dataset(args.val)
    train = ffcv_r50.TrainLoader(train_set, batch_size=args.batch_size, **images)
    val = ffcv_r50.EvalLoader(val_set, batch_size=args.batch_size, **images)

    model = timm.create_model(args.model, num_classes=train_set.num_classes)
    model.to(device).to(memory_format=torch.channels_last)
    ema = ModelEmaV3(model, decay=0.99)
    optimizer = create_optimizer_v2(model, opt=args.opt, lr=args.lr, weight_decay=0.02)
    scheduler, epochs = create_scheduler_v2(
        optimizer,
        "cosine",
        num_epochs=args.epochs,
        updates_per_epoch=len(train),
        step_on_epochs=False,
    )
    criterion = LabelSmoothingCrossEntropy(0.1)
    updates = 0
    for epoch in range(epochs):
        train.set_epoch(epoch)
        model.train()
        for x, y in train:
            criterion(model(x), y).backward()
            optimizer.step()
            optimizer.zero_grad()
            ema.update(model)
            updates += 1
            scheduler.step_update(updates)

    ema.eval()
    top_1 = AverageMeter()
    with torch.no_grad():
        for x, y in val:
            top_1.update(accuracy(ema(x), y)[0].item(), len(y))
    return float(top_1.avg)


if __name__ == "__main__":
    print(f"top-1: {main(sys.argv[1:]):.2f} %")
