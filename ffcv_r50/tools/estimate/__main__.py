"""How well the estimates hold: published times against predicted ones, as ``docs/estimates.md``.

::

    python -m ffcv_r50.tools.estimate rcp/rn50_{16,24,32,40,56,88}ep.yaml \\
        rcp/rn18_{16,24,32,40,56,88}ep.yaml > docs/estimates.md

Each recipe's header says ``..., 14.9 minutes on 8 x A100``.
"""

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ffcv_r50 import recipe
from ffcv_r50.config import settings
from ffcv_r50.config.settings import Model
from ffcv_r50.errors import UserError, exit_with
from ffcv_r50.tools import imagenet
from ffcv_r50.tools.estimate import hardware
from ffcv_r50.tools.estimate.hardware import Gpu
from ffcv_r50.tools.estimate.needs import Images, kinds
from ffcv_r50.tools.estimate.work import Work, work

PUBLISHED = re.compile(r"# Published: .*?([\d.]+) minutes on (\d+) x A100")

INTRODUCTION = """\
# What a run will take, and how well that is known

    python -m ffcv_r50.tools.show_recipe rcp/rn50_88ep.yaml --hardware h100x8 --price 32.77 --preemptions 2/week

prints hours and money by phase, cores and disk that the loader needs, memory for the data, room for
checkpoints, and what preemptions add. `--hardware` is a GPU of the table below and how many of them, or
the speeds of your own machine: `python -m benchmarks.train_step --json FILE.json`, `--hardware FILE.json`.
What fits into a GPU's memory, `--probe` tries on that GPU ([gpu.md](gpu.md#what-fits-into-its-memory)).

This page is the output of `python -m ffcv_r50.tools.estimate`, whose help has the recipes; a test keeps it
current. Nobody has trained these recipes with this toolkit yet: what is predicted are other people's times.
"""

MODEL = """\
## The model

The time of an image on a GPU is what its floating-point operations take and what its memory traffic takes,
one after the other, each at a share of the rate in the GPU's datasheet. Operations are convolutions and
matrix products, counted by torch. The traffic is what the operations of the forward pass write, counted
too, at four bytes a number (two to write it in half precision, two to read it again); a training step
moves three times as much. A run takes some seconds besides. GPUs share the images without loss. So there
are three numbers, fitted to the twelve times (least squares of the relative errors):

| share of {name}'s {teraflops:,.0f} TFLOP/s | share of its {gigabytes:,.0f} GB/s | seconds a run |
|---|---|---|
| {compute:.3f} | {memory:.3f} | {start:.1f} |

Evaluation is in it: {val:,} images and their mirror images after each epoch. Not in it: a loader that does
not keep up, networks between machines, compilation, other precisions.
"""

FIT = """\
## The twelve times of ffcv-imagenet

Minutes. *Left out* is the prediction by a fit to the other eleven.

| recipe | A100s | published | predicted | error | left out | its error |
|---|---|---|---|---|---|---|
"""

LONGER = """
The largest error is {fit:.1%}, left out {left:.1%}. Six times of one network lie almost on a line, so leaving
one out says little. Fitted to the four runs of 16 and 24 epochs alone, the model predicts the other eight
within {longer:.1%}. From one network the other cannot be predicted: only both together tell computing from
memory.
"""

OTHERS = """\
## Other GPUs

An *estimate* takes the A100's two shares of the GPU's own datasheet. Where somebody has published how fast
one GPU trains ResNet-50, the estimate is scaled to that. How far the two are apart says how far an estimate
can be trusted; nothing was fitted to these figures. So far estimates were {low:.0%} to {high:.0%} too slow.

| GPU | published, images/s | estimate | error | source |
|---|---|---|---|---|
"""

TABLE = """
| `--hardware` | GPU | TFLOP/s | GB/s | ResNet-50 at 224 px, images/s | known from |
|---|---|---|---|---|---|
"""


class Time(NamedTuple):
    """A published time."""

    recipe: str
    gpus: int
    seconds: float
    total: Work
    """Of the run."""


def main() -> None:
    """Print the page; exit as :func:`errors.exit_with` says."""
    exit_with(lambda: print(page(sys.argv[1:]), end=""))


