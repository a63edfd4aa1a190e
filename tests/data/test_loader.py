"""The loader: the same samples whoever asks, errors that arrive, and nothing left behind."""

import errno
import gc
import io
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
import numpy as np
import numpy.typing as npt
import pytest
import torch
from numba.core.caching import CacheImpl, IndexDataCacheFile
from PIL import Image

from ffcv_r50.data import beton, compiled, decode, jpeg, loader
from ffcv_r50.data.beton import Beton
from ffcv_r50.data.crops import center_crop, random_crop, random_flip
from ffcv_r50.data.loader import Batch, Draw, Epoch, EvalLoader
from ffcv_r50.data.order import random_order
from ffcv_r50.errors import RunFault, UserError
from tests.data.conftest import train

Make = Callable[..., Any]
Sample = tuple[int, int, bytes]
REPOSITORY = Path(__file__).parents[2]

pytestmark = pytest.mark.usefixtures("no_thread_is_left")


def copies(epoch: Epoch) -> list[Sample]:
    """(index, label, pixels) of all samples, in order."""
    return [sample for batch in epoch for sample in samples_of(batch)]


def samples_of(batch: Batch) -> list[Sample]:
    assert batch.images.dtype == torch.uint8
    assert batch.labels.dtype == batch.indices.dtype == torch.int64
    return [
        (int(index), int(label), image.numpy().tobytes())
        for image, label, index in zip(*batch, strict=True)
    ]


def pixels_of(dataset: Beton, index: int) -> npt.NDArray[np.uint8]:
    """The whole image, by Pillow."""
    data = dataset.read(index)
    if dataset.modes[index] == beton.MODE_RAW:
        return np.frombuffer(data, np.uint8).reshape(
            dataset.heights[index], dataset.widths[index], 3
        )
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def resized(pixels: npt.NDArray[np.uint8], window: tuple[int, ...], side: int) -> Any:
    top, left, height, width = window
    image = Image.fromarray(pixels[top : top + height, left : left + width].copy())
    return np.asarray(image.resize((side, side), Image.Resampling.BILINEAR)).astype(int)


# --- what is in a batch


def test_training_samples_are_pillows_crops_of_the_right_images(small_dataset: Beton) -> None:
    seed = np.uint64(3)
    with train(small_dataset, scaled_decode=False).epoch(2, 48) as epoch:
        for batch in epoch:
            assert batch.images.shape == (4, 48, 48, 3)
            for index, label, image in samples_of(batch):
                pixels = pixels_of(small_dataset, index)
                height, width = pixels.shape[:2]
                window = random_crop(seed, 2, index, height, width, (0.08, 1.0), (3 / 4, 4 / 3))
                expected = resized(pixels, window, 48)
                if random_flip(seed, 2, index, 0.5):
                    expected = expected[:, ::-1]
                ours = np.frombuffer(image, np.uint8).reshape(48, 48, 3)
                assert np.abs(ours - expected).max() <= 1
                assert label == index % 3


def test_evaluation_samples_are_pillows_center_crops(small_dataset: Beton) -> None:
    seen = []
    evaluation = EvalLoader(small_dataset, batch_size=16, resolution=40, crop_ratio=0.875)
    for batch in evaluation.epoch():
        for index, label, image in samples_of(batch):
            pixels = pixels_of(small_dataset, index)
            expected = resized(pixels, center_crop(pixels.shape[0], pixels.shape[1], 0.875), 40)
            assert np.abs(np.frombuffer(image, np.uint8).reshape(40, 40, 3) - expected).max() <= 1
            assert label == index % 3
            seen.append(index)
    assert seen == list(range(50))


