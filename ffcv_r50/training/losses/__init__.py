"""What is minimised: a :class:`~ffcv_r50.training.protocols.Loss`, by the name that recipes use.

The loss of the evaluation is the plain cross-entropy, whatever a network is trained with.
"""

from ffcv_r50.registry import Options, Registry
from ffcv_r50.training.protocols import Loss


class LossOptions(Options):
    """The options of a loss."""

    def check(self, label_smoothing: float, num_classes: int | None) -> None:
        """See that targets are left that something can be learnt from.

        Args:
            label_smoothing: the largest of the run.
            num_classes: of the dataset; None where it is not known yet.

        Raises:
            InvalidSetting: none are, with any targets that such datasets have.
        """

    def build(self, num_classes: int) -> Loss:
        """The loss itself.

        Args:
            num_classes: of the dataset.
        """
        raise NotImplementedError


LOSSES: Registry[LossOptions] = Registry("loss")

from ffcv_r50.training.losses import bce, cross_entropy  # noqa: E402, F401  # register themselves
