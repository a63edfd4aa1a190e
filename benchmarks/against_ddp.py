"""Our step, which sums everything at once, against one with DistributedDataParallel.

    OMP_NUM_THREADS=1 torchrun --nproc_per_node=2 -m benchmarks.against_ddp
        [--resolution 128] [--steps 5] [--rounds 5] [--json FILE] [--section.key=value ...]

Both train the same network on the same images, in turns, with the same optimizer; DDP's sums the loss,
the votes to stop and the statistics of batch-norm by a second all-reduce, as this toolkit did until it
had one buffer for all. The configuration is ``benchmarks.train_step``'s. The medians of the seconds a
step are printed, and the ratio: above 1 where ours is faster.
"""

import contextlib
import inspect
import json
import statistics
from collections.abc import Callable
from pathlib import Path

import torch
from torch.nn.parallel import DistributedDataParallel

from benchmarks import train_step
from benchmarks.train_step import Bench
from ffcv_r50 import build, distributed, recipe
from ffcv_r50.errors import UserError, exit_with
from ffcv_r50.models.batchnorm import RunningStatistics, share_statistics
from ffcv_r50.training.losses.cross_entropy import cross_entropy
from ffcv_r50.training.protocols import Step
from ffcv_r50.training.transforms.normalize import Normalize


def main() -> None:
    """Measure and print."""
    config, options = train_step.configuration(__doc__ or "")
    with (
        distributed.world(config.dist.timeout_seconds) as world,
        train_step.dataset(config, world) as dataset,
    ):
        if world.size == 1:
            raise UserError("a single process has nothing to sum; start with torchrun")
        bench = Bench(config, options, dataset, world)
        kinds = {"ours": bench.step_only, "DDP": lambda: bench.rate(with_ddp(bench))}
        seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
        for done in range(1, options.rounds + 1):
            for kind, run in kinds.items():
                seconds[kind].append(config.training.batch_size / run())
            if world.is_main:
                shown = ", ".join(f"{kind} {seconds[kind][-1]:.3f} s" for kind in kinds)
                print(f"round {done}/{options.rounds}: {shown}", flush=True)
        if world.is_main:
            ours, ddp = (statistics.median(seconds[kind]) for kind in kinds)
            row = {"ours_seconds": ours, "ddp_seconds": ddp, "ratio": ddp / ours}
            print(f"ours {ours:.3f} s a step, DDP {ddp:.3f} s: {ddp / ours:.2f}x")
            if options.json_file:
                Path(options.json_file).write_text(json.dumps(row, indent=1) + "\n")


def with_ddp(bench: Bench) -> Callable[[int], None]:
    """A network of its own, and a function that trains it for some steps."""
    config, world, plan = bench.config, bench.world, bench.plan
    network = build.network(config, bench.num_classes, world.device)
    network = share_statistics(network, plan.group_size)
    # Buffers are the same everywhere after each step. torch 2.15 renamed the argument.
    names = inspect.signature(DistributedDataParallel).parameters
    buffers = {
        name: False for name in ("forward_sync_buffers", "broadcast_buffers") if name in names
    }
    wrapped = DistributedDataParallel(
        network,
        gradient_as_bucket_view=True,
        **dict([*buffers.items()][:1]),  # type: ignore[arg-type]
    )
    momentum = config.training.momentum
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-4, momentum=momentum)
    running, normalize = RunningStatistics(network), Normalize(world.device)
    sums = torch.zeros(2 + running.size, device=world.device)
    step = Step(0, 0, 0.0, recipe.values(config, 0.0))

    def work(steps: int) -> None:
        for _ in range(steps):
            network.train()
            running.begin()
            sums.zero_()
            for part in range(plan.micro_batches):
                last = part == plan.micro_batches - 1
                with contextlib.nullcontext() if last else wrapped.no_sync():
                    logits = wrapped(normalize.images(bench.batch.images))
                    loss = cross_entropy(logits.float(), bench.batch.targets, step)
                    (loss / plan.micro_batches).backward()
                sums[0] += loss.detach()
                running.add_to(sums[2:])
            distributed.all_reduce_sum(sums)
            mean = sums[2:] / (plan.micro_batches * world.size)
            running.advance(mean, plan.micro_batches)
            gradients = [p.grad for p in network.parameters() if p.grad is not None]
            torch.stack(torch._foreach_norm(gradients)).norm()
            optimizer.step()
            optimizer.zero_grad()

    return work


if __name__ == "__main__":
    exit_with(main, together=True)