def test_how_far_scaled_decoding_is_from_full(
    tmp_path: Path, make_image: Make, encode: Make, write_beton: Make
) -> None:
    """On photos see ``scaling``. Where no crop is twice the output there is no difference."""
    samples = [encode(make_image(200, 240, seed), interval=3) for seed in range(8)]
    dataset = write_beton(tmp_path / "d.beton", samples)
    images = {}
    for scaled in (True, False):
        got = copies(train(dataset, batch_size=8, scaled_decode=scaled).epoch(0, 32))
        images[scaled] = np.frombuffer(b"".join(image for _, _, image in got), np.uint8).astype(int)
    difference = np.abs(images[True] - images[False])
    assert 0 < difference.mean() < 2.5
    large = train(dataset, batch_size=8, scaled_decode=True).epoch(0, 200)
    same = train(dataset, batch_size=8, scaled_decode=False).epoch(0, 200)
    assert copies(large) == copies(same)


# --- the same samples whoever asks


def test_worker_count_batch_cut_and_world_size_change_nothing(small_dataset: Beton) -> None:
    expected = copies(train(small_dataset).epoch(1, 32))
    assert len(expected) == 48
    assert [index for index, _, _ in expected] == random_order(50, 3, 1)[:48].tolist()
    assert copies(train(small_dataset, num_workers=3).epoch(1, 32)) == expected
    assert copies(train(small_dataset, micro_batch_size=16, num_workers=2).epoch(1, 32)) == expected
    for world_size in (2, 4):
        ranks = [
            copies(train(small_dataset, rank=rank, world_size=world_size).epoch(1, 32))
            for rank in range(world_size)
        ]
        share = 16 // world_size
        together = [
            sample
            for step in range(3)
            for rank in ranks
            for sample in rank[step * share : (step + 1) * share]
        ]
        assert together == expected


def test_repetitions_are_other_crops_of_the_same_image(small_dataset: Beton) -> None:
    whole = copies(train(small_dataset, repeats=4).epoch(1, 32))
    assert [index for index, _, _ in whole] == [
        sample for step in random_order(50, 3, 1)[:12].reshape(3, 4).tolist() for sample in step * 4
    ]
    assert len({image for _, _, image in whole}) == 48
    assert all(label == index % 3 for index, label, _ in whole)
    # The first view of each is the one that an epoch without repetitions shows.
    alone = {index: image for index, _, image in copies(train(small_dataset).epoch(1, 32))}
    for at in range(0, 48, 16):
        assert all(alone[index] == image for index, _, image in whole[at : at + 4])
    assert copies(train(small_dataset, repeats=4).epoch(1, 32, first_step=2)) == whole[32:]


def test_transforms_know_the_views_and_nothing_of_threads(small_dataset: Beton) -> None:
    """A transform that paints an image by its view, the epoch and its row in the list."""

    def paint(images: npt.NDArray[np.uint8], views: npt.NDArray[np.int64], draw: Draw) -> None:
        number = (views & 0xFF) + 60 * (views >> 32) + draw.epoch + (draw.stream >> 16) * 7
        images[:, 0, 0, 0] = (number + draw.seed.item()) & 0xFF
        images[:, 1] += images[:, 0]

    options = {"transforms": [paint, paint], "repeats": 2}
    whole = copies(train(small_dataset, **options).epoch(5, 32))
    plain = copies(train(small_dataset, repeats=2).epoch(5, 32))
    assert copies(train(small_dataset, num_workers=3, **options).epoch(5, 32)) == whole
    assert copies(train(small_dataset, micro_batch_size=16, **options).epoch(5, 32)) == whole
    for i, ((index, _, painted), (_, _, before)) in enumerate(zip(whole, plain, strict=True)):
        ours, image = (
            np.frombuffer(data, np.uint8).reshape(32, 32, 3).copy() for data in (painted, before)
        )
        for row in (0x5000, 0x5001):
            image[0, 0, 0] = (index + 60 * (i % 16 >= 8) + 5 + row * 7 + 3) & 0xFF
            image[1] += image[0]
        assert np.array_equal(ours, image)


