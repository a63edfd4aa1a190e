"""Machines by name, from ``hardware.yaml``, or as ``benchmarks/train_step.py --json`` measured one."""

import functools
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import yaml
from pydantic import ConfigDict, ValidationError

from ffcv_r50.config.settings import Model
from ffcv_r50.errors import UserError, nearest
from ffcv_r50.registry import Options, Range
from ffcv_r50.tools import imagenet
from ffcv_r50.tools.estimate.work import Work, work

Positive = Annotated[float, Range(above=0)]
Count = Annotated[int, Range(at_least=1)]
FITTED_TO = "ffcv-imagenet's twelve published times"


class Published(Options):
    """How fast one GPU trained ResNet-50 in half precision."""

    images_per_second: Positive
    resolution: Count
    """Side of the images in pixels."""
    source: str
    """Whose figure it is, and where it was published."""


class Gpu(Options):
    """One kind of GPU."""

    name: str
    device: str
    """A part of what torch calls it."""
    teraflops: Positive
    """Floating-point operations a second on its tensor cores, in half precision, in 1e12."""
    gigabytes: Positive
    """What its memory reads and writes a second, in 1e9 bytes."""
    datasheet: str
    """Where the two rates are from."""
    published: Published | None = None

    def ideal_seconds(self, w: Work) -> tuple[float, float]:
        """What computing and memory would take at the datasheet's rates."""
        return w.operations / self.teraflops / 1e12, w.num_bytes / self.gigabytes / 1e9


class Fitted(Options):
    """How the twelve published times come out of a datasheet."""

    gpu: str
    compute: Positive
    """Share of the operations a second that training reaches."""
    memory: Positive
    """Share of the bytes a second."""
    start_seconds: float
    """Of a run, besides its images."""


class Table(Options):
    """What ``hardware.yaml`` holds."""

    fitted: Fitted
    gpus: dict[str, Gpu]
    loader: dict[int, Positive]
    """Side in pixels -> images a second of one core."""
    loader_source: str
    bytes_per_image: Count
    bytes_source: str

    def seconds(self, gpu: Gpu, w: Work) -> float:
        """What ``w`` takes on a GPU that reaches the fitted shares of its datasheet."""
        compute, memory = gpu.ideal_seconds(w)
        return compute / self.fitted.compute + memory / self.fitted.memory

    def loader_rate(self, side: int) -> float:
        """Images a second of one core: the time is a line between the measured sizes, and beyond."""
        pixels = np.array(list(self.loader), dtype=np.float64) ** 2
        slope, base = np.polyfit(pixels, 1 / np.array(list(self.loader.values())), 1)
        return float(1 / (base + slope * side**2))


class Measured(Options):
    """What of ``benchmarks/train_step.py --json`` says how fast a machine is."""

    model_config = ConfigDict(extra="ignore")

    device: str
    processes: Count
    loader_threads: Count
    """Of all processes."""
    model: Model
    resolution: Count
    step_images_per_second: Positive
    loader_images_per_second: Positive


@dataclass(frozen=True)
class Machine:
    """What a run's time depends on."""

    name: str
    gpus: int
    origin: str
    """Where its speed is known from, for a person to read."""
    estimated: bool
    """Nobody has published or measured its speed."""
    gpu: Gpu
    speed: float = 1.0
    """Of each GPU, where :meth:`Table.seconds` has 1."""
    loader_speed: float = 1.0
    """Of each core, where :meth:`Table.loader_rate` has 1."""
    cores: int | None = None
    """That decode; None where it is not known."""

    def seconds(self, w: Work) -> float:
        """What ``w`` takes, shared by all GPUs without loss."""
        return table().seconds(self.gpu, w) / self.speed / self.gpus

    def loader_rate(self, side: int) -> float:
        """Images a second of one core."""
        return table().loader_rate(side) * self.loader_speed


@functools.cache
def table() -> Table:
    """What ``hardware.yaml`` holds."""
    text = Path(__file__).with_name("hardware.yaml").read_text("utf-8")
    return Table.model_validate(yaml.safe_load(text))


