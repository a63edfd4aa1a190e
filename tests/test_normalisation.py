"""``data.mean`` and ``data.std`` hold wherever images are normalised, against the formula."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ffcv_r50 import build, distributed, eval_only, models, predict, recipe, saved
from ffcv_r50.config import settings
from ffcv_r50.data.beton import Beton
from ffcv_r50.data.loader import EvalLoader
from ffcv_r50.errors import FINISHED, UserError
from ffcv_r50.export.__main__ import export
from ffcv_r50.export.of_bytes import OfBytes, Restored
from ffcv_r50.logs.console import Console
from ffcv_r50.report import batches
from ffcv_r50.training.protocols import Batch, Step
from ffcv_r50.training.transforms.normalize import IMAGENET
from tests.conftest import Dataset
from writers.inspect import __main__ as inspect
from writers.inspect import stats

CPU = torch.device("cpu")
WORLD = distributed.World(0, 1, 0, 1, CPU, cores=1)
MEAN, STD = (0.3, 0.5, 0.625), (0.25, 0.125, 0.5)
WORDS = [f"--data.mean={[*MEAN]}", f"--data.std={[*STD]}"]


@pytest.fixture(scope="module")
def run(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as a finished run leaves it."""
    folder = tmp_path_factory.mktemp("run")
    config = settings.load(dataset.arguments(folder, *WORDS))
    (folder / "config.yaml").write_text(config.to_yaml())
    torch.manual_seed(0)
    network = models.build(num_classes=3, **config.model.network)
    network(torch.randn(8, 3, 40, 40))
    torch.save(network.state_dict(), folder / "weights.pt")
    return folder


def normalised(pixels: Tensor) -> Tensor:
    """Of uint8 [n, height, width, 3]."""
    return ((pixels / 255 - torch.tensor(MEAN)) / torch.tensor(STD)).permute(0, 3, 1, 2)


def crops(dataset: Dataset) -> Tensor:
    """Of all validation images."""
    loader = EvalLoader(Beton(dataset.val), batch_size=100, resolution=40, crop_ratio=0.875)
    with loader.epoch() as loaded:
        return torch.cat([batch.images.clone() for batch in loaded])


def test_training(dataset: Dataset, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    pixels = crops(dataset)
    step = Step(seed=0, number=0, epoch=0.0, values={})
    for more in ([], ["--training.compile=1"]):
        words = [*WORDS, "--augment=[{erasing: {probability: 0}}]", *more]
        config = settings.load(dataset.arguments(run, *words))
        labels = torch.zeros(29, dtype=torch.long)
        batch = Batch(pixels.permute(0, 3, 1, 2), labels, torch.arange(29), range(29))
        for transform in build.batch_transforms(config, 3, CPU):
            batch = transform(batch, step)
        torch.testing.assert_close(batch.images, normalised(pixels))
        images = build.forward(config, WORLD)(nn.Identity(), pixels.permute(0, 3, 1, 2))
        torch.testing.assert_close(images, normalised(pixels))


def test_a_fill_with_the_mean_becomes_zero(dataset: Dataset, run: Path) -> None:
    """Within a gray level's half."""
    fill = "{coarse_dropout: {fill: mean, size: [1, 1], probability: 1}}"
    words = [*WORDS, f"--augment=[{fill}, {{erasing: {{probability: 0}}}}]"]
    config = settings.load(dataset.arguments(run, *words))
    loader = build.train_loader(config, Beton(dataset.train), recipe.plan(config, 1), WORLD)
    [transform, *_] = build.batch_transforms(config, 3, CPU)
    with loader.epoch(0, 32) as loaded:
        batch = next(build.train_batches(loaded, recipe.plan(config, 1), WORLD))
        images = transform(batch, Step(seed=0, number=0, epoch=0.0, values={})).images
    half = torch.tensor([0.5 / 255 / std for std in STD]).view(3, 1, 1)
    assert (images.abs() <= half + 1e-6).all()


def test_evaluation_and_prediction(dataset: Dataset, run: Path, tmp_path: Path) -> None:
    found = saved.find(run, None, {}, CPU)
    images = normalised(crops(dataset))
    with torch.inference_mode():
        logits = (found.network(images) + found.network(images.flip(3))) / 2
    labels = torch.from_numpy(Beton(dataset.val).labels)
    argv = [f"--config={run / 'config.yaml'}", "--training.eval_only=1", f"--checkpoint={run}"]
    eval_only.run(
        settings.load([*argv, f"--logging.folder={tmp_path}"]), WORLD, Console(enabled=False)
    )
    losses = np.load(tmp_path / eval_only.PREDICTIONS)["loss"]
    expected = F.cross_entropy(logits, labels, reduction="none").numpy()
    np.testing.assert_allclose(losses, expected, rtol=1e-4)
    shares = predict.probabilities(found, crops(dataset), CPU)
    torch.testing.assert_close(shares, logits.softmax(1))


def test_export(dataset: Dataset, run: Path, tmp_path: Path) -> None:
    assert export([str(run), "--to=torchvision", "-o", str(tmp_path)]) == FINISHED
    said = json.loads((tmp_path / "model.json").read_text())
    assert (said["mean"], said["std"]) == ([*MEAN], [*STD])
    found, pixels = saved.find(run, None, {}, CPU), crops(dataset)
    of_bytes = OfBytes(nn.Identity(), found.config.data.statistics)
    torch.testing.assert_close(of_bytes(pixels), normalised(pixels))
    restored = Restored(nn.Identity(), found.config.data.statistics)
    assert torch.equal(restored(normalised(pixels)), pixels)


def test_the_pages_show_the_same_pixels(dataset: Dataset, run: Path) -> None:
    train_set = Beton(dataset.train)
    ours, imagenets = (
        batches.seen(settings.load(dataset.arguments(run, *words)), train_set, 0, 1, 4)
        for words in (WORDS, [])
    )
    np.testing.assert_array_equal(ours.pixels, imagenets.pixels)


def test_what_inspect_prints_can_be_pasted(
    dataset: Dataset, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert inspect.main([str(dataset.train), "--stats"]) == 0
    [line] = [x for x in capsys.readouterr().out.splitlines() if "--data.mean=" in x]
    words = [word.replace("'", "") for word in re.findall(r"--data\.\w+='[^']*'", line)]
    statistics = settings.load(dataset.arguments(run, *words)).data.statistics
    found = stats.stats(Beton(dataset.train))
    np.testing.assert_allclose(statistics.mean, found.mean / 255, atol=5e-5)
    np.testing.assert_allclose(statistics.std, found.std / 255, atol=5e-5)


def test_settings(dataset: Dataset, run: Path) -> None:
    assert settings.load(dataset.arguments(run)).data.statistics == IMAGENET
    given = settings.load([f"--config={run / 'config.yaml'}"]).data
    assert given.statistics == (MEAN, STD)
    for words, message in [
        ("--data.mean=[123.7, 116.3, 103.5]", "a list of three numbers at least 0 and at most 1"),
        ("--data.mean=[0.5, 0.5]", "a list of three numbers at least 0 and at most 1 or null, got"),
        (
            "--data.std=[0.2, 0.2, 0]",
            "a list of three numbers above 0 and at most 1 or null, got 0",
        ),
    ]:
        with pytest.raises(UserError, match=f"expected {message}"):
            settings.load(dataset.arguments(run, words))
