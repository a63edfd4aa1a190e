"""Outcomes of images against a plain loop."""

import math

import pytest
import torch
import torch.nn.functional as F

from ffcv_r50.training.outcomes import COUNTS, Outcomes

CPU = torch.device("cpu")


def noted(logits: torch.Tensor, targets: torch.Tensor, each: bool = True) -> torch.Tensor:
    """In micro-batches of two."""
    outcomes = Outcomes(len(logits), CPU, each=each)
    for _ in range(2):  # the second step must know nothing of the first
        outcomes.begin()
        for start in range(0, len(logits), 2):
            rows = slice(start, start + 2)
            outcomes.add(logits[rows], targets[rows], range(start, start + 2))
        outcomes.begin_sum()
    return outcomes.end_sum()


@pytest.mark.parametrize("classes", [3, 8])
def test_each_image_is_judged_by_itself(classes: int) -> None:
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(10, classes, generator=generator)
    targets = torch.randint(classes, (10,), generator=generator)
    values = noted(logits, targets)
    losses, rights, top_5 = [], [], 0
    for row, target in zip(logits.double(), targets, strict=True):
        losses.append(float(row.exp().sum().log() - row[target]))
        rank = int((row > row[target]).sum())
        rights.append(float(rank == 0))
        top_5 += rank < 5
    assert values[:COUNTS].tolist() == [sum(rights), top_5, 10]
    assert values[COUNTS:].view(2, -1)[0].tolist() == pytest.approx(losses, rel=1e-5)
    assert values[COUNTS:].view(2, -1)[1].tolist() == rights
    assert noted(logits, targets, each=False).tolist() == values[:COUNTS].tolist()


def test_mixed_images_do_not_count_but_have_a_loss() -> None:
    logits = torch.tensor([[2.0, 0, 0], [0, 2, 0], [2, 0, 0], [0, 2, 0]])
    targets = F.one_hot(torch.tensor([0, 0, 0, 0]), 3).float()
    targets[2] = torch.tensor([0.3, 0.7, 0])
    targets[3] = torch.tensor([0.3, 0.7, 0])
    values = noted(logits, targets)
    assert values[:COUNTS].tolist() == [1, 2, 2]
    losses, rights = values[COUNTS:].view(2, -1).tolist()
    assert rights == [1, 0, 0, 1]
    total = math.log(math.exp(2) + 2)
    assert losses == pytest.approx([total - 2, total, total - 0.6, total - 1.4], rel=1e-5)
