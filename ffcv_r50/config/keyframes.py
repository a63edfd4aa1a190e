"""Quantities that change during training: keyframes over epochs and what holds between them."""

import itertools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ffcv_r50.config.reader import parse_number

INTERPOLATIONS = ("linear", "cosine", "step")


@dataclass(frozen=True, init=False)
class Keyframes:
    """A value at given epochs: ``Keyframes({0: 0.0, 2: 1.7, 88: 0.0})``.

    Between two keyframes the value goes in a straight line (``linear``), along half a cosine
    (``cosine``; SGDR, Loshchilov and Hutter 2017, without restarts), or stays until the next one
    (``step``). After the last keyframe its value holds.

    Args:
        points: epoch -> value. Epochs may have fractions; they start at 0 and increase.
        interpolation: linear, cosine or step.

    Raises:
        ValueError: no points, an epoch out of order, a first epoch other than 0.
    """

    points: tuple[tuple[float, float], ...]
    """(epoch, value) pairs."""
    interpolation: str

    expected = "a table of keyframes {epoch: value, ...}"
    """What an error asks for."""

    def __init__(
        self,
        points: Mapping[int, float] | Mapping[float, float] | Iterable[tuple[float, float]],
        interpolation: str = "linear",
    ) -> None:
        pairs = tuple(points.items() if isinstance(points, Mapping) else points)
        if not pairs:
            raise ValueError(f"expected {self.expected}, got none")
        if interpolation not in INTERPOLATIONS:
            raise ValueError(
                f"interpolation: expected {' or '.join(INTERPOLATIONS)}, got '{interpolation}'"
            )
        if pairs[0][0] != 0:
            raise ValueError(f"the first keyframe must be at epoch 0, it is at {pairs[0][0]:g}")
        for (before, _), (epoch, _) in itertools.pairwise(pairs):
            if epoch == before:
                raise ValueError(f"epoch {epoch:g} has two keyframes")
            if epoch < before:
                raise ValueError(
                    f"keyframes must be in the order of their epochs, {epoch:g} comes after {before:g}"
                )
        object.__setattr__(self, "points", tuple((float(e), float(v)) for e, v in pairs))
        object.__setattr__(self, "interpolation", interpolation)

    def at(self, epoch: float) -> float:
        """The value at an epoch, counted from 0; within the epoch as a fraction."""
        first = self.points[0]
        for second in self.points[1:]:
            if epoch < second[0]:
                return self._between(first, second, max(epoch, 0.0))
            first = second
        return first[1]

    def _between(
        self, first: tuple[float, float], second: tuple[float, float], epoch: float
    ) -> float:
        if self.interpolation == "step":
            return first[1]
        done = (epoch - first[0]) / (second[0] - first[0])
        if self.interpolation == "cosine":
            done = (1 - math.cos(math.pi * done)) / 2
        return first[1] + (second[1] - first[1]) * done

    @property
    def values(self) -> tuple[float, ...]:
        """The values at the keyframes."""
        return tuple(value for _, value in self.points)

    def scaled(self, factor: float) -> "Keyframes":
        """The same keyframes with every value multiplied by ``factor``."""
        return Keyframes(
            [(epoch, value * factor) for epoch, value in self.points], self.interpolation
        )

    @staticmethod
    def from_pairs(pairs: list[tuple[str, str]]) -> "Keyframes":
        """From the texts of a YAML table: epochs and values, and ``interpolation``.

        Raises:
            ValueError: a text is not a number, or the keyframes are not in order.
        """
        rows = [pair for pair in pairs if pair[0] != "interpolation"]
        kinds = [text for key, text in pairs if key == "interpolation"]
        if len(kinds) > 1:
            raise ValueError("interpolation is given twice")
        points = []
        for epoch, value in rows:
            try:
                points.append((parse_number(epoch), parse_number(value)))
            except ValueError as error:
                raise ValueError(
                    f"'{epoch}: {value}' is not a keyframe; expected epoch: value, or "
                    f"interpolation: {' or '.join(INTERPOLATIONS)}"
                ) from error
        return Keyframes(points, *kinds)

    def to_yaml(self) -> dict[str | float, str | float]:
        """The table that :meth:`from_pairs` reads back."""

        def short(number: float) -> float:
            return int(number) if number.is_integer() else number

        table: dict[str | float, str | float] = {short(e): short(v) for e, v in self.points}
        if self.interpolation != "linear":
            table["interpolation"] = self.interpolation
        return table
