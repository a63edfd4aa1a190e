"""Cross-entropy with label smoothing (Szegedy et al. 2016, arXiv:1512.00567)."""

import torch.nn.functional as F
from torch import Tensor

from ffcv_r50.training.losses import LOSSES, LossOptions
from ffcv_r50.training.protocols import Loss, Step


@LOSSES.register("cross_entropy")
class CrossEntropy(LossOptions):
    """torch's cross-entropy; `training.label_smoothing` is the share spread over the classes."""

    def build(self, num_classes: int) -> Loss:
        """See :func:`cross_entropy`."""
        return cross_entropy


def cross_entropy(logits: Tensor, targets: Tensor, step: Step) -> Tensor:
    """The mean over float32 [n, classes] logits, in nats."""
    return F.cross_entropy(logits, targets, label_smoothing=step.values["label_smoothing"])
