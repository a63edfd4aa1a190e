"""A profile of some steps: what the host and the device did when, for https://ui.perfetto.dev."""

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

NAME = "trace.json.gz"


class Trace:
    """Profiles a window of a run's steps, and all between them, into a file that Perfetto and Chrome open.

    Args:
        steps: of the run, as ``steps.jsonl`` counts them; empty for none.
        folder: of the file, ``trace.json.gz``; what it had before is replaced.
        say: called with a line once the file is written, or with why it is not.
    """

    def __init__(self, steps: range, folder: Path, say: Callable[[str], None]) -> None:
        self._steps = steps
        self._path = folder / NAME
        self._say = say
        self._profile: Any = None
        self._seen: list[int] = []

    @contextlib.contextmanager
    def step(self, number: int) -> Iterator[None]:
        """Around a step."""
        if number not in self._steps:
            self.close()  # a run that goes back behind a fault leaves the window
            yield
            return
        if self._profile is None:
            cuda = [ProfilerActivity.CUDA] if torch.cuda.is_available() else []
            self._profile = profile(activities=[ProfilerActivity.CPU, *cuda], record_shapes=True)
            self._profile.start()
        with record_function(f"step {number}"):
            yield
        self._seen.append(number)
        if number == self._steps[-1]:
            self.close()

    def close(self) -> None:
        """Write what there is, if anything is not written."""
        if self._profile is None:
            return
        done, self._profile = self._profile, None
        seen, self._seen = self._seen, []
        done.stop()
        part = self._path.with_name(f"part.{NAME}")
        try:
            done.export_chrome_trace(str(part))
            os.replace(part, self._path)
        except (OSError, RuntimeError) as error:  # training goes on without it
            part.unlink(missing_ok=True)
            self._say(f"warning: {self._path}: the trace could not be written ({error})")
        else:
            which = f"steps {seen[0]:,} to {seen[-1]:,}" if seen else "a step that was not finished"
            self._say(f"{self._path}: a trace of {which}; open it at https://ui.perfetto.dev")
