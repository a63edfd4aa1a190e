"""Everything that changes images, targets and averages, switched on at once, on real processes."""

import functools
import signal
from pathlib import Path

import pytest
import torch
import torchvision

from ffcv_r50.errors import BAD_INPUT, FINISHED
from tests import ranks
from tests.conftest import Dataset

RECIPE = """
model:     {{arch: timm/test_efficientnet, dropout: 0.2}}
data:      {{num_workers: 2, crop_scale: [0.3, 1.0], repeats: 3}}
training:
  {{epochs: 2, batch_size: 16, norm_batch_size: 8, label_smoothing: 0.1, deterministic: true,
   lr_multipliers: {{conv_stem: {{0: 0, 0.6: 0, 1: 0.5}}, classifier: 2}}, layer_decay: {{0: 0.9, 2: 1}}}}
augment:
  - trivial_augment: {{}}
  - randaugment: {{magnitude: {{0: 9, 2: 3}}, magnitude_std: 0.5, increasing: true}}
  - auto_augment: {{}}
  - augmix: {{}}
  - affine: {{}}
  - color_jitter: {{hue: 0.1, probability: 0.5}}
  - grayscale: {{probability: 0.2}}
  - blur: {{probability: 0.3}}
  - coarse_dropout: {{}}
  - invert_pixels: {{every: 3}}
  - erasing: {{probability: {{0: 0.8, 2: 0.2}}}}
  - colout: {{rows: 0.1, columns: 0.2}}
  - mix: {{mixup: 0.2, cutmix: {{0: 1, 2: 0.5}}, probability: 0.9}}
  - note: {{folder: '{folder}'}}
sam:       {{rho: 0.05, interval: 2}}
averages:
  - ema: {{half_life: 0.5}}
  - swa: {{start: 0.5, period: 0.25, images: 20}}
  - precise_bn: {{images: 32}}
schedule:  {{lr: {{0: 0.01, 2: 0.001}}, resolution: {{0: 32, 1: 64}}}}
validation: {{resolution: 40, batch_size: 8}}
checkpoint: {{every: 1 steps, weights: swa}}
"""
STEPS = 8  # of 16 of 70 images, in two epochs


def register(kill_at: int | None = None) -> None:
    """In each rank, before it reads the recipe."""
    from tests import plugins  # noqa: F401

    if kill_at is not None:
        ranks.at_step(kill_at, signal.SIGKILL)()


def noted(folder: Path) -> dict[tuple[int, int], str]:
    """The checksums by step and position; a step that was taken twice must have shown the same."""
    found: dict[tuple[int, int], str] = {}
    for path in folder.iterdir():
        for line in path.read_text().splitlines():
            number, position, checksum = line.split()
            assert found.setdefault((int(number), int(position)), checksum) == checksum
    return found


class Made:
    """Runs of the recipe, each with a folder for what its network saw."""

    def __init__(self, dataset: Dataset, folder: Path) -> None:
        self._dataset = dataset
        self._folder = folder

    def run(self, name: str, count: int, kill_at: int | None = None) -> list[int]:
        seen = self._folder / f"{name}-seen"
        seen.mkdir(exist_ok=True)
        recipe = self._folder / f"{name}.yaml"
        recipe.write_text(RECIPE.format(folder=seen))
        arguments = self._dataset._replace(recipe=recipe).arguments(self.path(name))
        hook = functools.partial(register, kill_at)
        ended = ranks.run(arguments, self.path(name), ranks=count, hook=hook)
        assert kill_at is not None or ended.codes == [FINISHED] * count, ended.outputs
        return ended.codes

    def path(self, name: str) -> Path:
        return self._folder / name

    def seen(self, name: str) -> dict[tuple[int, int], str]:
        return noted(self._folder / f"{name}-seen")


@pytest.fixture(scope="module")
def made(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """With one process's undisturbed run, called ``one``."""
    runs = Made(dataset, tmp_path_factory.mktemp("methods"))
    runs.run("one", 1)
    return runs


@pytest.mark.slow
def test_one_process_sees_each_position_of_each_step_and_they_differ(made: Made) -> None:
    seen = made.seen("one")
    assert sorted(seen) == [(step, at) for step in range(STEPS) for at in range(16)]
    assert len(set(seen.values())) == len(seen)


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4, 8])
def test_any_number_of_processes_sees_the_same_images_and_targets(made: Made, count: int) -> None:
    made.run(f"{count}", count)
    assert made.seen(f"{count}") == made.seen("one")


@pytest.mark.slow
@pytest.mark.parametrize(("step", "then"), [(1, 1), (3, 4), (6, 2)])
def test_from_any_step_on_and_on_another_number_of_processes(
    made: Made, step: int, then: int
) -> None:
    name = f"from-{step}"
    made.run(name, 2, kill_at=step)
    made.run(name, then)
    assert made.seen(name) == made.seen("one")


@pytest.mark.slow
@pytest.mark.parametrize("step", [3, 6])
def test_killed_in_the_middle_of_averaging_ends_in_the_same_bits(made: Made, step: int) -> None:
    """Before the second point of SWA, and in the second epoch with all averages under way."""
    if not made.path("two").exists():
        made.run("two", 2)
    name = f"killed-{step}"
    assert made.run(name, 2, kill_at=step) == [-signal.SIGKILL] * 2
    made.run(name, 2)
    for file in ("weights.pt", "weights_network.pt", "weights_ema.pt", "weights_precise_bn.pt"):
        before, after = (
            torch.load(made.path(run) / file, weights_only=True) for run in ("two", name)
        )
        assert before.keys() == after.keys()
        for key in before:
            assert torch.equal(before[key], after[key]), (file, key)
    assert ranks.log(made.path("two")) == ranks.log(made.path(name))
    assert {f"{name}_top_1" for name in ("ema", "swa", "precise_bn")} <= set(
        ranks.log(made.path(name))[-1]
    )


@pytest.mark.slow
def test_a_run_starts_from_weights_and_continues_without_them(
    dataset: Dataset, tmp_path: Path
) -> None:
    """Fine-tuning: another number of classes, and a learning rate that changes almost nothing."""
    file = tmp_path / "start.pt"
    torch.manual_seed(5)
    start = torchvision.models.mobilenet_v3_small(num_classes=10).state_dict()
    torch.save({"state_dict": start}, file)
    more = (
        "--model.arch=mobilenet_v3_small",
        f"--model.weights={file}",
        "--training.epochs=1",
        "--schedule.lr={0: 1.0e-9}",
        "--schedule.resolution={0: 32}",
    )
    arguments = ranks.arguments(dataset, tmp_path / "run", *more)
    hook = ranks.at_step(2, signal.SIGKILL)
    ended = ranks.run(arguments, tmp_path / "run", ranks=1, hook=hook)
    assert ended.codes == [-signal.SIGKILL]
    assert f"starts from {file}: all layers but the last (classifier.3.weight" in ended.outputs[0]
    file.unlink()
    ended = ranks.run(arguments, tmp_path / "run", ranks=1)
    assert ended.codes == [FINISHED], ended.outputs
    weights = torch.load(tmp_path / "run" / "weights.pt", weights_only=True)
    for name, tensor in weights.items():
        if not any(word in name for word in ("running", "num_batches", "classifier.3")):
            torch.testing.assert_close(tensor, start[name], atol=1e-5, rtol=1e-4)
    arguments = ranks.arguments(dataset, tmp_path / "other", *more)
    ended = ranks.run(arguments, tmp_path / "other", ranks=1)
    assert ended.codes == [BAD_INPUT]
    assert f"error: model.weights={file}: cannot be read" in ended.outputs[0]
