"""The one buffer of a step: gradients land in it, and its layout never changes."""

import torch
from torch import nn

from ffcv_r50.training.reduction import ALIGNMENT, StepSums


def network() -> nn.Sequential:
    torch.manual_seed(0)
    layers = nn.Sequential(
        nn.Conv2d(3, 5, 3),
        nn.BatchNorm2d(5),
        nn.Conv2d(5, 7, 1),
        nn.Flatten(),
        nn.Linear(7 * 16, 3),
    )
    return layers.to(memory_format=torch.channels_last)


def test_gradients_are_autograds_own_and_stay_in_the_buffer() -> None:
    ours, theirs = network(), network()
    sums = StepSums(ours.parameters(), 4)
    places = [parameter.grad.data_ptr() for parameter in ours.parameters()]  # type: ignore[union-attr]
    for _ in range(2):
        sums.begin(stop=False)
        theirs.zero_grad()
        for part in torch.randn(3, 8, 3, 6, 6).unbind():
            x = part.to(memory_format=torch.channels_last)
            ours(x).square().mean().backward()
            theirs(x).square().mean().backward()
        for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            assert mine.grad is not None
            assert other.grad is not None
            assert torch.equal(mine.grad, other.grad)
            assert mine.grad.stride() == mine.stride()
    assert [p.grad.data_ptr() for p in ours.parameters()] == places  # type: ignore[union-attr]
    assert all((place - places[0]) % (4 * ALIGNMENT) == 0 for place in places)
    norm = torch.cat([p.grad.flatten() for p in theirs.parameters()]).norm()  # type: ignore[union-attr]
    torch.testing.assert_close(torch.linalg.vector_norm(sums.gradients), norm)


def test_what_goes_with_the_gradients() -> None:
    sums = StepSums(network().parameters(), 4)
    sums.begin(stop=True)
    sums.loss += 2.5
    sums.statistics += torch.arange(4)
    sums.reduce()
    assert (sums.loss.item(), sums.votes.item()) == (2.5, 1.0)
    assert sums.statistics.tolist() == [0, 1, 2, 3]
    assert not sums.gradients.any()
    sums.begin(stop=False)
    assert not sums.votes
    assert not sums.loss
    assert not sums.statistics.any()


def test_frozen_parameters_have_no_place() -> None:
    frozen = network()
    frozen[0].requires_grad_(False)
    sums = StepSums(frozen.parameters(), 0)
    assert frozen[0].weight.grad is None
    assert len(sums.gradients) < len(StepSums(network().parameters(), 0).gradients)
