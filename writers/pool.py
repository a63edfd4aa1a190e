"""Worker processes that give their results in order and never outlive, or hang, their parent."""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import Connection
from typing import Any, TypeVar

T = TypeVar("T")

CHUNKS_PER_WORKER = 3
"""Submitted and not yet taken by the consumer: bounds what lies in memory."""


class WorkerDied(Exception):
    """A worker process ended on its own: killed, out of memory, or crashed in a library."""


def ordered_map(
    function: Callable[..., T], chunks: Iterable[tuple[Any, ...]], num_workers: int
) -> Generator[T, None, None]:
    """``function(*chunk)`` for each chunk, in order, computed in ``num_workers`` processes.

    Close the iterator (``contextlib.closing``) to leave early: the workers are gone afterwards,
    whatever they were waiting for.

    Raises:
        WorkerDied: at the first result that such a worker owes.
    """
    context = multiprocessing.get_context("spawn")
    # Workers hold the reading end. Its writing end closes with this process, however that ends.
    reader, lifeline = context.Pipe(duplex=False)
    executor = ProcessPoolExecutor(num_workers, context, _exit_with_parent, (reader,))
    pending: deque[Future[T]] = deque()
    try:
        for chunk in chunks:
            pending.append(_submit(executor, function, chunk))
            if len(pending) >= CHUNKS_PER_WORKER * num_workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
        executor.shutdown()
    except BrokenProcessPool as error:
        raise WorkerDied("a worker process died (killed, out of memory, or crashed)") from error
    finally:
        lifeline.close()
        executor.shutdown(cancel_futures=True)
        reader.close()


def _submit(
    executor: ProcessPoolExecutor, function: Callable[..., T], chunk: tuple[Any, ...]
) -> Future[T]:
    # Submitting starts processes. They inherit the blocked signal, so that a Ctrl-C at the terminal
    # reaches only this process, which then ends them.
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        return executor.submit(function, *chunk)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


def _exit_with_parent(lifeline: Connection) -> None:
    """In a worker: end it as soon as the parent closes its end of the pipe or is gone."""

    def watch() -> None:
        lifeline.poll(None)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
