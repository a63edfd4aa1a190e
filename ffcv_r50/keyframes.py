"""Quantities that change during training: keyframes over epochs and what holds between them."""

import itertools
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from pydantic_core import CoreSchema, core_schema
from typing_extensions import Self

from ffcv_r50.errors import nearest

NUMBER = re.compile(r"[-+]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?")
KINDS = ("linear", "cosine", "step", "exponential", "power N")
"""How a value gets from one keyframe to the next; N is a number above 0."""


def parse_number(text: str) -> float:
    """A number as YAML 1.2 writes it (``1.0e-4`` and ``1e-4``; no ``inf``, no ``nan``).

    Raises:
        ValueError: it is not one.
    """
    # 1e999 is written as a number but is one that no float holds.
    if not NUMBER.fullmatch(text) or math.isinf(float(text)):
        raise ValueError(f"expected a number, got '{text}'")
    return float(text)


class Keyframe(NamedTuple):
    """A value at an epoch, and how it is reached."""

    epoch: float
    value: float
    kind: str
    """One of :data:`KINDS`, such as ``cosine`` or ``power 2``: the way from the keyframe before."""


@dataclass(frozen=True, init=False)
class Keyframes:
    """A value at given epochs: ``Keyframes({0: 0.005, 5: 0.5, 600: "cosine 0"})``.

    From one keyframe to the next the value goes

    - ``linear``: in a straight line;
    - ``cosine``: along half a cosine (SGDR, Loshchilov and Hutter 2017, without restarts);
    - ``step``: not at all, it stays until the next one;
    - ``exponential``: by the same factor in equal times, both ends being above 0;
    - ``power N``: ``end + (start - end) * (1 - t)**N`` for t from 0 to 1, such as LARS's ``power 2``.

    After the last keyframe it stays.

    Args:
        points: epoch -> value, or a text ``KIND value`` where that segment's kind is another than the
            row's; also as pairs or :class:`Keyframe`. Epochs may have fractions; they start at 0
            and increase.
        interpolation: the kind of the segments that name none.

    Raises:
        ValueError: no points, an epoch out of order, a first epoch other than 0, an unknown kind, a
            text that is no number, an exponential segment to or from 0.
    """

    points: tuple[Keyframe, ...]
    interpolation: str

    expected = "a table of keyframes {epoch: value, ...}"
    """What an error asks for."""

    def __init__(
        self,
        points: Mapping[Any, Any] | Iterable[tuple[Any, ...]],
        interpolation: str = "linear",
    ) -> None:
        try:
            interpolation = _kind(interpolation)
        except ValueError as error:
            raise ValueError(f"interpolation: {error}") from error
        rows = points.items() if isinstance(points, Mapping) else points
        frames = tuple(_keyframe(interpolation, *row) for row in rows)
        _check(frames, interpolation)
        object.__setattr__(self, "points", frames)
        object.__setattr__(self, "interpolation", interpolation)

    def at(self, epoch: float) -> float:
        """The value at an epoch, counted from 0; within the epoch as a fraction."""
        for first, second in itertools.pairwise(self.points):
            if epoch < second.epoch:
                return _between(first, second, max(epoch, 0.0))
        return self.points[-1].value

    @property
    def values(self) -> tuple[float, ...]:
        """The values at the keyframes; between them there is none that is larger or smaller."""
        return tuple(point.value for point in self.points)

    def scaled(self, factor: float) -> "Keyframes":
        """The same keyframes with every value multiplied by ``factor``."""
        points = [point._replace(value=point.value * factor) for point in self.points]
        return Keyframes(points, self.interpolation)

    @classmethod
    def __get_pydantic_core_schema__(cls, _source: Any, _handler: Any) -> CoreSchema:
        """A setting of this type takes an instance; :meth:`from_pairs` makes it from a file's text."""
        return core_schema.is_instance_schema(cls)

    @classmethod
    def __get_pydantic_json_schema__(cls, _core: Any, _handler: Any) -> dict[str, Any]:
        """The table that a file has."""
        number, words = NUMBER.pattern, "|".join(KINDS[:-1])
        kind = rf"({words}|power +{number})"
        text = {"type": "string", "pattern": rf"^{kind} +{number}$"}
        return {
            "type": "object",
            "properties": {
                "0": {"type": "number"},
                "interpolation": {"type": "string", "pattern": f"^{kind}$"},
            },
            "patternProperties": {f"^{number}$": {"anyOf": [{"type": "number"}, text]}},
            "additionalProperties": False,
            "required": ["0"],
        }

    @classmethod
    def from_pairs(cls, pairs: list[tuple[str, str]]) -> Self:
        """From the texts of a YAML table: epochs and values, and ``interpolation``.

        Raises:
            ValueError: a text is not a number, or the keyframes are not in order.
        """
        kinds = [text for key, text in pairs if key == "interpolation"]
        if len(kinds) > 1:
            raise ValueError("interpolation is given twice")
        points = []
        for key, text in pairs:
            if key != "interpolation":
                try:
                    points.append((parse_number(key), text))
                except ValueError as error:
                    raise _no_keyframe(key, text) from error
        return cls(points, *kinds)

    def to_yaml(self) -> Any:
        """The table that :meth:`from_pairs` reads back."""
        table: dict[str | float, str | float] = {}
        for epoch, value, kind in self.points:
            value = _short(value)
            table[_short(epoch)] = value if kind == self.interpolation else f"{kind} {value}"
        if self.interpolation != "linear":
            table["interpolation"] = self.interpolation
        return table


