"""One optimizer step over the global batch."""

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ffcv_r50 import distributed, optim
from ffcv_r50.models.batchnorm import RunningStatistics
from ffcv_r50.models.dropout import Draws
from ffcv_r50.optim.clipping import Clipping
from ffcv_r50.optim.clipping.none import unclipped
from ffcv_r50.training.averages import NETWORK
from ffcv_r50.training.outcomes import Outcomes
from ffcv_r50.training.precision import Precision
from ffcv_r50.training.protocols import Average, Batch, Loss, Step, Transform
from ffcv_r50.training.reduction import StepSums


class TrainStep:
    """Trains a network, one call a step.

    Args:
        network: on its device, the same on every rank.
        optimizer: of its parameters.
        transforms: applied to each micro-batch in order; the first one normalises.
        loss: what is minimised.
        averages: follow the network, by the name that logs call them.
        precision: that the network computes in.
        draws: of the network's dropout, see :mod:`ffcv_r50.models.dropout`.
        micro_batches: of a step on this rank, see :func:`ffcv_r50.recipe.plan`.
        ranks: that share a step, each with as many micro-batches.
        outcomes: what is noted of the images of a step.
        clipping: of the step's gradient, see :mod:`ffcv_r50.optim.clipping`.
        compiled: run the network through torch.compile.
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
        micro_batches: int,
        ranks: int,
        outcomes: Outcomes,
        clipping: Clipping = unclipped,
        compiled: bool = False,
    ) -> None:
        self.network = network
        self.optimizer = optimizer
        self.averages = averages
        self.precision = precision
        self.scaler = precision.scaler()
        self._transforms = transforms
        self._loss = loss
        self._clip = clipping
        self._draws = draws
        self._outcomes = outcomes
        self._micro_batches = micro_batches
        self._parts = micro_batches * ranks
        self._statistics = RunningStatistics(network)
        self._sums = StepSums(network.parameters(), self._statistics.size)
        # Evaluation and checkpoints use self.network itself, free of the wrapper's names.
        self._forward: Any = torch.compile(network) if compiled else network

    def __call__(self, batches: Iterator[Batch], step: Step, stop: bool = False) -> Tensor:
        """One step over the next ``micro_batches`` batches of every rank.

        Args:
            batches: this rank's, on the device.
            step: which one it is, and the values of the schedule that hold.
            stop: whether this rank asks to stop.

        Returns:
            float32 on the device, the same on every rank: the mean loss over the global batch, the
            number of ranks that ask to stop, the norm of the gradient before clipping, and the
            :class:`~ffcv_r50.training.outcomes.Outcomes`. Where the norm is not finite, an fp16 step
            was skipped and any other spoilt the network.
        """
        sums, statistics, outcomes = self._sums, self._statistics, self._outcomes
        self.network.train()
        optim.set_hyperparameters(
            self.optimizer,
            lr=step.values["lr"],
            momentum=step.values["momentum"],
            weight_decay=step.values["weight_decay"],
        )
        statistics.begin()
        sums.begin(stop)
        outcomes.begin()
        for _ in range(self._micro_batches):
            logits, targets, positions = self._logits(next(batches), step)
            loss = self._loss(logits, targets, step)
            # Divided by the parts of all ranks before the backward pass: a gradient is the same
            # number whichever rank computes it, and no pass over all of them divides it later.
            self.scaler.scale(loss / self._parts).backward()
            sums.loss += loss.detach()
            statistics.add_to(sums.statistics)
            outcomes.add(logits, targets, positions)
        sums.reduce()
        outcomes.begin_sum()
        statistics.advance(sums.statistics / self._parts, self._micro_batches)
        self.scaler.unscale_(self.optimizer)
        norm = torch.linalg.vector_norm(sums.gradients)
        self._clip(sums.gradients, norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        for average in self.averages.values():
            average.update(self.network, step)
        whole = torch.stack([sums.loss / self._parts, sums.votes, norm])
        return torch.cat([whole, outcomes.end_sum()])

    def networks(self) -> dict[str, nn.Module]:
        """What is evaluated: the network, and its averages as far as there is anything in them."""
        found = {name: average.network() for name, average in self.averages.items()}
        return {NETWORK: self.network} | {name: net for name, net in found.items() if net}

    def _logits(self, batch: Batch, step: Step) -> tuple[Tensor, Tensor, range]:
        """float32 logits of a micro-batch in training, and the targets and positions of its images."""
        for transform in self._transforms:
            batch = transform(batch, step)
        self._draws.begin(step.number, batch.positions)
        with self.precision.autocast():
            logits = self._forward(batch.images)
        return logits.float(), batch.targets, batch.positions

    @torch.no_grad()
    def recompute_statistics(
        self, network: nn.Module, batches: Iterator[Batch], steps: Iterable[Step]
    ) -> None:
        """Give ``network`` the batch-norm statistics that the images of some steps have with its weights.

        They are the mean over the steps' micro-batches on all ranks. All ranks must call it.

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
            self.network.train()
            sums, parts = torch.zeros_like(self._sums.statistics), 0
            for step in steps:
                for _ in range(self._micro_batches):
                    self._logits(next(batches), step)
                    self._statistics.add_to(sums)
                parts += self._parts
            distributed.all_reduce_sum(sums)
            self._statistics.replace(sums / parts)
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
