"""The recipe files: each holds the numbers that were published, and only those."""

import math
from pathlib import Path

import pytest
import torch
import torchvision
import yaml

from ffcv_r50 import build, recipe
from ffcv_r50.config import settings
from ffcv_r50.config.settings import (
    Config,
    Data,
    Dist,
    Logging,
    Model,
    Schedule,
    Training,
    Validation,
)
from ffcv_r50.data.beton import Beton
from ffcv_r50.distributed import World
from ffcv_r50.errors import UserError
from ffcv_r50.keyframes import Keyframes
from ffcv_r50.run.compatibility import differences
from ffcv_r50.training.averages.ema import Ema
from ffcv_r50.training.precision import Precision
from ffcv_r50.training.transforms.colout import ColOut
from tests.conftest import Dataset

RCP = Path(__file__).resolve().parents[1] / "rcp"

# ffcv-imagenet's README: ramp of the resolution, then top-1, top-5 and minutes of rn50 and rn18.
PUBLISHED = {
    16: (11, 13, "73.8", "90.8", "14.9", "66.9", "86.8", "35.0"),
    24: (17, 20, "75.6", "92.1", "21.7", "68.8", "88.1", "51.6"),
    32: (23, 27, "76.6", "92.7", "28.7", "70.0", "88.9", "68.9"),
    40: (29, 34, "77.2", "93.2", "35.6", "70.6", "89.4", "85.5"),
    56: (41, 48, "78.0", "93.7", "49.4", "71.3", "89.9", "119.4"),
    88: (65, 76, "78.4", "94.1", "77.2", "72.4", "90.3", "187.3"),
}


def load(name: str) -> Config:
    return settings.load([f"--config={RCP / name}.yaml"], needs_data=False)


def header(name: str) -> str:
    lines = (RCP / f"{name}.yaml").read_text().splitlines()
    return "\n".join(line for line in lines if line.startswith("#"))


def published(arch: str, epochs: int) -> Config:
    """The recipe as ffcv-imagenet's table and configuration files give it."""
    start, end, *_ = PUBLISHED[epochs]
    peak = {"resnet50": 1.7, "resnet18": 0.5}[arch]
    return Config(
        model=Model(arch=arch, blurpool=True),
        data=Data(),
        training=Training(
            epochs=epochs,
            batch_size={"resnet50": 4096, "resnet18": 1024}[arch],
            norm_batch_size={"resnet50": 512, "resnet18": 1024}[arch],
            label_smoothing=0.1,
            weight_decay={"resnet50": 1e-4, "resnet18": 5e-5}[arch],
            momentum=0.9,
        ),
        schedule=Schedule(
            lr=Keyframes({0: {1.7: 1.7e-4, 0.5: 0.5e-4}[peak], 2: peak, epochs: 0}),
            resolution=Keyframes({0: 160, start: 160, end: 192, epochs: 192}),
        ),
        validation=Validation(resolution=256, crop_ratio=224 / 256, tta="flip"),
        logging=Logging(),
        dist=Dist(),
    )


@pytest.mark.parametrize("epochs", PUBLISHED)
@pytest.mark.parametrize(
    ("short", "arch", "gpus"), [("rn50", "resnet50", 8), ("rn18", "resnet18", 1)]
)
def test_the_published_recipes(short: str, arch: str, gpus: int, epochs: int) -> None:
    name = f"{short}_{epochs}ep"
    assert load(name) == published(arch, epochs)
    top_1, top_5, minutes = PUBLISHED[epochs][2:5] if short == "rn50" else PUBLISHED[epochs][5:]
    text = header(name)
    result = f"Published: {top_1} % top-1, {top_5} % top-5, {minutes} minutes on {gpus} x A100."
    assert result in text
    assert "github.com/libffcv/ffcv-imagenet" in text
    assert f"--config rcp/{name}.yaml" in text
    assert (f"--nproc_per_node={gpus}" in text) == (gpus > 1)
    assert recipe.plan(load(name), gpus).micro_batches == 1  # as published: no accumulation


