"""The ranks of a run: launcher, rendezvous, process group, and how they stop together."""

from ffcv_r50.distributed.group import (
    World,
    all_reduce_sum,
    begin_all_reduce_sum,
    begin_all_reduce_sum_bf16,
    broadcast_object,
    broadcast_tensors,
    collective_timeout,
    describe,
    errors_on_all_ranks,
    world,
)

__all__ = [
    "World",
    "all_reduce_sum",
    "begin_all_reduce_sum",
    "begin_all_reduce_sum_bf16",
    "broadcast_object",
    "broadcast_tensors",
    "collective_timeout",
    "describe",
    "errors_on_all_ranks",
    "world",
]
