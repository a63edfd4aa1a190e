"""Reading ahead: what is asked for, how far ahead, and that it ends whatever happens."""

import ctypes
import mmap
import os
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from benchmarks.slow_disk import Counts, Disk, mounted
from ffcv_r50.data import beton, decode, loader, read_ahead
from ffcv_r50.data.beton import Beton
from ffcv_r50.data.crops import center_crop, random_crop
from ffcv_r50.data.decode import Sampling, Stored
from ffcv_r50.data.loader import SAMPLE, Batch, EvalLoader
from ffcv_r50.data.read_ahead import PIECE, Ranges, ReadAhead, ranges
from ffcv_r50.errors import RunFault, UserError
from tests.data.conftest import train

Views = npt.NDArray[np.int64]
SECONDS = 60
"""After which a test gives up."""
GO_ON = np.zeros(1, np.bool_)
STOPPED = np.ones(1, np.bool_)

pytestmark = pytest.mark.usefixtures("no_thread_is_left")


def needed(dataset: Beton, views: Views, sampling: Sampling) -> set[int]:
    """The bytes of the file that decoding has to read, one by one."""
    found: set[int] = set()
    for view in views.tolist():
        sample = view & SAMPLE
        begin, size = int(dataset.offsets[sample]), int(dataset.sizes[sample])
        height, width = int(dataset.heights[sample]), int(dataset.widths[sample])
        if dataset.modes[sample] == beton.MODE_RAW:
            if sampling.random:
                scale, ratio = sampling.crop_scale, sampling.crop_ratio
                window = random_crop(
                    sampling.seed, sampling.epoch, view, height, width, scale, ratio
                )
            else:
                window = center_crop(height, width, sampling.center_ratio)
            first = begin + 3 * width * window.top
            found.update(range(first, first + 3 * width * window.height))
        else:
            found.update(range(begin, begin + size))
    return found


def covered(wanted: Ranges) -> set[int]:
    assert (wanted.begins < wanted.ends).all()
    assert (wanted.begins[1:] > wanted.ends[:-1]).all(), "ascending and apart"
    return {i for begin, end in zip(*map(list, wanted), strict=True) for i in range(begin, end)}


