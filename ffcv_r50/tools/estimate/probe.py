"""The largest ``training.norm_batch_size`` that fits into this machine's GPU, found by training there.

Each size is tried with the network, the optimizer, the averages and the steps that the trainer would
have, at the recipe's largest resolution, on random images; then a batch is evaluated.
"""

import gc
import itertools
import time
from typing import NamedTuple

import rich.console
import torch
from rich.box import SIMPLE_HEAD
from rich.table import Table

from ffcv_r50 import build, recipe
from ffcv_r50.config import reference
from ffcv_r50.config.settings import Config
from ffcv_r50.data.loader import Batch
from ffcv_r50.distributed import World
from ffcv_r50.errors import UserError
from ffcv_r50.logs.console import Console
from ffcv_r50.tools.estimate.search import search
from ffcv_r50.training import graphs
from ffcv_r50.training.evaluation import evaluate
from ffcv_r50.training.precision import Precision
from ffcv_r50.training.protocols import Step
from ffcv_r50.training.step import TrainStep

STEPS = 2
"""Optimizer steps a size: the first makes the optimizer's state and chooses kernels, the last is timed.
Before CUDA graphs are recorded there are some more."""

WIDTH = 110
"""Columns of the page: more than it has, since rich breaks lines to fit them."""


class Fit(NamedTuple):
    """What a size took that fits."""

    allocated: int
    """Bytes of tensors on the device at once, at most."""
    reserved: int
    """Bytes that torch took from the device for them, at most."""
    rate: float
    """Images a second of a training step."""


def check_gpu() -> None:
    """See that there is something to try on.

    Raises:
        UserError: torch finds no GPU.
    """
    if not torch.cuda.is_available():
        raise UserError(
            "command line: --probe trains some steps on a CUDA GPU and torch finds none; run it on the "
            "machine that will train"
        )


def show(config: Config, num_classes: int, steps_per_epoch: int, world_size: int) -> None:
    """Try sizes on this machine's first GPU; print what each took and what to put into the recipe.

    Args:
        config: the settings.
        num_classes: of the dataset, which itself is not read.
        steps_per_epoch: optimizer steps in each epoch.
        world_size: processes that share a step; one of them is tried.

    Raises:
        UserError: the recipe has a fault, or no size fits.
    """
    device = torch.device("cuda", 0)
    free, total = (amount / 1e9 for amount in torch.cuda.mem_get_info(device))
    gpu = f"{torch.cuda.get_device_name(device)}, {free:.1f} of {total:.1f} GB free"
    reference.print_page(f"\n{config.model.arch} at {_heaviest(config, 1)[1]} px on {gpu}")
    tried = probe(config, num_classes, steps_per_epoch, world_size, device)
    reference.print_page("\n" + page(config, tried, world_size))


# ------------------------------------------------------------------------------------- trying sizes


def probe(
    config: Config, num_classes: int, steps_per_epoch: int, world_size: int, device: torch.device
) -> dict[int, Fit | None]:
    """Try numbers of images at a time, the recipe's own first; say what came of each.

    Args:
        config, num_classes, steps_per_epoch, world_size: as :func:`show` takes them.
        device: to train on.

    Returns:
        What came of each that was tried; None where it does not fit.

    Raises:
        UserError: the network does not take such images, or its evaluation does not fit.
    """
    console = Console(True)
    build.check_sizes(config, num_classes)
    config.loss.check(config.largest_label_smoothing, num_classes)
    build.set_up_torch(config, device)

    def attempt(size: int) -> Fit | None:
        _free(config)  # only here: an error holds what it came from until it is handled
        torch.cuda.reset_peak_memory_stats(device)
        try:
            fit = _run(_resized(config, size), num_classes, steps_per_epoch, world_size, device)
        except torch.OutOfMemoryError:
            console.say(f"norm_batch_size {size}: out of memory")
            return None
        taken = f"{fit.allocated / 1e9:.1f} GB, {fit.rate:,.0f} images/s"
        console.say(f"norm_batch_size {size}: {taken}")
        return fit

    first = recipe.plan(config, world_size).micro_batch_size
    return search(_sizes(config, world_size), first, attempt)


def _free(config: Config) -> None:
    """What the size before has left."""
    if config.training.compile:
        torch.compiler.reset()
    gc.collect()
    torch.cuda.empty_cache()


def _resized(config: Config, norm_batch_size: int) -> Config:
    training = config.training.model_copy(update={"norm_batch_size": norm_batch_size})
    return config.model_copy(update={"training": training})


def _sizes(config: Config, world_size: int) -> list[int]:
    """Images at a time that a process's share of a step can be cut into, increasing.

    Not single ones, unless the recipe has them: batch-norm needs two, where an image is one pixel by then.
    """
    plan = recipe.plan(config, world_size)
    share = plan.micro_batch_size * plan.micro_batches
    return [
        size
        for size in range(min(2, plan.micro_batch_size), share + 1)
        if share % size == 0 and _can_be_shared(_resized(config, size), world_size)
    ]


def _can_be_shared(config: Config, world_size: int) -> bool:
    try:
        recipe.plan(config, world_size)
    except UserError:
        return False
    return True