@pytest.mark.parametrize("order", ["random", "quasi_random"])
def test_an_epoch_can_start_at_any_step_in_a_new_process_or_an_old(
    small_dataset: Beton, order: str
) -> None:
    old = train(small_dataset, order=order)
    whole = copies(old.epoch(4, 32))
    assert len(whole) == 48
    for step in range(4):
        assert copies(old.epoch(4, 32, first_step=step)) == whole[16 * step :]
        assert copies(train(small_dataset, order=order).epoch(4, 32, step)) == whole[16 * step :]
    assert copies(old.epoch(5, 32)) != whole
    assert copies(train(small_dataset, order=order, seed=4).epoch(4, 32)) != whole


def test_starting_late_decodes_nothing_before(
    tmp_path: Path, make_image: Make, encode: Make, write_beton: Make
) -> None:
    good = encode(make_image(40, 40))
    last_step = set(random_order(12, 3, 0)[8:].tolist())
    samples = [good if i in last_step else b"no JPEG" for i in range(12)]
    dataset = write_beton(tmp_path / "d.beton", samples, [(40, 40)] * 12)
    assert len(copies(train(dataset, batch_size=4).epoch(0, 32, first_step=2))) == 4


def test_resolutions_change_between_epochs_and_buffers_stay(small_dataset: Beton) -> None:
    growing = train(small_dataset)
    addresses: set[int] = set()
    for resolution in (64, 32, 48):
        for batch in growing.epoch(0, resolution):
            assert batch.images.shape == (4, resolution, resolution, 3)
            addresses.add(batch.images.data_ptr())
        assert copies(growing.epoch(0, resolution)) == copies(
            train(small_dataset).epoch(0, resolution)
        )
    assert len(addresses) == loader.PREFETCH + 1


@pytest.mark.parametrize("world_size", [1, 2, 3, 7, 60])
def test_evaluation_counts_each_sample_once(small_dataset: Beton, world_size: int) -> None:
    seen: list[int] = []
    sizes = []
    for rank in range(world_size):
        evaluation = EvalLoader(
            small_dataset,
            batch_size=8,
            resolution=32,
            crop_ratio=1.0,
            rank=rank,
            world_size=world_size,
        )
        mine = [batch.indices.tolist() for batch in evaluation.epoch()]
        assert all(len(batch) == 8 for batch in mine[:-1])
        sizes.append(sum(map(len, mine)))
        seen += [index for batch in mine for index in batch]
    assert seen == list(range(50))
    assert max(sizes) - min(sizes) <= 1


# --- a batch is yours until you ask for the next


def test_threads_work_ahead_but_not_on_a_batch_in_use(small_dataset: Beton) -> None:
    with train(small_dataset, num_workers=2).epoch(0, 32) as epoch:
        batch = next(epoch)
        before = samples_of(batch)
        work = epoch._work
        with work.changed:
            assert work.changed.wait_for(
                lambda: (
                    all(job.pieces_left == 0 for job in work.jobs.values())
                    and len(work.jobs) == loader.PREFETCH
                ),
                timeout=20,
            )
        assert samples_of(batch) == before
        assert work.started == loader.PREFETCH + 1


def test_two_loaders_do_not_disturb_each_other(small_dataset: Beton) -> None:
    threads = (torch.get_num_threads(), numba.get_num_threads())
    evaluation = EvalLoader(
        small_dataset, batch_size=4, resolution=40, crop_ratio=1.0, num_workers=2
    )
    expected_eval = copies(evaluation.epoch())
    expected_train = copies(train(small_dataset).epoch(0, 32))
    got_eval, got_train = [], []
    with train(small_dataset, num_workers=2).epoch(0, 32) as a, evaluation.epoch() as b:
        for one, other in zip(a, b, strict=False):
            got_train += samples_of(one)
            got_eval += samples_of(other)
    assert got_train == expected_train
    assert got_eval == expected_eval[: len(got_eval)]
    assert (torch.get_num_threads(), numba.get_num_threads()) == threads


# --- what goes wrong


