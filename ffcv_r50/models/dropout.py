"""What a network draws at random belongs to a sample's position in the global batch.

Left to themselves, torch's dropout and torchvision's stochastic depth draw from the generator of
their process: what a sample loses would depend on how many processes share the batch, and a
checkpoint would have to carry a generator for each. Here every draw is Philox4x32-10 (Salmon et al.
2011) of (seed, step, layer, position in the global batch, element), so it is the same on 1 and on 64
processes, from any step on.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd
from torchvision.ops import StochasticDepth

from ffcv_r50.errors import UserError

STREAM = 0x4000_0000
"""Counters of draws begin here; those of :mod:`ffcv_r50.data.philox` end before."""

_LOW = 0xFFFF_FFFF


def philox4x32(c0: Tensor, c1: Tensor, c2: Tensor, c3: Tensor, key: int) -> tuple[Tensor, ...]:
    """Four random 32-bit numbers for each 128-bit counter and a 64-bit key.

    Args:
        c0, c1, c2, c3: int64, each from 0 to 2^32 - 1; broadcast against each other.
        key: the seed.

    Returns:
        Four int64 tensors of numbers from 0 to 2^32 - 1.
    """
    k0, k1 = key & _LOW, key >> 32 & _LOW
    for _ in range(10):
        # Products wrap around in int64, whose bits are those of the unsigned product.
        p0, p1 = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1, c2, c3 = (
            (p1 >> 32 & _LOW) ^ c1 ^ k0,
            p1 & _LOW,
            (p0 >> 32 & _LOW) ^ c3 ^ k1,
            p0 & _LOW,
        )
        k0, k1 = k0 + 0x9E3779B9 & _LOW, k1 + 0xBB67AE85 & _LOW
    return c0, c1, c2, c3


class Draws:
    """Where the modules of one network find the step and the positions of the batch they are given.

    Args:
        seed: of the run.
        device: of the network.
    """

    def __init__(self, seed: int, device: torch.device) -> None:
        self._seed = seed
        # Tensors, not numbers: a compiled network must not be compiled anew for each step.
        self._step = torch.zeros((), dtype=torch.int64, device=device)
        self._positions = torch.zeros(0, dtype=torch.int64, device=device)

    def begin(self, step: int, positions: range) -> None:
        """Before a forward pass.

        Args:
            step: counted from the run's start.
            positions: of the samples in the global batch.
        """
        self._step.fill_(step)
        if len(positions) != len(self._positions):
            self._positions = torch.zeros(
                len(positions), dtype=torch.int64, device=self._step.device
            )
        # In place: a CUDA graph looks for them where they were when it was recorded.
        torch.arange(positions.start, positions.stop, out=self._positions)

    def keep(self, rows: int, columns: int, probability: float, layer: int) -> Tensor:
        """Draw which elements are kept.

        Args:
            rows: a multiple of the samples (a network may cut an image into windows).
            columns: elements of a row.
            probability: of being dropped.
            layer: number of the module in its network.

        Returns:
            bool [rows, columns].

        Raises:
            UserError: the rows are not the samples' (but those of a table, say).
        """
        samples = len(self._positions)
        if rows % samples:
            raise UserError(
                "model.arch: drops parts of what belongs to no image, which depends on the number of "
                "processes; choose another network"
            )
        each = rows // samples * columns
        blocks = torch.arange(-(-each // 4), device=self._positions.device)
        words = philox4x32(
            blocks, self._positions[:, None], self._step, torch.full_like(self._step, STREAM + layer),
            self._seed,
        )  # fmt: skip
        bits = torch.stack(words, 2).view(samples, -1)[:, :each]
        return (bits >= round(probability * 2**32)).view(rows, columns)


class Dropout(nn.Dropout):
    """Dropout (Srivastava et al. 2014) whose masks come from :class:`Draws`."""

    draws: Draws
    layer: int

    def forward(self, input: Tensor) -> Tensor:
        """Drop elements of [n, ...] in training, and scale the others by 1 / (1 - p)."""
        if not self.training or self.p == 0:
            return input
        keep = self.draws.keep(len(input), math.prod(input.shape[1:]), self.p, self.layer)
        return _kept(input, keep.view(input.shape), self.p)


class RowStochasticDepth(StochasticDepth):
    """Stochastic depth (Huang et al. 2016, arXiv:1603.09382) by sample, from :class:`Draws`."""

    draws: Draws
    layer: int

    def forward(self, input: Tensor) -> Tensor:
        """Drop whole samples of [n, ...] in training, and scale the others by 1 / (1 - p)."""
        if not self.training or self.p == 0:
            return input
        keep = self.draws.keep(len(input), 1, self.p, self.layer)
        return _kept(input, keep.view(-1, *[1] * (input.dim() - 1)), self.p)


def _kept(input: Tensor, keep: Tensor, p: float) -> Tensor:
    # Where everything is dropped there is nothing to scale, and 1 / 0 would be no number.
    return input * (keep * (1 / (1 - p) if p < 1 else 0.0)).to(input.dtype)


def draw_by_position(network: nn.Module, seed: int, device: torch.device) -> Draws:
    """Let the dropout and stochastic depth of ``network`` draw by position, in place.

    Args:
        network: whose modules are changed; their order numbers the layers.
        seed: of the run.
        device: of the network.

    Returns:
        To be told the step and the positions before each forward pass of training.

    Raises:
        UserError: the network draws in a way that is not known here.
    """
    draws = Draws(seed, device)
    layer = 0
    for module in network.modules():
        if type(module) is nn.Dropout:
            module.__class__ = Dropout
        elif type(module) is StochasticDepth and module.mode == "row":
            module.__class__ = RowStochasticDepth
        if isinstance(module, (Dropout, RowStochasticDepth)):
            module.draws, module.layer = draws, layer
            layer += 1
        elif isinstance(module, (_DropoutNd, StochasticDepth)) and module.p > 0:
            raise UserError(
                f"model.arch: its {type(module).__name__} draws once for a whole batch or channel, "
                "which depends on the number of processes; choose another network"
            )
    return draws
