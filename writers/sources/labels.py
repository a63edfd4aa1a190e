"""From what a dataset says of each image, a class name or a number, to labels."""

import os
import re
from array import array
from collections.abc import Callable, Iterable, Sequence

from ffcv_r50.errors import UserError, nearest

MOST_CLASSES = 1 << 20
"""A label number beyond is a mistake, not a class."""
NUMBER = re.compile(r"-?(0|[1-9][0-9]{0,17})")


class Labels:
    """The labels of one image after the other, as the dataset says them."""

    def __init__(self) -> None:
        self._seen: dict[str, int] = {}  # what was said -> its position in the order of appearance
        self._first: list[int] = []  # the image that said it first
        self._said = array("i")

    def add(self, said: str) -> None:
        """Add the next image's class name or label number."""
        position = self._seen.setdefault(said, len(self._seen))
        if position == len(self._first):
            self._first.append(len(self._said))
        self._said.append(position)

    def resolve(
        self, place: Callable[[int], str], known: Sequence[str] | None = None
    ) -> tuple[list[str], Sequence[int]]:
        """Class names and the label of each image.

        Args:
            place: what errors call image i.
            known: the class names, where something else says them; numbers count these, unless some
                of them are numbers themselves. Otherwise the classes are what the images say: the
                sorted names, or, where all are numbers, 0 to the largest.

        Raises:
            UserError: a label is missing, out of range, or no class that is known.
        """
        if "" in self._seen:
            raise UserError(f"{place(self._first[self._seen['']])}: has no label; add it")
        classes = list(known) if known is not None else self._classes(place)
        for name in (*self._seen, *classes):
            try:
                os.fsencode(name)
            except UnicodeEncodeError as error:  # JSON has ways to say half a character
                first = self._first[self._seen.get(name, 0)]
                raise UserError(f"{place(first)}: class {name!r} is no text; rename it") from error
        numbers = {name: number for number, name in enumerate(classes)}
        if _are_numbers(self._seen) and not any(map(NUMBER.fullmatch, classes)):
            numbers = {str(number): number for number in range(len(classes))}
        labels = []
        for said, first in zip(self._seen, self._first, strict=True):
            if said not in numbers:
                raise UserError(f"{place(first)}: {_unknown(said, classes)}")
            labels.append(numbers[said])
        return classes, array("i", (labels[position] for position in self._said))

    def _classes(self, place: Callable[[int], str]) -> list[str]:
        if not _are_numbers(self._seen):
            return sorted(self._seen)
        for said, first in zip(self._seen, self._first, strict=True):
            if not 0 <= int(said) < MOST_CLASSES:
                raise UserError(
                    f"{place(first)}: label {said} is out of range; labels are numbers from 0 or "
                    "class names"
                )
        return [str(i) for i in range(max(map(int, self._seen), default=-1) + 1)]


def _unknown(said: str, classes: Sequence[str]) -> str:
    if NUMBER.fullmatch(said):
        return f"label {said} is out of range; there are {len(classes):,} classes"
    near = nearest(said, classes)
    hint = f"did you mean {near}?" if near else f"the first is '{classes[0]}'"
    return f"there is no class '{said}'; {hint}"


def _are_numbers(words: Iterable[str]) -> bool:
    return all(map(NUMBER.fullmatch, words))
