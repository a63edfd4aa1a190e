"""The examples train on the digits: ``examples/`` is code that runs."""

import importlib.util
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from examples import plain_torch, timm_loop
from writers import digits, writing
from writers.config import Writing

SUBSET, BATCH = 24, 8  # three steps an epoch
SMALL = [f"--batch-size={BATCH}", "--resolution=32"]


class Files(NamedTuple):
    train: str
    val: str


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    folder = tmp_path_factory.mktemp("digits")
    digits.export(folder)
    for split in ("train", "val"):
        target = folder / f"{split}.beton"
        writing.write(
            Writing(
                split=split,
                data_dir=str(folder / split),
                write_path=str(target),
                write_mode="jpg",
                subset=SUBSET,
                num_workers=1,
            )
        )
    return Files(f"{folder}/train.beton", f"{folder}/val.beton")


@pytest.mark.slow
def test_plain_torch_stops_and_goes_on(files: Files, tmp_path: Path) -> None:
    """Stopped in the middle of the second epoch and continued, the weights are those of one run."""
    arguments = [*files, *SMALL, "--epochs=2"]
    whole, parts = ([*arguments, f"--checkpoint={tmp_path / name}"] for name in ("whole", "parts"))
    torch.manual_seed(0)
    plain_torch.main(whole)
    torch.manual_seed(0)
    plain_torch.main([*parts, f"--steps={SUBSET // BATCH + 1}"])
    assert torch.load(tmp_path / "parts")["loader"]["step"] == 1
    plain_torch.main(parts)
    one, other = (torch.load(tmp_path / name)["network"] for name in ("whole", "parts"))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_timm_trains(files: Files) -> None:
    top_1 = timm_loop.main([*files, *SMALL, "--model=test_resnet", "--epochs=2"])
    assert 0 <= top_1 <= 100


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Lightning's own
@pytest.mark.skipif(importlib.util.find_spec("lightning") is None, reason="pip install lightning")
def test_lightning_goes_through_its_epochs(files: Files, tmp_path: Path) -> None:
    from examples import lightning_module

    top_1 = lightning_module.main(
        [*files, *SMALL, "--epochs=1"], default_root_dir=tmp_path, accelerator="cpu", logger=False
    )
    assert 0 <= top_1 <= 1
    (checkpoint,) = tmp_path.rglob("*.ckpt")
    loops = torch.load(checkpoint, weights_only=False)["loops"]["fit_loop"]["state_dict"]
    (state,) = loops["combined_loader"]
    assert (state["epoch"], state["step"]) == (0, 3)
