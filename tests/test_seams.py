"""What is added as one file that registers itself works by name from a recipe: every kind of thing.

The files are in ``tests/plugins``; that of an image source is tested in ``tests/writers``.
"""

import functools
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision

from ffcv_r50.errors import FINISHED
from ffcv_r50.logs.row import TIMES
from ffcv_r50.run import checkpoint
from tests import ranks
from tests.conftest import TRAIN_IMAGES, Dataset
from tests.logs.test_tensorboard import scalars
from tests.logs.test_wandb import history

RECIPE = """
model:     {arch: resnet18}
data:      {num_workers: 1, crop_scale: [0.3, 1.0]}
training:  {epochs: 2, batch_size: 16, norm_batch_size: 8, deterministic: true}
optimizer: {name: sign_sgd, gain: 2}
loss:      {name: hinge, margin: 0.5}
augment:   [{invert_pixels: {every: 3}}, {invert: {every: 3}}, {invert: {}}]
averages:  [{latest: {}}]
logging:   {every: 1, samples: true, sinks: [{step_lines: {}}, {broken: {}}]}
schedule:  {lr: {0: 0.0005}, resolution: {0: 32}}
validation: {resolution: 40, batch_size: 8}
checkpoint: {every: 1 steps}
"""

SINKS = (
    "--logging.sinks=[{step_lines: {}}, {broken: {}}, {tensorboard: {}}, {wandb: {mode: offline}}]"
)


def register() -> None:
    """In each rank, before it reads the recipe."""
    from tests import plugins  # noqa: F401


def killed(step: int) -> None:
    register()
    ranks.at_step(step, signal.SIGKILL)()


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("seams") / "recipe.yaml"
    path.write_text(RECIPE)
    return path


