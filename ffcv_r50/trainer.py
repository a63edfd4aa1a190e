"""The training loop. Reads top to bottom: open, build, continue, train, evaluate, save."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

from torch import Tensor, nn

from ffcv_r50 import build, distributed, eval_only, recipe
from ffcv_r50.config.settings import Config
from ffcv_r50.distributed.preemption import StopSignal, StopVote
from ffcv_r50.distributed.watchdog import Watchdog
from ffcv_r50.errors import BAD_INPUT, FAULT, FINISHED, STOPPED_AS_ASKED, Stopped, UserError
from ffcv_r50.logs.console import Console, epoch_line, finished
from ffcv_r50.logs.metrics import Metrics
from ffcv_r50.logs.row import EpochRow
from ffcv_r50.recorder import Recorder
from ffcv_r50.report import page
from ffcv_r50.run import checkpoint, compatibility
from ffcv_r50.run.progress import Progress, SaveSchedule, TimedIterator
from ffcv_r50.training.averages import NETWORK
from ffcv_r50.training.evaluation import evaluate, how
from ffcv_r50.training.metrics import NotFinite, StepMetrics
from ffcv_r50.training.precision import Precision
from ffcv_r50.training.predictions import Predictions
from ffcv_r50.training.protocols import Batch, Step
from ffcv_r50.training.step import TrainStep

TakeStep = Callable[[Iterator[Batch], Step, bool], Tensor]
"""What :class:`~ffcv_r50.training.step.TrainStep` is called as."""


def run(config: Config, around: Callable[[TrainStep], TakeStep] = lambda step: step) -> int:
    """Train, continue, or only evaluate: what ``train_imagenet.py`` does.

    Args:
        config: the settings.
        around: makes what is called as a step from the step itself: where something is to happen
            before or after one, such as a fault on purpose.

    Returns:
        The exit code: ``FINISHED``, or ``STOPPED_AS_ASKED`` after a signal.

    Raises:
        UserError: the input is wrong.
        RunFault: the run cannot go on.
    """
    deterministic, timeout = config.training.deterministic, config.dist.timeout_seconds
    with StopSignal() as stop, distributed.world(timeout, deterministic=deterministic) as world:
        console = Console(world.is_main)
        for line in distributed.describe(world):
            console.say(line)
        for notice in config.notices:
            console.say(f"note: {notice}")
        if config.training.eval_only:
            eval_only.run(config, world, console)
            return FINISHED
        this = Run(config, world, console, stop, around)
        storage = this.storage
        if world.restarted and distributed.broadcast_object(storage.stopped_in_this_launch()):
            return STOPPED_AS_ASKED
        try:
            return this.train()
        except Stopped as stopped:
            console.say(
                f"stopped by {stop.asked.name if stop.asked else 'another rank'}; {stopped}, the "
                "same command continues"
            )
            storage.set_status("stopped", STOPPED_AS_ASKED)
            return STOPPED_AS_ASKED
        except BaseException as error:
            code = BAD_INPUT if isinstance(error, UserError) else FAULT
            storage.set_status("failed", code, f"{type(error).__name__}: {error}")
            raise
        finally:
            this.trace.close()
            this.recorder.close()
            storage.release()


class Run:
    """One start of a run, on one rank.

    Args:
        config: its settings.
        world: this process among its peers.
        console: speaks on rank 0.
        stop: whether this process was asked to stop.
        around: see :func:`run`.

    Raises:
        UserError: the input is wrong; the same error on every rank, before expensive work.
    """

    def __init__(
        self,
        config: Config,
        world: distributed.World,
        console: Console,
        stop: StopSignal,
        around: Callable[[TrainStep], TakeStep],
    ) -> None:
        self.config = config
        self.world = world
        self.console = console
        self.stop = stop
        self.began = time.monotonic()
        with distributed.errors_on_all_ranks():
            self.plan = recipe.plan(config, world.size)
        files = (config.data.train_dataset, config.data.val_dataset)
        self.train_set, self.val_set = build.datasets(config, world, *files)
        classes = self.train_set.num_classes
        with distributed.errors_on_all_ranks():
            build.check_classes(config, self.train_set, self.val_set)
            build.check_sinks(config)
            if world.is_main:
                build.check_sizes(config, classes)
            self.train_loader = build.train_loader(config, self.train_set, self.plan, world)
            self.val_loader = build.val_loader(config, self.val_set, world)
            build.set_up_torch(config, world.device)
            self.precision = Precision(config.training.precision, world.device)
            network = build.network(config, classes, world.device)
            self.steps = self.train_loader.steps_per_epoch
            self.trace = build.trace(config, self.steps, world, console)
        self.train_step = build.train_step(
            config, network, self.precision, self.plan, classes, self.steps, world
        )
        self.take_step = around(self.train_step)
        self.progress = Progress()
        self.row: EpochRow | None = None
        with distributed.errors_on_all_ranks():
            self.storage = build.storage(config, self.train_set, self.val_set, world, console)
        logs = build.logs(config, self.storage, console)
        self.recorder = Recorder(config, self.train_loader, world.device, logs, self.began)

    # ------------------------------------------------------------------------------ the whole run

    def train(self) -> int:
        """From where the folder left off to the finished network."""
        self._continue()
        self._introduce()
        epochs, timeout = self.config.training.epochs, self.config.dist.timeout_seconds
        with Watchdog(self.world, timeout, self.storage.set_status) as self.watchdog:
            while self.progress.epoch < epochs:
                try:
                    self._train_epoch()
                except NotFinite as error:
                    self._roll_back(error)
                    continue
                self._evaluate_epoch()
            self._finish()
        page.at_the_end(self.config.logging.folder, self.console)
        return FINISHED

    def _introduce(self) -> None:
        """Say what is trained, on what, and from where on."""
        config, progress, console = self.config, self.progress, self.console
        console.say(
            f"{config.model.arch}, {self.train_set.num_classes} classes, {self.precision.name}; "
            f"{self.train_set.num_samples:,} training and {self.val_set.num_samples:,} validation "
            "images"
        )
        processes = f"{self.world.size} {self.world.device.type} processes"
        console.say(recipe.share_of_steps(config, self.plan, self.steps, processes))
        if (progress.epoch or progress.step) and progress.epoch < config.training.epochs:
            console.say(
                f"continuing after epoch {progress.epoch} of {config.training.epochs}"
                + (f" and {progress.step:,} of {self.steps:,} steps" if progress.step else "")
            )

    # --------------------------------------------------------------------------------- one epoch

    def _train_epoch(self) -> None:
        """The steps of the current epoch that are left."""
        config, progress = self.config, self.progress
        epoch, epochs = progress.epoch, config.training.epochs
        resolution = recipe.resolution(config, epoch)
        metrics = StepMetrics(
            self.world.device, self.recorder.step, skips_overflows=self.precision.name == "fp16"
        )
        self.recorder.begin_epoch(progress)
        metrics.loss_sum, seconds_before = progress.loss_sum, progress.train_seconds
        waited_before, overflows_before = progress.wait_seconds, progress.overflows
        saves = SaveSchedule(*config.checkpoint.interval)
        first, began = progress.step, time.perf_counter()
        with (
            self.train_loader.epoch(epoch, resolution, first) as loaded,
            self.console.bar(
                f"epoch {epoch + 1}/{epochs}, {resolution} px", self.steps, first
            ) as bar,
        ):
            batches = TimedIterator(
                build.train_batches(loaded, self.plan, self.world),
                lambda: self.watchdog.heartbeat(
                    f"step {progress.step} of epoch {epoch}, with its images"
                ),
            )
            for number in range(first, self.steps):
                self.watchdog.heartbeat(f"step {number} of epoch {epoch}")
                step = recipe.step(config, epoch, number, self.steps)
                asked = self.stop.asked is not None
                with self.trace.step(step.number):
                    metrics.push(step, self.take_step(batches, step, asked))

                seconds = time.perf_counter() - began
                progress.step = number + 1
                progress.train_seconds = seconds_before + seconds
                progress.wait_seconds = waited_before + batches.seconds
                bar.update(
                    number + 1,
                    f"{metrics.latest}  lr {step.values['lr']:.4f}  "
                    f"{(number + 1 - first) * config.training.batch_size / seconds:,.0f} images/s  "
                    f"data wait {batches.seconds / seconds:.0%}",
                )
                # The end of the epoch is saved after its evaluation, or by a stop during it.
                last = number + 1 == self.steps
                due = not last and saves.due(number + 1)
                if last or metrics.stop:
                    metrics.check()
                elif due:
                    metrics.read()
                progress.loss_sum = metrics.loss_sum
                progress.overflows = overflows_before + metrics.overflows
                # Nothing is saved that came out of a step that was not finite.
                if due and metrics.fault is None:
                    self._save()
                if metrics.stop:
                    self._save_and_stop()
            build.warn_of_gray_images(loaded, config, self.console)
        if metrics.overflows:
            self.console.say(
                f"steps skipped because fp16 gradients overflowed: {metrics.overflows}"
            )

    def _evaluate_epoch(self) -> None:
        """Evaluate the epoch whose steps are done, log it and save."""
        config, progress, epoch = self.config, self.progress, self.progress.epoch
        began = time.perf_counter()
        networks, averages = {NETWORK: self.train_step.network}, {}
        if recipe.evaluates_averages(config, epoch):
            networks |= self.train_step.networks()
        chosen = config.checkpoint.weights if config.checkpoint.weights in networks else NETWORK
        predictions = Predictions(self.val_set.num_samples, self.world.device)
        for name, network in networks.items():
            self._recompute_statistics(network, config.recomputed_images.get(name, 0))
            averages[name] = self._evaluate(network, predictions if name == chosen else None)
        metrics = averages.pop(NETWORK)
        predicted = predictions.arrays(self.val_set.labels, self.train_set.num_classes)
        # The row goes before the state: a continuing run drops rows that no checkpoint covers, so each
        # epoch is in the log once.
        self.row = self.recorder.epoch(metrics, averages, time.perf_counter() - began)
        self.console.say(epoch_line(self.row, config.training.epochs))
        copies, predictions_of = [], ["predictions.npz"]
        if metrics.top_1 > progress.best_top_1:
            progress.best_top_1 = metrics.top_1
            copies.append(checkpoint.BEST)
            predictions_of.append("predictions_best.npz")
        if config.checkpoint.keep_every and (epoch + 1) % config.checkpoint.keep_every == 0:
            copies.append(f"epoch_{epoch + 1}.pt")
        self.storage.write_arrays(predictions_of, predicted)
        progress.end_epoch()
        self._save(copies)

    def _recompute_statistics(self, network: nn.Module, images: int) -> None:
        """Batch-norm's, over the first images of the epoch; with 0 they stay."""
        epoch, count = self.progress.epoch, -(-images // self.config.training.batch_size)

        def steps() -> Iterator[Step]:
            for number in range(min(count, self.steps)):
                self.watchdog.heartbeat(f"step {number} of epoch {epoch}'s statistics")
                yield recipe.step(self.config, epoch, number, self.steps)

        if images:
            with self.train_loader.epoch(epoch, recipe.resolution(self.config, epoch)) as loaded:
                batches = build.train_batches(loaded, self.plan, self.world)
                self.train_step.recompute_statistics(network, batches, steps())

    def _evaluate(self, network: nn.Module, predictions: Predictions | None) -> Metrics:
        """Exact metrics, or a stop that all ranks agree on."""
        vote = StopVote()
        smallest = self.val_set.num_samples // self.world.size
        rounds = -(-smallest // self.config.validation.batch_size)

        def on_batch(done: int) -> None:
            self.watchdog.heartbeat(f"batch {done} of epoch {self.progress.epoch}'s evaluation")
            # Shards differ by a sample, so one rank may have a batch more than another.
            if done <= rounds and vote.cast(self.stop.asked is not None):
                self._save_and_stop()

        with self.val_loader.epoch() as batches:
            metrics = evaluate(
                network,
                batches,
                num_samples=self.val_set.num_samples,
                device=self.world.device,
                precision=self.precision,
                tta=self.config.validation.tta,
                forward=self.train_step.forward,
                predictions=predictions,
                on_batch=on_batch,
            )
            build.warn_of_gray_images(batches, self.config, self.console)
        if vote.close():
            self._save_and_stop()
        return metrics

    # --------------------------------------------------------------------------------- the state

    def _save(self, copies: Sequence[str] = ()) -> None:
        """Have the state written while training goes on."""
        now = time.monotonic()
        self.progress.run_seconds += now - self.began
        self.began = now
        state = {
            "progress": asdict(self.progress),
            "batch_size": self.config.training.batch_size,
            "learner": self.train_step.state_dict(),
            "recorder": self.recorder.state_dict(),
        }
        with self.recorder.saving():
            self.storage.save(state, copies)

    def _save_and_stop(self) -> None:
        """Save, and leave together once the state is on the disk.

        Raises:
            Stopped: always.
        """
        self._save()
        saved = self.storage.finish_saving()
        distributed.broadcast_object(True)
        raise Stopped("the state is saved" if saved else "its newest state could not be saved")

    def _continue(self) -> None:
        """Take over the state that the folder, or ``resume.source``, holds; then write to it."""
        with distributed.errors_on_all_ranks():
            state = self.storage.find(restarted=self.world.restarted)
        if state := distributed.broadcast_object(state):
            self._load(state)
        else:
            build.start_from_weights(self.config, self.train_step.network, self.console)
        with distributed.errors_on_all_ranks():
            self.storage.begin(self.config, self.world.size)
        self.recorder.rewind(self.progress)

    def _load(self, state: dict[str, Any]) -> None:
        try:
            self.train_step.load_state_dict(state["learner"])
            self.recorder.load_state_dict(state.get("recorder", {}))
        except compatibility.UNFIT as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"the saved state does not fit this network: {reason}") from error
        self.progress = progress = Progress(**state["progress"])
        progress.scale_steps(state["batch_size"] / self.config.training.batch_size)
        if progress.step > self.steps:  # where resume.allow lets the dataset differ
            raise UserError(
                f"data.train_dataset={self.config.data.train_dataset}: has {self.steps:,} steps an "
                f"epoch, the saved state is from after step {progress.step:,} of one; continue with "
                "the dataset of before to the end of that epoch"
            )

    def _roll_back(self, error: NotFinite) -> None:
        """Go back to the newest checkpoint and go on behind the step that was not finite.

        Raises:
            NotFinite: ``error``, where that is not allowed (any more) or no checkpoint of the
                same epoch is left.
        """
        rollbacks = self.progress.rollbacks + 1
        if rollbacks > self.config.training.rollbacks:
            raise error
        state = distributed.broadcast_object(self.storage.newest())
        epoch, step = divmod(error.step, self.steps)
        if not state or state["progress"]["epoch"] != epoch:
            raise error
        self._load(state)
        self.recorder.rewind(self.progress)
        progress = self.progress
        back = epoch * self.steps + progress.step
        progress.rollbacks = rollbacks
        progress.skipped += step + 1 - progress.step
        progress.step = step + 1
        self.console.warn(
            f"{str(error).partition(';')[0]}: going back to the state before step {back} and skipping "
            f"steps {back} to {error.step} (rollback {rollbacks} of {self.config.training.rollbacks})"
        )

    def _finish(self) -> None:
        """The finished network and its averages, under torchvision's names, and the last line."""
        self.storage.write_weights(self.train_step.networks())
        self.recorder.close()
        last = self.storage.last_row()
        if self.row:  # which a full disk may have kept out of the log
            last |= self.row.values()
        validation, progress = self.config.validation, self.progress
        seen = f"{self.val_set.num_samples:,} validation images ({how(validation.resolution, validation.tta)})"
        line = finished(last, progress.best_top_1, progress.run_seconds, seen)
        self.console.say(f"{line}; {self.config.logging.folder}")
        self.storage.set_status("finished", FINISHED)
        distributed.broadcast_object(True)
