"""One step of a run again: what its images were, what each cost, which layers its gradient shook.

::

    python -m ffcv_r50.replay RUN --step=N [--images=32] [--output=replay.png] [--section.key=value ...]
    torchrun ... -m ffcv_r50.replay ...

The run goes on from its newest checkpoint before that step (or from its start) in memory, with the same
images and rates as then; nothing in its folder is changed. Where ``steps.jsonl`` has the step, its
fingerprint says whether the data are the same. A contact sheet shows the images with the highest losses.
Steps count from the run's start, from 0, as in ``steps.jsonl`` and in errors.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import rich.console
import torch
from PIL import Image
from rich.box import SIMPLE_HEAD
from rich.table import Table
from torch import Tensor, nn

from ffcv_r50 import build, distributed, recipe
from ffcv_r50.config import command_line, settings
from ffcv_r50.config.settings import Config
from ffcv_r50.data.beton import Beton
from ffcv_r50.data.loader import TrainLoader
from ffcv_r50.errors import FINISHED, RunFault, UserError, exit_with
from ffcv_r50.files import atomic_write
from ffcv_r50.logs import jsonl
from ffcv_r50.logs.console import Console
from ffcv_r50.optim.clipping import Clipping
from ffcv_r50.recipe import Plan
from ffcv_r50.registry import Options, Range
from ffcv_r50.report import batches, sheet
from ffcv_r50.run import checkpoint, compatibility
from ffcv_r50.training.metrics import StepMetrics, StepValues
from ffcv_r50.training.precision import Precision
from ffcv_r50.training.protocols import Batch, Step

MOST_IMAGES = 1024
"""Of the step's batch, from the first on, that a sheet chooses from."""


class Asked(Options):
    """Which step, and what is drawn; every other word is a setting."""

    step: Annotated[int, Range(at_least=0)]
    """The optimizer step, from the run's start, from 0."""
    images: Annotated[int, Range(at_least=1, at_most=MOST_IMAGES)] = 32
    """Of the contact sheet."""
    output: str = "replay.png"
    """The contact sheet."""


class Layer(NamedTuple):
    """What a step did to one parameter."""

    name: str
    weight: float
    """2-norm before the step."""
    gradient: float
    """2-norm of the gradient, before clipping."""


class Replayed(NamedTuple):
    """What came out of the step."""

    loss: float
    gradient_norm: float
    losses: Tensor
    """float32 [batch] cross-entropy of each image, in the order of the global batch."""
    layers: list[Layer]


def main() -> None:
    """Replay what the command line names; exit as :func:`errors.exit_with` says."""
    exit_with(lambda: replay(sys.argv[1:]), together=True)


def replay(argv: Sequence[str]) -> int:
    """Rebuild the step, print and draw it.

    Raises:
        UserError: no such run or step, other datasets than then, or a fault on the command line.
        RunFault: the data are not those that the run recorded.
    """
    named, asked, words = command_line.with_names(Asked, argv, __doc__ or "", most=1)
    if not named:
        raise UserError("command line: no run; pass its folder first, such as runs/demo")
    run, output = Path(named[0]), Path(asked.output)
    if not (run / "config.yaml").is_file():
        raise UserError(f"{run}: holds no run, config.yaml is missing; give the folder of a run")
    if output.suffix.lower() not in Image.registered_extensions():
        raise UserError(
            f"command line: --output={output}: give it the name of an image, such as .png"
        )
    config = settings.resolve({**words, "config": [str(run / "config.yaml")]}, needs_data=False)
    logging = config.logging.model_copy(update={"samples": True})  # what each image cost
    config = config.model_copy(update={"logging": logging})
    timeout, deterministic = config.dist.timeout_seconds, config.training.deterministic
    with distributed.world(timeout, deterministic=deterministic) as world:
        found, dataset = rebuild(run, config, asked.step, world)
        with distributed.errors_on_all_ranks():
            if world.is_main:
                _show(found, dataset, config, asked)
    return FINISHED


