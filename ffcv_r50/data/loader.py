"""Batches of a dataset, in order, decoded by threads of our own.

Threads take turns at pieces of the next batches, so that several work on one batch and it is ready
early. A bounded pool of buffers is reused from batch to batch and from epoch to epoch. No
process-wide thread count is touched: two loaders do not disturb each other.
"""

import logging
import math
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch

from ffcv_r50.data import jpeg
from ffcv_r50.data.beton import Beton
from ffcv_r50.data.decode import UNREAD, Sampling, Scratch, Stored, decode_samples
from ffcv_r50.data.fingerprint import fingerprint
from ffcv_r50.data.order import PageOrder, random_order, repeated
from ffcv_r50.data.philox import transform_stream
from ffcv_r50.data.read_ahead import ReadAhead
from ffcv_r50.errors import RunFault, UserError

LOG = logging.getLogger(__name__)

PREFETCH = 3
"""Batches that are made while the consumer holds one."""
PIECE = 32
"""Samples that a thread takes at a time, at most."""
LIVENESS = 0.5
"""Seconds after which a waiting consumer looks whether there is anything left to wait for."""
GRAY = 128
SAMPLE = 0xFFFF_FFFF
"""The bits of a view that say which sample it shows."""


class Batch(NamedTuple):
    """Some samples. Valid until the next one is asked for: the buffers are used again."""

    images: torch.Tensor
    """uint8 [n, resolution, resolution, 3], RGB."""
    labels: torch.Tensor
    """int64 [n]."""
    indices: torch.Tensor
    """int64 [n], sample indices in the file."""


class Draw(NamedTuple):
    """What a transform's random numbers are a function of, besides the view: see
    :func:`ffcv_r50.data.philox.philox4x32`."""

    seed: np.uint64
    """Of the run: the key."""
    epoch: int
    """The counter's third word."""
    stream: int
    """The first of 2^16 that are the transform's own, for the counter's last word."""


class ImageTransform(Protocol):
    """Changes training images as they are decoded, in the loader's threads."""

    def __call__(
        self, images: npt.NDArray[np.uint8], views: npt.NDArray[np.int64], draw: Draw
    ) -> None:
        """Change images in place; what becomes of one is a function of its view and ``draw``.

        Args:
            images: uint8 [n, height, width, 3], RGB.
            views: int64 [n], what they show: the sample's index in the file in the low 32 bits,
                which repetition of it in the epoch above.
            draw: where random numbers come from.
        """
        ...


class _Slot:
    """The buffers of one batch."""

    def __init__(self, batch_size: int, pin_memory: bool) -> None:
        self._pin = pin_memory and torch.cuda.is_available()
        self._pixels = torch.empty(0, dtype=torch.uint8)
        self._numbers = torch.empty((2, batch_size), dtype=torch.int64, pin_memory=self._pin)

    def reserve(self, resolution: int) -> None:
        """Grow to a batch of this resolution. In the consumer's thread, which has its own device."""
        most = self._numbers.shape[1] * resolution * resolution * 3
        if self._pixels.numel() < most:
            self._pixels = torch.empty(0)  # free before allocating
            self._pixels = torch.empty(most, dtype=torch.uint8, pin_memory=self._pin)

    def batch(self, size: int, resolution: int) -> Batch:
        """The part of these buffers that a batch needs."""
        shape = (size, resolution, resolution, 3)
        images = self._pixels[: math.prod(shape)].view(shape)
        return Batch(images, self._numbers[0, :size], self._numbers[1, :size])


@dataclass
class _Job:
    """A batch that is being made."""

    views: npt.NDArray[np.int64]
    batch: Batch
    images: npt.NDArray[np.uint8]
    next_piece: int = 0
    pieces_left: int = 0


class _Task(NamedTuple):
    """The part of an epoch that a loader is asked for, and with what it is made."""

    dataset: Beton
    stored: Stored
    batches: list[npt.NDArray[np.int64]]
    """Of views, see :class:`ImageTransform`."""
    resolution: int
    sampling: Sampling
    transforms: Sequence[ImageTransform]
    gray: bool
    """Replace bad images by gray ones, instead of ending the epoch."""
    slots: list[_Slot]
    """Where the batches are made, one after another."""
    piece: int
    """Samples that a thread takes at a time."""
    read_ahead: ReadAhead


