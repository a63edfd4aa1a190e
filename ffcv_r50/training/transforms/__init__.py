"""What happens to a micro-batch on the device, before the network sees it.

A transform is a :class:`~ffcv_r50.training.protocols.Transform`. A recipe lists those it wants under
``augment``, by the names they register here; :class:`Normalize` always comes last.
"""

from ffcv_r50.registry import Options, Registry
from ffcv_r50.training.protocols import Transform


class TransformOptions(Options):
    """The options of a transform."""

    def build(self, num_classes: int) -> Transform:
        """The transform itself.

        Args:
            num_classes: of the dataset.
        """
        raise NotImplementedError


TRANSFORMS: Registry[TransformOptions] = Registry("transform")
