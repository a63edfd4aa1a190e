"""ffcv-imagenet's settings, and the recipe of ours that trains the same.

The sections and parameters are those that its ``train_imagenet.py`` declares with fastargs; read here as
strictly as our own: fastargs drops a key that it does not know.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import yaml

from ffcv_r50.config import command_line, declaration, reader
from ffcv_r50.config.declaration import Given
from ffcv_r50.config.settings import Config, resolution_at
from ffcv_r50.errors import InvalidSetting, UserError
from ffcv_r50.keyframes import Keyframes
from ffcv_r50.registry import Options, Range

Count = Annotated[int, Range(at_least=1)]
Whole = Annotated[int, Range(at_least=0)]
Amount = Annotated[float, Range(at_least=0)]
Side = Annotated[int, Range(at_least=1)]

CROP_RATIO = 224 / 256
"""Of its center crop; no setting there."""


class Model(Options):
    """Model details."""

    arch: str = "resnet18"
    """One of torchvision's."""
    pretrained: bool = False
    """Begin with torchvision's weights."""


class Resolution(Options):
    """Resolution scheduling."""

    min_res: Side = 160
    """Side in pixels up to `start_ramp`."""
    max_res: Side = 160
    """From `end_ramp` on."""
    end_ramp: Whole = 0
    """Epoch."""
    start_ramp: Whole = 0
    """Epoch."""


class Data(Options):
    """Data."""

    train_dataset: str = ""
    """File."""
    val_dataset: str = ""
    """File."""
    num_workers: Whole = 0
    """Threads of each process."""
    in_memory: bool = True
    """Whether the dataset fits into memory."""
    gpu: Whole | None = None
    """In its rn18 files; its trainer does not declare it."""


class Lr(Options):
    """Learning rate scheduling."""

    step_ratio: Amount = 0.1
    """Of `step`."""
    step_length: Count = 30
    """Of `step`, in epochs."""
    lr_schedule_type: Literal["step", "cyclic"] = "cyclic"
    """Kind."""
    lr: Amount = 0.5
    """Peak."""
    lr_peak_epoch: Whole = 2
    """Of `cyclic`."""


class Logging(Options):
    """Logging."""

    folder: str = ""
    """Where each run makes a folder of a random name."""
    log_level: Whole = 1
    """How much is logged."""


class Validation(Options):
    """Validation."""

    batch_size: Count = 512
    """Of each process."""
    resolution: Side = 224
    """Side in pixels."""
    lr_tta: bool = True
    """Average over the image and its mirror image."""


class Training(Options):
    """Training."""

    eval_only: bool = False
    """Evaluate."""
    batch_size: Count = 512
    """Of each process."""
    optimizer: Literal["sgd"] = "sgd"
    """The only one."""
    momentum: Amount = 0.9
    """SGD's."""
    weight_decay: Amount = 4e-5
    """Not of batch-norm."""
    epochs: Count = 30
    """Number of epochs."""
    label_smoothing: Amount = 0.1
    """Of the loss."""
    distributed: bool = False
    """One process for each GPU."""
    use_blurpool: bool = False
    """Anti-aliasing."""
    bn_wd: Amount | None = None
    """In its files; its trainer does not declare it."""


class Dist(Options):
    """Distributed training."""

    world_size: Count = 1
    """GPUs."""
    address: str = "localhost"
    """Of rank 0."""
    port: str = "12355"
    """Of rank 0."""


class FfcvImagenet(Options):
    """All of its settings."""

    model: Model = Model()
    resolution: Resolution = Resolution()
    data: Data = Data()
    lr: Lr = Lr()
    logging: Logging = Logging()
    validation: Validation = Validation()
    training: Training = Training()
    dist: Dist = Dist()


