"""A real SLURM of three nodes on this machine, and jobs in which something happens at an exact step."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.conftest import REPOSITORY, Dataset

NODES = 3
SCRIPT = REPOSITORY / "slurm" / "local_cluster.sh"
FAULT_STEP = 5
"""Of the eight steps of a run with SETTINGS."""
# Two normalisation batches, one on each of two processes: the mean of two is the same in any order.
SETTINGS = [
    "--training.norm_batch_size=16",
    "--training.epochs=4",
    "--schedule.lr={0: 0.01}",
    "--schedule.resolution={0: 32}",
]

# Instead of train_imagenet.py, around the same trainer: what the environment asks to happen, in the first start of a job. "hold"
# waits before the step until a signal comes, and says that it does.
FAULTS = """
import os, signal, sys
from pathlib import Path
sys.path.append({repository!r})
from tests import ranks

def hold():
    Path(os.environ["HELD"]).joinpath(os.environ.get("RANK") or os.environ["SLURM_PROCID"]).touch()
    signal.pause()

def fail():
    raise ZeroDivisionError("by a bug")

ACTIONS = {{"hold": hold, "fail": fail}}
fault, _, only = os.environ.get("FAULT", "").partition("@")
here = os.environ.get("RANK") or os.environ["SLURM_PROCID"]
if fault and "SLURM_RESTART_COUNT" not in os.environ and only in ("", here):
    action = ACTIONS.get(fault) or (lambda: os.kill(os.getpid(), getattr(signal, fault)))
    ranks.before_step(action, {step}, None)
ranks.main(sys.argv[1:])
"""


def until(condition: Callable[[], object], what: str, seconds: float = 120) -> None:
    """Wait for something that a file or SLURM's queue tells, which have no event to wait for.

    Once a second, for asking SLURM takes processor time that the jobs need.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
        time.sleep(1)


class Job(NamedTuple):
    """A job, its log, and the folder of its run."""

    number: str
    log: Path
    folder: Path

    def starts(self) -> int:
        """How often the run was started."""
        return len(json.loads((self.folder / "environment.json").read_text()))


class Cluster:
    """The SLURM clients, pointed at the test cluster, and a checkout with FAULTS in its trainer."""

    def __init__(self, conf: str, checkout: Path, dataset: Dataset, folder: Path) -> None:
        self.environment = os.environ | {"SLURM_CONF": conf}
        self.environment["HELD"] = str(folder / "held")
        self.held = folder / "held"
        self.held.mkdir()
        self._checkout = checkout
        self._dataset = dataset
        self._folder = folder

    def call(self, *words: str) -> str:
        """Run a command in the checkout; returns what it prints."""
        done = subprocess.run(
            words,
            env=self.environment,
            cwd=self._checkout,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr + done.stdout
        return done.stdout

    def submit(
        self, *more: str, launcher: str, fault: str = "", nodes: int = 2, name: str = "run"
    ) -> Job:
        """Have a run with SETTINGS and ``more`` trained, one process a node, and something happen.

        Args:
            more: settings, which replace those of the same name.
            launcher: ``submitit``, or ``sbatch`` with torchrun below it.
            fault: ``hold``, ``fail`` or the name of a signal, and ``@RANK`` where not all ranks do.
            nodes: and processes.
            name: of the run's folder.
        """
        folder = self._folder / name
        given = {word.partition("=")[0] for word in more}
        settings = [*self._dataset.arguments(folder), *SETTINGS]
        settings = [word for word in settings if word.partition("=")[0] not in given] + [*more]
        self.environment["FAULT"] = fault
        resources = [f"--nodes={nodes}", "--gpus-per-node=1", "--time=60"]
        if launcher == "submitit":
            resources.append("--cpus-per-gpu=8")
            printed = self.call(sys.executable, "slurm/submit.py", *resources, *settings)
            job = printed.split("job ")[1].split(":")[0]
            return Job(job, folder / "jobs" / f"{job}_0_log.out", folder)
        log = folder.with_suffix(".log")
        script = ["--cpus-per-task=8", f"--output={log}", "slurm/train.sbatch"]
        config, *settings = settings
        recipe = config.partition("=")[2]
        printed = self.call("sbatch", "--parsable", *resources, *script, recipe, *settings)
        return Job(printed.strip(), log, folder)

    def until_held(self, processes: int) -> None:
        """Wait until so many processes wait before FAULT_STEP for what will happen to them."""
        until(lambda: len(list(self.held.iterdir())) == processes, "the step before the fault")

    def state(self, job: Job) -> str:
        """What SLURM calls it."""
        shown = self.call("scontrol", "show", "job", job.number)
        return shown.split("JobState=")[1].split()[0]

    def wait(self, job: Job, state: str = "COMPLETED") -> str:
        """Wait for the job's end, which must be ``state``; returns its log."""
        over = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
        until(lambda: self.state(job) in over, f"the end of job {job.number}", 400)
        log = job.log.read_text()
        assert self.state(job) == state, log
        until(lambda: not self.processes(), "the end of its processes", 60)
        return log

    def processes(self) -> list[int]:
        """Of any training on any node."""
        conf = b"SLURM_CONF=" + self.environment["SLURM_CONF"].encode()
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdecimal():
                try:
                    command = (entry / "cmdline").read_bytes().split(b"\0")
                    environment = (entry / "environ").read_bytes().split(b"\0")
                except OSError:
                    continue
                script = any(word.endswith(b"train_imagenet.py") for word in command[1:3])
                if script and conf in environment:
                    found.append(int(entry.name))
        return found


@pytest.fixture(scope="session")
def conf() -> Iterator[str]:
    """SLURM_CONF of the cluster that is up already, or of one for these tests."""
    if os.geteuid() != 0:
        pytest.skip("a SLURM cluster can be started by root only")
    was_up = (
        subprocess.run([str(SCRIPT), "status", str(NODES)], capture_output=True).returncode == 0
    )
    started = subprocess.run(
        [str(SCRIPT), "up", str(NODES)],
        env=os.environ | {"CLUSTER_REQUEUE_DELAY": "5"},
        capture_output=True,
        text=True,
    )
    if started.returncode:
        pytest.skip(f"no SLURM cluster here: {started.stderr.strip().splitlines()[-1]}")
    shown = subprocess.run([SCRIPT, "env"], capture_output=True, text=True, check=True).stdout
    yield shown.split("'")[1]
    if not was_up:
        subprocess.run([SCRIPT, "down"], check=True, capture_output=True)


@pytest.fixture(scope="session")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toolkit, with FAULTS before its trainer."""
    folder = tmp_path_factory.mktemp("checkout")
    shutil.copytree(REPOSITORY / "slurm", folder / "slurm")
    for package in ("ffcv_r50", "writers"):
        (folder / package).symlink_to(REPOSITORY / package)
    (folder / ".venv").symlink_to(sys.prefix)
    faults = FAULTS.format(repository=str(REPOSITORY), step=FAULT_STEP)
    (folder / "train_imagenet.py").write_text(faults)
    return folder


@pytest.fixture
def cluster(conf: str, checkout: Path, dataset: Dataset, tmp_path: Path) -> Iterator[Cluster]:
    """The cluster; jobs that a failing test leaves are cancelled."""
    cluster = Cluster(conf, checkout, dataset, tmp_path)
    yield cluster
    jobs = cluster.call("squeue", "--noheader", "--format=%A").split()
    if jobs:
        cluster.call("scancel", "--full", "--signal=KILL", *jobs)
        cluster.call("scancel", *jobs)
        until(lambda: not cluster.call("squeue", "--noheader"), "the end of cancelled jobs")
