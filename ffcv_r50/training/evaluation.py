"""Exact metrics over a sharded validation set, with test-time augmentation."""

from collections.abc import Callable, Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ffcv_r50 import distributed
from ffcv_r50.data import transfer
from ffcv_r50.data.loader import Batch
from ffcv_r50.logs.metrics import Metrics
from ffcv_r50.training.forward import Forward
from ffcv_r50.training.precision import Precision
from ffcv_r50.training.predictions import Predictions


class Restricted(nn.Module):
    """A network that chooses among some of its classes.

    Args:
        network: its logits are [n, classes].
        columns: of the classes that are left, in the order of the new logits.
    """

    def __init__(self, network: nn.Module, columns: Sequence[int]) -> None:
        super().__init__()
        self.network = network
        self.columns = list(columns)

    def forward(self, images: Tensor) -> Tensor:
        """Logits [n, columns]."""
        logits: Tensor = self.network(images)
        return logits[:, self.columns]


def how(resolution: int, tta: str) -> str:
    """How validation images are looked at, for a line about a result."""
    views = "no test-time augmentation" if tta == "none" else "flip averaged"
    return f"{resolution} px, {views}"


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    num_samples: int,
    device: torch.device,
    precision: Precision,
    tta: str,
    forward: Forward | None = None,
    predictions: Predictions | None = None,
    on_batch: Callable[[int], None] = lambda _: None,
) -> Metrics:
    """Evaluate ``model`` on this rank's shard and combine the shards of all ranks.

    Args:
        model: the plain network (not wrapped for data-parallel training: ranks may have different
            numbers of batches); left in evaluation mode.
        batches: this rank's shard.
        num_samples: of the whole validation set.
        device: of the model.
        precision: to compute in.
        tta: ``none``, or ``flip``: the mean of the logits of the image and of its mirror image.
        forward: runs the model on images; None is a :class:`Forward`.
        predictions: are given each batch of this rank.
        on_batch: called with the number of batches done; what it raises ends the evaluation.

    Returns:
        The same metrics on every rank.

    Raises:
        RuntimeError: the shards together did not hold each sample once.
    """
    model.eval()
    forward = forward or Forward(device)
    # float64: sums of float32 terms come out the same in any order to far below what is printed.
    sums = torch.zeros(4, dtype=torch.float64, device=device)
    for done, batch in enumerate(transfer.to_device(batches, device), 1):
        logits = logits_of(model, batch.images, precision, tta, forward)
        sums += _batch_sums(logits, batch.labels)
        if predictions:
            predictions.add(batch.indices, batch.labels, logits)
        on_batch(done)
    distributed.all_reduce_sum(sums)
    loss, top_1, top_5, count = sums.tolist()
    if count != num_samples:
        raise RuntimeError(f"evaluated {count:.0f} samples of a validation set of {num_samples}")
    return Metrics(loss / count, 100 * top_1 / count, 100 * top_5 / count, int(count))


def logits_of(
    model: nn.Module, images: Tensor, precision: Precision, tta: str, forward: Forward
) -> Tensor:
    """What an evaluation makes of images.

    Args:
        model: in evaluation mode.
        images: uint8 [n, 3, height, width], or normalised already.
        precision: to compute in.
        tta: as :func:`evaluate` takes it.
        forward: runs the model on images.

    Returns:
        float32 [n, classes].
    """
    with precision.autocast():
        logits = forward(model, images).float()
        if tta == "flip":
            logits = (logits + forward(model, images.flip(3)).float()) / 2
    return logits


def _batch_sums(logits: Tensor, labels: Tensor) -> Tensor:
    """float64 [4]: summed loss, hits among the first one and five classes, samples."""
    top = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
    losses = F.cross_entropy(logits, labels, reduction="none")
    return torch.stack(
        [
            losses.double().sum(),
            top[:, 0].sum(),
            top.sum(),
            # Not torch.tensor(..., device=...): that copies from the host and waits for it.
            losses.new_full((), len(labels)),
        ]
    )
