"""One optimizer step over the global batch."""

import copy
import functools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ffcv_r50 import distributed, optim
from ffcv_r50.models.batchnorm import RunningStatistics
from ffcv_r50.models.dropout import Draws
from ffcv_r50.optim import Parts
from ffcv_r50.optim.clipping import Clipping
from ffcv_r50.optim.clipping.none import unclipped
from ffcv_r50.training.averages import NETWORK
from ffcv_r50.training.forward import Forward
from ffcv_r50.training.graphs import Graphs
from ffcv_r50.training.outcomes import Outcomes
from ffcv_r50.training.precision import Precision
from ffcv_r50.training.protocols import Average, Batch, Loss, Step, Transform
from ffcv_r50.training.reduction import StepSums
from ffcv_r50.training.sam import PLAIN, Sam, uphill

NONE: Any = math.nan
"""Number and epoch of no step: what a loss computes from them is no number either, which ends the run."""


class TrainStep:
    """Trains a network, one call a step.

    Args:
        network: on its device, the same on every rank.
        optimizer: of its parameters.
        transforms: applied to each micro-batch in order. The first of them normalises; without any,
            the forward pass does, which may be compiled.
        loss: what is minimised.
        averages: follow the network, by the name that logs call them.
        precision: that the network computes in.
        draws: of the network's dropout, see :mod:`ffcv_r50.models.dropout`.
        forward: runs the network on images, compiled or not.
        micro_batches: of a step on this rank, see :func:`ffcv_r50.recipe.plan`.
        ranks: that share a step, each with as many micro-batches.
        outcomes: what is noted of the images of a step.
        clipping: of the step's gradient, see :mod:`ffcv_r50.optim.clipping`.
        sam: where the step's gradient is taken, see :mod:`ffcv_r50.training.sam`.
        parts: of the network, as the optimizer's groups know them; None for a single one.
        overlapped: sum gradients over the ranks during the last backward pass.
        reduce_bf16: send gradients to the other ranks as bf16, see
            :class:`~ffcv_r50.training.reduction.StepSums`.
        graphs: record forward and backward passes; None runs them as written.
    """

    def __init__(
        self,
        network: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        transforms: Sequence[Transform],
        loss: Loss,
        averages: Mapping[str, Average],
        precision: Precision,
        draws: Draws,
        forward: Forward,
        micro_batches: int,
        ranks: int,
        outcomes: Outcomes,
        clipping: Clipping = unclipped,
        sam: Sam = PLAIN,
        parts: Parts | None = None,
        overlapped: bool = False,
        reduce_bf16: bool = False,
        graphs: Graphs | None = None,
    ) -> None:
        self.network = network
        self.optimizer = optimizer
        self.averages = averages
        self.precision = precision
        self.scaler = precision.scaler()
        self._transforms = transforms
        self._loss = loss
        self.clip = clipping
        self._sam = sam
        self._parts = parts or Parts(network)
        self._draws = draws
        self._outcomes = outcomes
        self._micro_batches = micro_batches
        self._passes = micro_batches * ranks
        self._statistics = RunningStatistics(network)
        self._sums = StepSums(
            network.parameters(),
            self._statistics.size,
            overlapped=overlapped,
            bf16=reduce_bf16,
        )
        self.forward = forward
        self._graphs = graphs

    def __call__(self, batches: Iterator[Batch], step: Step, stop: bool = False) -> Tensor:
        """One step over the next ``micro_batches`` batches of every rank.

        Args:
            batches: this rank's, on the device.
            step: which one it is, and the values of the schedule that hold.
            stop: whether this rank asks to stop.

        Returns:
            float32 on the device, the same on every rank: the mean loss over the global batch (at the
            weights themselves), the number of ranks that ask to stop, the norm of the gradient that
            the step takes, before clipping, and the :class:`~ffcv_r50.training.outcomes.Outcomes`.
            Where the norm is not finite, an fp16 step was skipped and any other spoilt the network.
        """
        sums, statistics, outcomes = self._sums, self._statistics, self._outcomes
        radius = self._sam.radius(step)
        kept: list[Batch] = []
        self._parts.train(step.epoch)
        optim.set_hyperparameters(
            self.optimizer,
            lr=step.values["lr"],
            momentum=step.values["momentum"],
            weight_decay=step.values["weight_decay"],
            multipliers=self._parts.at(step.epoch),
        )
        statistics.begin()
        sums.begin(stop)
        outcomes.begin()
        for part in range(1, self._micro_batches + 1):
            batch = self._transformed(next(batches), step)
            if radius:  # bytes and plain targets lie in the loader's memory
                images = batch.images
                images = images.clone() if images.dtype == torch.uint8 else images
                kept.append(batch._replace(images=images, targets=batch.targets.clone()))
            logits = self._add_gradients(batch, step, last=part == self._micro_batches)
            outcomes.add(logits, batch.targets, batch.positions)
        sums.reduce()
        outcomes.begin_sum()
        loss, votes, mean = (
            sums.loss / self._passes,
            sums.votes.clone(),
            sums.statistics / self._passes,
        )
        if radius:
            with uphill(
                self.network.parameters(), torch.linalg.vector_norm(sums.gradients), radius
            ):
                sums.begin(stop=False)
                for part, batch in enumerate(kept, 1):
                    self._add_gradients(batch, step, last=part == len(kept))
                sums.reduce()
        statistics.advance(mean, self._micro_batches + len(kept))
        self.scaler.unscale_(self.optimizer)
        norm = torch.linalg.vector_norm(sums.gradients)
        self.clip(sums.gradients, norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        for average in self.averages.values():
            average.update(self.network, step)
        return torch.cat([torch.stack([loss, votes, norm]), outcomes.end_sum()])

    def networks(self) -> dict[str, nn.Module]:
        """What is evaluated: the network, and its averages as far as there is anything in them."""
        found = {name: average.network() for name, average in self.averages.items()}
        return {NETWORK: self.network} | {name: net for name, net in found.items() if net}

    def _add_gradients(self, batch: Batch, step: Step, *, last: bool) -> Tensor:
        """Add a micro-batch's share to the step's sums; returns its logits.

        Args:
            batch: as the network sees it.
            step: which one it is.
            last: whether no other batch is added to these sums on this rank.
        """
        self._draws.begin(step.number, batch.positions)
        if self._graphs is None:
            return self._passes_of(batch.images, batch.targets, step, last)
        # What is recorded keeps the numbers of its step, so the loss is given none that change.
        smoothing = step.values["label_smoothing"]
        any_step = Step(step.seed, NONE, NONE, {"label_smoothing": smoothing})
        passes = functools.partial(self._passes_of, step=any_step, last=False)
        constants = (smoothing, self._parts.frozen)
        logits = self._graphs(passes, batch.images, batch.targets, constants)
        if last:
            self._sums.begin_reduce()
        return logits

    def _passes_of(self, images: Tensor, targets: Tensor, step: Step, last: bool) -> Tensor:
        """Forward and backward pass; what a CUDA graph records."""
        logits = self._logits(images)
        loss = self._loss(logits, targets, step)
        self._sums.loss += loss.detach()
        self._statistics.add_to(self._sums.statistics)
        if last:
            self._sums.begin_reduce()
        # Divided by the passes of all ranks before the backward pass: a gradient is the same
        # number whichever rank computes it, and no pass over all of them divides it later.
        self.scaler.scale(loss / self._passes).backward()
        return logits.detach()

    def _transformed(self, batch: Batch, step: Step) -> Batch:
        """A micro-batch as the network sees it."""
        for transform in self._transforms:
            batch = transform(batch, step)
        return batch

    def _logits(self, images: Tensor) -> Tensor:
        """float32 logits of transformed images, in training."""
        with self.precision.autocast():
            return self.forward(self.network, images).float()

    @torch.no_grad()
    def recompute_statistics(
        self, network: nn.Module, batches: Iterator[Batch], steps: Iterable[Step]
    ) -> None:
        """Give ``network`` the batch-norm statistics that the images of some steps have with its weights.

        They are the mean over the steps' micro-batches on all ranks. All ranks must call it. Those of
        parts that are frozen in the first step stay.

        Args:
            network: with the names and shapes of the one that is trained, which lends it its forward
                pass: so statistics are shared and images drawn as in training.
            batches: as for a step.
            steps: as many as there are batches for.
        """
        if not self._statistics.size:
            return
        kept = copy.deepcopy(self.network.state_dict())
        try:
            self.network.load_state_dict(network.state_dict())
            sums, passes = torch.zeros_like(self._sums.statistics), 0
            for step in steps:
                if not passes:
                    self._parts.train(step.epoch)
                for _ in range(self._micro_batches):
                    batch = self._transformed(next(batches), step)
                    self._draws.begin(step.number, batch.positions)
                    self._logits(batch.images)
                    self._statistics.add_to(sums)
                passes += self._passes
            distributed.all_reduce_sum(sums)
            self._statistics.replace(sums / passes)
            # Everything but the statistics is the network's own already.
            network.load_state_dict(self.network.state_dict())
        finally:
            self.network.load_state_dict(kept)

    def state_dict(self) -> dict[str, Any]:
        """Everything here that the next step depends on."""
        return {
            "model": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "averages": {name: average.state_dict() for name, average in self.averages.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from :meth:`state_dict`."""
        self.network.load_state_dict(state["model"])
        optim.load_state(self.optimizer, state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        # An average that resume.allow let in later begins with the weights as they are now.
        for name, saved in state.get("averages", {}).items():
            if name in self.averages:
                self.averages[name].load_state_dict(saved)
