"""Break a small run in every way that a cluster knows, continue it, and compare.

    python -m benchmarks.faults --rounds 100 --ranks 4 [--json FILE] [--seed N] [--keep FOLDER]

First some CPU processes (four unless told otherwise: with two a + b = b + a hides the order of a sum)
train undisturbed, in deterministic mode. Then, in every round, the same
run starts in a fresh folder, is hit at a random moment (a third of them more than once), and is
continued by the same command until it exits with 0. A round is survived if in the end

- ``weights.pt`` equals the undisturbed run's bit for bit,
- ``log.jsonl`` has each epoch exactly once, with equal values,
- every step saw the images and the learning rate that it saw in the undisturbed run, and none was
  left out,
- no step was trained twice beyond the allowed loss: none after a stop by a signal; after a kill
  twice ``checkpoint.every`` (one state is being written while the next steps run), thrice where the
  newest state is damaged as well, and what the disk was full for,
- no process outlived ``dist.timeout_seconds`` by more than a start takes.

The processes are forked from a server that has imported everything, which makes a start cheap;
what they run is the trainer's own ``run``, with a note of each step taken beside it. The rounds of
kind ``torchrun`` start ``torchrun --max-restarts`` itself. A round that is not survived keeps its
folder, and its command is printed. The disk is filled through a small tmpfs, which needs the right
to mount one; where that is missing a line says so and the kind is left out.
"""

import contextlib
import functools
import json
import os
import random
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, NamedTuple, Protocol

import numpy as np
import torch
from PIL import Image
from pydantic import Field
from rich.console import Console
from rich.table import Table

from benchmarks.local_ranks import LocalRanks
from ffcv_r50 import trainer
from ffcv_r50.config import command_line, settings
from ffcv_r50.errors import FAULT, FINISHED, STOPPED_AS_ASKED, UserError, exit_with
from ffcv_r50.logs.console import duration
from ffcv_r50.logs.row import TIMES
from ffcv_r50.registry import Options, Range
from ffcv_r50.run.checkpoint import LAST, PREVIOUS
from ffcv_r50.training.protocols import Batch, Step
from writers import writing
from writers.config import Writing

# Dropout and batch-norm, and a state of a few megabytes, which is written in milliseconds.
RECIPE = """
model:    {{arch: mobilenet_v3_small}}
data:     {{num_workers: 1}}
training: {{epochs: 3, batch_size: {batch_size}, norm_batch_size: 4, momentum: 0.9, deterministic: true}}
schedule: {{lr: {{0: 0.002, 1: 0.02, 3: 0.0}}, resolution: {{0: 32}}}}
validation: {{resolution: 32, batch_size: 4}}
checkpoint: {{every: 2 steps}}
dist: {{timeout_seconds: 10}}
"""
NORM_BATCH, STEPS_PER_EPOCH, EVERY, TIMEOUT = 4, 9, 2, 10
VAL_IMAGES = 17
START_SECONDS = 60.0
"""More than a start takes on a busy machine."""
TMPFS_BYTES = 96 << 20
MOST_STARTS = 8
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT)


class Broken(Options):
    """What is broken, and where it is kept."""

    rounds: Annotated[int, Range(at_least=1)] = 100
    """Runs to break."""
    ranks: Annotated[int, Range(at_least=2, at_most=9)] = 4
    """Processes of a run."""
    seed: int = 0
    """Of the kinds and the moments."""
    only: int | None = None
    """Repeat this one round."""
    keep: str | None = None
    """Folder for data and failing rounds; stays."""
    json_file: Annotated[str | None, Field(alias="json")] = None
    """File for the counts."""


