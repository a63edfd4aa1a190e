"""From the loader's host buffers to the device: bytes cross, numbers are made there."""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from ffcv_r50.data.loader import Batch

# Of the ImageNet training set, in units of 0..255 (torchvision's 0.485 ... x 255).
MEAN = (0.485 * 255, 0.456 * 255, 0.406 * 255)
STD = (0.229 * 255, 0.224 * 255, 0.225 * 255)


def to_device(batches: Iterable[Batch], device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """Move batches to ``device``, on CUDA one batch ahead of the one in use.

    Args:
        batches: whose host buffers stay untouched until the next one is asked for.
        device: where they go.

    Yields:
        Images uint8 [n, 3, height, width] (channels-last in memory) and labels int64 [n].
    """
    if device.type != "cuda":
        for batch in batches:
            yield batch.images.permute(0, 3, 1, 2), batch.labels
        return
    stream = torch.cuda.Stream(device)
    ahead: tuple[Tensor, Tensor] | None = None
    for batch in batches:
        with torch.cuda.stream(stream):
            images = batch.images.to(device, non_blocking=True).permute(0, 3, 1, 2)
            labels = batch.labels.to(device, non_blocking=True)
            copied = stream.record_event()
        if ahead is not None:
            yield ahead
        # The loader may fill the host buffer again only after the copy; by now it is long done.
        copied.synchronize()
        current = torch.cuda.current_stream(device)
        images.record_stream(current)
        labels.record_stream(current)
        ahead = images, labels
    if ahead is not None:
        yield ahead


def normalize(images: Tensor) -> Tensor:
    """uint8 [n, 3, h, w] in 0..255 -> float32, zero mean and unit variance a channel on ImageNet.

    In float32 also where the network computes in half precision: there a gray level would round
    to a quarter of one.
    """
    mean = torch.tensor(MEAN, device=images.device).view(1, 3, 1, 1)
    scale = 1 / torch.tensor(STD, device=images.device).view(1, 3, 1, 1)
    return (images.float() - mean) * scale
