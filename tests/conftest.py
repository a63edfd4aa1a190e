"""What several test files share: a small dataset, a small recipe, and runs of several processes."""

import os

# Before torch is imported: several workers share the cores, and threads that wait for each other spin.
os.environ["OMP_NUM_THREADS"] = "1"

import gc
import signal
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import pytest
from PIL import Image

if TYPE_CHECKING:
    from xdist.remote import Producer
    from xdist.scheduler import LoadScopeScheduling

os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # nothing here needs the network

REPOSITORY = Path(__file__).resolve().parents[1]
TRAIN_IMAGES = 70  # two batches of 32 and a tail that is dropped
VAL_IMAGES = 29

RECIPE = """
model:    {arch: shufflenet_v2_x0_5}  # takes a tenth of a ResNet-18's time
data:     {num_workers: 1, crop_scale: [0.3, 1.0]}
training: {epochs: 3, batch_size: 32, norm_batch_size: 8, label_smoothing: 0.1, momentum: 0.9}
schedule:
  lr:         {0: 0.002, 1: 0.02, 3: 0.0}
  resolution: {0: 32, 2: 64}
validation: {resolution: 40, crop_ratio: 0.875, tta: flip, batch_size: 8}
"""
RESNET = ("--model.arch=resnet18", "--model.zero_init_residual=1")


class Dataset(NamedTuple):
    """Two ``.beton`` files and a recipe for them."""

    train: Path
    val: Path
    recipe: Path

    def arguments(self, folder: Path, *more: str) -> list[str]:
        """The command line of a run in ``folder``."""
        return [
            f"--config={self.recipe}",
            f"--data.train_dataset={self.train}",
            f"--data.val_dataset={self.val}",
            f"--logging.folder={folder}",
            *more,
        ]


def write_images(folder: Path, count: int, seed: int) -> None:
    """An ImageFolder of three classes told apart by their colour, in sizes that differ."""
    rng = np.random.default_rng(seed)
    for i in range(count):
        label = i % 3
        height, width = rng.integers(40, 90, 2)
        coarse = rng.integers(0, 160, (4, 4, 3)).astype(np.uint8)
        coarse[..., label] += 60
        image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        path = folder / "abc"[label] / f"{i:03}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path, quality=95)


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """70 training and 29 validation images of three classes, and RECIPE."""
    from ffcv_r50.data.beton import Beton
    from ffcv_r50.data.loader import TrainLoader
    from writers import writing
    from writers.config import Writing

    folder = tmp_path_factory.mktemp("dataset")
    files = []
    splits: list[tuple[Literal["train", "val"], int]] = [
        ("train", TRAIN_IMAGES),
        ("val", VAL_IMAGES),
    ]
    for seed, (split, count) in enumerate(splits):
        write_images(folder / split, count, seed)
        path = folder / f"{split}.beton"
        writing.write(
            Writing(
                split=split,
                data_dir=str(folder / split),
                write_path=str(path),
                write_mode="proportion",
                num_workers=1,
            )
        )
        files.append(path)
    # Compiled here, once: a run's first step would otherwise wait for it longer than some time-outs.
    loader = TrainLoader(Beton(files[0]), seed=0, batch_size=32, micro_batch_size=8)
    with loader.epoch(0, 32) as batches:
        next(batches)
    recipe = folder / "recipe.yaml"
    recipe.write_text(RECIPE)
    return Dataset(files[0], files[1], recipe)


class Result(NamedTuple):
    """How the processes of a run ended."""

    codes: list[int]
    output: str
    """Standard output and error of rank 0."""


Launch = Callable[..., Result]


@pytest.fixture
def launch(tmp_path: Path) -> Launch:
    """Run ``train_imagenet.py``'s trainer as one or more ranks; see :mod:`tests.ranks`."""
    from tests import ranks

    def run(arguments: Sequence[str], world_size: int = 1) -> Result:
        ended = ranks.run([*arguments], tmp_path / "outputs", ranks=world_size)
        return Result(ended.codes, ended.outputs[0])

    return run


def pytest_configure() -> None:
    """Have signals do what they do: a shell starts what is in its background with SIGINT ignored, nohup
    ignores SIGHUP, and the processes that tests interrupt would inherit that."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


LONGEST = (
    "tests/slurm/test_cluster.py",
    "tests/test_readme.py",
    "tests/test_methods.py",
    "tests/data/test_loader_benchmark.py",
    "tests/distributed/test_elastic.py",
)
"""Files that several workers (``make test``) begin with, so that none is left with one at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What slow tests run is not traced for coverage, which would take a fifth of their time again."""
    for item in items:
        if item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.no_cover)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Collecting imports what is there to stay; looking through it for garbage takes a sixth of the time."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: "Producer") -> "LoadScopeScheduling":
    """A worker takes whole files, whose tests share what they set up, the longest first.

    The tests of SLURM jobs and of lost processes mostly wait, which is why two cores have three workers.
    With four, tests whose time-outs are seconds have failed.
    """
    from xdist.scheduler import LoadScopeScheduling

    class LongestFirst(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return nodeid.partition("::")[0]

        def _assign_work_unit(self, node: Any) -> None:
            for file in reversed(LONGEST):
                if file in self.workqueue:
                    self.workqueue.move_to_end(file, last=False)
            super()._assign_work_unit(node)

    config.option.loadscopereorder = False
    return LongestFirst(config, log)
