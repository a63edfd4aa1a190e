"""Clipping as torch's and timm's, on gradients of many sizes; see tests/training/test_step.py, too."""

import copy

import pytest
import timm.utils.agc
import torch
from torch import Tensor, nn

from ffcv_r50 import models
from ffcv_r50.optim.clipping import ClippingOptions
from ffcv_r50.optim.clipping.agc import AdaptiveClipping
from ffcv_r50.optim.clipping.global_norm import ClipNorm
from ffcv_r50.optim.clipping.value import ClipValue
from ffcv_r50.training.reduction import StepSums


def clip(model: nn.Module, options: ClippingOptions) -> list[Tensor]:
    """The gradients of ``model``, laid out as in training and clipped there."""
    given = gradients(model)
    sums = StepSums(model.parameters(), 0)
    for parameter, gradient in zip(model.parameters(), given, strict=True):
        parameter.grad.copy_(gradient)  # type: ignore[union-attr]
    norm = torch.linalg.vector_norm(sums.gradients)
    options.build(model, models.classifier(model))(sums.gradients, norm)
    return gradients(model)


def gradients(model: nn.Module) -> list[Tensor]:
    return [p.grad.clone() for p in model.parameters()]  # type: ignore[union-attr]


@pytest.fixture
def model() -> nn.Module:
    """Channels-last convolutions, norms, zeros among the weights, gradients from small to large."""
    torch.manual_seed(0)
    found = models.build("resnet18", 10, zero_init_residual=True)
    found.to(memory_format=torch.channels_last)
    nn.init.zeros_(found.get_parameter("conv1.weight")[:3])
    for parameter in found.parameters():
        sizes = 10 ** torch.empty(len(parameter)).uniform_(-7, 1)
        sizes = sizes.view(-1, *[1] * (parameter.dim() - 1))
        parameter.grad = torch.randn_like(parameter) * sizes
    found.get_parameter("layer1.0.conv1.weight").grad[5] = 0  # type: ignore[index]
    return found


@pytest.mark.parametrize("at", [0.1, 3.0, 1e9])
def test_by_norm(model: nn.Module, at: float) -> None:
    theirs = copy.deepcopy(model)
    for a, b in zip(theirs.parameters(), model.parameters(), strict=True):
        a.grad = b.grad.clone()  # type: ignore[union-attr]
    nn.utils.clip_grad_norm_(theirs.parameters(), at)
    torch.testing.assert_close(clip(model, ClipNorm(at=at)), gradients(theirs))


def test_a_gradient_within_the_norm_stays_to_the_bit(model: nn.Module) -> None:
    before = gradients(model)
    assert all(map(torch.equal, clip(model, ClipNorm(at=1e9)), before))


@pytest.mark.parametrize("at", [1e-4, 0.5])
def test_by_value(model: nn.Module, at: float) -> None:
    theirs = copy.deepcopy(model)
    for a, b in zip(theirs.parameters(), model.parameters(), strict=True):
        a.grad = b.grad.clone()  # type: ignore[union-attr]
    nn.utils.clip_grad_value_(theirs.parameters(), at)
    assert all(map(torch.equal, clip(model, ClipValue(at=at)), gradients(theirs)))


@pytest.mark.parametrize(("at", "eps"), [(0.01, 1e-3), (0.3, 0.1), (1e-4, 1e-6)])
def test_adaptive(model: nn.Module, at: float, eps: float) -> None:
    theirs = copy.deepcopy(model)
    for a, b in zip(theirs.parameters(), model.parameters(), strict=True):
        a.grad = b.grad.clone()  # type: ignore[union-attr]
    timm.utils.agc.adaptive_clip_grad([*theirs.parameters()][:-2], at, eps)
    before = gradients(model)
    after = clip(model, AdaptiveClipping(at=at, eps=eps))
    torch.testing.assert_close(after, gradients(theirs), rtol=1e-5, atol=0)
    kept = [torch.equal(a, b) for a, b in zip(before, after, strict=True)]
    assert kept[-2:] == [True, True], "of the classifier"
    assert not any(kept[:-2])
    some = [(a == b).flatten(1).all(1) for a, b in zip(before, after, strict=True) if a.dim() > 1]
    assert 0.05 < torch.cat(some[:-1]).float().mean() < 0.95, "units within their share stay"