def _run(
    config: Config, num_classes: int, steps_per_epoch: int, world_size: int, device: torch.device
) -> Fit:
    """Train some steps and evaluate a batch as one of ``world_size`` processes.

    Raises:
        torch.OutOfMemoryError: the steps do not fit into the device's memory.
        UserError: the evaluation does not.
    """
    plan = recipe.plan(config, world_size)
    alone = World(0, 1, 0, 1, device)
    precision = Precision(config.training.precision, device)
    network = build.network(config, num_classes, device)
    train_step = build.train_step(
        config, network, precision, plan, num_classes, steps_per_epoch, alone
    )
    step, side = _heaviest(config, steps_per_epoch)
    images = _images(plan.micro_batch_size, side, num_classes)
    seconds = 0.0
    for _ in range(STEPS + graphs.WARM_UP * config.training.cuda_graphs):
        began = time.perf_counter()
        same = itertools.repeat(images, plan.micro_batches)
        train_step(build.train_batches(same, plan, alone), step)
        torch.cuda.synchronize(device)
        seconds = time.perf_counter() - began
    _evaluate(config, train_step, precision, num_classes, device)
    return Fit(
        torch.cuda.max_memory_allocated(device),
        torch.cuda.max_memory_reserved(device),
        plan.micro_batches * plan.micro_batch_size / seconds,
    )


def _heaviest(config: Config, steps_per_epoch: int) -> tuple[Step, int]:
    """A step of the last epoch that has the largest images, when nothing is frozen any more; their side.

    It is one with two passes, where some have them (:class:`ffcv_r50.training.sam.Sam`).
    """
    epochs = range(config.training.epochs)
    side, epoch = max((recipe.resolution(config, epoch), epoch) for epoch in epochs)
    step = recipe.step(config, epoch, 0, steps_per_epoch)
    return step._replace(number=config.sam.interval - 1), side


def _images(count: int, side: int, num_classes: int) -> Batch:
    return Batch(
        torch.randint(256, (count, side, side, 3), dtype=torch.uint8),
        torch.randint(num_classes, (count,)),
        torch.arange(count),
    )


def _evaluate(
    config: Config,
    train_step: TrainStep,
    precision: Precision,
    num_classes: int,
    device: torch.device,
) -> None:
    count, side = config.validation.batch_size, config.validation.resolution
    try:
        evaluate(
            train_step.network,
            [_images(count, side, num_classes)],
            num_samples=count,
            device=device,
            precision=precision,
            tta=config.validation.tta,
            forward=train_step.forward,
        )
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"validation.batch_size: {count} images of {side} x {side} px do not fit into the GPU's "
            "memory; pass a smaller --validation.batch_size"
        ) from error


# ----------------------------------------------------------------------------------------- the page


def page(config: Config, tried: dict[int, Fit | None], world_size: int) -> str:
    """What each size took, and what follows for the recipe.

    Args:
        config: the settings.
        tried: what :func:`probe` found.
        world_size: processes that share a step.

    Raises:
        UserError: no size fits.
    """
    own = recipe.plan(config, world_size).micro_batch_size
    largest = max((size for size, fit in tried.items() if fit), default=None)
    if largest is None:
        side = _heaviest(config, 1)[1]
        raise UserError(
            f"training.norm_batch_size: even {min(tried)} at a time, images of {side} x {side} px do not "
            "fit into this GPU's memory; choose a smaller model.arch or schedule.resolution"
        )
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    columns = ("norm_\nbatch_size", "GB in\nuse", "GB\nreserved", "images/s")
    for column in columns:
        table.add_column(column, justify="right", vertical="bottom")
    table.add_column()
    norm = config.norm_batch_size
    recipes = "the recipe's" if own == norm else f"of the recipe's {norm}"
    for size, fit in sorted(tried.items()):
        gigabytes = [f"{amount / 1e9:.1f}" for amount in fit[:2]] if fit else ["", ""]
        notes = ["the largest that fits"] * (size == largest) + [recipes] * (size == own)
        notes += ["out of memory"] * (not fit)
        table.add_row(str(size), *gigabytes, f"{fit.rate:,.0f}" if fit else "", ", ".join(notes))
    screen = rich.console.Console(markup=False, highlight=False, width=WIDTH)
    with screen.capture() as text:
        screen.print(table)
        screen.print("\n" + _advice(config, own, largest))
    return "\n".join(line.rstrip() for line in text.get().splitlines())


def _advice(config: Config, own: int, largest: int) -> str:
    norm = config.norm_batch_size
    if own <= largest:
        return (
            f"The recipe's norm_batch_size {norm} fits; leave it. Another one changes the training: "
            "batch-norm\nsees other batches."
        )
    return (
        f"The recipe's norm_batch_size {norm} does not fit. The largest that does:\n\n"
        f"training:\n  norm_batch_size: {largest}\n\n"
        f"or --training.norm_batch_size={largest}. It changes the training: batch-norm's statistics are "
        f"those of {largest}\nimages instead of {norm}, and the run departs from its recipe. Batch size "
        "and learning rate stay."
    )