class _Work:
    """What the threads of an epoch share."""

    def __init__(self, task: _Task) -> None:
        self.task = task
        self.changed = threading.Condition()
        # All below is guarded by `changed`.
        self.jobs: dict[int, _Job] = {}  # by number of the batch; those not yet handed out
        self.started = 0  # batches that have become jobs
        self.released = 0  # batches whose buffers may be used again
        self.bad_images = 0
        self.error: BaseException | None = None
        self.stopped = False

    def take(self) -> tuple[_Job, int] | None:
        """Wait for the next piece of work: a job and where its piece begins. None at the end."""
        with self.changed:
            while True:
                if self.stopped or self.error is not None:
                    return None
                if self.started > 0:
                    job = self.jobs.get(self.started - 1)
                    if job is not None and job.next_piece < len(job.views):
                        begin = job.next_piece
                        job.next_piece += self.task.piece
                        return job, begin
                if self.started == len(self.task.batches):
                    return None
                if self.started - self.released < len(self.task.slots):
                    self._start()
                else:
                    self.changed.wait()

    def _start(self) -> None:
        task = self.task
        views = task.batches[self.started]
        batch = task.slots[self.started % len(task.slots)].batch(len(views), task.resolution)
        samples = views & SAMPLE
        batch.labels.numpy()[:] = task.dataset.labels[samples]
        batch.indices.numpy()[:] = samples
        self.jobs[self.started] = _Job(
            views, batch, batch.images.numpy(), 0, -(-len(views) // task.piece)
        )
        self.started += 1
        task.read_ahead.begin(self.started)
        self.changed.notify_all()

    def run(self) -> None:
        """A thread's life."""
        try:
            decompressor = jpeg.Decompressor()
            try:
                scratch = Scratch.allocate(self.task.stored, self.task.resolution)
                while (piece := self.take()) is not None:
                    self._decode(decompressor, scratch, *piece)
            finally:
                decompressor.close()
        except BaseException as error:  # whatever it is, the consumer raises it
            self.task.read_ahead.stop()
            with self.changed:
                self.error = self.error or error
                self.changed.notify_all()

    def _decode(
        self, decompressor: jpeg.Decompressor, scratch: Scratch, job: _Job, begin: int
    ) -> None:
        task = self.task
        views = job.views[begin : begin + task.piece]
        out = job.images[begin : begin + task.piece]
        at = 0
        while True:
            at, status = decode_samples(
                decompressor.handle, task.stored, task.sampling, views, at, scratch, out
            )
            if status == jpeg.GOOD:
                break
            if status == UNREAD:
                sample = int(views[at] & SAMPLE)
                task.dataset.read(sample)  # says what is wrong
                raise RunFault(
                    f"{task.dataset.path}: sample {sample} could not be read, and now can"
                )
            reason = decompressor.error() if status == jpeg.LIBRARY else jpeg.REASONS[status]
            what = f"{task.dataset.path}: sample {views[at] & SAMPLE} cannot be decoded: {reason}"
            if not task.gray:
                raise UserError(
                    f"{what}; write the dataset again, or have bad images replaced by gray ones"
                )
            LOG.warning("%s; replaced by a gray image", what)
            out[at] = GRAY
            at += 1
            with self.changed:
                self.bad_images += 1
        for row, transform in enumerate(task.transforms):
            draw = Draw(task.sampling.seed, task.sampling.epoch, transform_stream(row))
            transform(out, views, draw)
        with self.changed:
            job.pieces_left -= 1
            if job.pieces_left == 0:
                self.changed.notify_all()

    def stop(self) -> None:
        """Have the threads end after the piece they are at."""
        self.task.read_ahead.stop()
        with self.changed:
            self.stopped = True
            self.changed.notify_all()


class Epoch(Iterator[Batch]):
    """The batches of one epoch, an iterator and a context manager.

    Leaving the ``with`` stops its threads, at whatever batch that is. A :class:`Batch` is valid until
    the next call of :func:`next`: finish copies to a device before.

    Raises:
        UserError: from :func:`next`, a sample cannot be decoded (with ``bad_images="error"``).
    """

    def __init__(self, work: _Work, num_workers: int) -> None:
        self._work = work
        self._given = 0
        self._threads = [
            threading.Thread(target=work.run, name=f"decode-{i}", daemon=True)
            for i in range(num_workers)
        ]
        for thread in (work.task.read_ahead, *self._threads):
            thread.start()

    def __len__(self) -> int:
        return len(self._work.task.batches)

    @property
    def bad_images(self) -> int:
        """Images replaced by gray so far."""
        return self._work.bad_images

    def __next__(self) -> Batch:
        work = self._work
        with work.changed:
            work.released = self._given
            work.changed.notify_all()
            if self._given == len(work.task.batches) and work.error is None:
                batch = None
            else:
                batch = self._wait()
        if batch is None:
            self.close()
            raise StopIteration
        return batch

    def _wait(self) -> Batch:
        work = self._work
        while True:
            if work.error is not None:
                raise work.error
            if work.stopped:
                raise RuntimeError("this epoch was closed; ask the loader for a new one")
            job = work.jobs.get(self._given)
            if job is not None and job.pieces_left == 0:
                del work.jobs[self._given]
                self._given += 1
                return job.batch
            if not any(thread.is_alive() for thread in self._threads):
                raise RuntimeError("the loader's threads ended without an error or a batch")
            work.changed.wait(LIVENESS)

    def close(self) -> None:
        """Stop the threads and wait for them, a few hundredths of a second. Safe to repeat."""
        self._work.stop()
        for thread in (self._work.task.read_ahead, *self._threads):
            # One of them collects the garbage, perhaps; others never began, short of memory.
            if thread.ident and thread is not threading.current_thread():
                thread.join()

    def __enter__(self) -> "Epoch":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_threads"):
            self.close()


class _Loader:
    """What training and evaluation have in common: the settings checked, the buffers, the epoch."""

    def __init__(
        self,
        dataset: Beton,
        *,
        rows: int,
        rank: int,
        world_size: int,
        num_workers: int,
        bad_images: str,
        pin_memory: bool,
    ) -> None:
        if num_workers < 1:
            raise UserError(f"num_workers is {num_workers}; at least one is needed")
        if not 0 <= rank < world_size:
            raise UserError(f"rank {rank} is not one of {world_size} ranks")
        if bad_images not in ("error", "gray"):
            raise UserError(f"bad_images is {bad_images!r}; choose 'error' or 'gray'")
        jpeg.library()
        self.dataset = dataset
        self._stored = Stored.of(dataset)
        self.rank = rank
        self.world_size = world_size
        self._num_workers = num_workers
        self._gray = bad_images == "gray"
        self._slots = [_Slot(rows, pin_memory) for _ in range(PREFETCH + 1)]
        self._open: Epoch | None = None

    def _epoch(
        self,
        batches: list[npt.NDArray[np.int64]],
        resolution: int,
        sampling: Sampling,
        transforms: Sequence[ImageTransform] = (),
    ) -> Epoch:
        """Open an epoch. The buffers serve one at a time, so an earlier one is closed."""
        if resolution < 1:
            raise UserError(f"resolution is {resolution}; at least one pixel is needed")
        self.close()
        for slot in self._slots:
            slot.reserve(resolution)
        share = max(map(len, batches), default=1) // (2 * self._num_workers)
        task = _Task(
            dataset=self.dataset,
            stored=self._stored,
            batches=batches,
            resolution=resolution,
            sampling=sampling,
            transforms=transforms,
            gray=self._gray,
            slots=self._slots,
            piece=min(PIECE, max(1, share)),
            read_ahead=ReadAhead(self._stored, sampling, batches),
        )
        self._open = Epoch(_Work(task), self._num_workers)
        return self._open

    def close(self) -> None:
        """Close the open epoch, if any."""
        if self._open is not None:
            self._open.close()
            self._open = None


class TrainLoader(_Loader):
    """Random crops of all samples in random order, the same at any world size and worker count.

    A global batch of ``batch_size`` samples consists of ``batch_size / micro_batch_size``
    micro-batches; each rank takes a run of equally many. What a sample looks like in an epoch depends
    on seed, epoch and sample index alone. The last samples of an epoch that fill no global batch are
    left out.

    Args:
        dataset: the open file.
        seed: up to 64 bits.
        batch_size: samples of a step, over all ranks.
        micro_batch_size: samples that a :class:`Batch` has.
        rank, world_size: which part of the work is ours; ``world_size * micro_batch_size`` divides
            ``batch_size``.
        num_workers: decoding threads.
        crop_scale: share of the image's area that a crop may have, as torchvision's
            RandomResizedCrop.
        crop_ratio: width over height that it may have, likewise.
        flip: probability of mirroring.
        transforms: change the images after that, in this order.
        repeats: views of each sample in a step, of fewer samples an epoch, see
            :func:`~ffcv_r50.data.order.repeated`.
        order: ``random``, or ``quasi_random`` for datasets larger than memory.
        scaled_decode: decode at 1/2, 1/4 or 1/8 where the crop is that much larger than the output,
            see :func:`ffcv_r50.data.decode.scaling`.
        bad_images: ``error``, or ``gray`` to count, log and replace samples that cannot be decoded.
        pin_memory: page-locked batches, for asynchronous copies to a CUDA device.

    Raises:
        UserError: settings that do not go together, or no libjpeg-turbo.
    """

    steps_per_epoch: int
    """Global batches in an epoch."""

    def __init__(
        self,
        dataset: Beton,
        *,
        seed: int,
        batch_size: int,
        micro_batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        num_workers: int = 1,
        crop_scale: tuple[float, float] = (0.08, 1.0),
        crop_ratio: tuple[float, float] = (3 / 4, 4 / 3),
        flip: float = 0.5,
        transforms: Sequence[ImageTransform] = (),
        repeats: int = 1,
        order: str = "random",
        scaled_decode: bool = True,
        bad_images: str = "error",
        pin_memory: bool = False,
    ) -> None:
        if batch_size < 1 or micro_batch_size < 1 or batch_size % (world_size * micro_batch_size):
            raise UserError(
                f"a batch of {batch_size} cannot be cut into micro-batches of {micro_batch_size} on "
                f"{world_size} ranks; choose a batch size that their product divides"
            )
        if dataset.num_samples < batch_size:
            raise UserError(
                f"{dataset.path}: has {dataset.num_samples} samples, fewer than one batch of "
                f"{batch_size}; choose a smaller batch size"
            )
        if not 0 < crop_scale[0] <= crop_scale[1] <= 1 or not 0 < crop_ratio[0] <= crop_ratio[1]:
            raise UserError(
                f"crop_scale {crop_scale} or crop_ratio {crop_ratio} is no range; give (low, high), "
                "positive, and a scale of at most 1"
            )
        if not 0 <= flip <= 1:
            raise UserError(f"flip is {flip}; a probability lies between 0 and 1")
        if not 1 <= repeats <= batch_size:
            raise UserError(f"repeats is {repeats}; choose 1 up to the batch of {batch_size}")
        if order not in ("random", "quasi_random"):
            raise UserError(f"order is {order!r}; choose 'random' or 'quasi_random'")
        super().__init__(
            dataset,
            rows=micro_batch_size,
            rank=rank,
            world_size=world_size,
            num_workers=num_workers,
            bad_images=bad_images,
            pin_memory=pin_memory,
        )
        self.steps_per_epoch = dataset.num_samples // batch_size
        self._seed = seed & 0xFFFF_FFFF_FFFF_FFFF
        self._batch_size = batch_size
        self._micro_batch_size = micro_batch_size
        self._transforms = tuple(transforms)
        self._repeats = repeats
        self._views = -1, np.empty((0, 0), np.int64)  # of the epoch that was asked for last
        self._pages = PageOrder(dataset.offsets, dataset.page_size) if order != "random" else None
        self._sampling = Sampling(
            seed=np.uint64(self._seed),
            epoch=0,
            random=True,
            crop_scale=(float(crop_scale[0]), float(crop_scale[1])),
            crop_ratio=(float(crop_ratio[0]), float(crop_ratio[1])),
            flip=float(flip),
            center_ratio=1.0,
            scaled=bool(scaled_decode),
        )

    def epoch(self, epoch: int, resolution: int, first_step: int = 0) -> Epoch:
        """This rank's batches of an epoch from a step on; nothing before it is decoded.

        Args:
            epoch: from 0.
            resolution: height and width of the images in pixels.
            first_step: the step to start at, from 0.

        Returns:
            ``batch_size / (world_size * micro_batch_size)`` batches for each step, steps in order.
        """
        if not 0 <= first_step <= self.steps_per_epoch:
            raise UserError(f"step {first_step} is not in an epoch of {self.steps_per_epoch} steps")
        mine = self.views(epoch).reshape(
            self.steps_per_epoch, self.world_size, -1, self._micro_batch_size
        )[first_step:, self.rank]
        batches = list(np.ascontiguousarray(mine).reshape(-1, self._micro_batch_size))
        sampling = self._sampling._replace(epoch=epoch)
        return self._epoch(batches, resolution, sampling, self._transforms)

    def views(self, epoch: int) -> npt.NDArray[np.int64]:
        """What an epoch shows: int64 [steps, batch_size], the same on every rank.

        A view is a sample's index in the low 32 bits, which repetition of it in the epoch above.
        """
        if self._views[0] != epoch:
            if self._pages is None:
                samples = random_order(self.dataset.num_samples, self._seed, epoch)
            else:
                samples = self._pages.order(self._seed, epoch, self._batch_size)
            views = repeated(samples, self._repeats, self._batch_size, self.steps_per_epoch)
            self._views = epoch, views.reshape(self.steps_per_epoch, self._batch_size)
        return self._views[1]

    def fingerprint(self, epoch: int, step: int) -> str:
        """Of the data of a step of an epoch, see :mod:`ffcv_r50.data.fingerprint`."""
        sampling = self._sampling._replace(epoch=epoch)
        return fingerprint(self._stored, sampling, self.views(epoch)[step], self.dataset.labels)


class EvalLoader(_Loader):
    """The center crop of each sample once, in the file's order.

    Rank r of W takes the samples from n * r // W up to n * (r + 1) // W, so shards differ by one
    sample at most and nothing is padded; the last batch is short.

    Args:
        dataset: the open file.
        batch_size: samples of a :class:`Batch`.
        resolution: height and width of the images in pixels.
        crop_ratio: side of the crop over the image's shorter side.
        rank, world_size: which shard is ours.
        num_workers: decoding threads.
        bad_images: ``error``, or ``gray`` to count, log and replace samples that cannot be decoded.
        pin_memory: page-locked batches, for asynchronous copies to a CUDA device.

    Raises:
        UserError: settings that make no sense, or no libjpeg-turbo.
    """

    def __init__(
        self,
        dataset: Beton,
        *,
        batch_size: int,
        resolution: int,
        crop_ratio: float,
        rank: int = 0,
        world_size: int = 1,
        num_workers: int = 1,
        bad_images: str = "error",
        pin_memory: bool = False,
    ) -> None:
        if batch_size < 1:
            raise UserError(f"batch_size is {batch_size}; at least one is needed")
        if not 0 < crop_ratio <= 1:
            raise UserError(f"crop_ratio is {crop_ratio}; choose one above 0 and up to 1")
        super().__init__(
            dataset,
            rows=min(batch_size, -(-dataset.num_samples // max(1, world_size))),
            rank=rank,
            world_size=world_size,
            num_workers=num_workers,
            bad_images=bad_images,
            pin_memory=pin_memory,
        )
        self._resolution = resolution
        n = dataset.num_samples
        mine = np.arange(n * rank // world_size, n * (rank + 1) // world_size)
        self._batches = [mine[i : i + batch_size] for i in range(0, len(mine), batch_size)]
        self._sampling = Sampling.center(crop_ratio)

    @property
    def num_batches(self) -> int:
        """Of this rank."""
        return len(self._batches)

    def epoch(self) -> Epoch:
        """This rank's batches."""
        return self._epoch(self._batches, self._resolution, self._sampling)