def test_the_torchvision_baseline() -> None:
    loaded = load("rn50_90ep_torchvision")
    assert loaded == Config(
        model=Model(arch="resnet50", blurpool=False),
        data=Data(),
        training=Training(
            epochs=90,
            batch_size=8 * 32,
            norm_batch_size=32,
            label_smoothing=0.0,
            weight_decay=1e-4,
            decay_norm_and_bias=True,
            momentum=0.9,
        ),
        schedule=Schedule(
            lr=Keyframes({0: 0.1, 30: 0.01, 60: 0.001}, "step"), resolution=Keyframes({0: 224})
        ),
        validation=Validation(resolution=224, crop_ratio=224 / 256, tta="none"),
        logging=Logging(),
        dist=Dist(),
    )
    metrics = torchvision.models.ResNet50_Weights.IMAGENET1K_V1.meta["_metrics"]["ImageNet-1K"]
    published = f"Published: {metrics['acc@1']:.3f} % top-1, {metrics['acc@5']:.3f} % top-5"
    assert published in header("rn50_90ep_torchvision")
    assert recipe.plan(loaded, 8).micro_batches == 1


def test_torchvisions_second_recipe() -> None:
    loaded = load("rn50_600ep_torchvision")
    metrics = torchvision.models.ResNet50_Weights.IMAGENET1K_V2.meta["_metrics"]["ImageNet-1K"]
    published = f"Published: {metrics['acc@1']:.3f} % top-1, {metrics['acc@5']:.3f} % top-5"
    assert published in header("rn50_600ep_torchvision")
    assert recipe.plan(loaded, 8).micro_batches == 1
    # torchvision's: (1 - 0.99998) x 1024 x 32 / 600 of the new weights every 32 steps, of 1251.
    share = (1 - 0.99998) * 1024 * 32 / 600
    half_life = math.log(0.5) / math.log(1 - share) * 32 / 1251
    (average,) = loaded.averages
    assert isinstance(average, Ema)
    assert average.half_life == pytest.approx(half_life, rel=0.02)


def test_mosaics_recipes_add_methods_to_each_other() -> None:
    """As its own files do; the sizes grow from 0.4 (hot: 0.2) to 0.8 of the run."""
    mild, medium, hot = (
        load(f"rn50_{name}")
        for name in ("60ep_mosaic_mild", "90ep_mosaic_medium", "360ep_mosaic_hot")
    )
    longer = ["schedule.lr", "schedule.resolution", "training.epochs", "training.label_smoothing"]
    assert differences(mild, medium) == ["augment", "sam.interval", "sam.rho", *longer]
    more = ["augment", "model.stochastic_depth", "sam.interval", *longer, "training.weight_decay"]
    assert differences(medium, hot) == more
    assert ColOut(rows=0.05, columns=0.05) in hot.augment
    assert [recipe.seen_size(hot, side) for side in (104, 176)] == [(98, 98), (167, 167)]
    for recipe_, delay, first in ((mild, 0.4, 88), (medium, 0.4, 88), (hot, 0.2, 104)):
        points = [point[:2] for point in recipe_.schedule.resolution.points]
        epochs = recipe_.training.epochs
        assert points == [(0, first), (delay * epochs, first), (0.8 * epochs, 176)]
        assert recipe.plan(recipe_, 8).micro_batches == 1


def test_the_demo_is_for_two_processes() -> None:
    assert recipe.plan(load("digits"), 2).micro_batches >= 1


# ------------------------------------------------------------------------------- what each file does

