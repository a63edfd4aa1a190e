"""How many operations a network costs, against what is known of it."""

from pathlib import Path

import pytest
import torchvision

from ffcv_r50.config import settings
from ffcv_r50.config.settings import Config, Model
from ffcv_r50.errors import UserError
from ffcv_r50.tools import flops

REPOSITORY = Path(__file__).resolve().parents[2]
STEPS = 7  # an odd number: no step falls on a round fraction of an epoch


def load(name: str, *argv: str) -> Config:
    return settings.load([f"--config={REPOSITORY}/rcp/{name}.yaml", *argv], needs_data=False)


def test_resnet50_costs_what_is_known_of_it() -> None:
    forward = flops.count(Model(arch="resnet50"), 1000, 224, training=False)
    published = torchvision.models.ResNet50_Weights.IMAGENET1K_V1.meta["_ops"]  # 4.089 GMAC
    assert sum(forward.values()) / 2e9 == pytest.approx(published, abs=5e-4)
    assert list(forward) == ["stem", "layer1", "layer2", "layer3", "layer4", "head"]
    assert forward["head"] == 2 * 2048 * 1000
    # The backward pass computes two gradients a layer; the stem's input needs none.
    both = flops.count(Model(arch="resnet50"), 1000, 224, training=True)
    stem = 2 * (64 * 3 * 7 * 7) * 112 * 112
    assert forward["stem"] == stem
    assert both["stem"] == 2 * stem
    assert {part: 3 * cost for part, cost in forward.items()} == {**both, "stem": 3 * stem}


def test_blurpool_adds_its_filters() -> None:
    plain = flops.count(Model(arch="resnet18"), 10, 64, training=False)
    blurred = flops.count(Model(arch="resnet18", blurpool=True), 10, 64, training=False)
    # Two strided convolutions at the start of each of layer2 to layer4, blurred by 3 x 3: the
    # first over all of its input, the shortcut's only where the 1 x 1 convolution reads.
    side, channels = 16, 64
    for layer in ("layer2", "layer3", "layer4"):
        extra = 2 * 9 * channels * (side**2 + (side // 2) ** 2)
        assert blurred[layer] - plain[layer] == extra
        side, channels = side // 2, channels * 2


def test_grouped_convolutions_cost_three_passes_too() -> None:
    # torch's own formula takes the gradient of a depthwise weight for a dense one's.
    forward = flops.count(Model(arch="mobilenet_v2"), 1000, 64, training=False)
    both = flops.count(Model(arch="mobilenet_v2"), 1000, 64, training=True)
    stem = 2 * (32 * 3 * 3 * 3) * 32 * 32
    assert sum(both.values()) == 3 * sum(forward.values()) - stem


def test_a_network_that_looks_at_its_weights_while_it_is_built_is_counted() -> None:
    regnet = flops.count(Model(arch="regnet_x_400mf"), 1000, 224, training=False)
    published = torchvision.models.RegNet_X_400MF_Weights.IMAGENET1K_V1.meta["_ops"]
    assert sum(regnet.values()) / 2e9 == pytest.approx(published, abs=5e-4)


def test_a_network_that_refuses_a_resolution() -> None:
    with pytest.raises(UserError, match="vit_b_16 does not take images of 160 x 160 pixels"):
        flops.count(Model(arch="vit_b_16"), 1000, 160, training=True)
    with pytest.raises(UserError, match=r"resnet18 does not take images of 10{14} x 10{14} pixels"):
        flops.count(Model(arch="resnet18"), 1000, 10**14, training=True)
