"""The training loop. Reads top to bottom: open, set up, continue, train, evaluate, save."""

import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ffcv_r50 import distributed, eval_only, recipe
from ffcv_r50.config.settings import Config
from ffcv_r50.data import transfer
from ffcv_r50.data.beton import Beton
from ffcv_r50.distributed.preemption import StopSignal, StopVote
from ffcv_r50.distributed.watchdog import Watchdog
from ffcv_r50.errors import BAD_INPUT, FAULT, FINISHED, STOPPED_AS_ASKED, Stopped, UserError
from ffcv_r50.logs import jsonl
from ffcv_r50.logs.console import Console, duration
from ffcv_r50.models import sizes
from ffcv_r50.run import checkpoint, run_folder, staging
from ffcv_r50.run.progress import Progress, SaveSchedule, TimedIterator, ratio
from ffcv_r50.training import loaders
from ffcv_r50.training.evaluation import Metrics, evaluate
from ffcv_r50.training.learner import Learner, Monitor, NotFinite


def run(config: Config) -> int:
    """Train, continue, or only evaluate: what ``train_imagenet.py`` does.

    Returns:
        The exit code: ``FINISHED``, or ``STOPPED_AS_ASKED`` after a signal.

    Raises:
        UserError: the input is wrong.
        RunFault: the run cannot go on.
    """
    with StopSignal() as stop, distributed.world(config.dist.timeout_seconds) as world:
        console = Console(world.is_main)
        for line in distributed.describe(world):
            console.say(line)
        for notice in config.notices:
            console.say(f"note: {notice}")
        if config.training.eval_only:
            eval_only.run(config, world, console)
            return FINISHED
        this = Run(config, world, console, stop)
        folder = this.folder
        if world.restarted and distributed.broadcast_object(
            folder.stopped_in_this_launch() if folder else None
        ):
            return STOPPED_AS_ASKED
        try:
            return this.train()
        except Stopped as stopped:
            console.say(
                f"stopped by {stop.asked.name if stop.asked else 'another rank'}; {stopped}, the "
                "same command continues"
            )
            if folder:
                folder.set_status("stopped", STOPPED_AS_ASKED)
            return STOPPED_AS_ASKED
        except BaseException as error:
            if folder:
                code = BAD_INPUT if isinstance(error, UserError) else FAULT
                folder.set_status("failed", code, f"{type(error).__name__}: {error}")
            raise
        finally:
            if folder:
                folder.release()


