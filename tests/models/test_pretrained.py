"""Weights to start from, against ``load_state_dict``."""

import pytest
import torch
import torchvision
from torch import nn

from ffcv_r50 import models
from ffcv_r50.errors import UserError
from ffcv_r50.models.pretrained import start_from


def resnet(classes: int, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return models.build("resnet18", classes)


@pytest.mark.parametrize("prefix", ["", "module.", "module._orig_mod."])
def test_all_layers_of_the_same_network(prefix: str) -> None:
    ours, theirs = resnet(5), resnet(5, seed=1)
    saved = {f"{prefix}{name}": tensor for name, tensor in theirs.state_dict().items()}
    assert start_from(ours, saved, "x") == "all layers"
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], tensor)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arch", "head"),
    [
        ("resnet18", "fc"),
        ("mobilenet_v3_small", "classifier.3"),
        ("squeezenet1_1", "classifier.1"),
        ("vit_b_16", "heads.head"),
    ],
)
def test_another_number_of_classes_keeps_the_new_last_layer(arch: str, head: str) -> None:
    names = [f"{head}.weight", f"{head}.bias"]
    ours = models.build(arch, 7)
    theirs = torchvision.models.get_model(arch, num_classes=10)
    before = {name: ours.state_dict()[name].clone() for name in names}
    taken = start_from(ours, theirs.state_dict(), "x")
    assert taken.startswith(f"all layers but the last ({', '.join(names)})")
    for name, tensor in ours.state_dict().items():
        assert torch.equal(tensor, before.get(name, theirs.state_dict()[name])), name


def test_older_files_have_no_counts_of_batches() -> None:
    theirs = resnet(5, seed=1).state_dict()
    old = {name: tensor for name, tensor in theirs.items() if "num_batches" not in name}
    ours = resnet(5)
    start_from(ours, old, "x")
    assert torch.equal(ours.get_buffer("bn1.running_mean"), theirs["bn1.running_mean"])


def test_weights_of_another_network_are_refused_by_layer() -> None:
    ours = resnet(5)
    before = {name: tensor.clone() for name, tensor in ours.state_dict().items()}
    wide = torchvision.models.resnet34(num_classes=5).state_dict()
    with pytest.raises(UserError, match=r"model.weights=f: weights of another network: layer1.2.c"):
        start_from(ours, wide, "model.weights=f")
    del (few := resnet(5, seed=1).state_dict())["layer2.0.conv1.weight"]
    with pytest.raises(UserError, match=r"network: layer2.0.conv1.weight is missing$"):
        start_from(ours, few, "x")
    other = resnet(5, seed=1).state_dict()
    other["conv1.weight"] = torch.zeros(64, 3, 3, 3)
    with pytest.raises(UserError, match=r"conv1.weight is 64 x 3 x 3 x 3, not 64 x 3 x 7 x 7$"):
        start_from(ours, other, "x")
    for name, tensor in before.items():
        assert torch.equal(ours.state_dict()[name], tensor)
