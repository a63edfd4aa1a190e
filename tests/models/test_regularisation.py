"""Stochastic depth and dropout: torchvision's and timm's networks, and what a setting makes of them."""

import pytest
import torch
import torchvision
from timm.models.resnet import resnet50 as timm_resnet50
from torch import nn
from torchvision.ops import StochasticDepth

from ffcv_r50 import models
from ffcv_r50.errors import UserError
from ffcv_r50.models.dropout import draw_by_position

CPU = torch.device("cpu")


def depths(network: nn.Module) -> list[float]:
    return [layer.p for layer in network.modules() if isinstance(layer, StochasticDepth)]


@pytest.mark.parametrize("arch", ["resnet18", "resnet50"])
def test_a_resnet_computes_what_torchvisions_does(arch: str) -> None:
    torch.manual_seed(0)
    ours = models.build(arch, 5, stochastic_depth=0.0)
    theirs = torchvision.models.get_model(arch, num_classes=5)
    assert [*ours.state_dict()] == [*theirs.state_dict()]
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(3, 3, 64, 64)
    for mode in (True, False):
        assert torch.equal(ours.train(mode)(x), theirs.train(mode)(x))


def test_deeper_branches_are_left_out_more_often_as_in_timms() -> None:
    theirs = timm_resnet50(drop_path_rate=0.05)
    expected = [
        getattr(b.drop_path, "drop_prob", 0.0) for b in theirs.modules() if hasattr(b, "drop_path")
    ]
    assert depths(models.build("resnet50", 5, stochastic_depth=0.05)) == pytest.approx(expected)


def test_a_branch_left_out_is_the_shortcut_alone() -> None:
    """Drawn by position: each image of a batch on its own gives the same."""
    network = models.build("resnet18", 5, stochastic_depth=0.5).double()
    for layer in network.modules():  # batch statistics would tie the images together
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = 0.0
            layer.forward = lambda input: input  # type: ignore[method-assign]
    draws = draw_by_position(network, 3, CPU)
    x = torch.randn(8, 3, 32, 32, dtype=torch.double)
    draws.begin(7, range(8))
    whole = network.train()(x)
    for i in range(8):
        draws.begin(7, range(i, i + 1))
        torch.testing.assert_close(network(x[i : i + 1]), whole[i : i + 1])
    assert not torch.allclose(network.eval()(x), whole)


def test_networks_that_have_it_keep_their_proportions() -> None:
    own = depths(models.build("efficientnet_b0", 5))
    more = depths(models.build("efficientnet_b0", 5, stochastic_depth=0.4))
    assert max(more) == pytest.approx(0.4)
    factor = 0.4 / max(own)
    assert more == pytest.approx([p * factor for p in own])


def test_dropout() -> None:
    network = models.build("mobilenet_v3_small", 5, dropout=0.35)
    assert [m.p for m in network.modules() if isinstance(m, nn.Dropout)] == [0.35]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stochastic_depth": 0.1}, "model.stochastic_depth: vgg11 has no residual branches"),
        ({"dropout": 0.1}, "model.dropout: resnet18 has no dropout"),
    ],
)
def test_where_there_is_none(options: dict[str, float], message: str) -> None:
    arch = message.split(": ")[1].split()[0]
    with pytest.raises(UserError, match=message):
        models.build(arch, 5, **options)  # type: ignore[arg-type]
