"""``show_recipe --probe`` on a device whose memory is made up: a network that runs out of it."""

import gc
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from ffcv_r50 import build
from ffcv_r50.config import settings
from ffcv_r50.config.settings import Config
from ffcv_r50.errors import BAD_INPUT, UserError, exit_with
from ffcv_r50.tools import show_recipe
from ffcv_r50.tools.estimate import probe
from ffcv_r50.tools.estimate.probe import Fit

CPU = torch.device("cpu")
RECIPE = """
model:      {arch: shufflenet_v2_x0_5}
training:   {epochs: 3, batch_size: 48, norm_batch_size: 24}
schedule:   {lr: {0: 0.1, 3: 0}, resolution: {0: 32, 1: 64, 2: 32}}
augment:    [{mix: {mixup: 0.2}}]
averages:   [{ema: {half_life: 1}}]
validation: {resolution: 40, batch_size: 7, tta: flip}
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    return path


def load(path: Path, *more: str) -> Config:
    return settings.load([f"--config={path}", *more], needs_data=False)


class Memory:
    """Of a device: has room for so many images in training, for others in evaluation."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.room = 10
        self.room_in_evaluation = 1000
        self.error: Exception = torch.OutOfMemoryError("CUDA out of memory.")
        self.batches: list[tuple[bool, tuple[int, ...]]] = []
        """Whether in training, and the shape, of each that the network was given."""
        self._networks: list[weakref.ref[nn.Module]] = []
        monkeypatch.setattr(build, "network", self.network)
        monkeypatch.setattr(build, "check_sizes", lambda config, classes: None)  # takes seconds
        for name in ("reset_peak_memory_stats", "synchronize"):
            monkeypatch.setattr(torch.cuda, name, lambda device: None)
        monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: self.peak)
        monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda device: 2 * self.peak)

    @property
    def peak(self) -> int:
        return max(n for training, (n, *_) in self.batches if training) * 10**9

    def network(self, config: Config, num_classes: int, device: torch.device) -> nn.Module:
        assert not any(network() for network in self._networks), "the one before is still there"
        self.batches.clear()
        built = nn.Sequential(
            nn.Conv2d(3, 4, 3, stride=4),
            nn.BatchNorm2d(4),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(4, num_classes),
        )
        built.register_forward_pre_hook(self.given)
        built.cycle = (built,)  # type: ignore[assignment]  # as hooks and compilers make them
        self._networks.append(weakref.ref(built))
        return built

    def given(self, network: nn.Module, inputs: tuple[Tensor]) -> None:
        self.batches.append((network.training, tuple(inputs[0].shape)))
        if len(inputs[0]) > (self.room if network.training else self.room_in_evaluation):
            raise type(self.error)(*self.error.args)  # another each time: it holds its traceback


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[Memory]:
    yield Memory(monkeypatch)
    gc.collect()


def run(config: Config, world_size: int = 1) -> dict[int, Fit | None]:
    return probe.probe(config, 5, 2, world_size, CPU)


def test_the_largest_size_that_fits_is_found_and_printed(
    path: Path, memory: Memory, capsys: pytest.CaptureFixture[str]
) -> None:
    config = load(path)
    tried = run(config)
    # 48 images in pairs: 2, 4, 6, 8, 12, 16, 24, 48.
    assert [*tried] == [24, 12, 6, 8]
    assert [size for size, fit in tried.items() if fit] == [6, 8]
    assert tried[8]
    assert tried[8][:2] == (8 * 10**9, 16 * 10**9)
    assert tried[8].rate > 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == [f"norm_batch_size {n}: out of memory" for n in (24, 12)]
    assert lines[3].startswith("norm_batch_size 8: 8.0 GB, ")

    page = probe.page(config, tried, 1)
    rows = [line.split() for line in page.splitlines() if line.strip()[:1].isdecimal()]
    assert [row[0] for row in rows] == ["6", "8", "12", "24"]
    assert rows[1][1:3] + rows[1][4:] == ["8.0", "16.0", "the", "largest", "that", "fits"]
    assert [" ".join(row[1:]) for row in rows[2:]] == [
        "out of memory",
        "the recipe's, out of memory",
    ]
    assert "\ntraining:\n  norm_batch_size: 8\n" in page
    assert "statistics are those of 8\nimages instead of 24" in page
    again = load(path, "--training.norm_batch_size=8")  # as it says
    assert again.norm_batch_size == 8


def test_steps_are_the_trainers_at_the_largest_resolution(path: Path, memory: Memory) -> None:
    memory.room = 24
    assert [*run(load(path))] == [24, 48]
    memory.room = 100
    run(load(path, "--training.norm_batch_size=48"))
    flipped_too = [(False, (7, 3, 40, 40))] * 2
    assert memory.batches == [(True, (48, 3, 64, 64))] * probe.STEPS + flipped_too
    memory.room = 100
    shared = load(path, "--training.norm_batch_size=48")
    assert " of the recipe's 48\n" in probe.page(shared, run(shared, world_size=4), 4)
    sizes = [shape[0] for training, shape in memory.batches if training]
    assert sizes == [12] * probe.STEPS, "a fourth of the batch, whose statistics four share"


def test_where_the_recipe_fits_it_stays(path: Path, memory: Memory) -> None:
    memory.room = 48
    config = load(path)
    page = probe.page(config, run(config), 1)
    assert "norm_batch_size 24 fits; leave it." in page
    assert "norm_batch_size:" not in page


def test_where_nothing_fits_it_says_so(path: Path, memory: Memory) -> None:
    memory.room = 1
    config = load(path)
    tried = run(config)
    assert [*tried] == [24, 12, 6, 2]
    with pytest.raises(UserError, match="even 2 at a time, images of 64 x 64 px do not fit"):
        probe.page(config, tried, 1)


def test_an_evaluation_that_does_not_fit_is_told_apart(path: Path, memory: Memory) -> None:
    memory.room_in_evaluation = 6
    with pytest.raises(UserError, match=r"^validation\.batch_size: 7 images of 40 x 40 px do not"):
        run(load(path))


@pytest.mark.parametrize(
    "error", [RuntimeError("DefaultCPUAllocator: can't allocate memory"), MemoryError()]
)
def test_a_host_without_memory_is_an_error(path: Path, memory: Memory, error: Exception) -> None:
    memory.error = error
    with pytest.raises(type(error)):
        run(load(path))


def test_without_a_gpu_nothing_is_begun(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as ended:
        exit_with(lambda: show_recipe.show([str(path), "--probe"]))
    assert ended.value.code == BAD_INPUT
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(
        "error: command line: --probe trains some steps on a CUDA GPU and"
    )
    assert printed.err.count("\n") == 1
