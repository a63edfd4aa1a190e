"""Runs the processes of a training inside a SLURM job and decides what their end means.

::

    supervise.py RUN_FOLDER COMMAND...

COMMAND starts all processes (``srun python train_imagenet.py ...``, or ``srun torchrun ...``). When
it ends, then by its exit code and by what the run recorded in RUN_FOLDER/status.json:

- finished: exit 0;
- stopped as asked (preemption, time limit): the job is requeued and continues by itself, unless
  somebody cancelled it;
- processes or machines lost: requeued too, as long as the run comes further between two losses;
- anything else (a bug, bad input): exit with the code; trying again would not help.

The exit code is 75 where the job was requeued, or would go on with the same command.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import FrameType
from typing import Any, Literal, NamedTuple

STOPPED_AS_ASKED = 75
RESTARTS_WITHOUT_PROGRESS = 3

End = Literal["finished", "stopped", "lost", "failed"]


class Seen(NamedTuple):
    """What a run folder says."""

    status: dict[str, Any]
    checkpoint: tuple[int, int] | None
    """Identity and time of the newest checkpoint."""


def look(folder: Path) -> Seen:
    """Read what the run recorded so far."""
    try:
        status = json.loads((folder / "status.json").read_text())
    except (OSError, ValueError):
        status = {}
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


def main(argv: list[str]) -> int:
    """Run, judge, requeue; returns the exit code."""
    if len(argv) < 2:
        print("usage: supervise.py RUN_FOLDER COMMAND...", file=sys.stderr)
        return 2
    folder, command = Path(argv[0]), argv[1:]
    before = look(folder)
    # srun takes SLURM_CPUS_PER_TASK of sbatch only under this name (since SLURM 22.05).
    if "SLURM_CPUS_PER_TASK" in os.environ:
        os.environ.setdefault("SRUN_CPUS_PER_TASK", os.environ["SLURM_CPUS_PER_TASK"])
    code = _start(command).wait()
    after = look(folder)
    end, reason = judge(code, before, after)
    if end == "finished":
        return 0
    job = os.environ.get("SLURM_JOB_ID")
    restarts = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
    came_further = after.checkpoint != before.checkpoint
    if end == "lost" and not came_further and restarts >= RESTARTS_WITHOUT_PROGRESS:
        _say(f"error: {reason}; not tried again: no progress, and {restarts} restarts before")
        return code if 0 < code < 128 else 1
    if end == "failed":
        _say(f"error: {reason}")
        recorded = after.status.get("exit_code") if after.status != before.status else None
        return int(recorded or code)  # torchrun's is always 1
    if job is None:
        _say(f"{reason}; the same command continues")
        return STOPPED_AS_ASKED
    if _state(job) not in ("RUNNING", ""):
        _say(f"{reason}; job {job} was cancelled, or SLURM requeues it by itself")
    elif subprocess.call(["scontrol", "requeue", job]):
        _say(f"error: {reason}; job {job} could not be requeued; the same command continues")
    else:
        _say(f"{reason}; job {job} is requeued")
    return STOPPED_AS_ASKED


def _state(job: str) -> str:
    """What SLURM says that the job is doing; empty where it says nothing.

    While a job that somebody cancelled ends, ``scontrol requeue`` would bring it back to life.
    """
    asked = ["squeue", "--noheader", f"--jobs={job}", "--format=%T"]
    return subprocess.run(asked, capture_output=True, text=True).stdout.strip()


def _start(command: list[str]) -> "subprocess.Popen[bytes]":
    """Start the processes, and pass on to them the signals that only the batch script gets; SLURM sends
    SIGTERM to all of them itself, and srun would end them at once.

    The handlers come first: a signal in between would end this program.
    """
    processes: list[subprocess.Popen[bytes]] = []
    early: list[int] = []

    def forward(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGTERM and "SLURM_JOB_ID" in os.environ:
            return
        if not processes:
            early.append(number)
        elif processes[0].poll() is None:
            processes[0].send_signal(number)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, forward)
    processes.append(subprocess.Popen(command))
    for received in early:
        forward(received, None)
    return processes[0]


def _say(text: str) -> None:
    print(f"supervise: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
