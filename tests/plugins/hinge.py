"""A loss: the multi-class hinge."""

import torch.nn.functional as F
from torch import Tensor

from ffcv_r50.training.losses import LOSSES, LossOptions
from ffcv_r50.training.protocols import Loss, Step


@LOSSES.register("hinge")
class Hinge(LossOptions):
    """torch's multi-margin loss."""

    margin: float = 1.0
    """By which the right class should win."""

    def build(self, num_classes: int) -> Loss:
        """As every loss."""

        def hinge(logits: Tensor, targets: Tensor, step: Step) -> Tensor:
            return F.multi_margin_loss(logits, targets, margin=self.margin)

        return hinge
