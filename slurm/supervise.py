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

import os
import signal
import subprocess
import sys
from pathlib import Path

# This file is run by its path, from the copy of the toolkit that its job was submitted with.
sys.path.insert(0, str(Path(__file__).parents[1]))

from ffcv_r50.errors import STOPPED_AS_ASKED, one_line
from ffcv_r50.run import ends


def main(argv: list[str]) -> int:
    """Run, judge, requeue; returns the exit code."""
    if len(argv) < 2:
        print("usage: supervise.py RUN_FOLDER COMMAND...", file=sys.stderr)
        return 2
    folder, command = Path(argv[0]), argv[1:]
    before = ends.look(folder)
    # srun takes SLURM_CPUS_PER_TASK of sbatch only under this name (since SLURM 22.05).
    if "SLURM_CPUS_PER_TASK" in os.environ:
        os.environ.setdefault("SRUN_CPUS_PER_TASK", os.environ["SLURM_CPUS_PER_TASK"])
    code = ends.start(command, _passed_on).wait()
    after = ends.look(folder)
    end, reason = ends.judge(code, before, after)
    if end == "finished":
        return 0
    job = os.environ.get("SLURM_JOB_ID")
    restarts = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
    came_further = after.checkpoint != before.checkpoint
    if end == "lost" and not came_further and restarts >= ends.RESTARTS_WITHOUT_PROGRESS:
        _say(f"error: {reason}; not tried again: no progress, and {restarts} restarts before")
        return code if 0 < code < 128 else 1
    if end == "failed":
        _say(f"error: {reason}")
        return ends.own_code(code, before, after)
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


def _passed_on(number: signal.Signals) -> bool:
    """SLURM sends SIGTERM to all processes itself, and srun would end them at once; the other signals
    only the batch script gets."""
    return number != signal.SIGTERM or "SLURM_JOB_ID" not in os.environ


def _say(text: str) -> None:
    print(f"supervise: {one_line(text)}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
