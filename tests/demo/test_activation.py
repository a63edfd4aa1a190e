"""Class activation maps, against the network's own logits and against a loop over positions."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ffcv_r50 import models
from ffcv_r50.demo import activation

SIDE = 64


class Means(nn.Module):
    """The mean is a function call, as in MobileNetV2; with layers after it, as in MobileNetV3."""

    def __init__(self, *after: nn.Module) -> None:
        super().__init__()
        self.features = nn.Conv2d(3, 8, 16, 16)
        self.after = nn.Sequential(*after)
        self.head = nn.Linear(8, 7)

    def forward(self, images: Tensor) -> Tensor:
        """Logits."""
        logits: Tensor = self.head(self.after(self.features(images).relu().mean((2, 3))))
        return logits


class Clipped(Means):
    """With a module for what is averaged."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(self.features, nn.ReLU(inplace=True))  # type: ignore[assignment]


class Tokens(Means):
    """As in vision transformers: tokens instead of a feature map, the first of which is classified."""

    def forward(self, images: Tensor) -> Tensor:
        """Logits."""
        logits: Tensor = self.head(self.features(images).flatten(2)[:, :, 0])
        return logits


SMALL: dict[str, Callable[[], nn.Module]] = {
    "clipped": Clipped,
    "layers after the mean": lambda: Means(nn.Linear(8, 8), nn.Hardswish()),
    "relu is no module": Means,
    "tokens": Tokens,
}


def network_of(arch: str, **options: bool) -> nn.Module:
    torch.manual_seed(0)
    network = SMALL[arch]() if arch in SMALL else models.build(arch, 7, **options)
    network(torch.randn(2, 3, SIDE, SIDE))
    return network.eval()


@pytest.mark.parametrize(
    ("arch", "options"),
    [
        ("resnet18", {"blurpool": True}),
        ("clipped", {}),
        pytest.param("timm/resnet18", {}, marks=pytest.mark.slow),  # importing timm takes seconds
    ],
)
def test_the_mean_of_a_map_and_the_bias_is_the_logit(arch: str, options: dict[str, bool]) -> None:
    network = network_of(arch, **options)
    image = torch.randn(1, 3, SIDE, SIDE)
    layer = activation.layer_of(network, torch.randn(1, 3, SIDE, SIDE))
    assert layer is not None
    head = models.classifier(network)
    assert isinstance(head, nn.Linear)
    with torch.inference_mode(), activation.recorded(layer) as views:
        logits = (network(image) + network(image.flip(3)))[0] / 2
        maps = activation.maps(views, head, range(7))
    assert maps.shape[0] == 7
    assert maps.shape[1:].numel() > 1
    torch.testing.assert_close(maps.mean((1, 2)) + head.bias, logits, rtol=1e-4, atol=1e-5)
    # Each position on its own: what the classifier would make of its features, less the bias.
    plain, mirrored = (view[0] for view in views)
    _, height, width = plain.shape
    for y in range(height):
        for x in range(width):
            features = (plain[:, y, x] + mirrored[:, y, width - 1 - x]) / 2
            torch.testing.assert_close(maps[:, y, x], head(features) - head.bias)


@pytest.mark.parametrize(
    "arch", ["squeezenet1_1", "layers after the mean", "relu is no module", "tokens"]
)
def test_other_networks_have_none(arch: str) -> None:
    assert activation.layer_of(network_of(arch), torch.randn(1, 3, SIDE, SIDE)) is None


def test_a_single_position_is_no_map_and_nothing_stays_on_the_network() -> None:
    network = network_of("resnet18")
    layer = activation.layer_of(network, torch.randn(1, 3, SIDE, SIDE))
    assert layer is not None
    assert activation.layer_of(network, torch.randn(1, 3, 32, 32)) is None
    with activation.recorded(layer):
        pass
    assert not any(module._forward_hooks for module in network.modules())
    assert not any(module._forward_pre_hooks for module in network.modules())


def test_the_overlay_is_strongest_where_the_map_is() -> None:
    evidence = np.full((4, 4), -1.0, np.float32)
    evidence[1, 2] = 5.0
    picture = np.asarray(activation.overlay(evidence, 64))
    assert picture.shape == (64, 64, 4)
    assert picture[48:, :16, 3].max() == 0, "evidence against a class is not shown"
    y, x = divmod(int(picture[..., 3].argmax()), 64)
    assert (y // 16, x // 16) == (1, 2)
    assert not np.asarray(activation.overlay(-np.ones((4, 4), np.float32), 64))[..., 3].any()