def page(recipes: Sequence[str]) -> str:
    """The page, from recipes with published times.

    Raises:
        UserError: a recipe has none, or a fault.
    """
    if not recipes or recipes[0].startswith("-"):
        raise UserError(f"command line: {(__doc__ or '').strip()}")
    times = [_time(Path(name)) for name in recipes]
    table = hardware.table()
    gpu = table.gpus[table.fitted.gpu]
    parameters = (table.fitted.compute, table.fitted.memory, table.fitted.start_seconds)
    rows, errors, left_out = [], [], []
    for i, time in enumerate(times):
        predicted = predict(gpu, time, parameters)
        without = predict(gpu, time, fit(gpu, [*times[:i], *times[i + 1 :]]))
        errors.append(predicted / time.seconds - 1)
        left_out.append(without / time.seconds - 1)
        rows.append(
            f"| `{time.recipe}` | {time.gpus} | {time.seconds / 60:.1f} | {predicted / 60:.1f} | "
            f"{errors[-1]:+.1%} | {without / 60:.1f} | {left_out[-1]:+.1%} |\n"
        )
    shorter = fit(gpu, [t for t in times if re.search("_(16|24)ep", t.recipe)])
    longer = max(abs(predict(gpu, t, shorter) / t.seconds - 1) for t in times)
    said = LONGER.format(fit=max(map(abs, errors)), left=max(map(abs, left_out)), longer=longer)
    model = MODEL.format(
        name=gpu.name,
        teraflops=gpu.teraflops,
        gigabytes=gpu.gigabytes,
        compute=parameters[0],
        memory=parameters[1],
        start=parameters[2],
        val=imagenet.VAL_IMAGES,
    )
    return "\n".join([INTRODUCTION, model, FIT + "".join(rows) + said, _others() + _gpus()])


def fit(gpu: Gpu, times: Sequence[Time]) -> tuple[float, float, float]:
    """The shares of a datasheet's two rates, and the seconds a run, that predict ``times`` best."""
    rows = np.array([_row(gpu, time) for time in times])
    seconds = np.array([time.seconds for time in times])
    found: npt.NDArray[np.float64] = np.linalg.lstsq(rows / seconds[:, None], np.ones(len(times)))[
        0
    ]
    return 1 / float(found[0]), 1 / float(found[1]), float(found[2])


def predict(gpu: Gpu, time: Time, parameters: tuple[float, float, float]) -> float:
    """Seconds of a run."""
    compute, memory, start = parameters
    return float(np.dot(_row(gpu, time), [1 / compute, 1 / memory, start]))


def _row(gpu: Gpu, time: Time) -> list[float]:
    compute, memory = gpu.ideal_seconds(time.total)
    return [compute / time.gpus, memory / time.gpus, 1.0]


def _time(path: Path) -> Time:
    """The published time in a recipe's header, and what the run computes.

    Raises:
        UserError: there is none, or the recipe has a fault.
    """
    config = settings.load([f"--config={path}"], needs_data=False)
    found = PUBLISHED.search(path.read_text("utf-8"))
    if not found:
        raise UserError(f"{path}: its header says no minutes on A100s; name a recipe whose does")
    gpus = int(found[2])
    recipe.plan(config, gpus)
    size = config.training.batch_size
    stored = imagenet.TRAIN_IMAGES
    images = Images(stored // size * size, stored, imagenet.VAL_IMAGES, imagenet.CLASSES)
    total = Work(0, 0)
    for kind in kinds(config, images):
        total = total.plus(kind.each.times(kind.images))
    return Time(path.stem, gpus, 60 * float(found[1]), total)


def _others() -> str:
    rows, errors = [], []
    for gpu in hardware.table().gpus.values():
        if said := gpu.published:
            rate = said.images_per_second / hardware.published_speed(gpu)
            errors.append(rate / said.images_per_second - 1)
            rows.append(
                f"| {gpu.name} | {said.images_per_second:,.0f} | {rate:,.0f} | {errors[-1]:+.0%} | "
                f"{said.source} |\n"
            )
    return OTHERS.format(low=-max(errors), high=-min(errors)) + "".join(rows)


def _gpus() -> str:
    table = hardware.table()
    each = work(Model(), imagenet.CLASSES, 224, training=True)
    rows = []
    for name, gpu in table.gpus.items():
        machine = hardware.find(name, 1)
        known = "estimate" if machine.estimated else "published speed"
        known = "fitted" if name == table.fitted.gpu else known
        rows.append(
            f"| `{name}` | {gpu.name} | {gpu.teraflops:,.0f} | {gpu.gigabytes:,.0f} | "
            f"{1 / machine.seconds(each):,.0f} | {known}; {gpu.datasheet} |\n"
        )
    return TABLE + "".join(rows)


if __name__ == "__main__":
    main()
