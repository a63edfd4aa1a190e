"""What a run notes down of itself while it trains: where its time goes, and the rows of its logs."""

import contextlib
import resource
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import torch

from ffcv_r50 import recipe
from ffcv_r50.config.settings import Config
from ffcv_r50.data.loader import SAMPLE, TrainLoader
from ffcv_r50.logs.gpu import Monitor
from ffcv_r50.logs.ledger import Ledger
from ffcv_r50.logs.metrics import Metrics
from ffcv_r50.logs.row import EpochRow, Measured, StepRow
from ffcv_r50.logs.run_logs import Logs
from ffcv_r50.run.progress import Progress, ratio
from ffcv_r50.training.metrics import StepValues
from ffcv_r50.training.outcomes import COUNTS
from ffcv_r50.training.protocols import Step


@dataclass
class Counters:
    """What comes together for the next row of an epoch; part of checkpoints."""

    counts: list[float] = field(default_factory=lambda: [0.0] * COUNTS)
    """Of the epoch's steps, see :data:`~ffcv_r50.training.outcomes.COUNTS`."""
    save_seconds: float = 0.0
    """Since the row before."""
    saved_within: float = 0.0
    """Of these, between the steps of the epoch."""
    start_seconds: float = 0.0
    """Since the row before."""


class _Time(NamedTuple):
    """What the progress said at some time."""

    step: int
    train_seconds: float
    wait_seconds: float

    @classmethod
    def of(cls, progress: Progress) -> "_Time":
        """Now."""
        return cls(progress.step, progress.train_seconds, progress.wait_seconds)


class Recorder:
    """Of one start of a run, on every rank; what is written, ``logs`` decides.

    Args:
        config: the settings.
        loader: of the training images.
        device: of the network.
        logs: where the rows go.
        began: when this start did, on the clock of :func:`time.monotonic`.
    """

    def __init__(
        self,
        config: Config,
        loader: TrainLoader,
        device: torch.device,
        logs: Logs,
        began: float,
    ) -> None:
        self._config = config
        self._loader = loader
        self._device = device
        self._logs = logs
        self._began: float | None = began
        self._counters = Counters()
        self._ledger = Ledger(loader.dataset.num_samples) if self._keeps_samples else None
        self._gpu = Monitor(gpu_uuid(device) if logs.writes else "")
        self._progress = Progress()
        self._since = _Time.of(self._progress)

    @property
    def _keeps_samples(self) -> bool:
        return self._logs.writes and self._config.logging.samples

    def begin_epoch(self, progress: Progress) -> None:
        """The steps of an epoch that are left come next."""
        if self._began is not None:
            self._counters.start_seconds += time.monotonic() - self._began
            self._began = None
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        self._progress = progress
        self._since = _Time.of(progress)

    def step(self, step: Step, values: StepValues) -> None:
        """What came out of a step, when the progress says that it is done."""
        counters = self._counters
        counters.counts = [a + b for a, b in zip(counters.counts, values.counts, strict=True)]
        if not self._logs.writes:
            return
        epoch, number = divmod(step.number, self._loader.steps_per_epoch)
        if self._ledger:
            self._ledger.add(self._loader.views(epoch)[number] & SAMPLE, values.each)
        self._logs.step(
            StepRow(
                step=step.number,
                lr=step.values["lr"],
                resolution=recipe.resolution(self._config, epoch),
                fingerprint=self._loader.fingerprint(epoch, number),
                measured=None
                if step.number % self._config.logging.every
                else self._measured(step, values),
            )
        )

    def _measured(self, step: Step, values: StepValues) -> Measured:
        progress, since = self._progress, self._since
        self._since = now = _Time.of(progress)
        seconds = now.train_seconds - since.train_seconds
        images = (now.step - since.step) * self._config.training.batch_size
        return Measured(
            epoch=step.epoch,
            loss=values.loss,
            gradient_norm=values.gradient_norm,
            images_per_second=ratio(images, seconds),
            data_wait_fraction=ratio(now.wait_seconds - since.wait_seconds, seconds),
        )

    @contextlib.contextmanager
    def saving(self) -> Iterator[None]:
        """Around what training stands still for while a checkpoint is taken."""
        began = time.perf_counter()
        self._logs.sync()
        yield
        seconds = time.perf_counter() - began
        self._counters.save_seconds += seconds
        if self._progress.step:
            self._counters.saved_within += seconds

    def epoch(
        self, metrics: Metrics, averages: Mapping[str, Metrics], eval_seconds: float
    ) -> EpochRow:
        """An epoch is trained and evaluated.

        Args:
            metrics: of the network.
            averages: those of its averages, by name.
            eval_seconds: what the evaluation took.
        """
        config, progress, counters = self._config, self._progress, self._counters
        epoch, steps = progress.epoch, self._loader.steps_per_epoch
        trained = steps - progress.skipped
        top_1, top_5, images = counters.counts
        row = EpochRow(
            epoch=epoch,
            step=(epoch + 1) * steps,
            lr=recipe.step(config, epoch, steps - 1, steps).values["lr"],
            resolution=recipe.resolution(config, epoch),
            train_loss=ratio(progress.loss_sum, trained),
            train_top_1=100 * top_1 / images if images else None,
            train_top_5=100 * top_5 / images if images else None,
            validation=metrics,
            averages=averages,
            images_per_second=ratio(trained * config.training.batch_size, progress.train_seconds),
            data_wait_fraction=ratio(progress.wait_seconds, progress.train_seconds),
            epoch_seconds=progress.train_seconds,
            eval_seconds=eval_seconds,
            step_seconds=progress.train_seconds - progress.wait_seconds - counters.saved_within,
            wait_seconds=progress.wait_seconds,
            save_seconds=counters.save_seconds,
            start_seconds=counters.start_seconds,
            peak_memory_bytes=peak_memory(self._device),
            **self._gpu.take(),
        )
        self._counters = Counters()
        if self._ledger:
            self._logs.ledger(epoch, self._ledger.arrays())
            self._ledger = Ledger(self._loader.dataset.num_samples)
        self._logs.epoch(row)
        return row

    def rewind(self, progress: Progress) -> None:
        """The run begins, or continues, from here."""
        steps = progress.epoch * self._loader.steps_per_epoch + progress.step
        self._logs.rewind(progress.epoch, steps)

    def close(self) -> None:
        """Nothing comes any more."""
        self._gpu.close()
        self._logs.close()

    def state_dict(self) -> dict[str, Any]:
        """What the rows to come depend on."""
        ledger = {"ledger": self._ledger.state_dict()} if self._ledger else {}
        return asdict(self._counters) | ledger

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from :meth:`state_dict`; from an empty one as older versions left it.

        Raises:
            ValueError, LookupError, TypeError: it is another's.
        """
        counters = dict(state)
        ledger = counters.pop("ledger", None)
        self._counters = Counters(**counters)
        if len(self._counters.counts) != COUNTS:
            raise ValueError(f"its recorder has counts {self._counters.counts}")
        if self._ledger and ledger and len(ledger["loss"]) == self._loader.dataset.num_samples:
            self._ledger.load_state_dict(ledger)


def gpu_uuid(device: torch.device) -> str:
    """Of a GPU, whatever it is called here; empty for another device."""
    return str(torch.cuda.get_device_properties(device).uuid) if device.type == "cuda" else ""


def peak_memory(device: torch.device) -> int:
    """Bytes, see :attr:`~ffcv_r50.logs.row.EpochRow.peak_memory_bytes`."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return (
        1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    )  # of Linux, which counts in KiB
