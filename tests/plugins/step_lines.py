"""A log sink: a line a step in a text file; a second one that always fails."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ffcv_r50.logs.sinks import SINKS, Sink, SinkOptions


@SINKS.register("step_lines")
class StepLinesOptions(SinkOptions):
    """A file in the folder of the run."""

    name: str = "steps.txt"
    """Of the file."""

    def build(self, folder: Path) -> Sink:
        """As every sink."""
        return StepLines(folder / self.name)


@SINKS.register("broken")
class BrokenOptions(SinkOptions):
    """As if its server were gone."""

    def build(self, folder: Path) -> Sink:
        """As every sink."""
        return Broken(folder / "unwritten")


class StepLines:
    """``step 3 loss 1.25`` and ``epoch 0 top-1 33.33``."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def step(self, number: int, values: Mapping[str, Any]) -> None:
        """A line."""
        self._append(f"step {number} loss {values['loss']!r} lr {values['lr']!r}")

    def epoch(self, number: int, values: Mapping[str, Any]) -> None:
        """A line."""
        self._append(f"epoch {number} top-1 {values['top_1']!r}")

    def rewind(self, epochs: int, steps: int) -> None:
        """Drop the lines of what is done again."""
        if self._path.exists():
            lines = [line.split() for line in self._path.read_text().splitlines()]
            ends = {"step": steps, "epoch": epochs}
            kept = [" ".join(words) for words in lines if int(words[1]) < ends[words[0]]]
            self._path.write_text("".join(f"{line}\n" for line in kept))

    def close(self) -> None:
        """Nothing is open."""

    def _append(self, line: str) -> None:
        with open(self._path, "a") as file:
            file.write(f"{line}\n")


class Broken(StepLines):
    """Raises whatever is asked of it."""

    def _append(self, line: str) -> None:
        raise ConnectionError("the server is gone")