class Run:
    """One start of a run, on one rank.

    Args:
        config: its settings.
        world: this process among its peers.
        console: speaks on rank 0.
        stop: the wish to stop.

    Raises:
        UserError: the input is wrong; the same error on every rank, before expensive work.
    """

    def __init__(
        self,
        config: Config,
        world: distributed.World,
        console: Console,
        stop: StopSignal,
    ) -> None:
        self.config = config
        self.world = world
        self.console = console
        self.stop = stop
        self.began = time.monotonic()
        with distributed.errors_on_all_ranks():
            self.plan = recipe.plan(config, world.size)
        files = [config.data.train_dataset, config.data.val_dataset]
        if config.data.stage_dir:
            files = staging.stage(files, config.data.stage_dir, copies=world.local_rank == 0)
        with distributed.errors_on_all_ranks():
            self.train_set, self.val_set = (Beton(file) for file in files)
            _check_classes(self.train_set, self.val_set)
            if world.is_main:
                _check_sizes(config, self.train_set.num_classes)
            self.train_loader = loaders.train_loader(config, self.train_set, self.plan, world)
            self.val_loader = loaders.val_loader(config, self.val_set, world)
            self.learner = Learner(
                config,
                self.train_set.num_classes,
                self.plan.micro_batches,
                world,
                self.plan.group_size,
            )
        self.steps = self.train_loader.steps_per_epoch
        self.progress = Progress()
        self._unlogged: list[dict[str, Any]] = []
        with distributed.errors_on_all_ranks():
            self.folder = run_folder.RunFolder(config.logging.folder) if world.is_main else None
        if self.folder:
            self.saver = checkpoint.Saver(
                self.folder.checkpoints, 60 * config.checkpoint.give_up_minutes, console.warn
            )

    # ------------------------------------------------------------------------------ the whole run

    def train(self) -> int:
        """From where the folder left off to the finished network."""
        self._continue()
        config, progress, console = self.config, self.progress, self.console
        console.say(
            f"{config.model.arch}, {self.train_set.num_classes} classes, {self.learner.precision}; "
            f"{self.train_set.num_samples:,} training and {self.val_set.num_samples:,} validation "
            "images"
        )
        console.say(
            f"{config.training.epochs} epochs of {self.steps:,} steps; batch "
            f"{config.training.batch_size:,} = {self.world.size} {self.world.device.type} processes "
            f"x {self.plan.micro_batches} micro-batches x {self.plan.micro_batch_size} images; "
            f"batch-norm over {config.norm_batch_size}"
        )
        if (progress.epoch or progress.step) and progress.epoch < config.training.epochs:
            console.say(
                f"continuing after epoch {progress.epoch} of {config.training.epochs}"
                + (f" and {progress.step:,} of {self.steps:,} steps" if progress.step else "")
            )
        with Watchdog(self.world, config.dist.timeout_seconds, self._record_fault) as self.watch:
            while self.progress.epoch < config.training.epochs:
                try:
                    self._train_epoch()
                except NotFinite as error:
                    self._roll_back(error)
                    continue
                self._evaluate_epoch()
            self._finish()
        return FINISHED

    # --------------------------------------------------------------------------------- one epoch

    def _train_epoch(self) -> None:
        """The steps of the current epoch that are left."""
        config, progress, learner = self.config, self.progress, self.learner
        epoch, epochs = progress.epoch, config.training.epochs
        resolution = recipe.resolution(config, epoch)
        monitor = Monitor(self.world.device, skips_overflows=learner.precision == "fp16")
        monitor.loss_sum, seconds_before = progress.loss_sum, progress.train_seconds
        waited_before, overflows_before = progress.wait_seconds, progress.overflows
        saves = SaveSchedule(*config.checkpoint.interval)
        first, began = progress.step, time.perf_counter()
        with (
            self.train_loader.epoch(epoch, resolution, first) as batches,
            self.console.bar(
                f"epoch {epoch + 1}/{epochs}, {resolution} px", self.steps, first
            ) as bar,
        ):
            parts = TimedIterator(
                transfer.to_device(batches, self.world.device),
                lambda: self.watch.heartbeat(
                    f"step {progress.step} of epoch {epoch}, with its images"
                ),
            )
            for step in range(first, self.steps):
                self.watch.heartbeat(f"step {step} of epoch {epoch}")
                number = epoch * self.steps + step
                lr = recipe.learning_rate(config, epoch, step, self.steps)
                asked = self.stop.asked is not None
                monitor.push(number, learner.step(parts, lr, number, asked))

                seconds = time.perf_counter() - began
                progress.step = step + 1
                progress.train_seconds = seconds_before + seconds
                progress.wait_seconds = waited_before + parts.seconds
                bar.update(
                    step + 1,
                    f"loss {monitor.latest:.3f}  lr {lr:.4f}  "
                    f"{(step + 1 - first) * config.training.batch_size / seconds:,.0f} images/s  "
                    f"data wait {parts.seconds / seconds:.0%}",
                )
                # The end of the epoch is saved after its evaluation, or by a stop during it.
                last = step + 1 == self.steps
                due = self.folder is not None and not last and saves.due(step + 1)
                if last or monitor.stop:
                    monitor.check()
                elif due:
                    monitor.read()
                progress.loss_sum = monitor.loss_sum
                progress.overflows = overflows_before + monitor.overflows
                # Nothing is saved that came out of a step that was not finite.
                if due and monitor.fault is None:
                    self._save()
                if monitor.stop:
                    self._save_and_stop()
            loaders.warn_of_gray_images(batches, config, self.console)
        if monitor.overflows:
            self.console.say(
                f"steps skipped because fp16 gradients overflowed: {monitor.overflows}"
            )

    def _evaluate_epoch(self) -> None:
        """Evaluate the epoch whose steps are done, log it and save."""
        config, progress = self.config, self.progress
        epoch, epochs = progress.epoch, config.training.epochs
        began = time.perf_counter()
        metrics = self._evaluate()
        eval_seconds = time.perf_counter() - began
        trained = self.steps - progress.skipped
        row = {
            "epoch": epoch,
            "step": (epoch + 1) * self.steps,
            "lr": recipe.learning_rate(config, epoch, self.steps - 1, self.steps),
            "resolution": recipe.resolution(config, epoch),
            "train_loss": ratio(progress.loss_sum, trained),
            "val_loss": metrics.loss,
            "top_1": metrics.top_1,
            "top_5": metrics.top_5,
            "images_per_second": ratio(
                trained * config.training.batch_size, progress.train_seconds
            ),
            "data_wait_fraction": ratio(progress.wait_seconds, progress.train_seconds),
            "epoch_seconds": progress.train_seconds,
            "eval_seconds": eval_seconds,
        }
        self.console.say(
            f"epoch {epoch + 1:>{len(str(epochs))}}/{epochs}  {row['resolution']} px  "
            f"lr {row['lr']:.4f}  loss {row['train_loss']:.4f}  val loss {metrics.loss:.4f}  "
            f"top-1 {metrics.top_1:6.2f} %  top-5 {metrics.top_5:6.2f} %  "
            f"{row['images_per_second']:,.0f} images/s  data wait {row['data_wait_fraction']:.0%}  "
            f"{duration(progress.train_seconds + eval_seconds)}, "
            f"{duration((epochs - epoch - 1) * (progress.train_seconds + eval_seconds))} left"
        )
        copies = []
        if metrics.top_1 > progress.best_top_1:
            progress.best_top_1 = metrics.top_1
            copies.append(checkpoint.BEST)
        if config.checkpoint.keep_every and (epoch + 1) % config.checkpoint.keep_every == 0:
            copies.append(f"epoch_{epoch + 1}.pt")
        progress.epoch, progress.step, progress.skipped = epoch + 1, 0, 0
        progress.loss_sum = progress.train_seconds = progress.wait_seconds = 0.0
        if self.folder:
            # The row goes first: a continuing run drops rows that no checkpoint covers, so each
            # epoch is in the log once.
            self._log(row)
            self._save(copies)

    def _evaluate(self) -> Metrics:
        """Exact metrics, or a stop that all ranks agree on."""
        ballot = StopVote()
        smallest = self.val_set.num_samples // self.world.size
        rounds = -(-smallest // self.config.validation.batch_size)

        def on_batch(done: int) -> None:
            self.watch.heartbeat(f"batch {done} of the evaluation of epoch {self.progress.epoch}")
            # Shards differ by a sample, so one rank may have a batch more than another.
            if done <= rounds and ballot.cast(self.stop.asked is not None):
                self._save_and_stop()

        with self.val_loader.epoch() as batches:
            metrics = evaluate(
                self.learner.network,
                batches,
                num_samples=self.val_set.num_samples,
                device=self.world.device,
                autocast=self.learner.autocast(),
                tta=self.config.validation.tta,
                on_batch=on_batch,
            )
            loaders.warn_of_gray_images(batches, self.config, self.console)
        if ballot.close():
            self._save_and_stop()
        return metrics

    # --------------------------------------------------------------------------------- the state

    def _save(self, copies: list[str] | None = None) -> None:
        """Have the state written while training goes on; on rank 0."""
        now = time.monotonic()
        self.progress.run_seconds += now - self.began
        self.began = now
        self.saver.save(
            {
                "progress": asdict(self.progress),
                "batch_size": self.config.training.batch_size,
                "learner": self.learner.state_dict(),
                "config": self.config.to_yaml(),
                "versions": run_folder.versions(),
            },
            copies=copies or [],
        )

    def _log(self, row: dict[str, Any]) -> None:
        """Append to the log; what cannot be written now is written before the next row."""
        assert self.folder is not None
        self._unlogged.append(row)
        try:
            while self._unlogged:
                jsonl.append(self.folder.log, self._unlogged[0])
                del self._unlogged[0]
        except OSError as error:
            self.console.warn(
                f"{self.folder.log}: cannot be written ({error.strerror}); make room there. "
                "Training goes on"
            )

    def _save_and_stop(self) -> None:
        """Save, and leave together once the state is on the disk.

        Raises:
            Stopped: always.
        """
        saved = True
        if self.folder:
            self._save()
            saved = self.saver.finish()
        distributed.broadcast_object(True if self.world.is_main else None)
        raise Stopped("the state is saved" if saved else "its newest state could not be saved")

    def _continue(self) -> None:
        """Take over the state that the folder, or ``resume.source``, holds; then write to it."""
        config, folder = self.config, self.folder
        found = None
        with distributed.errors_on_all_ranks():
            if folder:
                found = self._find(folder)
        state = distributed.broadcast_object((found or {}) if self.world.is_main else None)
        if state:
            self._load(state)
        with distributed.errors_on_all_ranks():
            if folder:
                folder.begin(config, self.world.size)
        if folder:
            jsonl.rewind(folder.log, self.progress.epoch)

    def _find(self, folder: run_folder.RunFolder) -> dict[str, Any] | None:
        """The state to continue from, if any.

        Raises:
            UserError: it belongs to other settings, or cannot be read, or nothing is left to do.
        """
        config, source = self.config, self.config.resume.source
        named = source not in ("auto", "none")
        if source == "none" and not self.world.restarted:
            folder.put_aside()
        for change in folder.changes(config):
            self.console.say(f"note: {change}, as resume.allow permits")
        found, warnings = checkpoint.newest(folder.checkpoints)
        for warning in warnings:
            self.console.warn(warning)
        if found and named:
            self.console.say(f"note: {folder.path} has a state of its own; {source} is not read")
        elif found is None and folder.has_results():
            self.console.warn(
                f"{folder.path}: has a run without a state to continue from; its log is kept in "
                f"{folder.put_aside()}"
            )
        if found is None and named:
            found = checkpoint.load_state(Path(source))
            run_folder.differing(source, found["config"], config)
            if found["progress"]["epoch"] >= config.training.epochs:
                raise UserError(
                    f"--resume={source}: all {config.training.epochs} epochs of that run are done; "
                    "ask for more with --training.epochs, a schedule for them, and --resume.allow"
                )
        return found

    def _load(self, state: dict[str, Any]) -> None:
        try:
            self.learner.load_state_dict(state["learner"])
        except (RuntimeError, ValueError) as error:  # where resume.allow lets the network differ
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"the saved state does not fit this network: {reason}") from error
        self.progress = progress = Progress(**state["progress"])
        # Where resume.allow lets the batch differ, the epoch goes on after the same samples.
        scale = state["batch_size"] / self.config.training.batch_size
        progress.step = int(progress.step * scale)
        progress.skipped = int(progress.skipped * scale)
        progress.loss_sum *= scale

    def _roll_back(self, error: NotFinite) -> None:
        """Go back to the newest checkpoint and go on behind the step that was not finite.

        Raises:
            NotFinite: ``error``, where that is not allowed (any more) or no checkpoint of the
                same epoch is left.
        """
        rollbacks = self.progress.rollbacks + 1
        if rollbacks > self.config.training.rollbacks:
            raise error
        state: dict[str, Any] = {}
        if self.folder:
            self.saver.finish()
            state = checkpoint.newest(self.folder.checkpoints)[0] or {}
        state = distributed.broadcast_object(state if self.world.is_main else None)
        epoch, step = divmod(error.step, self.steps)
        if not state or state["progress"]["epoch"] != epoch:
            raise error
        self._load(state)
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
        """The finished network, under torchvision's names, and the last line."""
        if self.folder:
            self.saver.finish()
            checkpoint.write_weights(self.folder.weights, self.learner.network.state_dict())
            rows = self._unlogged or jsonl.read(self.folder.log)
            last = rows[-1] if rows else {"top_1": float("nan"), "top_5": float("nan")}
            self.console.say(
                f"finished: top-1 {last['top_1']:.2f} %, top-5 {last['top_5']:.2f} % on all "
                f"{self.val_set.num_samples:,} validation images ({eval_only.how(self.config)}); best epoch "
                f"{self.progress.best_top_1:.2f} %; {duration(self.progress.run_seconds)} in all; "
                f"{self.folder.path}"
            )
            self.folder.set_status("finished", FINISHED)
        distributed.broadcast_object(True if self.world.is_main else None)

    def _record_fault(self, state: str, code: int, reason: str) -> None:
        if self.folder:
            self.folder.set_status(state, code, reason)


def _check_sizes(config: Config, num_classes: int) -> None:
    """Not after the epochs before the first that is too small for the network."""
    network = {"num_classes": num_classes, **dict(config.model)}
    for resolution in {recipe.resolution(config, epoch) for epoch in range(config.training.epochs)}:
        sizes.check(
            **network, batch_size=config.norm_batch_size, resolution=resolution, training=True
        )
    resolution = config.validation.resolution
    sizes.check(**network, batch_size=1, resolution=resolution, training=False)


def _check_classes(train_set: Beton, val_set: Beton) -> None:
    known = train_set.sidecar and val_set.sidecar
    if known and train_set.sidecar.classes != val_set.sidecar.classes:  # type: ignore[union-attr]
        raise UserError(
            f"{val_set.path}: its classes are not those of {train_set.path}; write both from folders "
            "with the same class names"
        )
    if val_set.num_classes > train_set.num_classes:
        raise UserError(
            f"{val_set.path}: has {val_set.num_classes} classes, {train_set.path} has "
            f"{train_set.num_classes}; give files of one dataset"
        )
