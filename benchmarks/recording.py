"""What recording costs: the training step with all that a run notes down of it, against without.

    python -m benchmarks.recording [--resolution 160] [--steps 20] [--rounds 5] [--json FILE]
        [--section.key=value ...]

Both kinds train the same network on images that lie on the device, in turns; the configuration is
``benchmarks.train_step``'s. With: outcomes of the images, fingerprints, rows into the logs, as the
settings say (``--logging.every=1``), and the sinks of ``--logging.sinks``. Without: the same step with
none of it. ``overhead_percent`` is how much longer the median step with it takes.
"""

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from benchmarks import train_step
from benchmarks.train_step import Bench
from ffcv_r50 import distributed
from ffcv_r50.errors import exit_with
from ffcv_r50.logs.console import Console
from ffcv_r50.logs.run_logs import FolderLogs, Logs
from ffcv_r50.logs.sinks import SINKS
from ffcv_r50.recorder import Recorder
from ffcv_r50.run.progress import Progress
from ffcv_r50.training.metrics import StepMetrics
from ffcv_r50.training.outcomes import Outcomes


def main() -> None:
    """Measure and print."""
    config, options = train_step.configuration(__doc__ or "")
    with (
        distributed.world(config.dist.timeout_seconds) as world,
        train_step.dataset(config, world) as dataset,
        tempfile.TemporaryDirectory() as folder,
    ):
        bench = Bench(config, options, dataset, world)
        kinds = {"without": without(bench), "with": recording(bench, Path(folder))}
        seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
        for done in range(1, options.rounds + 1):
            for kind, run in kinds.items():
                seconds[kind].append(config.training.batch_size / bench.rate(run))
            if world.is_main:
                shown = ", ".join(f"{kind} {seconds[kind][-1]:.4f} s" for kind in kinds)
                print(f"round {done}/{options.rounds}: {shown}", flush=True)
        if world.is_main:
            medians = {f"{kind}_seconds": statistics.median(seconds[kind]) for kind in kinds}
            overhead = 100 * (medians["with_seconds"] / medians["without_seconds"] - 1)
            print(f"a step takes {overhead:+.2f} % with everything recorded")
            if options.json_file:
                row = {**medians, "overhead_percent": overhead}
                Path(options.json_file).write_text(json.dumps(row, indent=1) + "\n")


class _Nothing(Outcomes):
    """No outcomes."""

    def begin(self) -> None:
        """Nothing."""

    def add(self, logits: Tensor, targets: Tensor, positions: range) -> None:
        """Nothing."""

    def begin_sum(self) -> None:
        """Nothing."""


def without(bench: Bench) -> Callable[[int], None]:
    """So many steps of which nothing is noted."""
    nothing = _Nothing(0, bench.world.device, each=False)

    def run(steps: int) -> None:
        kept, bench.train_step._outcomes = bench.train_step._outcomes, nothing
        bench.train(bench.still(), steps)
        bench.train_step._outcomes = kept

    return run


def recording(bench: Bench, folder: Path) -> Callable[[int], None]:
    """So many steps with all that the trainer does to record them."""
    config, world = bench.config, bench.world
    sinks = {SINKS.name_of(options): options.build(folder) for options in config.logging.sinks}
    logs = FolderLogs(folder, sinks, Console(True).warn) if world.is_main else Logs()
    recorder = Recorder(config, bench.loader, world.device, logs, time.monotonic())
    progress = Progress()
    recorder.rewind(progress)
    recorder.begin_epoch(progress)

    def run(steps: int) -> None:
        metrics = StepMetrics(world.device, recorder.step, skips_overflows=True)
        for _ in range(steps):
            step = bench.step(progress.step)
            metrics.push(step, bench.train_step(bench.still(), step))
            progress.step += 1
            progress.train_seconds = time.perf_counter()
        metrics.check()

    return run


if __name__ == "__main__":
    exit_with(main, together=True)
