"""Running statistics against the definition, and shared statistics against torch's batch-norm."""

import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest
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


# Four ranks in two groups; each takes a quarter of the samples and leaves what it computed.
RANK = """
import datetime, sys
import torch
import torch.distributed as dist
from ffcv_r50.models import batchnorm

rank, folder = int(sys.argv[1]), sys.argv[2]
timeout = datetime.timedelta(seconds=77)
init = f"file://{folder}/rendezvous"
dist.init_process_group("gloo", init_method=init, rank=rank, world_size=4, timeout=timeout)
given = torch.load(f"{folder}/given.pt", weights_only=False)
model = batchnorm.share_statistics(given["model"], 2)
subgroup = model[0]._group._get_backend(torch.device("cpu"))
assert subgroup.options._timeout == timeout, "torch's default is 30 minutes"
x = given["x"].chunk(4)[rank].requires_grad_()
half = model[0](x.detach().bfloat16())
forward = model
if given["compiled"]:
    forward = torch.compile(model, backend="aot_eager", fullgraph=True, dynamic=False)
out = forward(x)
(out * given["slope"].chunk(4)[rank]).sum().backward()
found = {"out": out.detach(), "grad": x.grad, "half": str(half.dtype), "state": None, "eval": None}
found["parameters"] = {name: p.grad for name, p in model.named_parameters()}
found["eval"] = model.eval()(x).detach()
found["state"] = model.state_dict()
torch.save(found, f"{folder}/{rank}.pt")
dist.destroy_process_group()
"""


@pytest.mark.slow
@pytest.mark.parametrize("compiled", [False, True])
def test_groups_of_ranks_normalise_as_one_process_does(tmp_path: Path, compiled: bool) -> None:
    torch.manual_seed(0)
    # A mean far from zero: where squares are added up, float32 has nothing left of the variance.
    x = torch.randn(8, 3, 4, 4) * torch.rand(8, 1, 1, 1) + 300
    model = nn.Sequential(
        nn.BatchNorm2d(3, momentum=1.0),
        nn.Conv2d(3, 5, 1, bias=False),
        nn.BatchNorm2d(5, momentum=1.0, affine=False),
        nn.ReLU(),
        nn.Flatten(),
    )
    nn.init.uniform_(model[0].weight)  # type: ignore[arg-type]
    given = {"model": model, "x": x, "slope": torch.randn(8, 80), "compiled": compiled}
    torch.save(given, tmp_path / "given.pt")
    command = [sys.executable, "-c", RANK]
    ranks = [
        subprocess.Popen([*command, f"{rank}", f"{tmp_path}"], env={"PATH": os.environ["PATH"]})
        for rank in range(4)
    ]
    assert [rank.wait(timeout=120) for rank in ranks] == [0] * 4
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in range(4)]

    def joined(key: str, group: int) -> torch.Tensor:
        return torch.cat([found[rank][key] for rank in (2 * group, 2 * group + 1)])

    for group in range(2):
        part = x[4 * group : 4 * group + 4].clone().requires_grad_()
        one = copy.deepcopy(model)
        one[0](part.detach().bfloat16())
        out = one(part)
        (out * given["slope"][4 * group : 4 * group + 4]).sum().backward()  # type: ignore[index]
        torch.testing.assert_close(joined("out", group), out, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(joined("grad", group), part.grad, atol=1e-3, rtol=1e-3)
        for name, parameter in one.named_parameters():
            grad = sum(found[rank]["parameters"][name] for rank in (2 * group, 2 * group + 1))
            torch.testing.assert_close(grad, parameter.grad, atol=1e-3, rtol=1e-3)
        for rank in (2 * group, 2 * group + 1):
            state = found[rank]["state"]
            torch.testing.assert_close(state, dict(one.state_dict()), atol=1e-4, rtol=1e-4)
        evaluated = one.eval()(part)
        torch.testing.assert_close(joined("eval", group), evaluated, atol=1e-4, rtol=1e-4)
    assert found[0]["half"] == "torch.bfloat16"