@pytest.fixture
def damaged(tmp_path: Path, make_image: Make, encode: Make, write_beton: Make) -> Beton:
    samples = [encode(make_image(40, 40, i)) for i in range(12)]
    samples[7] = samples[7][:-100]
    dataset: Beton = write_beton(tmp_path / "damaged.beton", samples, [(40, 40)] * 12)
    return dataset


@pytest.fixture
def never_looking(monkeypatch: pytest.MonkeyPatch) -> None:
    """A consumer that waits is woken by what happens alone: it never looks by itself."""
    monkeypatch.setattr(loader, "LIVENESS", None)


@pytest.mark.timeout(60)  # of one who is not woken
@pytest.mark.usefixtures("never_looking")
def test_a_bad_image_is_named(damaged: Beton) -> None:
    for epoch in (
        train(damaged, batch_size=4, num_workers=2).epoch(0, 32),
        EvalLoader(damaged, batch_size=4, resolution=32, crop_ratio=1.0).epoch(),
    ):
        with pytest.raises(UserError, match=r"damaged\.beton: sample 7 .*(?i:premature|corrupt)"):
            copies(epoch)
        assert "\n" not in str(epoch._work.error)
        epoch.close()


def test_a_bad_image_can_be_gray(damaged: Beton, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        epoch = train(damaged, batch_size=4, bad_images="gray", num_workers=2).epoch(0, 32)
        got = {index: image for index, _, image in copies(epoch)}
    assert len(got) == 12
    assert got.pop(7) == bytes([128]) * (32 * 32 * 3)
    assert all(len(set(image)) > 10 for image in got.values())
    assert epoch.bad_images == 1
    assert "damaged.beton: sample 7" in caplog.text


def test_an_image_too_large_is_a_bad_image(
    small_dataset: Beton, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decode, "MAX_PIXELS", 90 * 90)
    with pytest.raises(UserError, match=r"sample \d+ .*more pixels than the loader takes"):
        copies(EvalLoader(small_dataset, batch_size=4, resolution=32, crop_ratio=1.0).epoch())


@pytest.mark.parametrize("bad_images", ["error", "gray"])
@pytest.mark.parametrize("mode", [beton.MODE_JPEG, beton.MODE_RAW])
def test_a_file_that_becomes_shorter_is_a_fault_of_the_run(
    small_dataset: Beton, tmp_path: Path, bad_images: str, mode: int
) -> None:
    """Mapped into memory it would end the process by SIGBUS."""
    path = tmp_path / "shrinks.beton"
    path.write_bytes(small_dataset.path.read_bytes())
    dataset = Beton(path)
    sample = int(np.flatnonzero(dataset.modes == mode)[0])
    loader = EvalLoader(dataset, batch_size=1, resolution=32, crop_ratio=1.0, bad_images=bad_images)
    end = int(dataset.offsets[sample] + dataset.sizes[sample])
    os.truncate(path, end - 1)
    with pytest.raises(
        RunFault,
        match=rf"^{path}: has become shorter since it was opened: sample \d+ should end at byte",
    ):
        copies(loader.epoch())


@pytest.mark.timeout(60)
@pytest.mark.usefixtures("never_looking")
def test_any_error_of_a_thread_arrives_at_once(
    small_dataset: Beton, monkeypatch: pytest.MonkeyPatch
) -> None:
    class OutOfMemory:
        @staticmethod
        def allocate(*_: object) -> None:
            raise MemoryError("no memory for scratch")

    copies(train(small_dataset).epoch(0, 32))  # compiled by now
    with monkeypatch.context() as patch:
        patch.setattr(loader, "Scratch", OutOfMemory)
        with (
            pytest.raises(MemoryError, match="no memory for scratch"),
            train(small_dataset).epoch(0, 32) as epoch,
        ):
            next(epoch)

    calls = iter(range(1000))

    def fails_once(_handle: int, _stored: Any, _sampling: Any, samples: Any, *_: Any) -> Any:
        if next(calls) == 3:
            raise OSError("the disk is gone")
        return len(samples), jpeg.GOOD

    monkeypatch.setattr(loader, "decode_samples", fails_once)
    with (
        pytest.raises(OSError, match="the disk is gone"),
        train(small_dataset, num_workers=2).epoch(0, 32) as epoch,
    ):
        copies(epoch)


def test_threads_that_vanish_are_no_reason_to_wait(
    small_dataset: Beton, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader._Work, "run", lambda self: None)
    with pytest.raises(RuntimeError, match="threads ended"):
        next(train(small_dataset).epoch(0, 32))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 64}, r"50 samples, fewer than one batch of 64; choose"),
        ({"batch_size": 18}, r"18 cannot be cut into micro-batches of 4 on 1 ranks"),
        ({"world_size": 3}, r"16 cannot be cut into micro-batches of 4 on 3 ranks"),
        ({"rank": 2, "world_size": 2}, r"rank 2 is not one of 2"),
        ({"num_workers": 0}, r"num_workers is 0"),
        ({"crop_scale": (0.5, 0.1)}, r"crop_scale \(0.5, 0.1\)"),
        ({"crop_ratio": (0.0, 1.0)}, r"crop_ratio \(0.0, 1.0\)"),
        ({"flip": 2.0}, r"flip is 2.0"),
        ({"order": "sequential"}, r"order is 'sequential'; choose"),
        ({"bad_images": "skip"}, r"bad_images is 'skip'; choose"),
    ],
)
def test_settings_that_make_no_sense(
    small_dataset: Beton, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        train(small_dataset, **changes)


def test_epochs_that_make_no_sense(small_dataset: Beton) -> None:
    with pytest.raises(UserError, match="step 4 is not in an epoch of 3 steps"):
        train(small_dataset).epoch(0, 32, first_step=4)
    with pytest.raises(UserError, match="resolution is 0"):
        train(small_dataset).epoch(0, 0)
    with pytest.raises(UserError, match=r"crop_ratio is 1\.5"):
        EvalLoader(small_dataset, batch_size=1, resolution=8, crop_ratio=1.5)


# --- nothing is left behind


def _open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def _memory_mb() -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) / 1024
    raise AssertionError


