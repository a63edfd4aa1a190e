"""What came out of each step, and what to make of it."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ffcv_r50.errors import RunFault
from ffcv_r50.training.outcomes import COUNTS
from ffcv_r50.training.protocols import Step

WHOLE = 3
"""Numbers that :class:`~ffcv_r50.training.step.TrainStep` returns before the outcomes of images."""


class NotFinite(RunFault):
    """A loss or gradient became infinite or not a number.

    Args:
        step: counted from the run's start.
        what: the quantity and its value.
    """

    everywhere = True

    def __init__(self, step: int, what: str) -> None:
        super().__init__(
            f"{what} in step {step}; the last checkpoint is from before it. Lower the learning "
            "rate, train in bf16 or fp32 (training.precision), or let the run go back and skip "
            "such steps (training.rollbacks)"
        )
        self.step = step


class StepValues(NamedTuple):
    """What came out of one step, on the host."""

    loss: float
    """Mean over the global batch, as trained."""
    gradient_norm: float
    """Before clipping."""
    counts: list[float]
    """See :data:`~ffcv_r50.training.outcomes.COUNTS`."""
    each: Tensor
    """float32 [2, images] where it is asked for, else [2, 0], see
    :class:`~ffcv_r50.training.outcomes.Outcomes`. Valid until the next step but one."""


class StepMetrics:
    """Reads what each step returned one step late, so that the device never waits for Python.

    Args:
        device: where the values are.
        report: is given each step that has been read, and what came out of it.
        skips_overflows: fp16, where a gradient that overflows only skips a step.
    """

    def __init__(
        self,
        device: torch.device,
        report: Callable[[Step, StepValues], None] = lambda step, values: None,
        *,
        skips_overflows: bool = False,
    ) -> None:
        self._cuda = device.type == "cuda"
        self._host: list[Tensor] = []
        self._copied = [torch.cuda.Event() for _ in range(2)] if self._cuda else None
        self._report = report
        self._pending: Step | None = None
        self._skips_overflows = skips_overflows
        self.loss_sum = 0.0
        self._latest: float | None = None
        self.overflows = 0
        self.stop = False
        """Whether some rank asked to stop: becomes true at the same step on all of them."""
        self.fault: NotFinite | None = None
        """What was not finite among the values read, if anything."""
        self._heard = False

    @property
    def latest(self) -> str:
        """The newest loss that has been read, for a line of progress; after the first step there is none."""
        return "loss -" if self._latest is None else f"loss {self._latest:.3f}"

    def push(self, step: Step, values: Tensor) -> None:
        """Take what :class:`~ffcv_r50.training.step.TrainStep` returned for ``step``; :meth:`check` the values before.

        Raises:
            NotFinite: the values before are not.
        """
        if not self._host:
            self._host = [torch.empty(values.shape, pin_memory=self._cuda) for _ in range(2)]
        self._host[step.number % 2].copy_(values, non_blocking=True)
        if self._copied:
            self._copied[step.number % 2].record()
        self.check()
        self._pending = step

    def check(self) -> None:
        """Read, and act on what was read; every rank must do this at the same steps.

        Raises:
            NotFinite: the values are not.
        """
        self.read()
        self.stop = self._heard
        if self.fault is not None:
            raise self.fault

    def read(self) -> None:
        """Read the newest values, if they have not been; a rank may do this by itself."""
        if self._pending is None:
            return
        step, self._pending = self._pending, None
        if self._copied:
            self._copied[step.number % 2].synchronize()
        values = self._host[step.number % 2]
        loss, votes, norm, *counts = values[: WHOLE + COUNTS].tolist()
        self._latest = loss
        each = values[WHOLE + COUNTS :].view(2, -1)
        self._report(step, StepValues(loss, norm, counts, each))
        self._heard = self._heard or votes > 0
        if not math.isfinite(loss):
            self.fault = NotFinite(step.number, f"the loss is {loss}")
            return
        self.loss_sum += loss
        if not math.isfinite(norm):
            if self._skips_overflows:
                self.overflows += 1
            else:
                self.fault = NotFinite(step.number, f"the gradient's norm is {norm}")
