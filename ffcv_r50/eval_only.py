"""A run that trains nothing: the exact metrics of saved weights."""

from pathlib import Path

from ffcv_r50 import build, distributed, saved
from ffcv_r50.config.settings import Config
from ffcv_r50.errors import UserError
from ffcv_r50.files import Arrays, write_arrays
from ffcv_r50.logs.console import Console
from ffcv_r50.training.evaluation import evaluate, how
from ffcv_r50.training.precision import Precision
from ffcv_r50.training.predictions import Predictions

PREDICTIONS = "predictions_eval.npz"
"""In ``logging.folder``, where one is given: what the network made of each sample. It has a name of its
own because the folder may be that of a run."""


def run(config: Config, world: distributed.World, console: Console) -> None:
    """Evaluate ``--checkpoint`` on the validation set and print its exact metrics."""
    assert config.checkpoint.file is not None, "the configuration asks for it"
    [val_set] = build.datasets(config, world, config.data.val_dataset)
    with distributed.errors_on_all_ranks():
        build.set_up_torch(config, world.device)
        precision = Precision(config.training.precision, world.device)
        network = saved.load(config, Path(config.checkpoint.file), world.device)
        setting = f"--checkpoint={config.checkpoint.file}"
        num_classes = saved.check_classes(network, val_set, setting)
        if val_set.num_classes < num_classes:
            console.say(
                f"note: the network has {num_classes} classes, {val_set.path} has "
                f"{val_set.num_classes}"
            )
        loader = build.val_loader(config, val_set, world)
    predictions = Predictions(val_set.num_samples, world.device)
    with loader.epoch() as batches:
        metrics = evaluate(
            network,
            batches,
            num_samples=val_set.num_samples,
            device=world.device,
            precision=precision,
            tta=config.validation.tta,
            predictions=predictions,
        )
        build.warn_of_gray_images(batches, config, console)
    predicted = predictions.arrays(val_set.labels, num_classes)
    if world.is_main and config.logging.folder:
        _write(Path(config.logging.folder) / PREDICTIONS, predicted)
    validation = config.validation
    console.say(
        f"top-1 {metrics.top_1:.3f} %, top-5 {metrics.top_5:.3f} %, loss {metrics.loss:.4f} on all "
        f"{metrics.count:,} validation images ({how(validation.resolution, validation.tta)})"
    )


def _write(path: Path, predicted: Arrays) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_arrays(path, predicted)
    except OSError as error:
        raise UserError(
            f"logging.folder={path.parent}: {path.name} cannot be written there "
            f"({error.strerror}); make room there, or choose another"
        ) from error
