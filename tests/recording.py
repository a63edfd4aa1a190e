"""A stand-in for CUDA graphs on CPUs: what torch was told to do, done again on the same memory.

As in a graph, Python's numbers are those of the recording, Python itself does not run again, and every
result lies where it lay then.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, UntypedStorage
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


class Recording(TorchDispatchMode):
    """Notes each operation, of backward passes too, with what it was given and what it gave."""

    def __init__(self) -> None:
        super().__init__()
        self._calls: list[tuple[Any, Any, Any, Any]] = []
        self._before: dict[int, tuple[UntypedStorage, UntypedStorage]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        for tensor in _tensors((args, kwargs)):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in self._before:
                self._before[storage.data_ptr()] = (storage, storage.clone())
        result = func(*args, **kwargs)
        self._calls.append((func, args, kwargs, result))
        return result

    def take_back(self) -> None:
        """Recording is not doing: all memory as it was before."""
        for storage, before in self._before.values():
            storage.copy_(before)

    @torch.no_grad()
    def replay(self) -> None:
        """Do it."""
        for func, args, kwargs, result in self._calls:
            again = func(*args, **kwargs)
            for place, new in zip(_tensors(result), _tensors(again), strict=True):
                if place.data_ptr() != new.data_ptr():  # neither in place nor a view
                    place.copy_(new)


class StandIn:
    """A :class:`ffcv_r50.training.graphs.Capture`, made as its CudaCapture is."""

    def __init__(self, device: torch.device) -> None:
        self.warmed_up = 0
        self.recorded = 0
        self.replayed = 0
        self.error: Exception | None = None
        """Why nothing can be recorded, if so."""

    def warm_up(self, work: Callable[[], Tensor]) -> Tensor:
        self.warmed_up += 1
        return work()

    def record(self, work: Callable[[], Tensor]) -> Callable[[], Tensor]:
        if self.error:
            raise self.error
        self.recorded += 1
        recording = Recording()
        with recording:
            result = work()
        recording.take_back()

        def replay() -> Tensor:
            self.replayed += 1
            recording.replay()
            return result

        return replay