def rebuild(
    run: Path, config: Config, number: int, world: distributed.World
) -> tuple[Replayed, Beton]:
    """Train from the newest checkpoint before a step to its end, in memory; all ranks must call it.

    Args:
        run: its folder.
        config: its settings, with ``logging.samples``.
        number: the step.
        world: this process among its peers.

    Returns:
        What came out of the step, and the training set.
    """
    console = Console(world.is_main)
    with distributed.errors_on_all_ranks():
        plan = recipe.plan(config, world.size)
    files = (config.data.train_dataset, config.data.val_dataset)
    train_set, val_set = build.datasets(config, world, *files)
    with distributed.errors_on_all_ranks():
        loader = build.train_loader(config, train_set, plan, world)
        last = loader.steps_per_epoch * config.training.epochs - 1
        if number > last:
            raise UserError(f"command line: --step={number}: the run's last step is {last:,}")
        build.set_up_torch(config, world.device)
        precision = Precision(config.training.precision, world.device)
        network = build.network(config, train_set.num_classes, world.device)
    train_step = build.train_step(
        config, network, precision, plan, train_set.num_classes, loader.steps_per_epoch, world
    )
    with distributed.errors_on_all_ranks():
        state = _before(run, number, loader.steps_per_epoch) if world.is_main else None
        if state:
            datasets = compatibility.identities(train_set, val_set)
            for note in compatibility.notes(str(run), state, config, datasets):
                console.say(f"note: {note}")
            if state["batch_size"] != config.training.batch_size:
                raise UserError(
                    f"{run}: the state before step {number} is of batches of {state['batch_size']:,}, "
                    f"the run's settings say {config.training.batch_size:,}; its steps since are gone"
                )
    begin = 0
    if state := distributed.broadcast_object((state or {},))[0]:
        train_step.load_state_dict(state["learner"])
        begin = _steps_done(state, loader.steps_per_epoch)
    else:
        build.start_from_weights(config, train_step.network, console)
    console.say(f"rebuilt from {f'the state before step {begin:,}' if begin else 'the start'}")
    with distributed.errors_on_all_ranks():
        if world.is_main:
            fingerprint = loader.fingerprint(*divmod(number, loader.steps_per_epoch))
            console.say(_same_data(run, number, fingerprint))
    seen: list[StepValues] = []
    layers: list[Layer] = []
    metrics = StepMetrics(
        world.device,
        lambda _, values: seen.append(values),
        skips_overflows=precision.name == "fp16",
    )
    with console.bar("steps", number + 1, begin) as bar:
        for step, images in _steps(config, loader, plan, world, range(begin, number + 1)):
            if step.number == number:
                train_step.clip = _noting(train_step.network, layers, train_step.clip)
            metrics.push(step, train_step(images, step))
            bar.update(step.number + 1, metrics.latest)
        metrics.read()
    values = seen[-1]
    each = values.each[0].clone()
    return Replayed(values.loss, values.gradient_norm, each, layers), train_set


def _steps(
    config: Config, loader: TrainLoader, plan: Plan, world: distributed.World, numbers: range
) -> Iterator[tuple[Step, Iterator[Batch]]]:
    """Steps of a run, each with this rank's batches."""
    begin, per_epoch = numbers.start, loader.steps_per_epoch
    while begin < numbers.stop:
        epoch, first = divmod(begin, per_epoch)
        end = min(per_epoch, first + numbers.stop - begin)
        with loader.epoch(epoch, recipe.resolution(config, epoch), first) as loaded:
            images = build.train_batches(loaded, plan, world)
            for number in range(first, end):
                yield recipe.step(config, epoch, number, per_epoch), images
        begin += end - first


def _before(run: Path, number: int, steps_per_epoch: int) -> dict[str, Any] | None:
    """The newest whole state of a run from before a step; None where only its start is."""
    newest: dict[str, Any] | None = None
    for path in sorted((run / "checkpoints").glob("*.pt")):
        try:
            state = checkpoint.load(path)
        except (OSError, checkpoint.DamagedCheckpoint):  # the run itself says so when it continues
            continue
        done = _steps_done(state, steps_per_epoch)
        if done <= number and (newest is None or done > _steps_done(newest, steps_per_epoch)):
            newest = state
    return newest


