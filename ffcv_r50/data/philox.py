"""Philox4x32-10: random numbers as a function of a counter and a key, without any state.

J. K. Salmon, M. A. Moraes, R. O. Dror, D. E. Shaw, "Parallel random numbers: as easy as 1, 2, 3",
SC 2011. The same function as ``Philox4x32`` in Random123, cuRAND and (keyed alike) PyTorch on CUDA.

The key is the seed. The counter's last word says what the numbers are for, see the streams below;
its third is the epoch or the step.
"""

import math

import numpy as np

from ffcv_r50.data.compiled import njit

ORDER_STREAM = 0x1000_0000
PAGES_STREAM = 0x2000_0000
POOLS_STREAM = 0x3000_0000
TRANSFORM_STREAM = 0x5000_0000
# The tries of a random crop are streams 0 to 9, the flip is stream 10; those of what networks draw
# (ffcv_r50.models.dropout) begin at 0x4000_0000.

_M0 = np.uint64(0xD2511F53)
_M1 = np.uint64(0xCD9E8D57)
_W0 = np.uint64(0x9E3779B9)
_W1 = np.uint64(0xBB67AE85)
_LOW = np.uint64(0xFFFFFFFF)
_32 = np.uint64(32)


@njit
def philox4x32(
    c0: int, c1: int, c2: int, c3: int, key: np.uint64
) -> tuple[np.uint64, np.uint64, np.uint64, np.uint64]:
    """Four random 32-bit numbers, each in a uint64, for a 128-bit counter and a 64-bit key."""
    x0, x1, x2, x3 = np.uint64(c0), np.uint64(c1), np.uint64(c2), np.uint64(c3)
    k0 = np.uint64(key) & _LOW
    k1 = np.uint64(key) >> _32
    for _ in range(10):
        p0 = _M0 * x0
        p1 = _M1 * x2
        x0, x1, x2, x3 = (p1 >> _32) ^ x1 ^ k0, p1 & _LOW, (p0 >> _32) ^ x3 ^ k1, p0 & _LOW
        k0 = (k0 + _W0) & _LOW
        k1 = (k1 + _W1) & _LOW
    return x0, x1, x2, x3


@njit
def of_view(
    view: int, epoch: int, stream: int, seed: np.uint64
) -> tuple[np.uint64, np.uint64, np.uint64, np.uint64]:
    """Four random 32-bit numbers for a view: a sample's index, its repetition above the low 32 bits."""
    return philox4x32(view & 0xFFFFFFFF, view >> 32, epoch, stream, seed)


def transform_stream(row: int) -> int:
    """The first of 2^16 streams that belong to a row of a list of transforms."""
    return TRANSFORM_STREAM + (row << 16)


@njit
def below(bits: np.uint64, n: int) -> int:
    """A whole number in [0, n) from 32 random bits; n < 2**32, bias under n / 2**32."""
    return np.int64((bits * np.uint64(n)) >> _32)  # type: ignore[return-value]


@njit
def uniform(bits: np.uint64, low: float, high: float) -> float:
    """A real number in [low, high) from 32 random bits."""
    return low + (high - low) * (np.float64(bits) * 2.0**-32)


@njit
def log_gamma_try(
    shape: float, numbers: tuple[np.uint64, np.uint64, np.uint64, np.uint64]
) -> tuple[bool, float]:
    """One try at the logarithm of a draw from Gamma(shape, 1): Marsaglia and Tsang 2000.

    In logarithms, where shapes near 0 do not underflow. More than 95 % of the tries succeed.

    Args:
        shape: above 0.
        numbers: four of 32 random bits.

    Returns:
        Whether the draw is one; if not, it is a value near the mean.
    """
    d = (shape + 1.0 if shape < 1.0 else shape) - 1.0 / 3.0
    r0, r1, r2, r3 = numbers
    # In (0, 1), so that every logarithm is finite.
    u0, u1, u2, u3 = (
        (r0 + 0.5) * 2.0**-32,
        (r1 + 0.5) * 2.0**-32,
        (r2 + 0.5) * 2.0**-32,
        (r3 + 0.5) * 2.0**-32,
    )
    log_boost = math.log(u3) / shape if shape < 1.0 else 0.0
    x = math.sqrt(-2.0 * math.log(u0)) * math.cos(2.0 * math.pi * u1)
    v = (1.0 + x / math.sqrt(9.0 * d)) ** 3
    if v > 0.0 and math.log(u2) < 0.5 * x * x + d - d * v + d * math.log(v):
        return True, math.log(d * v) + log_boost
    return False, math.log(d) + log_boost
