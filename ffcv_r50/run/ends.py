"""What the end of a training's processes means to a program that started them.

Needs nothing but Python itself: a supervisor lives as long as its job and should weigh nothing.
"""

import signal
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, Literal, NamedTuple

from ffcv_r50.errors import STOPPED_AS_ASKED
from ffcv_r50.files import read_record
from ffcv_r50.run.status import STATUS

RESTARTS_WITHOUT_PROGRESS = 3
"""After so many it is not tried again."""
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)

End = Literal["finished", "stopped", "lost", "failed"]


class Seen(NamedTuple):
    """What a run folder says."""

    status: dict[str, Any]
    checkpoint: tuple[int, int] | None
    """Identity and time of the newest checkpoint."""


def look(folder: Path) -> Seen:
    """Read what the run recorded so far."""
    status = read_record(folder / STATUS)
    try:
        stat = (folder / "checkpoints" / "last.pt").stat()
    except OSError:
        return Seen(status, None)
    return Seen(status, (stat.st_ino, stat.st_mtime_ns))


def judge(code: int, before: Seen, after: Seen) -> tuple[End, str]:
    """What the end of the processes means.

    Args:
        code: that the command ended with: the highest of its processes' under srun (above 128
            where a signal killed one), 0 or 1 under torchrun.
        before: the run folder at the start.
        after: the run folder now.

    Returns:
        The end, and the reason in words.
    """
    if code == 0:
        return "finished", ""
    # A process that fails before the run begins leaves the status of an earlier start.
    status = after.status if after.status != before.status else {}
    state, reason = status.get("state"), str(status.get("reason", ""))
    if code == STOPPED_AS_ASKED or state == "stopped":
        return "stopped", "stopped as asked"
    if state == "lost":
        return "lost", reason
    if code < 0 or code > 128:
        return "lost", f"a process was killed (exit code {code})"
    if state == "running":  # nobody had the time to say more
        return "lost", f"the processes ended without a word (exit code {code})"
    return "failed", reason or f"exit code {code}"


def own_code(code: int, before: Seen, after: Seen) -> int:
    """The exit code of a run that failed, where torchrun's is always 1."""
    recorded = after.status.get("exit_code") if after.status != before.status else None
    if isinstance(recorded, int) and 0 < recorded < 128:
        return recorded
    return code if 0 < code < 128 else 1


def start(
    command: Sequence[str],
    passed_on: Callable[[signal.Signals], bool] = lambda _: True,
    signals: Sequence[signal.Signals] = SIGNALS,
    own_group: bool = False,
) -> "subprocess.Popen[bytes]":
    """Start the processes, and pass the signals on to them that this program gets.

    The handlers come first: a signal in between would end this program.

    Args:
        command: what starts them.
        passed_on: asked at each signal.
        signals: that are handled.
        own_group: a terminal's signals reach this program only, which passes them on once.

    Raises:
        OSError: there is no such program.
    """
    processes: list[subprocess.Popen[bytes]] = []
    early: list[int] = []

    def forward(number: int, frame: FrameType | None) -> None:
        if not passed_on(signal.Signals(number)):
            return
        if not processes:
            early.append(number)
        elif processes[0].poll() is None:
            processes[0].send_signal(number)

    for number in signals:
        signal.signal(number, forward)
    processes.append(subprocess.Popen(command, start_new_session=own_group))
    for received in early:
        forward(received, None)
    return processes[0]
