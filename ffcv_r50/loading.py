"""The loader for other people's training loops: the interface that stays.

::

    import ffcv_r50

    train = ffcv_r50.TrainLoader(ffcv_r50.Dataset("train.beton"), batch_size=256, device="cuda",
                                 dtype=torch.float32, resolution=lambda epoch: 160 if epoch < 12 else 192)
    for epoch in range(16):
        train.set_epoch(epoch)
        for images, labels in train:
            ...

These are the trainer's own loaders (:mod:`ffcv_r50.data.loader`), which know their rank, move batches to
a device and remember how far they are. ``docs/loader.md`` explains them.
"""

import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from ffcv_r50.data import loader, transfer
from ffcv_r50.data.beton import Beton as Dataset
from ffcv_r50.data.loader import Epoch, ImageTransform
from ffcv_r50.distributed import cores, launcher
from ffcv_r50.errors import UserError
from ffcv_r50.training.transforms.normalize import IMAGENET, Normalize, Statistics

__all__ = ["Dataset", "EvalLoader", "TrainLoader"]

Labelled = tuple[Tensor, Tensor]
"""Images and their labels, which belong to the caller: no buffer is used again."""
DTYPES = (torch.uint8, torch.float32, torch.float16, torch.bfloat16)


class _Delivery:
    """What becomes of decoded batches: on which device, in which type.

    Args:
        device, dtype, mean, std: see :class:`TrainLoader`.
    """

    def __init__(
        self,
        device: str | torch.device,
        dtype: torch.dtype,
        mean: Sequence[float],
        std: Sequence[float],
    ) -> None:
        try:
            self.device = torch.device(device)
        except RuntimeError:
            raise UserError(f"device is {device!r}; give one such as 'cpu' or 'cuda:0'") from None
        if self.device.type not in ("cpu", "cuda"):
            raise UserError(f"device is {device!r}; choose the CPU or a CUDA device")
        if self.device.type == "cuda" and not torch.cuda.is_available():
            raise UserError(f"device is {device!r}, but torch finds no CUDA device here")
        if dtype not in DTYPES:
            names = ", ".join(str(each) for each in DTYPES)
            raise UserError(f"dtype is {dtype}; choose one of {names}")
        self.pinned = self.device.type == "cuda"
        self._dtype = dtype
        self._normalize = Normalize(self.device, _statistics(mean, std))

    def __call__(self, batches: Iterable[loader.Batch]) -> Iterator[Labelled]:
        """Deliver batches, on CUDA one ahead of the one in use."""
        for images, labels, _ in transfer.to_device(batches, self.device):
            if self._dtype != torch.uint8:
                images = self._normalize.images(images).to(self._dtype)
            else:
                images = images.permute(0, 2, 3, 1)
                images = images if self.pinned else images.clone()
            yield images, labels if self.pinned else labels.clone()


def _statistics(mean: Sequence[float], std: Sequence[float]) -> Statistics:
    """As :class:`TrainLoader` takes them."""
    if np.shape(mean) != (3,) or not all(0 <= value <= 1 for value in mean):
        raise UserError(f"mean is {mean}; give those of red, green and blue, each from 0 to 1")
    if np.shape(std) != (3,) or not all(0 < value <= 1 for value in std):
        raise UserError(f"std is {std}; give those of red, green and blue, each above 0, up to 1")
    return Statistics((mean[0], mean[1], mean[2]), (std[0], std[1], std[2]))


def _place(rank: int | None, world_size: int | None) -> tuple[int, int]:
    """Which process of how many this is."""
    if rank is not None and world_size is not None:
        return rank, world_size
    if rank is not None or world_size is not None:
        raise UserError("give both rank and world_size, or neither")
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    info = launcher.detect(os.environ)
    return info.rank, info.size