def convert(path: str, words: Mapping[str, Sequence[str]]) -> str:
    """One of its configuration files as a recipe of ours.

    Args:
        path: the file.
        words: of its command line, which change what the file says; see :func:`command_line.split`.

    Returns:
        YAML, which begins with a comment that names all that the recipe does not say.

    Raises:
        UserError: not one of its files, or settings that it would refuse, too.
    """
    given = reader.from_file(FfcvImagenet, path)
    given = {**given, **reader.from_arguments(FfcvImagenet, words)}
    theirs = declaration.build(FfcvImagenet, given)
    gpus = theirs.dist.world_size if theirs.training.distributed else 1

    def refuse(key: str, message: str) -> UserError:
        return UserError(f"{given[key].place if key in given else f'{path}: {key}'}: {message}")

    if theirs.resolution.min_res > theirs.resolution.max_res:
        raise refuse(
            "resolution.min_res", f"is above resolution.max_res, {theirs.resolution.max_res}"
        )
    if theirs.lr.lr_schedule_type == "cyclic" and not (
        0 < theirs.lr.lr_peak_epoch < theirs.training.epochs
    ):
        raise refuse(
            "lr.lr_peak_epoch",
            f"{theirs.lr.lr_peak_epoch} does not lie between the first and the last of "
            f"{theirs.training.epochs} epochs; choose an epoch between",
        )
    recipe = _recipe(theirs, gpus)
    text = yaml.safe_dump(recipe, sort_keys=False, default_flow_style=None, width=96)
    made = {
        key: Given(value, f"{path}: in the recipe made of it, {key}")
        for key, (value, _) in reader.from_yaml(Config, text, path).items()
    }
    if "model.arch" in given:
        made["model.arch"] = given["model.arch"]
    declaration.build(Config, made)
    notes = [
        f"Made of {path}, a configuration of ffcv-imagenet (github.com/libffcv/ffcv-imagenet)."
    ]
    notes += _left_out(theirs, given, gpus)
    start = f"torchrun --nproc_per_node={gpus} " if gpus > 1 else "python "
    notes.append(f"Start: {start}train_imagenet.py --config THIS_FILE --logging.folder=runs/NAME")
    return "".join(f"# {note}\n" for note in notes) + "\n" + text


def _recipe(theirs: FfcvImagenet, gpus: int) -> dict[str, Any]:
    """The sections of the recipe."""
    training, validation = theirs.training, theirs.validation
    model: dict[str, Any] = {"arch": theirs.model.arch, "blurpool": training.use_blurpool}
    if theirs.model.pretrained:
        model["weights"] = _weights(theirs.model.arch)
    files = {"train_dataset": theirs.data.train_dataset, "val_dataset": theirs.data.val_dataset}
    data: dict[str, Any] = {name: file for name, file in files.items() if file}
    if theirs.data.num_workers:
        data["num_workers"] = theirs.data.num_workers
    if not theirs.data.in_memory:
        data["order"] = "quasi_random"
    return {
        "model": model,
        **({"data": data} if data else {}),
        "training": {
            "epochs": training.epochs,
            "batch_size": training.batch_size * gpus,
            "norm_batch_size": training.batch_size,
            "label_smoothing": training.label_smoothing,
            "weight_decay": training.weight_decay,
            "momentum": training.momentum,
            **({"eval_only": True} if training.eval_only else {}),
        },
        "schedule": {
            "lr": _lr(theirs.lr, training.epochs),
            "resolution": _resolution(theirs.resolution, training.epochs),
        },
        "validation": {
            "resolution": validation.resolution,
            "crop_ratio": CROP_RATIO,
            "tta": "flip" if validation.lr_tta else "none",
            "batch_size": validation.batch_size,
        },
    }


def _weights(arch: str) -> str:
    """The name of the weights that ``pretrained=True`` stands for in torchvision."""
    from torchvision import models  # takes seconds

    try:
        return f"{models.get_model_weights(arch).__name__}.IMAGENET1K_V1"
    except ValueError as error:
        raise InvalidSetting("model.arch", f"torchvision has no weights of '{arch}'") from error


