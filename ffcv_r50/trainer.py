"""The training loop. Reads top to bottom: open, set up, continue, train, evaluate, save."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import torch

from ffcv_r50 import checkpoint, distributed, recipe, run_folder
from ffcv_r50.config import Config
from ffcv_r50.data import device as device_data
from ffcv_r50.data.beton import Beton
from ffcv_r50.data.loader import EvalLoader, TrainLoader
from ffcv_r50.errors import UserError
from ffcv_r50.evaluation import Metrics, evaluate
from ffcv_r50.files import atomic_write
from ffcv_r50.learner import Learner, LossMonitor
from ffcv_r50.logs import jsonl
from ffcv_r50.logs.console import Console, duration

T = TypeVar("T")


def run(config: Config) -> None:
    """Train, continue, or only evaluate: what ``train_imagenet.py`` does.

    Raises:
        UserError: the input is wrong; the same error on every rank.
        RunFault: the loss is not finite.
    """
    with distributed.world(config.dist.timeout_seconds) as world:
        console = Console(world.is_main)
        for notice in config.notices:
            console.say(f"note: {notice}")
        if config.training.eval_only:
            evaluate_only(config, world, console)
        else:
            train(config, world, console)


def train(config: Config, world: distributed.World, console: Console) -> None:
    """Train the network of ``config`` in its run folder, from where the folder left off."""
    # --- Everything that can be wrong with the input, before any expensive work.
    with distributed.agreed_errors():
        plan = recipe.plan(config, world.size)
        train_set = Beton(config.data.train_dataset)
        val_set = Beton(config.data.val_dataset)
        _check_classes(train_set, val_set)
        train_loader = TrainLoader(
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
        val_loader = _val_loader(config, val_set, world)
        learner = Learner(config, train_set.num_classes, plan.micro_batches, world)
    steps = train_loader.steps_per_epoch
    epochs = config.training.epochs

    # --- The run folder, and the state it holds.
    state: dict[str, Any] = {}
    with distributed.agreed_errors():
        if world.is_main:
            folder = run_folder.RunFolder(config.logging.folder)
            folder.begin(config, world.size)
            found, warnings = checkpoint.newest(folder.checkpoints)
            for warning in warnings:
                console.warn(warning)
            state = found or {}
    state = distributed.from_main(state if world.is_main else None)
    first_epoch, best_top_1 = 0, -1.0
    if state:
        learner.load_state_dict(state["learner"])
        first_epoch, best_top_1 = state["epoch"], state["best_top_1"]
        _restore_random_state(state["random"])
    if world.is_main:
        jsonl.rewind(folder.log, first_epoch)

    console.say(
        f"{config.model.arch}, {train_set.num_classes} classes, {learner.precision}; "
        f"{train_set.num_samples:,} training and {val_set.num_samples:,} validation images"
    )
    console.say(
        f"{epochs} epochs of {steps:,} steps; batch {config.training.batch_size:,} = {world.size} "
        f"{world.device.type} processes x {plan.micro_batches} micro-batches x "
        f"{plan.micro_batch_size} images"
    )
    if first_epoch:
        console.say(f"continuing after epoch {first_epoch} of {epochs}")

    # --- Train.
    losses = LossMonitor(world.device)
    for epoch in range(first_epoch, epochs):
        resolution = recipe.resolution(config, epoch)
        began = time.perf_counter()
        with (
            train_loader.epoch(epoch, resolution) as batches,
            console.bar(f"epoch {epoch + 1}/{epochs}, {resolution} px", steps) as bar,
        ):
            parts = Waiting(device_data.to_device(batches, world.device))
            for step in range(steps):
                lr = recipe.learning_rate(config, epoch, step, steps)
                losses.push(epoch * steps + step, learner.step(parts, lr))
                seconds = time.perf_counter() - began
                bar.update(
                    step + 1,
                    f"loss {losses.latest:.3f}  lr {lr:.4f}  "
                    f"{(step + 1) * config.training.batch_size / seconds:,.0f} images/s  "
                    f"data wait {parts.seconds / seconds:.0%}",
                )
            if batches.bad_images:
                console.warn(f"{batches.bad_images} unreadable images were replaced by gray ones")
        train_loss = losses.mean()
        epoch_seconds = time.perf_counter() - began

        # --- Evaluate.
        began = time.perf_counter()
        metrics = _evaluate(config, learner, val_loader, val_set, world)
        eval_seconds = time.perf_counter() - began

        # --- Log and save. The row goes first: a continuing run drops rows that no checkpoint
        # covers, so each epoch is in the log once.
        row = {
            "epoch": epoch,
            "step": (epoch + 1) * steps,
            "lr": lr,
            "resolution": resolution,
            "train_loss": train_loss,
            "val_loss": metrics.loss,
            "top_1": metrics.top_1,
            "top_5": metrics.top_5,
            "images_per_second": steps * config.training.batch_size / epoch_seconds,
            "data_wait_fraction": parts.seconds / epoch_seconds,
            "epoch_seconds": epoch_seconds,
            "eval_seconds": eval_seconds,
        }
        is_best = metrics.top_1 > best_top_1
        best_top_1 = max(best_top_1, metrics.top_1)
        if world.is_main:
            jsonl.append(folder.log, row)
            checkpoint.save(
                folder.checkpoints,
                {
                    "epoch": epoch + 1,
                    "learner": learner.state_dict(),
                    "random": _random_state(),
                    "best_top_1": best_top_1,
                    "config": config.to_yaml(),
                    "versions": run_folder.versions(),
                },
                best=is_best,
            )
        left = (epochs - epoch - 1) * (epoch_seconds + eval_seconds)
        console.say(
            f"epoch {epoch + 1:>{len(str(epochs))}}/{epochs}  {resolution} px  lr {lr:.4f}  "
            f"loss {train_loss:.4f}  val loss {metrics.loss:.4f}  top-1 {metrics.top_1:6.2f} %  "
            f"top-5 {metrics.top_5:6.2f} %  {row['images_per_second']:,.0f} images/s  "
            f"data wait {row['data_wait_fraction']:.0%}  "
            f"{duration(epoch_seconds + eval_seconds)}, {duration(left)} left"
        )

    # --- The finished network, under torchvision's names.
    if world.is_main:
        with atomic_write(folder.weights) as file:
            torch.save(learner.network.state_dict(), file)
        rows = jsonl.read(folder.log)
        console.say(
            f"finished: top-1 {rows[-1]['top_1']:.2f} %, top-5 {rows[-1]['top_5']:.2f} % on all "
            f"{val_set.num_samples:,} validation images ({_how(config)}); best epoch "
            f"{best_top_1:.2f} %; {folder.path}"
        )


def evaluate_only(config: Config, world: distributed.World, console: Console) -> None:
    """Evaluate ``--checkpoint`` on the validation set and print its exact metrics."""
    with distributed.agreed_errors():
        assert config.checkpoint is not None, "the configuration asks for it"
        val_set = Beton(config.data.val_dataset)
        weights = checkpoint.load_weights(Path(config.checkpoint))
        # The classifier comes last in every torchvision network.
        num_classes = list(weights.values())[-1].shape[0]
        if val_set.num_classes > num_classes:
            raise UserError(
                f"--checkpoint={config.checkpoint}: tells {num_classes} classes apart, "
                f"{val_set.path} has {val_set.num_classes}"
            )
        learner = Learner(config, num_classes, 1, world)
        try:
            learner.network.load_state_dict(weights)
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"--checkpoint={config.checkpoint}: does not fit model.arch={config.model.arch}: "
                f"{reason}"
            ) from error
        val_loader = _val_loader(config, val_set, world)
    metrics = _evaluate(config, learner, val_loader, val_set, world)
    console.say(
        f"top-1 {metrics.top_1:.3f} %, top-5 {metrics.top_5:.3f} %, loss {metrics.loss:.4f} on all "
        f"{metrics.count:,} validation images ({_how(config)})"
    )


class Waiting(Iterator[T]):
    """An iterator that adds up how long its consumer waited for it.

    Args:
        iterator: to wait for.
    """

    def __init__(self, iterator: Iterator[T]) -> None:
        self._iterator = iterator
        self.seconds = 0.0

    def __next__(self) -> T:
        """The next item."""
        began = time.perf_counter()
        try:
            return next(self._iterator)
        finally:
            self.seconds += time.perf_counter() - began


def _check_classes(train_set: Beton, val_set: Beton) -> None:
    known = train_set.sidecar and val_set.sidecar
    if known and train_set.sidecar.classes != val_set.sidecar.classes:  # type: ignore[union-attr]
        raise UserError(
            f"{val_set.path}: its classes are not those of {train_set.path}; write both from folders "
            "with the same class names"
        )
    if val_set.num_classes > train_set.num_classes:
        raise UserError(
            f"{val_set.path}: has {val_set.num_classes} classes, {train_set.path} has "
            f"{train_set.num_classes}; give files of one dataset"
        )


def _val_loader(config: Config, val_set: Beton, world: distributed.World) -> EvalLoader:
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


def _evaluate(
    config: Config, learner: Learner, loader: EvalLoader, val_set: Beton, world: distributed.World
) -> Metrics:
    with loader.epoch() as batches:
        return evaluate(
            learner.network,
            batches,
            num_samples=val_set.num_samples,
            device=world.device,
            autocast=learner.autocast(),
            tta=config.validation.tta,
        )


def _how(config: Config) -> str:
    tta = "no test-time augmentation" if config.validation.tta == "none" else "flip averaged"
    return f"{config.validation.resolution} px, {tta}"


def _random_state() -> dict[str, torch.Tensor]:
    """The generators that networks draw from (dropout); the data path has none that hold state."""
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def _restore_random_state(state: dict[str, torch.Tensor]) -> None:
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
