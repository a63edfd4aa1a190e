"""What every rank would import and load at its start, for the server that ranks are forked from.

Nothing here may start a thread: a fork takes none along, and OpenMP would wait for its own for ever.
"""

import rich.table
import torch

from ffcv_r50 import trainer
from ffcv_r50.data import order
from ffcv_r50.models import sizes
from writers import writing

__all__ = ["rich", "trainer", "writing"]

torch.set_num_threads(1)
order.random_order(1, 0, 0)  # the first compiled function loads what numba has for all
sizes.check(
    "shufflenet_v2_x0_5", 2, batch_size=2, resolution=32, training=True
)  # torch's shape rules
