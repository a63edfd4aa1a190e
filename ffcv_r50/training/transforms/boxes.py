"""Boxes of the images of a batch, drawn on the host, as masks on the device."""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


def inside(boxes: npt.NDArray[np.int64], images: Tensor) -> Tensor:
    """Which pixels lie in their image's box.

    Args:
        boxes: int64 [n, 4]: top, left, bottom and right of each image's, the last two beyond it.
        images: [n, channels, height, width], for the size and the device.

    Returns:
        bool [n, 1, height, width].
    """
    device, (height, width) = images.device, images.shape[2:]
    box = torch.from_numpy(boxes).to(device, non_blocking=True)
    top, left, bottom, right = box.T[:, :, None]
    y, x = torch.arange(height, device=device), torch.arange(width, device=device)
    rows, columns = (y >= top) & (y < bottom), (x >= left) & (x < right)
    return rows[:, None, :, None] & columns[:, None, None, :]
