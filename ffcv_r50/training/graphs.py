"""Forward and backward passes as CUDA graphs: recorded once for each shape, then started as a whole.

Of a step the passes of its micro-batches are recorded, which start nearly all of its kernels. They find
everything at the same place in each replay: images and targets are copied into buffers, weights,
gradients and statistics never move (:mod:`ffcv_r50.training.reduction`). Transforms, sums over the ranks,
the optimizer and the averages stay outside, so what changes with each step may be Python's numbers there.

The first passes at a shape run as written, on the stream that records later: libraries set themselves up
and choose their kernels, compilers compile. They are passes of real steps. Recording runs nothing. So
there is nothing to take back, and a run with graphs computes what a run without them does.
"""

import functools
import time
from collections.abc import Callable, Hashable
from typing import Protocol

import torch
from torch import Tensor

from ffcv_r50.errors import UserError

WARM_UP = 3
"""Passes before one is recorded, as torch's documentation has it."""

Passes = Callable[[Tensor, Tensor], Tensor]
"""From images and targets to logits; gradients are added to where they belong."""


class Capture(Protocol):
    """How work on a device is recorded."""

    def warm_up(self, work: Callable[[], Tensor]) -> Tensor:
        """Do the work, where and as it will be recorded; its result."""
        ...

    def record(self, work: Callable[[], Tensor]) -> Callable[[], Tensor]:
        """Record the work without doing it.

        Returns:
            What does it on the memory that it was recorded with; its result is overwritten each time.

        Raises:
            RuntimeError: the work cannot be recorded, such as where it reads the device.
        """
        ...


class CudaCapture:
    """Records on a stream of its own, as CUDA wants it.

    Args:
        device: of the network.
    """

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)

    def warm_up(self, work: Callable[[], Tensor]) -> Tensor:
        """See :class:`Capture`."""
        current = torch.cuda.current_stream(self._stream.device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            result = work()
        current.wait_stream(self._stream)
        return result

    def record(self, work: Callable[[], Tensor]) -> Callable[[], Tensor]:
        """See :class:`Capture`."""
        graph = torch.cuda.CUDAGraph()
        # Other threads go on: one copies a checkpoint, others take pinned memory for batches.
        with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
            result = work()

        def replay() -> Tensor:
            graph.replay()
            return result

        return replay


class Graphs:
    """Runs the passes of micro-batches, recorded as soon as a shape is known.

    One recording is kept: of the shape that came last, since each holds the memory of its passes. Where
    passes cannot be recorded, they run as written, and a line says so.

    Args:
        capture: of the device.
        say: takes a line.
    """

    def __init__(self, capture: Capture, say: Callable[[str], None]) -> None:
        self._capture = capture
        self._say = say
        self._key: Hashable = None
        self._buffers: tuple[Tensor, Tensor]
        self._warm = 0
        self._replay: Callable[[], Tensor] | None = None
        self._failed = False

    def __call__(
        self, passes: Passes, images: Tensor, targets: Tensor, constants: Hashable
    ) -> Tensor:
        """The logits of a micro-batch, overwritten by the next one.

        Args:
            passes: what is recorded, with whatever of Python's it was given then.
            images: as the network sees them, [n, 3, height, width].
            targets: [n] or [n, classes].
            constants: all of Python's that ``passes`` depends on; where it changes, they are recorded
                anew.
        """
        if self._failed:
            return passes(images, targets)
        key = (images.shape, images.dtype, targets.shape, targets.dtype, constants)
        if key != self._key:
            self._replay = None  # its memory goes before the next one's comes
            self._key, self._warm = key, 0
            self._buffers = torch.empty_like(images), torch.empty_like(targets)
        for buffer, given in zip(self._buffers, (images, targets), strict=True):
            buffer.copy_(given)
        work = functools.partial(passes, *self._buffers)
        if self._warm < WARM_UP:
            self._warm += 1
            return self._capture.warm_up(work)
        if self._replay is None:
            self._replay = self._record(work, images)
        return self._replay()

    def _record(self, work: Callable[[], Tensor], images: Tensor) -> Callable[[], Tensor]:
        """What replays the work, or the work itself where it cannot be recorded."""
        began = time.perf_counter()
        try:
            replay = self._capture.record(work)
        except RuntimeError as error:
            self._failed = True
            reason = next(iter(f"{error}".strip().splitlines()), "no reason given")
            self._say(
                f"training.cuda_graphs: the passes of this network cannot be recorded "
                f"({type(error).__name__}: {reason}); they run without"
            )
            return work
        n, _, height, width = images.shape
        seconds = time.perf_counter() - began
        self._say(
            f"recorded a CUDA graph for {n} images of {height} x {width} px in {seconds:.1f} s"
        )
        return replay


def check(device: torch.device) -> None:
    """See that a device has graphs.

    Raises:
        UserError: it has none.
    """
    if device.type != "cuda":
        raise UserError("training.cuda_graphs: needs a GPU; pass --training.cuda_graphs=0")