@pytest.fixture(scope="module")
def finished(dataset: Dataset, recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with all of them."""
    folder = tmp_path_factory.mktemp("seams") / "finished"
    arguments = dataset._replace(recipe=recipe).arguments(folder, SINKS)
    ended = ranks.run(arguments, folder, ranks=1, hook=register)
    assert ended.codes == [FINISHED], ended.outputs
    warning = "warning: log sink broken: ConnectionError: the server is gone; training goes on"
    assert ended.outputs[0].count(warning) == 1, ended.outputs
    return folder


@pytest.mark.slow
def test_the_sink_got_every_step_and_epoch(finished: Path) -> None:
    lines = sorted(line.split() for line in (finished / "steps.txt").read_text().splitlines())
    assert [int(words[1]) for words in lines if words[0] == "step"] == list(range(8))
    tops = [float(words[3]) for words in lines if words[0] == "epoch"]
    assert tops == [row["top_1"] for row in ranks.log(finished)]
    losses = [float(words[3]) for words in lines if words[0] == "step"]
    for epoch, row in enumerate(ranks.log(finished)):
        assert row["train_loss"] == pytest.approx(sum(losses[4 * epoch : 4 * epoch + 4]) / 4)


@pytest.mark.slow
def test_the_average_is_evaluated_and_logged(finished: Path) -> None:
    for row in ranks.log(finished):
        for key in ("val_loss", "top_1", "top_5"):
            assert row[f"latest_{key}"] == row[key]
    state = checkpoint.load(finished / "checkpoints" / checkpoint.LAST)["learner"]
    averaged = state["averages"]["latest"]["network"]
    assert all(torch.equal(averaged[name], state["model"][name]) for name in state["model"])


@pytest.mark.slow
def test_the_optimizer_moved_every_weight_by_the_rate(
    dataset: Dataset, recipe: Path, tmp_path: Path
) -> None:
    """Sign descent with a gain of 2: each step moves each weight by two learning rates."""
    arguments = dataset._replace(recipe=recipe).arguments(tmp_path / "run")
    ended = ranks.run(arguments, tmp_path, ranks=1, hook=functools.partial(killed, 2))
    assert ended.codes == [-signal.SIGKILL]
    states = [
        checkpoint.load(tmp_path / "run" / "checkpoints" / name)["learner"]["model"]["fc.bias"]
        for name in (checkpoint.PREVIOUS, checkpoint.LAST)
        if (tmp_path / "run" / "checkpoints" / name).exists()
    ]
    torch.manual_seed(0)
    before = torchvision.models.resnet18(num_classes=3).fc.bias
    for number, state in enumerate(states, 1):
        moved = (state - before) / 0.001
        torch.testing.assert_close(moved.abs(), moved.abs().round(), atol=2e-3, rtol=0)
        assert moved.abs().max() <= number + 2e-3
        assert moved.abs().max() > 0.9


@pytest.mark.slow
def test_killed_and_continued_with_all_of_them(
    finished: Path, dataset: Dataset, recipe: Path, tmp_path: Path
) -> None:
    arguments = dataset._replace(recipe=recipe).arguments(tmp_path / "run", SINKS)
    ended = ranks.run(arguments, tmp_path, ranks=1, hook=functools.partial(killed, 6))
    assert ended.codes == [-signal.SIGKILL]
    ended = ranks.run(arguments, tmp_path, ranks=1, hook=register)
    assert ended.codes == [FINISHED], ended.outputs
    assert "continuing after epoch 1 of 2 and" in ended.outputs[0]
    ranks.assert_same_run(finished, tmp_path / "run")
    one, two = (folder / "steps.txt" for folder in (finished, tmp_path / "run"))
    assert sorted(one.read_text().splitlines()) == sorted(two.read_text().splitlines())
    for kind, name, count in (("steps", "loss", 8), ("epochs", "top_1", 2)):
        points = [scalars(folder, kind, name) for folder in (finished, tmp_path / "run")]
        assert points[0] == points[1]
        assert [number for number, _ in points[0]] == list(range(count))
    assert_same_history(finished, tmp_path / "run")
    assert_same_ledgers(finished, tmp_path / "run")


def assert_same_ledgers(one: Path, two: Path) -> None:
    """The ledgers are the same to the bit, and say what the log does of all images together."""
    for row in ranks.log(one):
        ledgers = [np.load(run / "ledger" / f"epoch_{row['epoch'] + 1}.npz") for run in (one, two)]
        for name in ("loss", "correct"):
            np.testing.assert_array_equal(ledgers[0][name], ledgers[1][name])
        loss, correct = ledgers[0]["loss"], ledgers[0]["correct"]
        shown = ~np.isnan(loss)
        assert loss.shape == (TRAIN_IMAGES,)
        assert shown.sum() == 64  # four steps of sixteen
        assert row["train_top_1"] == 100 * correct[shown].mean()
        assert not correct[~shown].any()


def assert_same_history(one: Path, two: Path) -> None:
    """Weights & Biases has one run for each folder, with the same rows but for times."""
    found = []
    for folder in (one, two):
        rows, runs = history(folder)
        assert len({run.run_id for run in runs}) == 1
        assert sorted(row["step"] for row in rows if "step" in row) == list(range(8))
        assert sorted(row["epoch"] for row in rows if "epoch" in row) == [0, 1]
        times = {f"{kind}s/{name}" for kind in ("step", "epoch") for name in TIMES}
        rows = [{key: row[key] for key in sorted(row) if key not in times} for row in rows]
        found.append(sorted(map(str, rows)))
    assert found[0] == found[1]


@pytest.mark.slow
def test_two_ranks_see_what_one_saw(
    finished: Path, dataset: Dataset, recipe: Path, tmp_path: Path
) -> None:
    arguments = dataset._replace(recipe=recipe).arguments(tmp_path / "run")
    ended = ranks.run(arguments, tmp_path, ranks=2, hook=register)
    assert ended.codes == [FINISHED] * 2, ended.outputs
    ranks.assert_same_run(finished, tmp_path / "run")
    assert_same_ledgers(finished, tmp_path / "run")