class Decoding:
    """The loader's decoding, held until :meth:`go`; and what is asked for meanwhile."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[Ranges] = []
        self.enough = threading.Event()
        self._expected = 0
        self._go = threading.Event()

        def held(*arguments: Any) -> tuple[int, int]:
            assert self._go.wait(SECONDS)
            return decode.decode_samples(*arguments)

        monkeypatch.setattr(loader, "decode_samples", held)
        monkeypatch.setattr(read_ahead, "advise", self._advise)

    def _advise(self, file: int, wanted: Ranges, stopped: npt.NDArray[np.bool_]) -> None:
        self.asked.append(wanted)
        if len(self.asked) == self._expected:
            self.enough.set()

    def go_after(self, batches: int) -> None:
        """Let it begin once so many batches have been asked for."""
        self._expected = batches
        if len(self.asked) < batches:
            assert self.enough.wait(SECONDS)
        self._go.set()


@pytest.fixture
def decoding(monkeypatch: pytest.MonkeyPatch) -> Decoding:
    return Decoding(monkeypatch)


# --- what is asked for


def test_ranges_are_the_bytes_that_decoding_needs(small_dataset: Beton) -> None:
    stored = Stored.of(small_dataset)
    training = train(small_dataset, repeats=2)
    for epoch in range(3):
        sampling = training._sampling._replace(epoch=epoch)
        for views in training.views(epoch):
            wanted = ranges(stored, sampling, views)
            assert covered(wanted) == needed(small_dataset, views, sampling)
            assert wanted.size == len(covered(wanted))
    everything = np.arange(small_dataset.num_samples)
    for ratio in (0.5, 1.0):
        sampling = Sampling.center(ratio)
        assert covered(ranges(stored, sampling, everything)) == needed(
            small_dataset, everything, sampling
        )


def test_decoding_reads_nothing_else(small_dataset: Beton, tmp_path: Path) -> None:
    training = train(small_dataset, batch_size=16, micro_batch_size=16)
    content = bytearray(small_dataset.path.read_bytes())
    views = training.views(0).reshape(-1)
    kept = needed(small_dataset, views, training._sampling)
    first = int(small_dataset.offsets.min())
    last = int((small_dataset.offsets + small_dataset.sizes).max())
    for i in set(range(first, last)) - kept:
        content[i] = 0xA5
    path = tmp_path / "rest_is_garbage.beton"
    path.write_bytes(content)

    def pixels(dataset: Beton) -> list[bytes]:
        same = train(dataset, batch_size=16, micro_batch_size=16)
        return [batch.images.numpy().tobytes() for batch in same.epoch(0, 32)]

    assert pixels(Beton(path)) == pixels(small_dataset)


@pytest.mark.parametrize("order", ["random", "quasi_random"])
@pytest.mark.parametrize(("world_size", "first_step"), [(1, 0), (1, 2), (2, 1), (4, 0)])
def test_each_rank_asks_for_its_own_batches_in_turn(
    small_dataset: Beton,
    monkeypatch: pytest.MonkeyPatch,
    order: str,
    world_size: int,
    first_step: int,
) -> None:
    for rank in range(world_size):
        decoding = Decoding(monkeypatch)
        ours = train(small_dataset, rank=rank, world_size=world_size, order=order)
        mine = np.split(ours.views(1)[first_step:], world_size, axis=1)[rank].reshape(-1, 4)
        with ours.epoch(1, 32, first_step) as epoch:
            decoding.go_after(len(mine))
            shown = [batch.indices.tolist() for batch in epoch]
        assert shown == (mine & SAMPLE).tolist()
        sampling = ours._sampling._replace(epoch=1)
        assert [covered(wanted) for wanted in decoding.asked] == [
            needed(small_dataset, views, sampling) for views in mine
        ]


def test_evaluation_is_read_ahead_too(small_dataset: Beton, decoding: Decoding) -> None:
    evaluation = EvalLoader(small_dataset, batch_size=16, resolution=32, crop_ratio=0.875)
    with evaluation.epoch() as epoch:
        decoding.go_after(4)
        assert sum(len(batch.indices) for batch in epoch) == 50
    together = set().union(*map(covered, decoding.asked))
    assert together == needed(small_dataset, np.arange(50), Sampling.center(0.875))


def test_what_is_asked_for_comes_into_the_page_cache(tmp_path: Path) -> None:
    path = tmp_path / "cold"
    page, size = mmap.PAGESIZE, 8 * PIECE
    with open(path, "wb") as new:
        new.write(os.urandom(size))
        new.flush()
        os.fsync(new.fileno())
        os.posix_fadvise(new.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    with open(path, "rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        address = np.frombuffer(mapped, np.uint8).ctypes.data

        def cached() -> set[int]:
            state = np.zeros(size // page, np.uint8)
            libc = ctypes.CDLL(None)
            arguments = ctypes.c_void_p(address), ctypes.c_size_t(size)
            assert libc.mincore(*arguments, ctypes.c_void_p(state.ctypes.data)) == 0
            return set(np.flatnonzero(state & 1).tolist())

        if cached():
            pytest.skip("this file system keeps its files in memory")
        # From the middle of a page and of a piece; and a part that is shorter than a page.
        begins = np.array([PIECE // 2 + 100, 6 * PIECE - 50])
        ends = np.array([4 * PIECE + 10, 6 * PIECE + 50])
        wanted = {
            n for a, b in zip(begins, ends, strict=True) for n in range(a // page, -(-b // page))
        }
        read_ahead.advise(file.fileno(), Ranges(ends[:1] + PIECE, ends[:1] + 2 * PIECE), STOPPED)
        read_ahead.advise(file.fileno(), Ranges(begins, ends), GO_ON)
        give_up = time.monotonic() + SECONDS
        while not cached() >= wanted and time.monotonic() < give_up:
            time.sleep(0.01)  # the kernel tells nobody that it is there
        assert cached() == wanted


# --- how far ahead


class Waiting(threading.Condition):
    """Says when somebody waits for it."""

    def __init__(self) -> None:
        super().__init__()
        self.entered = threading.Semaphore(0)

    def wait(self, timeout: float | None = None) -> bool:
        self.entered.release()
        return super().wait(timeout)


def ahead_of(dataset: Beton, batches: list[Views], monkeypatch: pytest.MonkeyPatch) -> Any:
    """A thread that reads ahead of nobody, what it asks for, and its condition."""
    asked: list[int] = []
    stored, sampling = Stored.of(dataset), train(dataset)._sampling
    monkeypatch.setattr(
        read_ahead, "advise", lambda file, wanted, stopped: asked.append(wanted.size)
    )
    thread = ReadAhead(stored, sampling, batches)
    thread._changed = condition = Waiting()
    return thread, asked, condition, [ranges(stored, sampling, views).size for views in batches]


@pytest.mark.parametrize("batches_in_window", [0.5, 1, 3.7])
def test_no_more_than_the_window_is_asked_for(
    small_dataset: Beton, monkeypatch: pytest.MonkeyPatch, batches_in_window: float
) -> None:
    batches = list(train(small_dataset).views(0).reshape(-1, 4))
    thread, asked, condition, sizes = ahead_of(small_dataset, batches, monkeypatch)
    window = int(batches_in_window * np.mean(sizes))
    monkeypatch.setattr(read_ahead, "WINDOW", window)
    thread.start()
    number = 0  # of the next that is asked for
    for begun in range(len(batches)):
        while number < len(batches) and (
            number <= begun - 1 or sum(sizes[begun : number + 1]) <= window or number == begun
        ):
            number += 1
        if number < len(batches):
            assert condition.entered.acquire(timeout=SECONDS)
        else:
            thread.join(SECONDS)
        assert asked == sizes[:number], f"{begun} batches begun"
        thread.begin(begun + 1)
    thread.join(SECONDS)
    assert asked == sizes


def test_the_window_moves_with_the_decoding(
    small_dataset: Beton, decoding: Decoding, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(read_ahead, "WINDOW", 1)
    with train(small_dataset).epoch(0, 32) as epoch:
        decoding.go_after(1)
        for _ in range(12):
            next(epoch)
        thread = epoch._work.task.read_ahead
        thread.join(SECONDS)
        assert not thread.is_alive(), "all batches were begun, so it is done"


def test_what_is_being_decoded_already_is_not_asked_for(
    small_dataset: Beton, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = list(train(small_dataset).views(0).reshape(-1, 4))
    thread, asked, _, sizes = ahead_of(small_dataset, batches, monkeypatch)
    thread.begin(5)
    thread.start()
    thread.join(SECONDS)
    assert asked == sizes[4:], "from the batch on that is begun"


# --- whatever happens


@pytest.mark.timeout(SECONDS)
def test_an_epoch_closed_early_leaves_no_thread(
    small_dataset: Beton, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fixture of this file looks for threads. One that waits for room, one at a slow call."""
    monkeypatch.setattr(read_ahead, "WINDOW", 1)
    with train(small_dataset).epoch(0, 32) as epoch:
        next(epoch)

    asking = threading.Event()

    def slow(file: int, wanted: Ranges, stopped: npt.NDArray[np.bool_]) -> None:
        asking.set()
        while not stopped[0]:
            time.sleep(0.001)

    monkeypatch.setattr(read_ahead, "advise", slow)
    with train(small_dataset).epoch(0, 32) as epoch:
        next(epoch)
        assert asking.wait(SECONDS)