def find(text: str, gpus: int | None) -> Machine:
    """The machine that somebody named.

    Args:
        text: ``h100``, ``h100x8``, or the path of measured speeds (``*.json``).
        gpus: how many, where somebody said so; one of the name's own number, or the measured one's.

    Raises:
        UserError: there is no such GPU (names the nearest), two numbers contradict each other, or
            the file cannot be read.
    """
    if text.endswith(".json"):
        return _measured(Path(text), gpus)
    known = table().gpus
    name, number = _parted(text.lower(), known)
    if number is not None and gpus not in (None, number):
        raise UserError(
            f"command line: --hardware={text} has {number} GPUs, --world-size is {gpus}; leave one out"
        )
    gpu, count = known[name], number or gpus or 1
    if name == table().fitted.gpu:
        return Machine(gpu.name, count, f"fitted to {FITTED_TO}", False, gpu)
    shares = f"an A100's {table().fitted.compute:.0%} and {table().fitted.memory:.0%}"
    rates = f"{gpu.teraflops:,.0f} TFLOP/s and {gpu.gigabytes:,.0f} GB/s"
    origin = f"{shares} of this one's {rates} ({gpu.datasheet})"
    if gpu.published is None:
        return Machine(gpu.name, count, origin, True, gpu)
    said = gpu.published
    origin = f"{said.images_per_second:,.0f} images/s of ResNet-50 at {said.resolution} px ({said.source})"
    return Machine(gpu.name, count, origin, False, gpu, published_speed(gpu))


def published_speed(gpu: Gpu) -> float:
    """How much faster than :meth:`Table.seconds` a GPU was published to be."""
    assert gpu.published is not None
    w = work(Model(), imagenet.CLASSES, gpu.published.resolution, training=True)
    return table().seconds(gpu, w) * gpu.published.images_per_second


def _parted(text: str, known: dict[str, Gpu]) -> tuple[str, int | None]:
    """A GPU's name and how many of it."""
    if text in known:
        return text, None
    found = re.fullmatch(r"(.+)x([1-9]\d{0,4})", text)
    if found and found[1] in known:
        return found[1], int(found[2])
    # The x of rtx4090 is none of a number.
    near = found and nearest(found[1], known)
    suggestion = f"{near}x{found[2]}" if found and near else nearest(text, known)
    hint = f"did you mean {suggestion}?" if suggestion else f"known are {', '.join(known)}"
    raise UserError(
        f"command line: --hardware: there is no GPU '{text}' in the table; {hint} Or measure yours: "
        "python -m benchmarks.train_step --json FILE.json, and pass --hardware=FILE.json"
    )


def _measured(path: Path, gpus: int | None) -> Machine:
    try:
        row: dict[str, Any] = json.loads(path.read_text("utf-8"))
        said = Measured.model_validate(row)
    except OSError as error:
        raise UserError(
            f"--hardware={path}: cannot be read ({error.strerror}); check the path"
        ) from error
    except (ValueError, ValidationError) as error:
        raise UserError(
            f"--hardware={path}: is not what this version measures; make it with "
            f"python -m benchmarks.train_step --json {path}"
        ) from error
    known = table()
    alike = (gpu for gpu in known.gpus.values() if gpu.device in said.device)
    gpu = next(alike, known.gpus[known.fitted.gpu])
    w = work(said.model, imagenet.CLASSES, said.resolution, training=True)
    count = gpus or said.processes
    return Machine(
        said.device,
        count,
        f"{said.step_images_per_second:,.0f} images/s of {said.model.arch} at {said.resolution} px "
        f"by {said.processes} of them ({path})",
        False,
        gpu,
        speed=known.seconds(gpu, w) * said.step_images_per_second / said.processes,
        loader_speed=said.loader_images_per_second
        / said.loader_threads
        / known.loader_rate(said.resolution),
        cores=max(1, said.loader_threads * count // said.processes),
    )