def _steps_done(state: Mapping[str, Any], steps_per_epoch: int) -> int:
    progress = state["progress"]
    return int(progress["epoch"] * steps_per_epoch + progress["step"])


def _same_data(run: Path, number: int, fingerprint: str) -> str:
    """What the log of steps says of the data.

    Raises:
        RunFault: they are others.
    """
    for row in jsonl.rows(run / "steps.jsonl"):
        if row.get("step") == number and "fingerprint" in row:
            if row["fingerprint"] != fingerprint:
                raise RunFault(
                    f"step {number:,}: its data are not those of the run (fingerprint {fingerprint}, "
                    f"steps.jsonl has {row['fingerprint']}); look for other settings or another dataset"
                )
            return "its data are those that the run recorded"
    return f"{run} has not recorded this step, so nobody knows whether its data are the same"


def _noting(network: nn.Module, layers: list[Layer], clip: Clipping) -> Clipping:
    """The same clipping, that notes the norms of each parameter and of its gradient before."""

    def noted(gradients: Tensor, norm: Tensor) -> None:
        layers.extend(
            Layer(name, *(torch.linalg.vector_norm(t).item() for t in (parameter, parameter.grad)))
            for name, parameter in network.named_parameters()
            if parameter.grad is not None
        )
        clip(gradients, norm)

    return noted


# ---------------------------------------------------------------------------------------- for people


def _show(found: Replayed, dataset: Beton, config: Config, asked: Asked) -> None:
    """Print the numbers and draw the sheet.

    Raises:
        UserError: the sheet cannot be written.
    """
    per_epoch = dataset.num_samples // config.training.batch_size
    epoch, number = divmod(asked.step, per_epoch)
    shown = min(MOST_IMAGES, config.training.batch_size)
    batch = batches.seen(config, dataset, epoch, number, shown)
    names = [name[:16] for name in dataset.sidecar.classes] if dataset.sidecar else []
    losses = found.losses[: len(batch.pixels)].numpy()
    worst = np.argsort(-np.nan_to_num(losses, nan=np.inf), kind="stable")[: asked.images]
    words = [[f"loss {losses[i]:.3f}", *batches.words(batch.targets[i], names)] for i in worst]
    try:
        with atomic_write(asked.output) as file:
            kind = Image.registered_extensions()[Path(asked.output).suffix.lower()]
            sheet.draw(batch.pixels[worst], words).save(file, format=kind)
    except OSError as error:
        raise UserError(f"{asked.output}: cannot be written ({error.strerror or error})") from error
    table = Table(box=SIMPLE_HEAD, show_edge=False)
    table.add_column("parameter", overflow="fold")
    for head in ("weight", "gradient", "gradient / weight"):
        table.add_column(head, justify="right", no_wrap=True)
    for layer in found.layers:
        ratio = layer.gradient / layer.weight if layer.weight else float("nan")
        table.add_row(layer.name, f"{layer.weight:.4g}", f"{layer.gradient:.4g}", f"{ratio:.3g}")
    screen = rich.console.Console(soft_wrap=True, highlight=False, markup=False)
    screen.print(table)
    quarter, half, most = np.nanquantile(found.losses.numpy(), [0.25, 0.5, 1.0])
    screen.print(
        f"step {asked.step:,} (epoch {epoch}, step {number:,} of it): loss {found.loss:.6g}, gradient "
        f"norm {found.gradient_norm:.6g}\ncross-entropy of its images: a quarter below {quarter:.3f}, half "
        f"below {half:.3f}, the highest {most:.3f}\n{asked.output}: the {len(worst)} highest of "
        f"{'all' if shown == config.training.batch_size else f'the first {shown:,} of'} "
        f"{config.training.batch_size:,} images"
    )


if __name__ == "__main__":
    main()