def _lr(lr: Lr, epochs: int) -> dict[int, float]:
    """Its learning rate at the ends of epochs; within one it is a straight line, whatever the kind."""
    if lr.lr_schedule_type == "cyclic":
        return {0: 1e-4 * lr.lr, lr.lr_peak_epoch: lr.lr, epochs: 0.0}
    rates = {epoch: lr.step_ratio ** (epoch // lr.step_length) * lr.lr for epoch in range(epochs)}
    rates[epochs] = 0.0
    return {
        epoch: rate
        for epoch, rate in rates.items()
        if not rate == rates.get(epoch - 1) == rates.get(epoch + 1)
    }


def _resolution(ramp: Resolution, epochs: int) -> dict[Any, Any]:
    """Its resolution in each epoch."""

    def side(epoch: int) -> int:
        if epoch <= ramp.start_ramp:
            return ramp.min_res
        if epoch >= ramp.end_ramp:
            return ramp.max_res
        share = (epoch - ramp.start_ramp) / (ramp.end_ramp - ramp.start_ramp)
        return round((ramp.min_res + share * (ramp.max_res - ramp.min_res)) / 32) * 32

    sides = [side(epoch) for epoch in range(epochs)]
    if 0 < ramp.start_ramp < ramp.end_ramp < epochs:
        rows = {0: ramp.min_res, ramp.start_ramp: ramp.min_res, ramp.end_ramp: ramp.max_res}
        rows[epochs] = ramp.max_res
        frames = Keyframes(rows)
        if sides == [resolution_at(frames, epoch) for epoch in range(epochs)]:
            return rows
    changes = {e: s for e, s in enumerate(sides) if e == 0 or s != sides[e - 1]}
    return changes if len(changes) == 1 else {**changes, "interpolation": "step"}


def _left_out(theirs: FfcvImagenet, given: Mapping[str, Given], gpus: int) -> list[str]:
    """What the recipe does not say, of what was given and of what its trainer does."""
    notes = {
        "training.distributed": f"{gpus} process{'es' * (gpus > 1)} x {theirs.training.batch_size} "
        "images are training.batch_size and norm_batch_size; any number of processes trains the same",
        "dist.world_size": "see training.distributed",
        "dist.address": "comes from torchrun or SLURM",
        "dist.port": "comes from torchrun or SLURM",
        "data.in_memory": "samples are read from the file, which the system caches"
        + ("" if theirs.data.in_memory else "; order: quasi_random reads page by page"),
        "data.gpu": "GPUs come from torchrun or CUDA_VISIBLE_DEVICES; its trainer ignores it, too",
        "logging.folder": f"a run is its folder, not a new one in {theirs.logging.folder or 'it'}; "
        "pass --logging.folder=runs/NAME",
        "logging.log_level": "the log is always whole",
        "training.bn_wd": "its trainer ignores it, too; training.decay_norm_and_bias is false",
        "training.optimizer": "sgd is the default",
    }
    left = [f"Not carried over: {key}: {text}." for key, text in notes.items() if key in given]
    if gpus == 1 and theirs.data.in_memory:
        left.append("Not theirs: the order is random; on one GPU theirs is quasi-random.")
    left.append(
        "Not theirs: weight decay skips the batch-norms of the shortcuts and all biases, too."
    )
    return left


def from_command_line(argv: Sequence[str], usage: str) -> str:
    """:func:`convert` for ``FILE [--section.name=value ...]``, or for its own command line.

    Raises:
        UserError: no file or two, or a fault in it.
    """
    paths, _, words = command_line.with_names(Options, argv, usage, most=1)
    for key in ("config_file", "config"):
        paths += words.pop(key, [])
    if len(paths) != 1:
        found = f"two files, {paths[0]} and {paths[1]}" if paths else "no file"
        raise UserError(
            f"command line: {found}; pass one, such as rn50_configs/rn50_88_epochs.yaml"
        )
    return convert(paths[0], words)