class Varying(Keyframes):
    """A number that may change during training: ``Varying(0.2)``, or keyframes of it.

    A bound is below or above it where it is so for all its values; so ranges are checked.
    """

    expected = "a number or keyframes {epoch: number, ...}, numbers"

    def __init__(
        self,
        points: float | Mapping[Any, Any] | Iterable[tuple[Any, ...]],
        interpolation: str = "linear",
    ) -> None:
        super().__init__({0: points} if isinstance(points, (int, float)) else points, interpolation)

    @property
    def constant(self) -> bool:
        """Whether it stays what it is."""
        return len(set(self.values)) == 1

    def __ge__(self, bound: float) -> bool:
        return min(self.values) >= bound

    def __gt__(self, bound: float) -> bool:
        return min(self.values) > bound

    def __le__(self, bound: float) -> bool:
        return max(self.values) <= bound

    def __lt__(self, bound: float) -> bool:
        return max(self.values) < bound

    @classmethod
    def __get_pydantic_core_schema__(cls, _source: Any, _handler: Any) -> CoreSchema:
        """A setting of this type takes an instance or a number."""
        numbers = (int, float)
        return core_schema.no_info_before_validator_function(
            lambda value: cls(value) if type(value) in numbers else value,
            core_schema.is_instance_schema(cls),
        )

    @classmethod
    def __get_pydantic_json_schema__(cls, core: Any, handler: Any) -> dict[str, Any]:
        """A number, or the table."""
        return {"anyOf": [{"type": "number"}, super().__get_pydantic_json_schema__(core, handler)]}

    def to_yaml(self) -> Any:
        """The number, or the table."""
        return _short(self.values[0]) if len(self.points) == 1 else super().to_yaml()


def _short(number: float) -> float:
    return int(number) if number.is_integer() else number


def _no_keyframe(epoch: object, value: object) -> ValueError:
    if ":" in str(epoch):  # {0:32}, which is no table to YAML
        return ValueError(f"'{epoch}' is not a keyframe; YAML needs a space after each colon")
    return ValueError(
        f"'{epoch}: {value}' is not a keyframe; expected epoch: value, epoch: KIND value or "
        f"interpolation: KIND, where KIND is {' or '.join(KINDS)}"
    )


def _kind(text: str) -> str:
    """A kind as it is compared and written; raises ValueError where there is no such kind."""
    name, _, number = text.partition(" ")
    if name == "power" and number:
        exponent = parse_number(number.strip())
        if exponent <= 0:
            raise ValueError(f"expected a power above 0, got '{text}'")
        return f"power {_short(exponent)}"
    if text in KINDS[:-1]:
        return text
    near = nearest(name, [kind.partition(" ")[0] for kind in KINDS])
    hint = f"; did you mean {next(k for k in KINDS if k.startswith(near))}?" if near else ""
    raise ValueError(f"expected {' or '.join(KINDS)}, got '{text}'{hint}")


def _keyframe(interpolation: str, epoch: float, value: float | str, kind: str = "") -> Keyframe:
    """One row; a text is a number, or a kind and a number."""
    if isinstance(value, str):
        *words, number = value.split() or [""]
        shown = f"{_short(float(epoch))}: {value}"
        try:
            kind, value = " ".join(words), parse_number(number)
        except ValueError as error:
            raise _no_keyframe(_short(float(epoch)), value) from error
        try:
            kind = kind and _kind(kind)
        except ValueError as error:
            raise ValueError(f"'{shown}': {error}") from error
        if kind and epoch == 0:
            raise ValueError(
                f"'{shown}': before the first keyframe there is none to come from; write "
                f"0: {_short(value)}"
            )
    return Keyframe(float(epoch), float(value), kind or interpolation)


def _check(frames: tuple[Keyframe, ...], interpolation: str) -> None:
    if not frames:
        raise ValueError(f"expected {Keyframes.expected}, got none")
    if frames[0].epoch != 0:
        raise ValueError(f"the first keyframe must be at epoch 0, it is at {frames[0].epoch:g}")
    for before, frame in itertools.pairwise(frames):
        if frame.epoch == before.epoch:
            raise ValueError(f"epoch {frame.epoch:g} has two keyframes")
        if frame.epoch < before.epoch:
            raise ValueError(
                f"keyframes must be in the order of their epochs, {frame.epoch:g} comes after "
                f"{before.epoch:g}"
            )
        if frame.kind == "exponential" and min(before.value, frame.value) <= 0:
            raise ValueError(
                f"exponential from {before.value:g} at epoch {before.epoch:g} to {frame.value:g} at "
                f"epoch {frame.epoch:g}: both must be above 0"
            )


def _between(first: Keyframe, second: Keyframe, epoch: float) -> float:
    """The value at an epoch from ``first`` on and before ``second``."""
    done = (epoch - first.epoch) / (second.epoch - first.epoch)
    name, _, number = second.kind.partition(" ")
    if name == "step":
        return first.value
    if name == "exponential":
        return float(first.value ** (1 - done) * second.value**done)
    if name == "power":
        return float(second.value + (first.value - second.value) * (1 - done) ** float(number))
    if name == "cosine":
        done = (1 - math.cos(math.pi * done)) / 2
    return first.value + (second.value - first.value) * done
