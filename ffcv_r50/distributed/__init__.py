"""The processes of a run: who this one is, how they talk, and how they end together."""

from ffcv_r50.distributed.group import (
    World,
    all_reduce_sum,
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
    "broadcast_object",
    "broadcast_tensors",
    "collective_timeout",
    "describe",
    "errors_on_all_ranks",
    "world",
]
