"""What networks draw at random: a function of seed, step and position, like torch's otherwise."""

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from ffcv_r50.data import philox
from ffcv_r50.errors import UserError
from ffcv_r50.models.dropout import STREAM, draw_by_position, philox4x32

CPU = torch.device("cpu")


def drawn(module: nn.Module, x: Tensor, positions: range, step: int = 3, seed: int = 7) -> Tensor:
    network = nn.Sequential(module).train()
    draw_by_position(network, seed, CPU).begin(step, positions)
    found: Tensor = network(x)
    return found


def test_the_numbers_are_philoxs() -> None:
    """The same as the data path's, which is tested against Random123's known answers."""
    rng = np.random.default_rng(0)
    counters = rng.integers(0, 2**32, (20, 4))
    key = 0x0123_4567_89AB_CDEF
    c0, c1, c2, c3 = torch.from_numpy(counters).unbind(1)
    words = philox4x32(c0, c1, c2, c3, key)
    for i, (n0, n1, n2, n3) in enumerate(counters.tolist()):
        expected = philox.philox4x32(n0, n1, n2, n3, np.uint64(key))
        assert [int(word[i]) for word in words] == [int(word) for word in expected]
    assert max(philox.ORDER_STREAM, philox.PAGES_STREAM, philox.POOLS_STREAM) + 2**20 < STREAM


@pytest.mark.parametrize(
    ("module", "shape"),
    [(nn.Dropout(0.3), (24, 5, 7)), (StochasticDepth(0.4, "row"), (24, 5, 2, 2))],
)
def test_any_cut_of_the_batch_draws_the_same(module: nn.Module, shape: tuple[int, ...]) -> None:
    x = torch.randn(shape)
    positions = range(100, 100 + len(x))
    whole = drawn(module, x, positions)
    for parts in (2, 3, 8, 24):
        size = len(x) // parts
        pieces = [
            drawn(module, x[at : at + size], positions[at : at + size])
            for at in range(0, len(x), size)
        ]
        assert torch.equal(torch.cat(pieces), whole)
    for other in (drawn(module, x, positions, step=4), drawn(module, x, positions, seed=8)):
        assert not torch.equal(other, whole)
    assert not torch.equal(drawn(module, x, range(101, 101 + len(x))), whole)


@pytest.mark.parametrize("p", [0.0, 0.25, 0.5, 1.0])
def test_as_many_are_dropped_as_asked_and_the_others_scaled(p: float) -> None:
    x = torch.ones(4000, 101)
    y = drawn(nn.Dropout(p), x, range(4000))
    kept = y != 0
    # Four standard deviations of 404,000 draws, and of 4,000 (a sample) and 101 (an element).
    assert kept.float().mean().item() == pytest.approx(1 - p, abs=4 * 0.5 / 404_000**0.5)
    assert (kept.float().mean(0) - (1 - p)).abs().max() < 5 * 0.5 / 4000**0.5
    assert (kept.float().mean(1) - (1 - p)).abs().max() < 5 * 0.5 / 101**0.5
    if p < 1:
        torch.testing.assert_close(y[kept], torch.full_like(y[kept], 1 / (1 - p)))


def test_rows_are_dropped_whole() -> None:
    x = torch.ones(4000, 3, 2, 2)
    y = drawn(StochasticDepth(0.2, "row"), x, range(4000)).flatten(1)
    assert torch.equal(y.amin(1), y.amax(1))
    assert (y[:, 0] != 0).float().mean().item() == pytest.approx(0.8, abs=4 * 0.4 / 4000**0.5)


def test_layers_draw_by_themselves() -> None:
    network = nn.Sequential(nn.Dropout(0.5), nn.Identity(), nn.Dropout(0.5)).train()
    draw_by_position(network, 0, CPU).begin(0, range(64))
    x = torch.ones(64, 8)
    assert not torch.equal(network[0](x), network[2](x))


def test_windows_of_a_sample_are_drawn_apart() -> None:
    """Swin and MaxViT cut images into windows, which lie side by side as rows."""
    x = torch.ones(6 * 4, 50)
    whole = drawn(nn.Dropout(0.5), x, range(6))
    half = drawn(nn.Dropout(0.5), x[: 3 * 4], range(3))
    assert torch.equal(whole[: 3 * 4], half)
    assert len({tuple(row.tolist()) for row in whole}) == len(whole)


def test_evaluation_drops_nothing() -> None:
    network = nn.Sequential(nn.Dropout(0.5), StochasticDepth(0.5, "row"))
    draw_by_position(network, 0, CPU)
    x = torch.randn(4, 3)
    assert torch.equal(network.eval()(x), x)


@pytest.mark.parametrize("module", [nn.Dropout2d(0.5), StochasticDepth(0.5, "batch")])
def test_what_would_depend_on_the_world_size_is_refused(module: nn.Module) -> None:
    with pytest.raises(UserError, match="depends on the number of processes"):
        draw_by_position(nn.Sequential(module), 0, CPU)


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["efficientnet_b0", "squeezenet1_1", "vit_b_16", "swin_t"])
def test_torchvisions_networks_draw_by_position_alone(arch: str) -> None:
    """No generator of torch's has a part in a forward pass of training."""
    torch.manual_seed(0)
    side = 224 if arch == "vit_b_16" else 64
    network = torchvision.models.get_model(arch, num_classes=3).train()
    names = list(network.state_dict())
    draws = draw_by_position(network, 0, CPU)
    assert list(network.state_dict()) == names
    x = torch.randn(2, 3, side, side)
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        draws.begin(5, range(2))
        before = torch.get_rng_state()
        with torch.no_grad():
            found.append(network(x))
        assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(found[0], found[1])