def test_leaving_early_a_hundred_times_leaks_nothing(
    small_dataset: Beton, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []
    freed: list[int] = []

    class Counted(jpeg.Decompressor):
        def __init__(self) -> None:
            super().__init__()
            made.append(self.handle)

        def close(self) -> None:
            freed.append(self.handle)
            super().close()

    monkeypatch.setattr(jpeg, "Decompressor", Counted)
    one = train(small_dataset, num_workers=2)
    settled: tuple[int, int, float] | None = None
    for i in range(110):
        with one.epoch(i, 96) as epoch:
            for _ in range(i % 4):
                next(epoch)
        assert not any(thread.is_alive() for thread in epoch._threads)
        if i == 9:
            settled = (threading.active_count(), _open_files(), _memory_mb())
    assert settled is not None
    assert threading.active_count() == settled[0]
    assert _open_files() == settled[1]
    assert _memory_mb() < settled[2] + 16  # a leaked decoder or batch an epoch would be 30 and more
    assert len(made) == len(freed) == 220
    with pytest.raises(RuntimeError, match="closed"):
        next(epoch)


def test_a_forgotten_epoch_ends_with_its_loader(small_dataset: Beton) -> None:
    one = train(small_dataset, num_workers=2)
    forgotten = one.epoch(0, 32)
    next(forgotten)
    threads = list(forgotten._threads)
    following = one.epoch(1, 32)  # takes over the buffers
    assert not any(thread.is_alive() for thread in threads)
    next(following)
    threads = list(following._threads)
    del following, forgotten, one
    gc.collect()
    assert not any(thread.is_alive() for thread in threads)


# --- starting

# Prints how many of the functions that are kept on disk were compiled.
FIRST_BATCH = """
import sys
from numba.core import event
from ffcv_r50.data.beton import Beton
from ffcv_r50.data.compiled import _Cache
from ffcv_r50.data.loader import TrainLoader
compilations = event.RecordingListener()
event.register("numba:compile", compilations)
loader = TrainLoader(Beton(sys.argv[1]), seed=0, batch_size=32, micro_batch_size=32, num_workers=2)
with loader.epoch(0, 160) as epoch:
    next(epoch)
started = [record.data["dispatcher"] for _, record in compilations.buffer if record.is_start]
print(sum(isinstance(dispatcher._cache, _Cache) for dispatcher in started))
"""


def _first_batch(path: Path, cache: Path) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", FIRST_BATCH, path],
        env={**os.environ, "NUMBA_CACHE_DIR": str(cache), "PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE,
        text=True,
    )


def _compiled(process: "subprocess.Popen[str]") -> int:
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    return int(output)


@pytest.mark.slow
def test_the_second_start_compiles_nothing_again_and_first_starts_may_be_many(
    small_dataset: Beton, tmp_path: Path
) -> None:
    together = [_first_batch(small_dataset.path, tmp_path) for _ in range(2)]
    assert all(_compiled(process) > 0 for process in together)
    assert _compiled(_first_batch(small_dataset.path, tmp_path)) == 0


def test_without_a_place_for_the_cache_code_is_compiled_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(CacheImpl, "_locator_classes", [])
        with pytest.raises(RuntimeError, match="no locator available"):
            numba.njit(cache=True)(lambda x: x)
        assert compiled.njit_cached(lambda x: x + 1)(41) == 42

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(IndexDataCacheFile, "save", full)
    with pytest.raises(OSError, match="No space left"):
        numba.njit(cache=True)(lambda x: x)(41)
    assert compiled.njit_cached(lambda x: x + 1)(41) == 42


# Prints how many lines of the package ran while the file was opened, the memory in MB that this took,
# and the memory with a first batch.
OPEN = """
import resource, sys, torch
import ffcv_r50.data.loader as loader
from ffcv_r50.data import beton
rss = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
lines = 0
def count(frame, event, _):
    global lines
    if frame.f_code.co_filename != beton.__file__:
        return None
    lines += event == "line"
    return count
before = rss()
sys.settrace(count)
dataset = beton.Beton(sys.argv[1])
sys.settrace(None)
memory = rss() - before
batch = next(loader.TrainLoader(dataset, seed=0, batch_size=64, micro_batch_size=64).epoch(0, 32))
assert len(batch.images) == 64
print(lines, memory, rss() - before)
"""


@pytest.mark.slow
def test_opening_imagenet_loops_over_no_samples_and_takes_300_mb(
    tmp_path: Path, make_image: Make, encode: Make, write_beton: Make
) -> None:
    """1,281,167 samples, all with the bytes of one image: what counts is metadata and table."""
    count, path = 1_281_167, tmp_path / "large.beton"
    data = encode(make_image(40, 40))
    fields = np.zeros(2, beton.FIELD)
    fields["type_id"] = [beton.TYPE_IMAGE, beton.TYPE_INT]
    metadata = np.zeros(count, beton.metadata_dtype([beton.TYPE_IMAGE, beton.TYPE_INT]))
    table = np.zeros(count, beton.ALLOCATION)
    at = beton.HEADER.itemsize + fields.nbytes + metadata.nbytes
    metadata["f0"] = np.array((beton.MODE_JPEG, 40, 40, at), beton.IMAGE)
    metadata["f1"] = np.arange(count) % 1000
    table["sample_id"], table["ptr"], table["size"] = np.arange(count), at, len(data)
    with open(path, "wb") as file:
        file.write(np.array([(2, 2, 1 << 23, count, at + len(data))], beton.HEADER).tobytes())
        for part in (fields, metadata):
            part.tofile(file)
        file.write(data)
        table.tofile(file)
    done = subprocess.run(
        [sys.executable, "-c", OPEN, path],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=120,
    )
    lines, opened, with_batch = map(float, done.stdout.split())
    assert 10 < lines < 1000
    assert max(opened, with_batch) < 300
