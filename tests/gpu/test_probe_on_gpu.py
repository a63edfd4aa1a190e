"""``show_recipe --probe`` where there is memory to run out of."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from ffcv_r50.tools import show_recipe

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
RECIPE = """
model:      {arch: resnet18}
training:   {epochs: 1, batch_size: 2048, norm_batch_size: 2048}
schedule:   {lr: {0: 0.1, 1: 0}, resolution: {0: 96}}
validation: {resolution: 96, batch_size: 8}
"""


@pytest.fixture
def little_memory() -> Iterator[None]:
    """2 GB of the GPU's."""
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(2e9 / total)
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)


@pytest.mark.usefixtures("little_memory")
def test_what_it_finds_fits_and_twice_as_much_does_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    show_recipe.show([str(path), "--probe"])
    tried = {
        int(line.split()[1].rstrip(":")): line
        for line in capsys.readouterr().out.splitlines()
        if line.startswith("norm_batch_size ") and ":" in line
    }
    fitting = [size for size, line in tried.items() if "images/s" in line]
    assert fitting
    largest = max(fitting)
    assert 16 <= largest < 2048
    assert tried[2 * largest].endswith("out of memory")
    assert 0 < float(tried[largest].split()[2]) <= 2.0, "GB"

    show_recipe.show([str(path), "--probe", f"--training.norm_batch_size={largest}"])
    assert f"norm_batch_size {largest} fits; leave it." in capsys.readouterr().out
    torch.cuda.empty_cache()
    assert torch.cuda.memory_allocated() < 0.1e9, "nothing is left of what was tried"
