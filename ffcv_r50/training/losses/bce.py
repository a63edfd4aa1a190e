"""Binary cross-entropy, each class a question of its own (Beyer et al. 2020, arXiv:2006.07159)."""

from typing import Annotated, Literal

import torch.nn.functional as F
from torch import Tensor

from ffcv_r50.errors import InvalidSetting
from ffcv_r50.registry import Range
from ffcv_r50.training.losses import LOSSES, LossOptions
from ffcv_r50.training.protocols import Loss, Step


@LOSSES.register("bce")
class BinaryCrossEntropy(LossOptions):
    """Binary cross-entropy of each class, as timm's; `training.label_smoothing` is the share spread over
    the classes."""

    reduction: Literal["mean", "sum"] = "mean"
    """Over the classes: `mean` as timm, or `sum` as Composer, whose learning rates are for that.
    Over samples it is the mean."""
    target_threshold: Annotated[float, Range(at_least=0, below=1)] | None = None
    """Targets above it, mixed and smoothed, become 1, the others 0; null leaves them as they are."""

    def check(self, label_smoothing: float, num_classes: int | None) -> None:
        """See that the threshold leaves some targets 0 and some 1, where nothing is mixed."""
        threshold = self.target_threshold
        if threshold is None:
            return
        of_others = label_smoothing / num_classes if num_classes else 0.0
        of_class = 1 - label_smoothing * (1 - 1 / (num_classes or 2))
        smoothed = f"of label smoothing {label_smoothing:g}"
        if num_classes:
            smoothed += f" over {num_classes:,} classes"
        if threshold > of_class - 1e-6:  # of float32, as targets are
            raise InvalidSetting(
                "loss.target_threshold",
                f"{threshold:g} makes every target 0: the largest {smoothed} is "
                f"{'' if num_classes else 'at most '}{of_class:g}; choose a lower one",
            )
        if threshold < of_others:
            raise InvalidSetting(
                "loss.target_threshold",
                f"{threshold:g} makes every target 1: the smallest {smoothed} is {of_others:g}; "
                "choose a higher one",
            )

    def build(self, num_classes: int) -> Loss:
        """In nats; targets are classes or shares of classes."""

        def loss(logits: Tensor, targets: Tensor, step: Step) -> Tensor:
            if not targets.is_floating_point():
                targets = F.one_hot(targets, num_classes).float()
            smoothing = step.values["label_smoothing"]
            targets = targets * (1 - smoothing) + smoothing / num_classes
            if self.target_threshold is not None:
                targets = (targets > self.target_threshold).float()
            of_classes = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
            return (of_classes.sum(1) if self.reduction == "sum" else of_classes.mean(1)).mean()

        return loss
