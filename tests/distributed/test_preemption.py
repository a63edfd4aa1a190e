"""A signal at any rank stops all of them, saved; the same command continues."""

import ctypes
import functools
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from ffcv_r50.distributed.preemption import SIGNALS, StopSignal, StopVote
from ffcv_r50.errors import FINISHED, STOPPED_AS_ASKED
from tests import ranks
from tests.conftest import REPOSITORY, Dataset


@pytest.fixture(scope="module")
def undisturbed(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    ended = ranks.run(ranks.arguments(dataset, folder), folder)
    assert ended.codes == [FINISHED] * 2, ended.outputs
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "rank"),
    [(signal.SIGTERM, 1), (signal.SIGUSR1, 0), (signal.SIGUSR2, 1), (signal.SIGINT, 0)],
)
def test_a_signal_at_one_rank_stops_all_and_nothing_is_lost(
    undisturbed: Path, dataset: Dataset, tmp_path: Path, number: signal.Signals, rank: int
) -> None:
    # A save in minutes: only the stop itself saves in the middle of an epoch.
    arguments = ranks.arguments(dataset, tmp_path, "--checkpoint.every=10 minutes")
    stopped = ranks.run(arguments, tmp_path, hook=ranks.at_step(4, number, rank))
    assert stopped.codes == [STOPPED_AS_ASKED] * 2, stopped.outputs
    who = number.name if rank == 0 else "another rank"
    assert f"stopped by {who}; the state is saved, the same command continues" in stopped.outputs[0]
    assert ranks.status(tmp_path)["state"] == "stopped"
    assert ranks.status(tmp_path)["exit_code"] == STOPPED_AS_ASKED
    continued = ranks.run(arguments, tmp_path)
    assert continued.codes == [FINISHED] * 2, continued.outputs
    # Received before step 4, summed with step 5, known after step 6.
    assert "continuing after epoch 1 of 3 and 3 of 4 steps" in continued.outputs[0]
    assert ranks.status(tmp_path)["state"] == "finished"
    ranks.assert_same_run(undisturbed, tmp_path)


def stop_at_first_ballot() -> None:
    cast = StopVote.cast

    def stopping(self: StopVote, stop: bool) -> bool:
        if os.environ["RANK"] == "1":
            ranks.signal_self(signal.SIGTERM)
        return cast(self, stop)

    StopVote.cast = stopping  # type: ignore[method-assign]


@pytest.mark.slow
def test_a_stop_during_the_evaluation(undisturbed: Path, dataset: Dataset, tmp_path: Path) -> None:
    arguments = ranks.arguments(dataset, tmp_path, "--checkpoint.every=10 minutes")
    stopped = ranks.run(arguments, tmp_path, hook=stop_at_first_ballot)
    assert stopped.codes == [STOPPED_AS_ASKED] * 2, stopped.outputs
    assert not (tmp_path / "log.jsonl").exists()
    continued = ranks.run(arguments, tmp_path)
    assert "continuing after epoch 0 of 3 and 4 of 4 steps" in continued.outputs[0]
    ranks.assert_same_run(undisturbed, tmp_path)


TORCHRUN_RANK = """
import os, signal, sys
sys.path.insert(0, {repository!r})
from tests import ranks
if os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
    ranks.at_step(5, signal.{send}, rank=1)()
ranks.main(sys.argv[1:])
"""


def torchrun(send: signal.Signals, dataset: Dataset, folder: Path) -> tuple[int, str]:
    """Two ranks, one of which gets a signal before step 5 of the first attempt."""
    arguments = ranks.arguments(dataset, folder, *ranks.WITHOUT_TIMM)
    script = folder / "rank.py"
    script.write_text(TORCHRUN_RANK.format(repository=str(REPOSITORY), send=send.name))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node=2", "--max-restarts=1", str(script)]
    command += [*arguments, "--dist.timeout_seconds=10"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=200)
    return result.returncode, result.stdout + result.stderr


@pytest.mark.slow
def test_torchrun_restarts_after_a_kill_and_continues(dataset: Dataset, tmp_path: Path) -> None:
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    arguments = ranks.arguments(dataset, undisturbed, *ranks.WITHOUT_TIMM)
    ended = ranks.run(arguments, undisturbed)
    assert ended.codes == [FINISHED] * 2, ended.outputs
    killed.mkdir()
    code, output = torchrun(signal.SIGKILL, dataset, killed)
    assert code == 0, output
    assert "continuing after epoch 1 of 3" in output
    ranks.assert_same_run(undisturbed, killed)


@pytest.mark.slow
def test_torchrun_does_not_restart_a_stop(dataset: Dataset, tmp_path: Path) -> None:
    """torchrun takes exit code 75 for a fault; its second attempt must not train on."""
    code, output = torchrun(signal.SIGTERM, dataset, tmp_path)
    assert code != 0
    assert output.count("epochs of 4 steps") == 1, output
    assert ranks.status(tmp_path)["state"] == "stopped"


# ------------------------------------------------------------------------------------ one process


def test_each_signal_is_handled_and_earlier_handlers_are_restored() -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    for number in SIGNALS:
        with StopSignal() as stop:
            assert stop.asked is None
            ranks.signal_self(number)
            assert stop.asked == number
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_nohup_is_respected() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignal() as stop:
            ranks.signal_self(signal.SIGHUP)
            assert stop.asked is None
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def receive(numbers: tuple[signal.Signals, ...]) -> None:
    with StopSignal():
        for number in numbers:
            ranks.signal_self(number)
    os._exit(0)


def fork_and_signal_the_child() -> None:
    with StopSignal() as stop:
        if not (child := os.fork()):
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGINT):
                ranks.signal_self(number)
            os._exit(stop.asked is not None)
        _, child_status = os.waitpid(child, 0)
    os._exit(child_status != 0 or stop.asked is not None)


def exit_code(work: Any) -> int | None:
    process = multiprocessing.get_context("forkserver").Process(target=work)
    process.start()
    process.join(60)
    process.kill()
    return process.exitcode


@pytest.mark.slow
@pytest.mark.parametrize(
    ("numbers", "code"),
    [
        ((signal.SIGINT, signal.SIGINT), 130),
        ((signal.SIGTERM, signal.SIGINT, signal.SIGINT), 130),
        ((signal.SIGTERM, signal.SIGINT), 0),
        ((signal.SIGTERM, signal.SIGTERM), 0),
    ],
)
def test_a_second_interrupt_exits_at_once(numbers: tuple[signal.Signals, ...], code: int) -> None:
    assert exit_code(functools.partial(receive, numbers)) == code


def wait_where_no_handler_runs() -> None:
    """Like a collective whose peer is gone; SIGINT comes again and again."""
    mutex = ctypes.create_string_buffer(128)
    lock = ctypes.CDLL(None).pthread_mutex_lock
    process = os.getpid()

    def interrupt() -> None:
        while True:  # signals of one kind that are pending are one: the first may be two
            os.kill(process, signal.SIGINT)
            time.sleep(0.05)

    with StopSignal():
        lock(mutex)
        threading.Thread(target=interrupt, daemon=True).start()
        lock(mutex)


@pytest.mark.slow
def test_a_second_interrupt_exits_from_within_a_collective() -> None:
    assert exit_code(wait_where_no_handler_runs) == 130


@pytest.mark.slow
def test_a_forked_childs_signal_is_not_ours() -> None:
    assert exit_code(fork_and_signal_the_child) == 0
