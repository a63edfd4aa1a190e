"""The ranks of one run on this machine, for tests and benchmarks that do things to them.

They are forked from a server that has imported everything, so a start takes no time, and have
torchrun's variables without torchrun: exit codes and signals are the program's own.
"""

import multiprocessing
import multiprocessing.connection
import os
import socket
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

CONTEXT = multiprocessing.get_context("forkserver")
PRELOAD = ["benchmarks.imported_once"]
"""What the server imports."""
CONTEXT.set_forkserver_preload(PRELOAD)


class LocalRanks:
    """Processes that were just started.

    Args:
        main: what each of them runs; picklable.
        outputs: a file a rank for its standard output and error.
    """

    def __init__(self, main: Callable[[], object], outputs: Sequence[Path]) -> None:
        size = len(outputs)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.processes = []
        for rank, output in enumerate(outputs):
            # One thread: another number of threads would add in another order.
            environment = {"OMP_NUM_THREADS": "1"}
            if size > 1:
                environment |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
                environment |= {"WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size)}
                environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            self.processes.append(
                CONTEXT.Process(target=_rank, args=(environment, str(output), main))
            )
        for process in self.processes:
            process.start()

    def pids(self) -> list[int]:
        """Of the ranks that live."""
        return [p.pid for p in self.processes if p.pid is not None and p.is_alive()]

    def wait(self, seconds: float) -> list[int] | None:
        """Exit codes, negative for signals; None where one still runs after so long."""
        deadline = time.monotonic() + seconds
        for process in self.processes:
            process.join(max(0.0, deadline - time.monotonic()))
        codes = [process.exitcode for process in self.processes]
        return None if None in codes else [code for code in codes if code is not None]

    def wait_for_change(self, seconds: float) -> None:
        """Until one more ends, or for so long."""
        sentinels = [process.sentinel for process in self.processes if process.is_alive()]
        multiprocessing.connection.wait(sentinels, seconds)

    def stopped(self) -> bool:
        """Whether all that live are stopped by SIGSTOP."""
        return all(map(_is_stopped, self.pids()))

    def kill(self) -> None:
        """Kill every process and wait for its end."""
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.join()


def _is_stopped(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
    except (FileNotFoundError, ProcessLookupError):  # it ended just now
        return True


def _rank(environment: dict[str, str], output: str, main: Callable[[], object]) -> None:
    os.environ.update(environment)
    torch.set_num_threads(1)
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
    main()
