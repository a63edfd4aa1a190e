"""Where in an image a network sees a class: class activation maps (Zhou et al. 2016, arXiv:1512.04150).

A network that ends in the mean of its last feature map over all positions and in a linear layer could
as well apply the linear layer at each position and take the mean of that: the map of a class is what is
then averaged. So the maps are exact for such networks (ResNets and many more), and there are none for
others.
"""

import contextlib
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor, nn

from ffcv_r50 import models

COLOURS = np.array([[122, 0, 119], [240, 60, 60], [255, 160, 30], [255, 245, 120]])
"""From weak to strong evidence, evenly spaced."""
OPACITY = 0.75
"""Of the strongest evidence."""


def layer_of(network: nn.Module, images: Tensor) -> nn.Module | None:
    """The layer whose output, averaged over all positions, is all that the classifier is given.

    It is found by what happens in a forward pass, not by a name.

    Args:
        network: in evaluation mode.
        images: float32 [n, 3, height, width], normalised; any, as long as they are no constant.

    Returns:
        None where there is no such layer, or its output has a single position.
    """
    head = models.classifier(network)
    if not isinstance(head, nn.Linear):
        return None
    means: list[tuple[nn.Module, Tensor]] = []
    given: list[Tensor] = []

    def keep(module: nn.Module, _: object, output: object) -> None:
        if isinstance(output, Tensor) and output.dim() == 4 and output[0, 0].numel() > 1:
            means.append((module, output.mean((2, 3))))

    hooks = [module.register_forward_hook(keep) for module in network.modules()]
    hooks.append(head.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0])))
    try:
        with torch.inference_mode():
            network(images)
    finally:
        for hook in hooks:
            hook.remove()
    for module, mean in reversed(means):
        if mean.shape == given[-1].shape and torch.allclose(mean, given[-1], rtol=1e-3, atol=1e-4):
            return module
    return None


@contextlib.contextmanager
def recorded(layer: nn.Module | None) -> Iterator[list[Tensor]]:
    """What a layer gives while a network runs: one tensor for each forward pass; nothing of None."""
    outputs: list[Tensor] = []
    if layer is None:
        yield outputs
        return
    hook = layer.register_forward_hook(lambda _, __, output: outputs.append(output))
    try:
        yield outputs
    finally:
        hook.remove()


def maps(views: Sequence[Tensor], head: nn.Linear, classes: Sequence[int]) -> Tensor:
    """The evidence for some classes at each position.

    Args:
        views: float32 [1, channels, h, w] each: the feature map of an image and, where the evaluation
            looks at it too, of its mirror image.
        head: the classifier.
        classes: whose maps are wanted.

    Returns:
        float32 [classes, h, w]. The mean of a map, plus the bias of its class, is the class's logit.
    """
    upright = [view if i == 0 else view.flip(3) for i, view in enumerate(views)]
    features = torch.cat(upright).mean(0)
    return torch.einsum("kc,chw->khw", head.weight[list(classes)], features)


def overlay(evidence: npt.NDArray[np.float32], side: int) -> Image.Image:
    """A map as a picture to lay over the image.

    Args:
        evidence: [h, w] of one class.
        side: height and width of the result in pixels.

    Returns:
        RGBA: the more evidence, compared with the strongest of this map, the brighter and the less
        transparent. Where there is none, or evidence against the class, it is transparent.
    """
    strength = np.maximum(evidence, 0) / max(float(evidence.max()), np.finfo(np.float32).tiny)
    # Others overshoot, and would show evidence where there is none.
    smooth = Image.fromarray(strength.astype(np.float32)).resize(
        (side, side), Image.Resampling.BILINEAR
    )
    level = np.clip(np.asarray(smooth), 0, 1)
    at = np.linspace(0, 1, len(COLOURS))
    channels = [np.interp(level, at, channel) for channel in COLOURS.T]
    picture = np.dstack([*channels, 255 * OPACITY * level]).round().astype(np.uint8)
    return Image.fromarray(picture)
