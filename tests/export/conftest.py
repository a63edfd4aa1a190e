"""Runs to export."""

from pathlib import Path

import pytest
import torch

from ffcv_r50 import models
from ffcv_r50.config import settings
from tests.conftest import RESNET, Dataset


def make_run(folder: Path, dataset: Dataset, *argv: str) -> Path:
    """A folder as a finished run leaves it."""
    folder.mkdir()
    if not any(word.startswith("--model.arch=") for word in argv):
        argv = (*RESNET, *argv)
    config = settings.load(dataset.arguments(folder, *argv))
    (folder / "config.yaml").write_text(config.to_yaml())
    torch.manual_seed(0)
    network = models.build(num_classes=3, **config.model.network)
    network(torch.randn(8, 3, 40, 40))  # statistics of batch-norm that are none of a new network
    torch.save(network.state_dict(), folder / "weights.pt")
    return folder


@pytest.fixture
def run(dataset: Dataset, tmp_path: Path) -> Path:
    return make_run(tmp_path / "run", dataset)


@pytest.fixture
def blurred(dataset: Dataset, tmp_path: Path) -> Path:
    return make_run(tmp_path / "blurred", dataset, "--model.blurpool=true")
