"""From the loader's host buffers to the device: bytes cross, numbers are made there."""

import functools
from collections.abc import Iterable, Iterator

import torch

from ffcv_r50.data.loader import Batch


def to_device(batches: Iterable[Batch], device: torch.device) -> Iterator[Batch]:
    """Move batches to ``device``, on CUDA one batch ahead of the one in use.

    Args:
        batches: whose host buffers stay untouched until the next one is asked for.
        device: where they go.

    Yields:
        The same with images uint8 [n, 3, height, width] (channels-last in memory).
    """
    if device.type != "cuda":
        for batch in batches:
            yield batch._replace(images=batch.images.permute(0, 3, 1, 2))
        return
    stream = _copy_stream(device)
    ahead: Batch | None = None
    for batch in batches:
        with torch.cuda.stream(stream):
            copy = Batch(*(tensor.to(device, non_blocking=True) for tensor in batch))
            copied = stream.record_event()
        if ahead is not None:
            yield ahead
        # The loader may fill the host buffer again only after the copy; by now it is long done.
        copied.synchronize()
        current = torch.cuda.current_stream(device)
        for tensor in copy:
            tensor.record_stream(current)
        ahead = copy._replace(images=copy.images.permute(0, 3, 1, 2))
    if ahead is not None:
        yield ahead


@functools.cache
def _copy_stream(device: torch.device) -> torch.cuda.Stream:
    """One for all epochs: memory that was freed on a stream serves only that stream again."""
    return torch.cuda.Stream(device)
