"""A run that trains nothing: the exact metrics of saved weights, on one dataset or several."""

import time
from collections.abc import Sequence
from pathlib import Path

from torch import nn

from ffcv_r50 import build, distributed, saved
from ffcv_r50.config.settings import Config
from ffcv_r50.data import names, real_labels
from ffcv_r50.data.beton import Beton, Sidecar, sidecar_path
from ffcv_r50.errors import UserError
from ffcv_r50.files import Arrays, write_arrays
from ffcv_r50.logs.console import Console
from ffcv_r50.logs.metrics import Metrics
from ffcv_r50.report import sets
from ffcv_r50.training.evaluation import Restricted, evaluate, how
from ffcv_r50.training.forward import Forward
from ffcv_r50.training.precision import Precision
from ffcv_r50.training.predictions import Predictions

PREDICTIONS = "predictions_eval.npz"
"""In ``logging.folder``, where one is given: what the network made of each sample. It has a name of its
own because the folder may be that of a run."""


def run(config: Config, world: distributed.World, console: Console) -> None:
    """Evaluate ``--checkpoint`` on the validation set and on ``validation.sets``; print exact metrics."""
    assert config.checkpoint.file is not None, "the configuration asks for it"
    validation, val_file = config.validation, config.data.val_dataset
    files = {n: file for n, file in validation.sets.items() if not file.endswith(".json")}
    val_set, *opened = build.datasets(config, world, val_file, *files.values())
    others = dict(zip(files, opened, strict=True))
    with distributed.errors_on_all_ranks():
        build.set_up_torch(config, world.device)
        weights, _ = saved.weights_of(Path(config.checkpoint.file), None, config)
        network = saved.load(config, weights, world.device)
        num_classes = saved.check_classes(network, val_set, f"--checkpoint={weights}")
        if val_set.num_classes < num_classes:
            console.say(
                f"note: the network has {num_classes} classes, {val_set.path} has "
                f"{val_set.num_classes}"
            )
        known = _class_names(config, val_set, num_classes) if validation.sets else []
        columns = {name: _columns(known, name, others[name]) for name in others}
        right = {
            name: real_labels.read(Path(file), known, val_set, val_file)
            for name, file in validation.sets.items()
            if name not in files
        }
    predictions = Predictions(val_set.num_samples, world.device)
    metrics = _evaluate(network, val_set, config, world, console, predictions)
    predicted = predictions.arrays(val_set.labels, num_classes)
    results = [_result("val", val_file, num_classes, metrics)]
    for name, file in validation.sets.items():
        if name in right:
            images, *hits = real_labels.score(predicted["classes"], right[name])
            results.append(sets.result(name, file, num_classes, images, *hits))
        else:
            restricted = Restricted(network, columns[name])
            found = _evaluate(restricted, others[name], config, world, console)
            results.append(_result(name, file, len(columns[name]), found))
    seen = how(validation.resolution, validation.tta)
    if world.is_main and config.logging.folder:
        now = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        evaluation = sets.Evaluation(weights=str(weights), time=now, seen=seen, sets=tuple(results))
        _write(Path(config.logging.folder), evaluation, predicted)
    console.say(
        f"top-1 {metrics.top_1:.3f} %, top-5 {metrics.top_5:.3f} %, loss {metrics.loss:.4f} on all "
        f"{metrics.count:,} validation images ({seen})"
    )
    if validation.sets:
        for line in sets.lines(results):
            console.say(line)


def _class_names(config: Config, val_set: Beton, num_classes: int) -> Sequence[str]:
    """What the network's classes are called: by the training set, else by the validation set.

    Raises:
        UserError: nobody says, or two classes have one name, or the two sets disagree.
    """
    train_file = config.data.train_dataset
    trained_on = Sidecar.read(train_file) if train_file else None
    for sidecar in (trained_on, val_set.sidecar):
        if sidecar and len(sidecar.classes) == len(set(sidecar.classes)) == num_classes:
            known = sidecar.classes
            break
    else:
        raise UserError(
            f"validation.sets: what the network's {num_classes} classes are called is not known: neither "
            f"{sidecar_path(train_file or 'data.train_dataset')} nor {sidecar_path(val_set.path)} "
            "has as many different names; write one of them with writers/write_imagenet.py"
        )
    labelled = val_set.sidecar.classes if val_set.sidecar else []
    if labelled != list(known)[: len(labelled)]:
        raise UserError(
            f"{val_set.path}: its classes are not those of {train_file}; list it under "
            "validation.sets, where classes are matched by name"
        )
    return known


def _columns(known: Sequence[str], name: str, other: Beton) -> list[int]:
    """Which of the network's classes those of an evaluation set are.

    Raises:
        UserError: the network lacks one, or the set has no names.
    """
    if other.sidecar is None:
        raise UserError(
            f"validation.sets: {name}: {sidecar_path(other.path)}, which has the names of its classes, "
            "is not there; copy it there, or write the dataset with writers/write_imagenet.py"
        )
    try:
        return names.positions(known, other.sidecar.classes)
    except KeyError as error:
        raise UserError(
            f"validation.sets: {name}: {other.path} has the class '{error.args[0]}', the network does not "
            f"(its first of {len(known):,} is '{known[0]}'); leave it out with --cfg.classes=FILE"
        ) from error


def _evaluate(
    network: nn.Module,
    dataset: Beton,
    config: Config,
    world: distributed.World,
    console: Console,
    predictions: Predictions | None = None,
) -> Metrics:
    with distributed.errors_on_all_ranks():
        loader = build.val_loader(config, dataset, world)
    with loader.epoch() as batches:
        metrics = evaluate(
            network,
            batches,
            num_samples=dataset.num_samples,
            device=world.device,
            precision=Precision(config.training.precision, world.device),
            tta=config.validation.tta,
            forward=Forward(world.device, config.data.statistics),
            predictions=predictions,
        )
        build.warn_of_gray_images(batches, config, console)
    return metrics


def _result(name: str, file: str, classes: int, metrics: Metrics) -> sets.Result:
    hits = (round(share / 100 * metrics.count) for share in (metrics.top_1, metrics.top_5))
    return sets.result(name, file, classes, metrics.count, *hits)


def _write(folder: Path, evaluation: sets.Evaluation, predicted: Arrays) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_arrays(folder / PREDICTIONS, predicted)
        sets.write(evaluation, folder)
    except OSError as error:
        raise UserError(
            f"logging.folder={folder}: {PREDICTIONS} and {sets.FILE} cannot be written there "
            f"({error.strerror}); make room there, or choose another"
        ) from error
