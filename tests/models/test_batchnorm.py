"""Running statistics against the definition: one step of the average by the mean over all parts."""

import torch
from torch import nn

from ffcv_r50.models.batchnorm import RunningStatistics


def test_one_step_advances_by_the_mean_over_the_parts() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm2d(3, momentum=0.1), nn.BatchNorm2d(3, momentum=0.3))
    for norm in model:
        norm.running_mean.uniform_()  # type: ignore[operator]
        norm.running_var.uniform_()  # type: ignore[operator]
    mean = [norm.running_mean.clone() for norm in model]  # type: ignore[operator]
    var = [norm.running_var.clone() for norm in model]  # type: ignore[operator]
    parts = torch.randn(4, 5, 3, 2, 2) * 2 + 1

    statistics = RunningStatistics(model)
    assert statistics.size == 12
    for step in range(2):
        statistics.begin()
        sums = torch.zeros(statistics.size)
        seen: list[list[torch.Tensor]] = [[], []]
        for part in parts[2 * step : 2 * step + 2]:
            x = part
            for i, norm in enumerate(model):
                seen[i].append(x)
                x = norm(x)
            statistics.add_to(sums)
        statistics.advance(sums / 2, parts=2)
        for i, momentum in enumerate((0.1, 0.3)):
            batch_mean = torch.stack([x.mean((0, 2, 3)) for x in seen[i]]).mean(0)
            batch_var = torch.stack([x.var((0, 2, 3)) for x in seen[i]]).mean(0)  # unbiased
            mean[i] = (1 - momentum) * mean[i] + momentum * batch_mean
            var[i] = (1 - momentum) * var[i] + momentum * batch_var
    for i, norm in enumerate(model):
        torch.testing.assert_close(norm.running_mean, mean[i])
        torch.testing.assert_close(norm.running_var, var[i])
        assert norm.num_batches_tracked == 2, "counts steps, not parts"


def test_a_single_part_is_torchs_own_batch_norm() -> None:
    torch.manual_seed(0)
    ours, theirs = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
    statistics = RunningStatistics(ours)
    for x in torch.randn(3, 4, 3, 2, 2):
        statistics.begin()
        sums = torch.zeros(statistics.size)
        assert torch.equal(ours(x), theirs(x))
        statistics.add_to(sums)
        statistics.advance(sums, parts=1)
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict())


def test_a_network_without_batch_norm_is_left_alone() -> None:
    statistics = RunningStatistics(nn.Linear(2, 2))
    assert statistics.size == 0
    statistics.begin()
    statistics.add_to(torch.zeros(0))
    statistics.advance(torch.zeros(0), parts=3)
