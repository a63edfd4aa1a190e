"""What becomes of a job when its processes end: done, requeued or failed, with a faked scheduler."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ffcv_r50.run.ends import Seen, judge
from tests.conftest import REPOSITORY

RUNNING = {"state": "running", "exit_code": None, "reason": "", "time": "1"}
STOPPED = {"state": "stopped", "exit_code": 75, "reason": "", "time": "2"}
FAILED = {"state": "failed", "exit_code": None, "reason": "NotFinite: step 3", "time": "2"}
VANISHED = {"state": "lost", "reason": "rank 3: no heartbeat from n2 for 21 s", "time": "2"}


@pytest.mark.parametrize(
    ("code", "before", "after", "end"),
    [
        (0, RUNNING, {"state": "finished"}, "finished"),
        (75, RUNNING, STOPPED, "stopped"),  # srun
        (1, RUNNING, STOPPED, "stopped"),  # torchrun hides the 75
        (2, STOPPED, STOPPED, "failed"),  # bad input: what the folder says is of an earlier start
        (1, STOPPED, STOPPED, "failed"),  # the same under torchrun
        (1, RUNNING, FAILED, "failed"),  # a bug
        (137, RUNNING, RUNNING, "lost"),  # SIGKILL: out of memory, an administrator
        (137, {}, RUNNING, "lost"),
        (1, {}, RUNNING, "lost"),  # under torchrun
        (1, RUNNING, VANISHED, "lost"),  # a node, as the watch over the ranks tells it
    ],
)
def test_what_an_end_means(
    code: int, before: dict[str, Any], after: dict[str, Any], end: str
) -> None:
    assert judge(code, Seen(before, None), Seen(after, None))[0] == end


class Job:
    """The supervisor in a job whose ``scontrol requeue`` is recorded."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.requeued = folder / "requeued"
        scontrol = folder / "scontrol"
        scontrol.write_text(f'#!/bin/sh\necho "$@" >>{self.requeued}\n')
        scontrol.chmod(0o755)
        self.state("RUNNING")

    def state(self, state: str) -> None:
        squeue = self.folder / "squeue"
        squeue.write_text(f"#!/bin/sh\necho {state}\n")
        squeue.chmod(0o755)

    @contextlib.contextmanager
    def start(self, script: str, **environment: str) -> Iterator["subprocess.Popen[str]"]:
        program = [sys.executable, str(REPOSITORY / "slurm" / "supervise.py"), str(self.folder)]
        path = f"{self.folder}:{os.environ['PATH']}"
        process = subprocess.Popen(
            [*program, sys.executable, "-u", "-c", script],
            env={"PATH": path, "SLURM_JOB_ID": "4711"} | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=self.folder,
            start_new_session=True,
        )
        with process:
            deadline = threading.Timer(30, os.killpg, (process.pid, signal.SIGKILL))
            deadline.start()
            try:
                yield process
            finally:
                deadline.cancel()
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)

    def run(self, script: str, **environment: str) -> tuple[int, str]:
        with self.start(script, **environment) as process:
            error = process.communicate(timeout=30)[1]
        return process.returncode, error


@pytest.fixture
def job(tmp_path: Path) -> Job:
    (tmp_path / "checkpoints").mkdir()
    return Job(tmp_path)


def recording(status: dict[str, Any], then: str) -> str:
    return f"import os, signal; open('status.json', 'w').write({json.dumps(status)!r}); {then}"


def test_a_finished_run_is_the_end_of_the_job(job: Job) -> None:
    assert job.run(recording({"state": "finished"}, "raise SystemExit(0)")) == (0, "")
    assert not job.requeued.exists()


def test_a_stopped_run_is_requeued_once(job: Job) -> None:
    code, error = job.run(recording(STOPPED, "raise SystemExit(75)"))
    assert code == 75
    assert job.requeued.read_text() == "requeue 4711\n"
    assert "stopped as asked; job 4711 is requeued" in error


@pytest.mark.parametrize("state", ["COMPLETING", "CANCELLED", "PENDING"])
def test_a_cancelled_job_stays_cancelled(job: Job, state: str) -> None:
    job.state(state)
    code, error = job.run(recording(STOPPED, "raise SystemExit(75)"))
    assert code == 75
    assert "was cancelled, or SLURM requeues it by itself" in error
    assert not job.requeued.exists()


def test_a_bug_fails_once_with_its_reason(job: Job) -> None:
    code, error = job.run(recording(FAILED, "raise SystemExit(1)"))
    assert (code, error) == (1, "supervise: error: NotFinite: step 3\n")
    assert not job.requeued.exists()


def test_a_reason_is_one_line_that_a_terminal_can_show(job: Job) -> None:
    status = FAILED | {"reason": "\x1b[2Jclass \x1b]0;title\x07\nsupervise: finished"}
    code, error = job.run(recording(status, "raise SystemExit(1)"))
    shown = "\\x1b[2Jclass \\x1b]0;title\\x07 supervise: finished"
    assert (code, error) == (1, f"supervise: error: {shown}\n")


def test_the_recorded_code_is_not_hidden_by_torchrun(job: Job) -> None:
    status = {"state": "failed", "exit_code": 2, "reason": "UserError: x.beton", "time": "2"}
    assert job.run(recording(status, "raise SystemExit(1)"))[0] == 2


KILLED = recording(RUNNING, "os.kill(os.getpid(), signal.SIGKILL)")


def test_killed_processes_are_retried_while_the_run_comes_further(job: Job) -> None:
    assert job.run(KILLED)[0] == 75
    assert job.run(KILLED, SLURM_RESTART_COUNT="2")[0] == 75
    further = "open('checkpoints/last.pt', 'w'); " + KILLED
    assert job.run(further, SLURM_RESTART_COUNT="9")[0] == 75
    assert job.requeued.read_text().count("requeue") == 3
    code, error = job.run(KILLED, SLURM_RESTART_COUNT="3")
    assert code == 1
    assert "not tried again: no progress" in error
    assert job.requeued.read_text().count("requeue") == 3


def test_without_slurm_it_says_how_to_go_on(job: Job) -> None:
    script = recording(STOPPED, "raise SystemExit(75)")
    with job.start(script) as process:  # in a job, to see that the difference is the variable
        process.communicate(timeout=30)
    assert job.requeued.exists()
    program = [sys.executable, str(REPOSITORY / "slurm" / "supervise.py"), str(job.folder)]
    (job.folder / "status.json").unlink()
    alone = subprocess.run(
        [*program, sys.executable, "-c", script],
        cwd=job.folder,
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
    )
    assert alone.returncode == 75
    assert "the same command continues" in alone.stderr


def test_signals_to_the_batch_script_reach_the_processes(job: Job) -> None:
    waits = (
        "import signal; signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2}); print('up'); "
        "signal.sigwait({signal.SIGUSR2})"
    )
    with job.start(f"{waits}; print('got it'); raise SystemExit(75)") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        process.send_signal(signal.SIGTERM)  # SLURM sends it to the processes itself
        process.send_signal(signal.SIGUSR2)
        assert process.stdout.readline() == "got it\n"
        process.wait(timeout=30)
    assert job.requeued.exists()
