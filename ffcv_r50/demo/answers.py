"""What the page shows of an image: the likeliest classes, each with its class activation map."""

import base64
import io
import time
from collections.abc import Callable
from typing import TypedDict

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor, nn

from ffcv_r50 import models, predict
from ffcv_r50.demo import activation
from ffcv_r50.errors import one_line
from ffcv_r50.saved import Saved

TOP = 5
"""Classes shown."""


class Class(TypedDict):
    """One of the likeliest."""

    name: str
    probability: float
    map: str | None
    """A picture, as the address that holds it; None where the network has no maps, or no position
    has evidence for the class."""


class Answer(TypedDict):
    """About one image."""

    image: str
    """What the network saw of it, as the address that holds it."""
    top: list[Class]
    """The likeliest first."""
    read_ms: float
    """Milliseconds to decode and crop."""
    network_ms: float
    """Milliseconds in the network."""


class Answers:
    """Asks a network about one image at a time.

    Not for several threads: a call records what a layer gives in it.

    Args:
        found: the network, on ``device``.
        device: of the network.
    """

    def __init__(self, found: Saved, device: torch.device) -> None:
        self.found, self._device = found, device
        side = found.config.validation.resolution
        noise = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0))
        self._layer = activation.layer_of(found.network, noise.to(device))

    @property
    def has_maps(self) -> bool:
        """Whether class activation maps fit this network."""
        return self._layer is not None

    def answer(self, read: Callable[[], npt.NDArray[np.uint8]]) -> Answer:
        """What the network says of an image.

        Args:
            read: gives its pixels, uint8 [height, width, 3].
        """
        began = time.perf_counter()
        crop = predict.crop_of(read(), self.found)
        cropped = time.perf_counter()
        with activation.recorded(self._layer) as views:
            shares = predict.probabilities(self.found, torch.from_numpy(crop)[None], self._device)
        best, classes = (row[0, :TOP].tolist() for row in shares.sort(descending=True, stable=True))
        done = time.perf_counter()
        drawn = self._drawn(views, classes, len(crop))
        return Answer(
            image=_uri(Image.fromarray(crop)),
            top=[
                Class(name=shown(self.found.classes[number]), probability=share, map=picture)
                for number, share, picture in zip(classes, best, drawn, strict=True)
            ],
            read_ms=1000 * (cropped - began),
            network_ms=1000 * (done - cropped),
        )

    def _drawn(self, views: list[Tensor], classes: list[int], side: int) -> list[str | None]:
        """The maps of some classes, as pictures."""
        if not views:
            return [None] * len(classes)
        head = models.classifier(self.found.network)
        assert isinstance(head, nn.Linear)  # or it would have no maps
        with torch.inference_mode():
            found = activation.maps(views, head, classes).cpu().numpy()
        return [_uri(activation.overlay(one, side)) if one.max() > 0 else None for one in found]


def shown(text: str) -> str:
    """A name from a file that anybody may have made, as text that every page can hold."""
    return one_line(text).encode("utf-8", "replace").decode()


def _uri(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