RECIPES = sorted(RCP.glob("*.yaml"))
UNSHARED = {"digits": 32, "rn50_100ep_swa": 50}
"""Recipes whose batch 64 processes cannot share, and fewer that can."""


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
@pytest.mark.parametrize("world_size", [1, 8, 64])
def test_a_recipe_plans_or_says_how_many_can(path: Path, world_size: int) -> None:
    config = load(path.stem)
    if world_size == 64 and path.stem in UNSHARED:
        with pytest.raises(UserError, match=f"start {UNSHARED[path.stem]} "):
            recipe.plan(config, world_size)
        return
    plan = recipe.plan(config, world_size)
    shared = plan.micro_batch_size * plan.micro_batches * world_size
    assert shared == config.training.batch_size
    assert plan.micro_batch_size * plan.group_size == config.norm_batch_size


@pytest.mark.slow
@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_takes_two_steps(path: Path, dataset: Dataset) -> None:
    """Of a small network on small images; its last ones too, where strengths have tapered."""
    small = ["--model.arch=resnet18", "--training.batch_size=16", "--training.norm_batch_size=8"]
    small += ["--schedule.resolution={0: 32}", "--training.precision=fp32", "--data.num_workers=1"]
    config = settings.load([f"--config={path}", *small], needs_data=False)
    world = World(0, 1, 0, 1, torch.device("cpu"))
    plan = recipe.plan(config, 1)
    train_set = Beton(dataset.train)
    loader = build.train_loader(config, train_set, plan, world)
    network = build.network(config, train_set.num_classes, world.device)
    before = {name: tensor.clone() for name, tensor in network.named_parameters()}
    precision = Precision("fp32", world.device)
    train_step = build.train_step(
        config, network, precision, plan, train_set.num_classes, loader.steps_per_epoch, world
    )
    last = config.training.epochs - 1
    for epoch in (last // 2, last):
        with loader.epoch(epoch, 32) as loaded:
            batches = build.train_batches(loaded, plan, world)
            loss, _, norm, *_ = train_step(batches, recipe.step(config, epoch, 1, 4)).tolist()
        assert math.isfinite(loss)
        assert 0 < norm < math.inf
    moved = [not torch.equal(tensor, before[name]) for name, tensor in network.named_parameters()]
    assert sum(moved) > 0.8 * len(moved)  # behind a zeroed scale nothing moves at first


# ---------------------------------------------------------------------------------- what each file is


def check_readable_alone(path: Path) -> None:
    """What a recipe must be, ours or an added one."""
    text = path.read_text()
    assert text.startswith("# "), (
        f"{path.name}: begin with a comment: what is trained, and its result"
    )
    assert f"--config rcp/{path.name}" in text, f"{path.name}: its header lacks its own command"
    assert "# Published: " not in text or "\n# By: " in text, (
        f"{path.name}: published by whom, where?"
    )
    assert max(map(len, text.splitlines())) <= 100
    written = yaml.safe_load(text)
    assert {"model", "training", "schedule", "validation"} <= set(written)
    assert {"epochs", "batch_size", "norm_batch_size", "weight_decay", "momentum"} <= set(
        written["training"]
    )
    assert {"resolution", "crop_ratio", "tta"} <= set(written["validation"])
    # Where data lies and where a run writes belongs to the command line.
    assert "logging" not in written
    assert not {"train_dataset", "val_dataset"} & set(written.get("data", {}))
    assert settings.load([f"--config={path}"], needs_data=False)


def test_only_recipes_are_here() -> None:
    others = {path.name for path in RCP.iterdir() if path.suffix != ".yaml"}
    assert others == {"recipe.schema.json"}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_is_readable_alone(path: Path) -> None:
    check_readable_alone(path)


def test_a_recipe_can_be_added(tmp_path: Path) -> None:
    """As the README says: copy a file and change it. Its header must not stay the other's."""
    copy = tmp_path / "mine.yaml"
    text = (RCP / "rn50_16ep.yaml").read_text()
    copy.write_text(text)
    with pytest.raises(AssertionError, match="lacks its own command"):
        check_readable_alone(copy)
    copy.write_text(text.replace("rn50_16ep.yaml", "mine.yaml"))
    check_readable_alone(copy)