def main() -> int:
    """Break, continue, compare, report; 0 if every round was survived."""
    options = command_line.read(Broken, sys.argv[1:], usage=__doc__ or "")
    # One thread: another number of threads would add in another order.
    os.environ["OMP_NUM_THREADS"] = "1"
    console = Console(highlight=False, soft_wrap=True)
    kept = Path(options.keep or tempfile.mkdtemp(prefix="faults-"))
    kept.mkdir(parents=True, exist_ok=True)
    bench = Bench(kept, options.ranks)
    bench.prepare()
    console.print(
        f"undisturbed: {bench.reference.seconds:.1f} s, {len(bench.reference.steps)} steps"
    )
    kinds = dict(KINDS)
    if not _may_mount(kept):
        console.print("disk full: left out, this user may not mount a tmpfs")
        del kinds["disk full"]
    outcomes = []
    began = time.monotonic()
    for number, kind in enumerate(_spread(kinds, options.rounds, options.seed)):
        if options.only is not None and number != options.only:
            continue
        outcome = bench.round(number, kind, kinds[kind], random.Random(f"{options.seed}/{number}"))
        outcomes.append(outcome)
        if outcome.fault:
            console.print(
                f"round {number} ({kind}): {outcome.fault}; see {bench.folder(number)}; again: "
                f"python -m benchmarks.faults --rounds {options.rounds} --ranks {options.ranks} "
                f"--seed {options.seed} --only {number}"
            )
        done = len(outcomes)
        left = (options.rounds - done) * (time.monotonic() - began) / done
        console.print(
            f"{done}/{options.rounds}  {kind}: {outcome.hits} hits, {outcome.starts} starts, "
            f"{sum(outcome.lost)} steps lost  {duration(left)} left"
        )
    console.print(_table(outcomes))
    lost = [steps for outcome in outcomes for steps in outcome.lost]
    row = {
        "rounds": len(outcomes),
        "survived": sum(not outcome.fault for outcome in outcomes),
        "bit_identical": sum(outcome.bit_identical for outcome in outcomes),
        "steps_lost_median": statistics.median(lost) if lost else 0,
        "steps_lost_max": max(lost, default=0),
    }
    console.print("  ".join(f"{key} {value}" for key, value in row.items()))
    if options.json_file:
        Path(options.json_file).write_text(json.dumps(row, indent=1) + "\n")
    survived = row["rounds"] == row["survived"] == row["bit_identical"]
    if survived and not options.keep:
        shutil.rmtree(kept)
    return FINISHED if survived else FAULT