def _workers(num_workers: int | None) -> int:
    """Decoding threads: as given, or this process's share of the machine's cores."""
    if num_workers is not None:
        return num_workers
    info = launcher.detect(os.environ)
    # torchrun lets each of its processes run on all cores; srun may have bound them to their own.
    return max(1, min(cores.granted(info), (os.cpu_count() or 1) // info.local_size))


class TrainLoader:
    """Random crops of all samples in random order: the same batches at any number of processes.

    Which samples form a step, and which crop and flip each gets, is a function of ``seed``, epoch and
    ``batch_size`` alone. Each ``iter()`` is an epoch: the one that :meth:`set_epoch` chose, or the one after
    the last. The samples of an epoch that fill no batch are left out. ``len()`` is the number of batches that
    this process gets in an epoch.

    Args:
        dataset: the open file.
        batch_size: samples of a step, over all processes together.
        resolution: height and width of the images in pixels, or a function from the epoch to them. The
            attribute may be set anew between epochs.
        seed: up to 64 bits.
        micro_batch_size: samples of a batch that this process gets; smaller ones than its whole share of a
            step are for gradient accumulation.
        rank, world_size: which process of how many this is; else torch.distributed's, where it is
            initialised, or what the variables of torchrun, srun or submitit say.
        num_workers: decoding threads; else this process's share of the machine's cores.
        device: where batches go; to a CUDA device from page-locked memory, one batch ahead.
        dtype: ``torch.uint8`` for images [n, resolution, resolution, 3] in 0..255; float32, float16 or
            bfloat16 for images [n, 3, resolution, resolution], channels-last in memory, normalised in float32.
        mean, std: of red, green and blue, in units of 0 to 1: what becomes zero and one in those types; by
            default ImageNet's.
        crop_scale: share of the image's area that a crop may have, as torchvision's RandomResizedCrop.
        crop_ratio: width over height that it may have, likewise.
        flip: probability of mirroring.
        transforms: change the images as they are decoded, in this order; those of recipes are made by
            ``ffcv_r50.training.transforms.TRANSFORMS["randaugment"](ops=2).build()``, which also takes the
            :class:`~ffcv_r50.training.transforms.normalize.Statistics` that a fill with the mean is of.
        repeats: views of each sample in a step, of fewer samples an epoch (repeated augmentation).
        order: ``random``, or ``quasi_random`` for datasets larger than memory.
        scaled_decode: decode at 1/2, 1/4 or 1/8 where the crop is that much larger than the output.
        bad_images: ``error``, or ``gray`` to log and replace samples that cannot be decoded.

    Raises:
        UserError: settings that do not go together, launcher's variables that contradict each other, or no
            libjpeg-turbo. From the iteration: a sample that cannot be decoded.
    """

    def __init__(
        self,
        dataset: Dataset,
        *,
        batch_size: int,
        resolution: int | Callable[[int], int] = 224,
        seed: int = 0,
        micro_batch_size: int | None = None,
        rank: int | None = None,
        world_size: int | None = None,
        num_workers: int | None = None,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.uint8,
        mean: Sequence[float] = IMAGENET.mean,
        std: Sequence[float] = IMAGENET.std,
        crop_scale: tuple[float, float] = (0.08, 1.0),
        crop_ratio: tuple[float, float] = (3 / 4, 4 / 3),
        flip: float = 0.5,
        transforms: Sequence[ImageTransform] = (),
        repeats: int = 1,
        order: str = "random",
        scaled_decode: bool = True,
        bad_images: str = "error",
    ) -> None:
        self.dataset = dataset
        self.resolution = resolution
        self.rank, self.world_size = _place(rank, world_size)
        if not 0 <= self.rank < self.world_size:
            raise UserError(f"rank {self.rank} is not one of {self.world_size} ranks")
        self._deliver = _Delivery(device, dtype, mean, std)
        if micro_batch_size is None:
            if batch_size < 1 or batch_size % self.world_size:
                raise UserError(
                    f"batch_size is {batch_size}, over all processes; choose a multiple of {self.world_size}"
                )
            micro_batch_size = batch_size // self.world_size
        self._loader = loader.TrainLoader(
            dataset,
            seed=seed,
            batch_size=batch_size,
            micro_batch_size=micro_batch_size,
            rank=self.rank,
            world_size=self.world_size,
            num_workers=_workers(num_workers),
            crop_scale=crop_scale,
            crop_ratio=crop_ratio,
            flip=flip,
            transforms=transforms,
            repeats=repeats,
            order=order,
            scaled_decode=scaled_decode,
            bad_images=bad_images,
            pin_memory=self._deliver.pinned,
        )
        self._micro_batches = batch_size // (self.world_size * micro_batch_size)
        self._stream = {
            "samples": dataset.num_samples,
            "seed": seed,
            "batch_size": batch_size,
            "order": order,
            "repeats": repeats,
        }
        self._shares = {"world_size": self.world_size, "micro_batch_size": micro_batch_size}
        # The next batch is this one of this epoch. Whether a state was loaded that no iter() took up yet.
        self._epoch, self._batch, self._loaded = 0, 0, False

    @property
    def steps_per_epoch(self) -> int:
        """Steps over all processes in an epoch."""
        return self._loader.steps_per_epoch

    def __len__(self) -> int:
        return self.steps_per_epoch * self._micro_batches

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, from 0, that the next ``iter()`` begins.

        A loaded state in the middle of this very epoch is kept: the iteration goes on from there.
        """
        if epoch < 0:
            raise UserError(f"set_epoch({epoch}): epochs count from 0")
        if not (self._loaded and epoch == self._epoch):
            self._epoch, self._batch, self._loaded = epoch, 0, False

    def __iter__(self) -> Iterator[Labelled]:
        """The rest of the epoch that a loaded state was in, or a whole one.

        There is one iteration at a time: beginning another one ends it.
        """
        if self._batch and not self._loaded:  # the last iteration was left early
            self._epoch, self._batch = self._epoch + 1, 0
        self._loaded = False
        resolution = self.resolution
        if callable(resolution):
            resolution = resolution(self._epoch)
        step, done = divmod(self._batch, self._micro_batches)
        return self._batches(self._loader.epoch(self._epoch, resolution, step), done)

    def _batches(self, epoch: Epoch, done: int) -> Iterator[Labelled]:
        """What is left of an epoch that begins with a step of which some batches are done."""
        with epoch:
            for batch in self._deliver(itertools.islice(epoch, done, None)):
                self._batch += 1
                yield batch
        self._epoch, self._batch = self._epoch + 1, 0

    def state_dict(self) -> dict[str, Any]:
        """Where the iteration is: as torchdata's StatefulDataLoader has it, after the batch given last.

        The same on all processes, if all have been given equally many batches; so one of them may save it.
        Plain numbers and strings.
        """
        step, micro_batch = divmod(self._batch, self._micro_batches)
        position = {"epoch": self._epoch, "step": step, "micro_batch": micro_batch}
        return {**position, **self._stream, **self._shares}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Have the next ``iter()`` go on after the batch that was given last when the state was taken.

        Between steps, at any number of processes and any ``micro_batch_size``: the steps that follow
        consist of the same samples and crops.

        Raises:
            UserError: it is the state of a loader with another dataset, seed, batch size, order or repeats;
                or of the middle of a step, which other processes cannot take up.
        """
        try:
            epoch, step, micro_batch = (int(state[k]) for k in ("epoch", "step", "micro_batch"))
            expected = {**self._stream, **(self._shares if micro_batch else {})}
            other = {name: state[name] for name in expected if state[name] != expected[name]}
        except (KeyError, TypeError, ValueError):
            raise UserError("load_state_dict: this is not the state of a TrainLoader") from None
        for name, value in other.items():
            within = " in the middle of a step" if name in self._shares else ""
            raise UserError(
                f"load_state_dict: the state was saved{within} with {name} {value}, this loader has "
                f"{expected[name]}; give it the same"
            )
        if not (epoch >= 0 and 0 <= step <= self.steps_per_epoch and micro_batch >= 0):
            raise UserError(f"load_state_dict: epoch {epoch} has no step {step}")
        self._loader.close()
        self._epoch, self._batch = epoch, step * self._micro_batches + micro_batch
        self._loaded = True


class EvalLoader:
    """The center crop of each sample once, in the file's order.

    Each process gets a run of neighbouring samples; the shares differ by one at most, and nothing is
    padded, so numbers of batches may differ between processes. ``len()`` is this process's.

    Args:
        dataset: the open file.
        batch_size: samples of a batch of this process, at most.
        resolution: height and width of the images in pixels.
        crop_ratio: side of the crop over the image's shorter side.
        rank, world_size, num_workers, device, dtype, mean, std, bad_images: see :class:`TrainLoader`.

    Raises:
        UserError: see :class:`TrainLoader`.
    """

    def __init__(
        self,
        dataset: Dataset,
        *,
        batch_size: int = 256,
        resolution: int = 224,
        crop_ratio: float = 224 / 256,
        rank: int | None = None,
        world_size: int | None = None,
        num_workers: int | None = None,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.uint8,
        mean: Sequence[float] = IMAGENET.mean,
        std: Sequence[float] = IMAGENET.std,
        bad_images: str = "error",
    ) -> None:
        self.dataset = dataset
        self.rank, self.world_size = _place(rank, world_size)
        self._deliver = _Delivery(device, dtype, mean, std)
        self._loader = loader.EvalLoader(
            dataset,
            batch_size=batch_size,
            resolution=resolution,
            crop_ratio=crop_ratio,
            rank=self.rank,
            world_size=self.world_size,
            num_workers=_workers(num_workers),
            bad_images=bad_images,
            pin_memory=self._deliver.pinned,
        )

    def __len__(self) -> int:
        return self._loader.num_batches

    def __iter__(self) -> Iterator[Labelled]:
        """All batches of this process. There is one iteration at a time."""
        return self._batches(self._loader.epoch())

    def _batches(self, epoch: Epoch) -> Iterator[Labelled]:
        with epoch:
            yield from self._deliver(epoch)
