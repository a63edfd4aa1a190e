"""The last part of a recipe's page: what the run will take."""

import math
from pathlib import Path
from typing import Annotated

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table
from rich.text import Text

from ffcv_r50.config.settings import Config
from ffcv_r50.errors import UserError
from ffcv_r50.registry import Options, Range
from ffcv_r50.tools.estimate import hardware, needs
from ffcv_r50.tools.estimate.hardware import Machine
from ffcv_r50.tools.estimate.needs import Images, Phase
from ffcv_r50.training.transforms import ImageOptions

WIDTH = 80
"""Columns of what is printed."""


class Asked(Options):
    """What is asked about the run."""

    hardware: str | None = None
    """The machine, such as `h100x8` or `rtx4090`, or a file of `benchmarks/train_step.py --json`:
    how long the run takes there, and what it needs."""
    price: Annotated[float, Range(at_least=0)] | None = None
    """What an hour of the machine costs, in whatever money."""
    cores: Annotated[int, Range(at_least=1)] | None = None
    """Of the machine, that decode images; null is as many as it takes."""
    preemptions: str | None = None
    """How often the machine is taken away, such as `2/week` (also `day`, `hour`)."""
    restart_minutes: Annotated[float, Range(at_least=0)] = 5.0
    """From a preemption to the first step after it, besides the work that is lost."""

    def machine(self, world_size: int | None) -> Machine | None:
        """The one that is named.

        Raises:
            UserError: none is, but something was asked about it; or see :func:`hardware.find`.
        """
        if self.hardware is not None:
            return hardware.find(self.hardware, world_size)
        for name in ("price", "cores", "preemptions"):
            if getattr(self, name) is not None:
                raise UserError(
                    f"command line: --{name}: of which machine? Pass --hardware, such as h100x8"
                )
        return None


def estimate(config: Config, images: Images, machine: Machine, asked: Asked) -> Group:
    """Hours and money by phase, cores, disk, memory, and what preemptions add.

    Args:
        config: the settings of the run.
        images: of an epoch.
        machine: where it runs.
        asked: the rest of the command line.

    Raises:
        UserError: preemptions that are said wrongly, or that no run survives.
    """
    cores = asked.cores or machine.cores
    phases = needs.phases(config, images, machine, cores)
    start = hardware.table().fitted.start_seconds
    hours = (start + sum(phase.seconds for phase in phases)) / 3600
    facts = {"speed": _speed(machine, phases), "loader": _loader(config, machine, cores)}
    facts["data"] = _data(config, images)
    facts["checkpoints"] = _checkpoints(config, images.classes)
    if not images.validation:
        facts["evaluation"] = "not counted: its images are not known"
    if asked.preemptions is not None:
        facts["preemptions"] = _preemptions(config, images, hours, asked)
    rows = Table.grid(padding=(0, 2))
    rows.width = WIDTH
    rows.add_column(style="bold", no_wrap=True)
    rows.add_column()
    for name, text in facts.items():
        rows.add_row(name, text)
    word = "Estimate for" if machine.estimated else "Expected on"
    title = Text(f"{word} {machine.gpus} x {machine.name}, half precision, not compiled")
    return Group(title, "", _phases(phases, hours, config, images, asked), "", rows)


def _phases(
    phases: list[Phase], hours: float, config: Config, images: Images, asked: Asked
) -> Table:
    each = _image_bytes(config, images)[0]
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("phase", no_wrap=True, vertical="bottom")
    columns = ["epochs", "images/s", "cores\nneeded", "MB/s\nread", "waits\nfor", "hours"]
    for column in columns + ["price"] * (asked.price is not None):
        table.add_column(column, justify="right", vertical="bottom", no_wrap=True)
    for phase in phases:
        rate = phase.core_rate
        table.add_row(
            phase.kind.name,
            str(phase.kind.epochs),
            f"{phase.rate:,.0f}",
            "" if rate is None else f"{math.ceil(phase.gpu_rate / rate):,}",
            f"{phase.rate * each / 1e6:,.0f}",
            "GPU" if phase.loader_waits else "loader",
            *_cost(phase.seconds / 3600, asked),
        )
    start = hours - sum(phase.seconds for phase in phases) / 3600
    table.add_row("starting", *[""] * 5, *_cost(start, asked), end_section=True)
    table.add_row("all", *[""] * 5, *_cost(hours, asked))
    return table


def _cost(hours: float, asked: Asked) -> list[str]:
    price = [] if asked.price is None else [f"{hours * asked.price:,.2f}"]
    return [f"{hours:,.2f}", *price]


def _speed(machine: Machine, phases: list[Phase]) -> str:
    text = f"from {machine.origin}"
    if machine.estimated:
        text += "; an estimate: nobody has published how fast this GPU trains"
    return text + ("; as if nothing were lost between GPUs" if machine.gpus > 1 else "")


def _loader(config: Config, machine: Machine, cores: int | None) -> str:
    source = hardware.table().loader_source
    text = "with fewer cores than needed the run waits for the loader"
    if cores is not None:
        text = f"{cores:,} core{'s' * (cores > 1)}; {text}"
    if machine.loader_speed == 1:
        text += f" ({source}; raw images take less)"
    if any(isinstance(options, ImageOptions) for options in config.augment):
        text += "; augmentations of single images take more, not counted"
    return text


def _image_bytes(config: Config, images: Images) -> tuple[float, str]:
    """Of an image in the file, and how that is known."""
    path = Path(config.data.train_dataset)
    if path.is_file():
        return path.stat().st_size / images.stored, f"{path}"
    table = hardware.table()
    return table.bytes_per_image, table.bytes_source


def _data(config: Config, images: Images) -> str:
    each, source = _image_bytes(config, images)
    size = each * (images.stored + images.validation)
    return (
        f"{_size(size)} ({source}): with so much memory free, files are read once; with less, the "
        "disk has to give what is read"
    )


def _checkpoints(config: Config, classes: int) -> str:
    each, weights = needs.checkpoint_bytes(config, classes)
    every = config.checkpoint.keep_every
    kept = needs.KEPT + (config.training.epochs // every if every else 0)
    return (
        f"{_size(each)} each; {kept} of them, one that is being written, and the weights at the end: "
        f"{_size((kept + 1) * each + weights)} of disk"
    )


def _preemptions(config: Config, images: Images, hours: float, asked: Asked) -> str:
    steps = config.training.epochs * images.training // config.training.batch_size
    between = needs.checkpoint_hours(config, steps, hours)
    lost = between / 2 + asked.restart_minutes / 60
    assert asked.preemptions is not None
    found = needs.preempted(asked.preemptions, hours, lost)
    money = "" if asked.price is None else f", {found.hours * asked.price:,.2f} with the waiting"
    return (
        f"{asked.preemptions}: {found.times:.2g} to be expected; each loses {60 * lost:.1f} minutes "
        f"(half of the {60 * between:.1f} between checkpoints, {asked.restart_minutes:g} until it "
        f"trains again): {found.hours:,.2f} hours, {found.hours / hours - 1:+.1%}{money}"
    )


def _size(num_bytes: float) -> str:
    return f"{num_bytes / 1e9:,.0f} GB" if num_bytes >= 1e10 else f"{num_bytes / 1e6:,.0f} MB"