def test_an_epoch_that_fails_stops_reading_ahead(
    small_dataset: Beton, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(read_ahead, "WINDOW", 1)
    monkeypatch.setattr(decode, "MAX_PIXELS", 1)
    epoch = train(small_dataset).epoch(0, 32)
    with pytest.raises(UserError):
        list[Batch](epoch)
    thread = epoch._work.task.read_ahead
    thread.join(SECONDS)
    assert not thread.is_alive(), "though nobody closed the epoch"
    epoch.close()


def test_a_file_truncated_while_it_is_read_ahead_is_the_decodings_fault(
    small_dataset: Beton, tmp_path: Path, decoding: Decoding, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "shrinks.beton"
    path.write_bytes(small_dataset.path.read_bytes())
    dataset = Beton(path)

    def truncate(file: int, wanted: Ranges, stopped: npt.NDArray[np.bool_]) -> None:
        os.truncate(path, int(dataset.offsets.min()) + 1)
        read_ahead._advise(file, wanted.begins, wanted.ends, stopped)
        decoding._advise(file, wanted, stopped)

    monkeypatch.setattr(read_ahead, "advise", truncate)
    with train(dataset).epoch(0, 32) as epoch:
        decoding.go_after(12)
        with pytest.raises(RunFault, match="has become shorter since it was opened"):
            next(epoch)


def test_batches_come_where_nothing_can_be_read_ahead(
    small_dataset: Beton, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> int:
        raise OSError("too many open files")

    fake = SimpleNamespace(open=refuse, O_RDONLY=0, O_CLOEXEC=0)
    monkeypatch.setattr(read_ahead, "os", fake)
    with train(small_dataset).epoch(0, 32) as epoch:
        assert len(list[Batch](epoch)) == 12
    assert "not read ahead (too many open files)" in caplog.text


# --- the disk of benchmarks/cold_disk.py


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_slow_disk_holds_the_same_bytes_and_counts_them(tmp_path: Path) -> None:
    source = tmp_path / "source"
    content = os.urandom(3 * PIECE + 1000)
    source.write_bytes(content)
    _needs_fuse()
    with mounted(source, tmp_path / "slow", Disk(rate=1e9, latency=0.001, seek=0.0)) as file:
        assert file.counts == Counts(0, 0)
        assert file.path.read_bytes() == content
        assert file.counts.bytes == len(content)
        assert file.counts.requests > 1
        assert file.path.read_bytes() == content
        assert file.counts.bytes == len(content), "from the page cache"
    assert (tmp_path / "slow").read_bytes() == b""


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_no_part_is_left_out_where_linux_reads_ahead_128_kib(tmp_path: Path) -> None:
    """As on a FUSE mount and most disks: what a call asks for beyond that is dropped."""
    _needs_fuse()
    source = tmp_path / "source"
    source.write_bytes(os.urandom(10 * PIECE))
    with (
        mounted(source, tmp_path / "slow", Disk(rate=1e9, latency=0.001, seek=0.0)) as file,
        open(file.path, "rb") as opened,
    ):
        begin = PIECE // 2 + 100  # so each 128 KiB from here on lie on 33 pages
        size = 8 * PIECE + mmap.PAGESIZE
        wanted = Ranges(np.array([begin]), np.array([begin + 8 * PIECE]))
        read_ahead.advise(opened.fileno(), wanted, GO_ON)
        give_up = time.monotonic() + SECONDS
        while file.counts.bytes < size and time.monotonic() < give_up:
            time.sleep(0.01)  # the disk tells nobody
        assert file.counts.bytes == size
        os.pread(opened.fileno(), 8 * PIECE, begin)
        assert file.counts.bytes == size, "all was there"


def _needs_fuse() -> None:
    if os.geteuid() != 0 or not os.access("/dev/fuse", os.W_OK):
        pytest.skip("mounting takes root and /dev/fuse")
