"""Parameter groups by the type of their module, and SGD as torch's."""

import torch
from torch import nn

from ffcv_r50 import models, optim


def decays(model: nn.Module, decay_norm_and_bias: bool) -> dict[str, float]:
    groups = optim.parameter_groups(model, 0.1, decay_norm_and_bias)
    of = {id(p): g["weight_decay"] for g in groups for p in g["params"]}  # type: ignore[attr-defined]
    return {name: of[id(p)] for name, p in model.named_parameters()}  # type: ignore[misc]


def test_norms_of_the_downsampling_branch_do_not_decay_either() -> None:
    found = decays(models.build("resnet18", 10), decay_norm_and_bias=False)
    assert found["layer2.0.downsample.1.weight"] == 0
    assert found["layer2.0.downsample.0.weight"] == 0.1
    assert found["bn1.weight"] == found["bn1.bias"] == found["fc.bias"] == 0
    assert found["fc.weight"] == found["conv1.weight"] == 0.1
    assert sum(value == 0.1 for value in found.values()) == 20 + 1  # convolutions, classifier


def test_every_parameter_is_in_one_group() -> None:
    for arch in ("resnet18", "convnext_tiny", "vit_b_32"):
        model = models.build(arch, 10)
        groups = optim.parameter_groups(model, 0.1, False)
        ids = [id(p) for group in groups for p in group["params"]]  # type: ignore[attr-defined]
        assert sorted(ids) == sorted(id(p) for p in model.parameters())


def test_all_decay_when_asked() -> None:
    assert set(decays(models.build("resnet18", 10), decay_norm_and_bias=True).values()) == {0.1}


def test_sgd_steps_as_torchs_with_the_rate_that_was_set() -> None:
    ours, theirs = nn.Linear(3, 2, bias=False), nn.Linear(3, 2, bias=False)
    theirs.load_state_dict(ours.state_dict())
    one = optim.sgd(ours, momentum=0.9, nesterov=True, weight_decay=0.01, decay_norm_and_bias=False)
    two = torch.optim.SGD(theirs.parameters(), momentum=0.9, nesterov=True, weight_decay=0.01)
    for lr in (0.5, 0.25, 0.1):
        optim.set_values(one, {"lr": lr})
        two.param_groups[0]["lr"] = lr
        for layer, optimizer in ((ours, one), (theirs, two)):
            optimizer.zero_grad()
            layer(torch.arange(3.0)).square().sum().backward()
            optimizer.step()
    torch.testing.assert_close(ours.weight, theirs.weight)
