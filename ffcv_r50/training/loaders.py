"""The loaders that a configuration asks for, on this process among its peers."""

import torch

from ffcv_r50 import distributed
from ffcv_r50.config.settings import Config
from ffcv_r50.data.beton import Beton
from ffcv_r50.data.loader import Epoch, EvalLoader, TrainLoader
from ffcv_r50.logs.console import Console
from ffcv_r50.recipe import Plan


def train_loader(
    config: Config, train_set: Beton, plan: Plan, world: distributed.World
) -> TrainLoader:
    """This rank's part of the training batches, as ``config.data`` wants them.

    Raises:
        UserError: the batch is larger than the dataset, or libjpeg-turbo is missing.
    """
    return TrainLoader(
        train_set,
        seed=config.training.seed,
        batch_size=config.training.batch_size,
        micro_batch_size=plan.micro_batch_size,
        rank=world.rank,
        world_size=world.size,
        num_workers=config.data.num_workers or world.cores,
        crop_scale=config.data.crop_scale,
        crop_ratio=config.data.crop_ratio,
        flip=config.data.flip,
        order=config.data.order,
        scaled_decode=config.data.scaled_decode,
        bad_images=config.data.bad_images,
        pin_memory=world.device.type == "cuda",
    )


def val_loader(config: Config, val_set: Beton, world: distributed.World) -> EvalLoader:
    """This rank's share of the validation set, as ``config.validation`` wants it."""
    return EvalLoader(
        val_set,
        batch_size=config.validation.batch_size,
        resolution=config.validation.resolution,
        crop_ratio=config.validation.crop_ratio,
        rank=world.rank,
        world_size=world.size,
        num_workers=config.data.num_workers or world.cores,
        bad_images=config.data.bad_images,
        pin_memory=world.device.type == "cuda",
    )


def warn_of_gray_images(batches: Epoch, config: Config, console: Console) -> None:
    """Say how many images on all ranks were unreadable and replaced; every rank must call it."""
    if config.data.bad_images == "gray":
        count = torch.tensor([float(batches.bad_images)])
        distributed.all_reduce_sum(count)
        if count.item():
            console.warn(f"{count.item():.0f} unreadable images were replaced by gray ones")
