"""A training loop in plain torch with our loader; it continues where it was stopped.

python examples/plain_torch.py train.beton val.beton --epochs=16
torchrun --nproc_per_node=8 examples/plain_torch.py train.beton val.beton --epochs=16
"""

import argparse
import os
import sys
from typing import Any

import torch
import torch.distributed as dist
from torch.nn import functional
from torchvision.models import resnet18

import ffcv_r50


def main(argv: list[str]) -> float:
    """Train, and return the share of validation images that are classified correctly."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("train")
    parser.add_argument("val")
    parser.add_argument("--epochs", type=int, default=16)
    parser.add_argument("--batch-size", type=int, default=256, help="of all processes together")
    parser.add_argument("--resolution", type=int, default=176)
    parser.add_argument("--checkpoint", default="checkpoint.pt")
    parser.add_argument("--steps", type=int, default=10**9, help="stop after so many")
    args = parser.parse_args(argv)

    cuda = torch.cuda.is_available()
    device = (
        torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if cuda else torch.device("cpu")
    )
    if "RANK" in os.environ:
        dist.init_process_group("nccl" if cuda else "gloo")
    images: dict[str, Any] = {"device": device, "dtype": torch.float32}
    train_set, val_set = ffcv_r50.Dataset(args.train), ffcv_r50.Dataset(args.val)
    train = ffcv_r50.TrainLoader(
        train_set,
        batch_size=args.batch_size,
        resolution=lambda epoch: (
            args.resolution if epoch < args.epochs // 2 else args.resolution + 32
        ),
        **images,
    )
    val = ffcv_r50.EvalLoader(val_set, resolution=args.resolution + 32, **images)

    network = resnet18(num_classes=train_set.num_classes).to(
        device, memory_format=torch.channels_last
    )
    model = torch.nn.parallel.DistributedDataParallel(network) if dist.is_initialized() else network
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-5)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 0.5, args.epochs * train.steps_per_epoch
    )
    stateful: dict[str, Any] = {
        "network": network,
        "optimizer": optimizer,
        "schedule": schedule,
        "loader": train,
    }
    if os.path.exists(args.checkpoint):
        for name, state in torch.load(args.checkpoint, map_location=device).items():
            stateful[name].load_state_dict(state)

    for epoch in range(train.state_dict()["epoch"], args.epochs):
        train.set_epoch(epoch)
        network.train()
        for x, y in train:
            functional.cross_entropy(model(x), y, label_smoothing=0.1).backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            if schedule.last_epoch == args.steps:
                break
        if train.rank == 0:
            torch.save(
                {name: each.state_dict() for name, each in stateful.items()}, args.checkpoint
            )
        if schedule.last_epoch == args.steps:
            break

    network.eval()
    with torch.no_grad():
        correct = sum((network(x).argmax(1) == y).sum() for x, y in val)
    counts = torch.as_tensor(correct, dtype=torch.float64, device=device)
    if dist.is_initialized():
        dist.all_reduce(counts)
        dist.destroy_process_group()
    return counts.item() / val_set.num_samples


if __name__ == "__main__":
    print(f"top-1: {main(sys.argv[1:]):.2%}")