def _spread(kinds: dict[str, "Hit"], rounds: int, seed: int) -> list[str]:
    """A kind for each round: all equally often, to one, in an order that the seed shuffles."""
    names = [name for _ in range(-(-rounds // len(kinds))) for name in kinds][:rounds]
    random.Random(seed).shuffle(names)
    return names


def _may_mount(folder: Path) -> bool:
    with contextlib.suppress(subprocess.CalledProcessError, OSError), _tmpfs(folder / "try"):
        return True
    return False


@contextlib.contextmanager
def _tmpfs(folder: Path) -> Iterator[None]:
    """A file system of ``TMPFS_BYTES`` at ``folder``, which is left empty."""
    folder.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={TMPFS_BYTES}", "tmpfs", str(folder)]
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


# ------------------------------------------------------------------------------ a rank and its notes


def train(arguments: list[str], notes: str) -> None:
    """What a rank runs: the trainer, with each step noted."""
    exit_with(lambda: trainer.run(settings.load(arguments), _Noted(notes).around), together=True)


class _Noted:
    """Has each optimizer step of this process written down once it is taken.

    A line holds the step's number, its learning rate, and a checksum of the pixels and labels that
    it saw on this rank. The first line is the process's id.
    """

    def __init__(self, notes: str) -> None:
        restart, rank = (os.environ.get(key, "0") for key in ("TORCHELASTIC_RESTART_COUNT", "RANK"))
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        self._file = os.open(f"{notes}.{restart}.{rank}", flags, 0o644)
        os.write(self._file, f"{os.getpid()}\n".encode())

    def around(self, take: trainer.TakeStep) -> trainer.TakeStep:
        """For :func:`ffcv_r50.trainer.run`."""

        def noted(batches: Iterator[Batch], step: Step, stop: bool) -> torch.Tensor:
            checksum = 0

            def seen() -> Iterator[Batch]:
                nonlocal checksum
                for batch in batches:
                    pixels = batch.images.permute(0, 2, 3, 1).contiguous()
                    for tensor in (pixels, batch.targets):
                        checksum = zlib.crc32(tensor.numpy().tobytes(), checksum)
                    yield batch

            values = take(seen(), step, stop)
            line = f"{step.number} {step.values['lr']!r} {checksum:08x}\n"
            os.write(self._file, line.encode())
            return values

        return noted


def torchrun_rank() -> None:
    """What torchrun starts: the notes' name, then the trainer's command line."""
    notes, *arguments = sys.argv[2:]
    train(arguments, notes)


# ----------------------------------------------------------------------------------- a start of a run


class Start(Protocol):
    """The processes of one start of a run."""

    folder: Path
    notes: Path
    ranks: int

    def pids(self) -> list[int]:
        """Of the ranks that live, as far as known."""

    def wait(self, seconds: float) -> list[int] | None:
        """Exit codes, negative for signals; None where one still runs after so long."""

    def kill(self) -> None:
        """Kill every process of it."""


class Forked(LocalRanks):
    """Ranks from the fork server; their exit codes are the program's own."""

    def __init__(self, bench: "Bench", folder: Path, number: int) -> None:
        self.folder = folder
        self.notes = folder / f"start-{number}"
        self.ranks = bench.ranks
        outputs = [Path(f"{self.notes}.output.{rank}") for rank in range(self.ranks)]
        arguments = bench.arguments(folder)
        super().__init__(functools.partial(train, arguments, str(self.notes)), outputs)


class Torchrun:
    """torchrun, which starts the ranks again when one dies; its exit code stands for theirs."""

    def __init__(self, bench: "Bench", folder: Path, number: int) -> None:
        self.folder = folder
        self.notes = folder / f"start-{number}"
        self.ranks = bench.ranks
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command += [f"--nproc-per-node={self.ranks}", "--max-restarts=3", "-m", "benchmarks.faults"]
        command += ["rank", str(self.notes), *bench.arguments(folder)]
        with open(f"{self.notes}.output.0", "w") as output:
            self._process = subprocess.Popen(
                command,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def pids(self) -> list[int]:
        """Of the ranks that live."""
        newest: dict[str, int] = {}
        for path in sorted(self.notes.parent.glob(f"{self.notes.name}.[0-9].[0-9]")):
            first = path.read_text().partition("\n")[0]
            if first:
                newest[path.suffix] = int(first)
        return [pid for pid in newest.values() if Path(f"/proc/{pid}").exists()]

    def wait(self, seconds: float) -> list[int] | None:
        """Exit codes; None where one still runs."""
        try:
            return [self._process.wait(seconds)]
        except subprocess.TimeoutExpired:
            return None

    def kill(self) -> None:
        """Kill every process."""
        for pid in self.pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.kill()
        self._process.wait()


# ------------------------------------------------------------------------------------ ways to hit it


class Missed(Exception):
    """The start was over before it could be hit."""


class Failed(Exception):
    """Something did not behave as it must."""


@dataclass
class Blow:
    """What a hit did to a start."""

    allowed: int
    """Steps that may have to be trained again."""
    codes: list[int]


class Moment(NamedTuple):
    """In a start: so long after its ranks have taken so many steps of their own (0: are alive)."""

    steps: int
    seconds: float


class Hit(Protocol):
    """Does its damage to a running start and waits until all processes are gone."""

    def __call__(self, start: Start, moment: Moment, rng: random.Random) -> Blow:
        """At ``moment``, or as soon after as it can be done."""


def _wait_for(start: Start, moment: Moment) -> None:
    """Return at ``moment``.

    Raises:
        Missed: the start ended before.
        Failed: the moment did not come.
    """
    deadline = time.monotonic() + 2 * START_SECONDS
    while _steps_taken(start) < moment.steps:
        if start.wait(0.005) is not None:
            raise Missed
        if time.monotonic() > deadline:
            raise Failed(f"did not get to its step {moment.steps}")
    if start.wait(moment.seconds) is not None:
        raise Missed


def _steps_taken(start: Start) -> int:
    """Steps that every rank of the start has taken, over torchrun's restarts; -1 where not all of
    them are alive yet.
    """
    notes = list(start.folder.glob(f"{start.notes.name}.[0-9].[0-9]"))
    lines = {path: path.read_text().count("\n") for path in notes}
    taken = [
        sum(lines[p] - 1 for p in notes if p.suffix == f".{rank}") for rank in range(start.ranks)
    ]
    return min(taken) if len(notes) >= start.ranks and all(lines.values()) else -1


def _ended(start: Start, seconds: float) -> list[int]:
    codes = start.wait(seconds)
    if codes is None:
        start.kill()
        raise Failed(f"still running {seconds:.0f} s after the hit")
    return codes


def _send(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        raise Missed from None


def kill_one(start: Start, moment: Moment, rng: random.Random) -> Blow:
    """SIGKILL to one rank; the others must end by themselves."""
    _wait_for(start, moment)
    if len(start.pids()) < start.ranks:
        raise Missed
    victim = rng.randrange(start.ranks)
    speaker = 1 if victim == 0 else 0
    watched = Path(f"{start.notes}.0.{speaker}").read_text().count("\n") > 2
    _send(start.pids()[victim], signal.SIGKILL)
    codes = _ended(start, TIMEOUT + 30)
    output = Path(f"{start.notes}.output.{speaker}").read_text()
    others = {code for rank, code in enumerate(codes) if rank != victim}
    # Before its first step a rank may learn from the process group instead.
    if not others <= {FAULT, FINISHED}:
        raise Failed(f"the other ranks exited with {others}")
    if FAULT in others and watched and victim and f"rank {victim}" not in output:
        raise Failed(f"rank 0 did not name rank {victim}, which died")
    return Blow(2 * EVERY, codes)


def kill_all(start: Start, moment: Moment, rng: random.Random) -> Blow:
    """SIGKILL to every rank, as when the machine goes."""
    _wait_for(start, moment)
    start.kill()
    return Blow(2 * EVERY, _ended(start, 10))


def stop_by(number: signal.Signals) -> Hit:
    """A signal to a random rank; all must save and exit with 75."""

    def hit(start: Start, moment: Moment, rng: random.Random) -> Blow:
        _wait_for(start, moment)
        if len(start.pids()) < start.ranks:
            raise Missed
        _send(rng.choice(start.pids()), number)
        codes = _ended(start, TIMEOUT + 30)
        if codes == [STOPPED_AS_ASKED] * start.ranks:
            status = json.loads((start.folder / "status.json").read_text())
            if status["state"] != "stopped":
                raise Failed(f"stopped, but status.json says {status['state']}")
            return Blow(0, codes)
        # Before the program listens, or when it is done listening, the signal simply kills it.
        if -number in codes or codes == [FINISHED] * start.ranks:
            return Blow(2 * EVERY, codes)
        raise Failed(f"exit codes {codes} after {number.name}")

    return hit


def kill_writing(start: Start, moment: Moment, rng: random.Random) -> Blow:
    """SIGKILL to every rank while a checkpoint is being written."""
    _wait_for(start, moment)
    checkpoints = start.folder / "checkpoints"
    while True:
        with contextlib.suppress(FileNotFoundError):
            if any(name.endswith(".tmp") for name in os.listdir(checkpoints)):
                break
        if start.wait(0) is not None:
            raise Missed
    time.sleep(rng.uniform(0, 0.03))
    start.kill()
    return Blow(2 * EVERY, _ended(start, 10))


def damage(how: Callable[[Path, random.Random], None]) -> Hit:
    """SIGKILL to every rank, and the newest checkpoint is damaged."""

    def hit(start: Start, moment: Moment, rng: random.Random) -> Blow:
        _wait_for(start, moment)
        # With a single state there would be nothing whole to continue from.
        while not (start.folder / "checkpoints" / PREVIOUS).exists():
            if start.wait(0.01) is not None:
                raise Missed
        start.kill()
        last = start.folder / "checkpoints" / LAST
        if last.exists():  # not when killed between two renames
            how(last, rng)
        return Blow(3 * EVERY, _ended(start, 10))

    return hit


def truncate(path: Path, rng: random.Random) -> None:
    """Cut the file at a random place."""
    os.truncate(path, rng.randrange(path.stat().st_size))


def flip_bit(path: Path, rng: random.Random) -> None:
    """Flip one bit at a random place."""
    with open(path, "r+b") as file:
        place = rng.randrange(path.stat().st_size)
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ 1 << rng.randrange(8)]))


def fill_disk(start: Start, moment: Moment, rng: random.Random) -> Blow:
    """The disk of the checkpoints fills up; then a kill of all ranks, or none; then there is room."""
    _wait_for(start, moment)
    checkpoints = start.folder / "checkpoints"
    before = _steps_taken(start)
    ballast = checkpoints / "ballast"
    try:
        with open(ballast, "wb") as file:
            room = os.statvfs(checkpoints)
            size = room.f_bavail * room.f_frsize - rng.randrange(1 << 23)
            with contextlib.suppress(OSError):
                os.posix_fallocate(file.fileno(), 0, max(size, 1))
        if rng.random() < 0.5:
            later = Moment(_steps_taken(start) + rng.randint(1, 3 * EVERY), moment.seconds)
            with contextlib.suppress(Missed):
                _wait_for(start, later)
                start.kill()
        codes = _ended(start, START_SECONDS)
    finally:
        ballast.unlink()
    if any(code not in (FINISHED, -signal.SIGKILL) for code in codes):
        raise Failed(f"exit codes {codes} with a full disk")
    return Blow(_steps_taken(start) - before + 2 * EVERY, codes)


def restart_by_torchrun(start: Start, moment: Moment, rng: random.Random) -> Blow:
    """SIGKILL to one rank of torchrun's, which starts the group again by itself."""
    _wait_for(start, moment)
    if len(start.pids()) < start.ranks:
        raise Missed
    _send(rng.choice(start.pids()), signal.SIGKILL)
    codes = _ended(start, TIMEOUT + 3 * START_SECONDS)
    if codes != [FINISHED]:
        raise Failed(f"torchrun exited with {codes[0]}")
    return Blow(2 * EVERY, codes)


KINDS: dict[str, Hit] = {
    "SIGKILL to one rank": kill_one,
    "SIGKILL to all ranks": kill_all,
    **{f"{number.name} to one rank": stop_by(number) for number in SIGNALS},
    "SIGKILL while saving": kill_writing,
    "newest state truncated": damage(truncate),
    "newest state bit-flipped": damage(flip_bit),
    "disk full": fill_disk,
    "torchrun --max-restarts": restart_by_torchrun,
}

# ------------------------------------------------------------------------------------------- rounds


def _notes(folder: Path, ranks: int) -> list[list[dict[int, str]]]:
    """What each start's ranks noted: ``[start][rank][step]`` -> learning rate and checksum."""
    starts: dict[tuple[int, int], dict[int, dict[int, str]]] = {}
    for path in folder.glob("start-*"):
        if match := re.fullmatch(r"start-(\d+)\.(\d+)\.(\d+)", path.name):
            number, restart, rank = map(int, match.groups())
            lines = [line.split(" ", 1) for line in path.read_text().splitlines()[1:]]
            steps = {int(step): rest for step, rest in lines}
            if len(steps) < len(lines):
                raise Failed(f"{path}: a step was trained twice in one start")
            starts.setdefault((number, restart), {})[rank] = steps
    return [[noted.get(rank, {}) for rank in range(ranks)] for _, noted in sorted(starts.items())]


def _log(folder: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{key: row[key] for key in row if key not in TIMES} for row in rows]


@dataclass
class Outcome:
    """Of one round."""

    kind: str
    starts: int = 0
    hits: int = 0
    lost: list[int] = field(default_factory=list)
    """Steps trained again after each hit."""
    bit_identical: bool = False
    fault: str = ""
    """What went wrong; empty when it was survived."""


@dataclass
class Reference:
    """The undisturbed run."""

    seconds: float
    """From its processes' first notes to its end."""
    start_seconds: float
    """Of these, until the first step was taken."""
    weights: dict[str, torch.Tensor]
    log: list[dict[str, Any]]
    steps: list[tuple[str, ...]]
    """For each step, what every rank noted of it."""


class Bench:
    """Data, recipe, the undisturbed run, and the rounds.

    Args:
        root: holds them all.
        ranks: of each run.
    """

    def __init__(self, root: Path, ranks: int) -> None:
        self._root = root
        self.ranks = ranks
        self.reference: Reference

    def folder(self, number: int) -> Path:
        """Of a round."""
        return self._root / f"round-{number}"

    def arguments(self, folder: Path) -> list[str]:
        """The command line of a run."""
        return [
            f"--config={self._root / 'recipe.yaml'}",
            f"--data.train_dataset={self._root / 'train.beton'}",
            f"--data.val_dataset={self._root / 'val.beton'}",
            f"--logging.folder={folder}",
        ]

    def prepare(self) -> None:
        """Write the data and train undisturbed, twice: the second time says how long it takes."""
        batch_size = NORM_BATCH * self.ranks
        write_data(self._root / "train.beton", batch_size * STEPS_PER_EPOCH + 3, seed=1)
        write_data(self._root / "val.beton", VAL_IMAGES, seed=2)
        (self._root / "recipe.yaml").write_text(RECIPE.format(batch_size=batch_size))
        for _ in range(2):
            folder = self._root / "undisturbed"
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            start = Forked(self, folder, 0)
            _wait_for(start, Moment(0, 0))
            began = time.monotonic()
            _wait_for(start, Moment(1, 0))
            start_seconds = time.monotonic() - began
            codes = _ended(start, 2 * START_SECONDS)
            if codes != [FINISHED] * self.ranks:
                raise UserError(f"{folder}: the undisturbed run failed; see {start.notes}.output.0")
            [ranks] = _notes(folder, self.ranks)
            self.reference = Reference(
                time.monotonic() - began,
                start_seconds,
                torch.load(folder / "weights.pt", weights_only=True),
                _log(folder),
                list(zip(*(steps.values() for steps in ranks), strict=True)),
            )

    def round(self, number: int, kind: str, hit: Hit, rng: random.Random) -> Outcome:
        """Break a run, continue it to its end, and judge it."""
        folder = self.folder(number)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        outcome = Outcome(kind)
        with contextlib.ExitStack() as stack:
            if kind == "disk full":
                stack.enter_context(_tmpfs(folder / "checkpoints"))
            try:
                self._break_and_continue(folder, kind, hit, rng, outcome)
            except Failed as fault:
                outcome.fault = str(fault)
        if not outcome.fault:
            shutil.rmtree(folder)
        return outcome

    def _break_and_continue(
        self, folder: Path, kind: str, hit: Hit, rng: random.Random, outcome: Outcome
    ) -> None:
        allowed: list[int] = []
        hits = 1 + (rng.random() < 1 / 3) * rng.choice((1, 2))
        codes: list[int] | None = None
        launch = Torchrun if hit is restart_by_torchrun else Forked
        while codes is None or any(codes):
            if outcome.starts == MOST_STARTS:
                raise Failed(f"not finished after {MOST_STARTS} starts")
            start: Start = launch(self, folder, outcome.starts)
            outcome.starts += 1
            try:
                if len(allowed) < hits:
                    blow = hit(start, self._moment(folder, rng), rng)
                    codes = blow.codes
                    allowed.append(blow.allowed)
                    outcome.hits += 1
                else:
                    codes = _ended(start, 2 * START_SECONDS)
                    if any(codes):
                        raise Failed(f"exit codes {codes} when it was continued")
            except Missed:
                if allowed:
                    codes = _ended(start, TIMEOUT + 30)
                    if any(codes):
                        raise Failed(f"exit codes {codes} without a hit") from None
                else:  # nothing was broken: once more from the start
                    start.kill()
                    shutil.rmtree(folder, ignore_errors=True)  # but for a file system in it
                    folder.mkdir(exist_ok=True)
                    outcome.starts, codes = 0, None
            finally:
                start.kill()
        self._compare(folder, allowed, outcome)

    def _moment(self, folder: Path, rng: random.Random) -> Moment:
        """While it starts, after any step that is left but the last two, or in the next one."""
        taken = [step for start in _notes(folder, self.ranks) for ranks in start for step in ranks]
        left = len(self.reference.steps) - 1 - max(taken, default=-1)
        steps = rng.randrange(max(left - 1, 1))
        whole, start = self.reference.seconds, self.reference.start_seconds
        each = (whole - start) / len(self.reference.steps)
        return Moment(steps, rng.uniform(0, start if steps == 0 else each))

    def _compare(self, folder: Path, allowed: list[int], outcome: Outcome) -> None:
        weights = torch.load(folder / "weights.pt", weights_only=True)
        outcome.bit_identical = weights.keys() == self.reference.weights.keys() and all(
            torch.equal(weights[name], tensor) for name, tensor in self.reference.weights.items()
        )
        if not outcome.bit_identical:
            raise Failed("the weights differ from the undisturbed run's")
        if _log(folder) != self.reference.log:
            raise Failed("the log differs from the undisturbed run's")
        reached = budget = 0
        for index, ranks in enumerate(_notes(folder, self.ranks)):
            if 0 < index <= len(allowed):
                budget += allowed[index - 1]
            for rank, steps in enumerate(ranks):
                for step, note in steps.items():
                    if note != self.reference.steps[step][rank]:
                        raise Failed(f"step {step} saw other images or another learning rate")
            first = min((min(steps) for steps in ranks if steps), default=reached)
            if first > reached:
                raise Failed(f"steps {reached} to {first - 1} were left out")
            if index:
                outcome.lost.append(reached - first)
            if reached - first > budget:
                raise Failed(f"{reached - first} steps trained again, {budget} are allowed")
            if any(ranks):
                reached = max(reached, max(max(steps) for steps in ranks if steps) + 1)
                budget = 0
        if reached != len(self.reference.steps):
            raise Failed(f"ended after {reached} steps")


def write_data(path: Path, count: int, seed: int) -> None:
    """``count`` small images of three colours as classes."""
    rng = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory() as folder:
        for i in range(count):
            pixels = rng.integers(0, 160, (6, 6, 3)).astype(np.uint8)
            pixels[..., i % 3] += 60
            target = Path(folder, "abc"[i % 3], f"{i:03}.jpg")
            target.parent.mkdir(exist_ok=True)
            Image.fromarray(pixels).resize((48, 40), Image.Resampling.BICUBIC).save(target)
        path.unlink(missing_ok=True)
        with contextlib.redirect_stdout(None):
            writing.write(Writing(data_dir=folder, write_path=str(path), num_workers=1))


def _table(outcomes: list[Outcome]) -> Table:
    table = Table()
    table.add_column("hit by", no_wrap=True)
    for column in ("rounds", "survived", "hits", "steps lost: median", "worst"):
        table.add_column(column, justify="right")
    for kind in [*KINDS, "all"]:
        rows = [outcome for outcome in outcomes if kind in (outcome.kind, "all")]
        lost = [steps for outcome in rows for steps in outcome.lost]
        if rows:
            table.add_row(
                kind,
                str(len(rows)),
                str(sum(not outcome.fault for outcome in rows)),
                str(sum(outcome.hits for outcome in rows)),
                f"{statistics.median(lost):g}" if lost else "-",
                str(max(lost)) if lost else "-",
            )
    return table


if __name__ == "__main__":
    if sys.argv[1:2] == ["rank"]:
        torchrun_rank()
    else:
        exit_with(main)
