"""Jobs on a real SLURM of two nodes on this machine, each with its own address and host name.

Every run is compared with the same one on a single process that nothing disturbed: the weights must
be the same bits, and the log must hold each epoch once.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from tests.conftest import REPOSITORY, Dataset

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(300)]
SCRIPT = REPOSITORY / "slurm" / "local_cluster.sh"
# Two normalisation batches, one on each of two processes: the mean of two is the same in any order.
SETTINGS = [
    "--training.norm_batch_size=16",
    "--training.epochs=4",
    "--schedule.lr={0: 0.01}",
    "--schedule.resolution={0: 32}",
]


def until(condition: Callable[[], object], what: str, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
        time.sleep(0.2)  # files and queues have no event to wait for


class Cluster:
    """The SLURM clients, pointed at the test cluster."""

    def __init__(self, conf: str) -> None:
        self.environment = os.environ | {"SLURM_CONF": conf, "OMP_NUM_THREADS": "1"}

    def call(self, *words: str, cwd: Path = REPOSITORY) -> str:
        done = subprocess.run(
            words, env=self.environment, cwd=cwd, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr + done.stdout
        return done.stdout

    def submit(self, dataset: Dataset, folder: Path, *more: str) -> tuple[str, Path]:
        """By submitit, on two nodes; returns the job and its log."""
        settings = [*dataset.arguments(folder), *SETTINGS, *more]
        resources = ["--nodes=2", "--gpus-per-node=1", "--cpus-per-gpu=8", "--time=60"]
        printed = self.call(sys.executable, "slurm/submit.py", *resources, *settings)
        job = printed.split("job ")[1].split(":")[0]
        return job, folder / "jobs" / f"{job}_0_log.out"

    def sbatch(self, dataset: Dataset, folder: Path, *more: str) -> tuple[str, Path]:
        """By train.sbatch, with torchrun on two nodes; returns the job and its log."""
        log = folder.with_suffix(".log")
        settings = [*dataset.arguments(folder)[1:], *SETTINGS, *more]
        resources = ["--nodes=2", "--gpus-per-node=1", "--cpus-per-task=8", "--time=60"]
        script = [f"--output={log}", "slurm/train.sbatch", str(dataset.recipe)]
        printed = self.call("sbatch", "--parsable", *resources, *script, *settings)
        return printed.strip(), log

    def state(self, job: str) -> str:
        shown = self.call("scontrol", "show", "job", job)
        return shown.split("JobState=")[1].split()[0]

    def wait(self, job: str, log: Path, state: str = "COMPLETED") -> None:
        over = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
        until(lambda: self.state(job) in over, f"the end of job {job}", 200)
        assert self.state(job) == state, log.read_text()

    def ranks(self) -> list[int]:
        """Processes of the training on any node, by rank."""
        found = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdecimal():
                try:
                    command = (entry / "cmdline").read_bytes().split(b"\0")
                    environment = (entry / "environ").read_bytes().split(b"\0")
                except OSError:
                    continue
                known = dict(item.split(b"=", 1) for item in environment if b"=" in item)
                conf = self.environment["SLURM_CONF"].encode()
                script = any(word.endswith(b"train_imagenet.py") for word in command[1:3])
                if script and known.get(b"SLURM_CONF") == conf and b"SLURM_STEP_ID" in known:
                    found[int(known.get(b"RANK", known[b"SLURM_PROCID"]))] = int(entry.name)
        return [found[rank] for rank in sorted(found)]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """The cluster that is up already, or one for these tests."""
    if os.geteuid() != 0:
        pytest.skip("a SLURM cluster can be started by root only")
    was_up = subprocess.run([SCRIPT, "status", "2"], capture_output=True).returncode == 0
    started = subprocess.run(
        [SCRIPT, "up", "2"],
        env=os.environ | {"CLUSTER_REQUEUE_DELAY": "5"},
        capture_output=True,
        text=True,
    )
    if started.returncode:
        pytest.skip(f"no SLURM cluster here: {started.stderr.strip().splitlines()[-1]}")
    shown = subprocess.run([SCRIPT, "env"], capture_output=True, text=True, check=True).stdout
    yield Cluster(shown.split("'")[1])
    if not was_up:
        subprocess.run([SCRIPT, "down"], check=True, capture_output=True)


@pytest.fixture(scope="module")
def undisturbed(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the run on one process."""
    folder = tmp_path_factory.mktemp("reference") / "run"
    subprocess.run(
        [sys.executable, "train_imagenet.py", *dataset.arguments(folder), *SETTINGS],
        cwd=REPOSITORY,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        check=True,
        capture_output=True,
    )
    return folder


def check_same(folder: Path, undisturbed: Path) -> None:
    weights, expected = (
        torch.load(run / "weights.pt", weights_only=True) for run in (folder, undisturbed)
    )
    for name in expected:
        assert torch.equal(weights[name], expected[name]), name
    rows, reference = (
        [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
        for run in (folder, undisturbed)
    )
    assert [row["epoch"] for row in rows] == [0, 1, 2, 3]
    for key in ("step", "lr", "val_loss", "top_1"):
        assert [row[key] for row in rows] == [row[key] for row in reference]
    assert [row["train_loss"] for row in rows] == pytest.approx(
        [row["train_loss"] for row in reference], rel=1e-6
    )


def starts(folder: Path) -> int:
    return len(json.loads((folder / "environment.json").read_text()))


def reached(log: Path, text: str) -> Callable[[], bool]:
    return lambda: log.exists() and text in log.read_text()


def test_preempted_by_a_higher_priority(
    cluster: Cluster, dataset: Dataset, undisturbed: Path, tmp_path: Path
) -> None:
    job, log = cluster.submit(dataset, tmp_path / "run")
    until(reached(log, "epoch 1/4"), "the first epoch")
    whole = ["--partition=urgent", "--nodes=2", "--cpus-per-task=8", f"--output={tmp_path}/urgent"]
    cluster.call("sbatch", *whole, "--wrap=true")
    cluster.wait(job, log)
    text = log.read_text()
    assert "stopped by SIGUSR2; the state is saved" in text
    assert f"job {job} is requeued" in text
    assert starts(tmp_path / "run") == 2
    check_same(tmp_path / "run", undisturbed)
    assert cluster.ranks() == []


def test_a_killed_rank_under_srun(
    cluster: Cluster, dataset: Dataset, undisturbed: Path, tmp_path: Path
) -> None:
    job, log = cluster.submit(dataset, tmp_path / "run")
    until(reached(log, "epoch 1/4"), "the first epoch")
    os.kill(cluster.ranks()[1], 9)
    cluster.wait(job, log)
    assert f"job {job} is requeued" in log.read_text()
    assert starts(tmp_path / "run") == 2
    check_same(tmp_path / "run", undisturbed)
    assert cluster.ranks() == []


def test_a_signal_at_one_rank_under_torchrun(
    cluster: Cluster, dataset: Dataset, undisturbed: Path, tmp_path: Path
) -> None:
    job, log = cluster.sbatch(dataset, tmp_path / "run")
    until(reached(log, "epoch 1/4"), "the first epoch")
    os.kill(cluster.ranks()[1], 12)  # SIGUSR2, at the rank that is not rank 0
    cluster.wait(job, log)
    assert "stopped by another rank; the state is saved" in log.read_text()
    assert starts(tmp_path / "run") == 2
    check_same(tmp_path / "run", undisturbed)
    assert cluster.ranks() == []


def test_a_cancelled_job_ends_and_stays_so(
    cluster: Cluster, dataset: Dataset, tmp_path: Path
) -> None:
    job, log = cluster.submit(dataset, tmp_path / "run")
    until(reached(log, "epoch 1/4"), "the first epoch")
    cluster.call("scancel", job)
    cluster.wait(job, log, "CANCELLED")
    until(lambda: not cluster.ranks(), "the end of its processes")
    until(reached(log, "was cancelled"), "the supervisor's word")
    assert starts(tmp_path / "run") == 1


def test_bad_input_fails_once_and_nothing_lingers(
    cluster: Cluster, dataset: Dataset, tmp_path: Path
) -> None:
    missing = "--data.val_dataset=/nowhere.beton"
    folder = tmp_path / "run"
    arguments = [w for w in dataset.arguments(folder) if not w.startswith("--data.val")]
    log = tmp_path / "log"
    script = [f"--output={log}", "--nodes=2", "--gpus-per-node=1", "--cpus-per-task=8"]
    recipe = ["slurm/train.sbatch", str(dataset.recipe)]
    printed = cluster.call("sbatch", "--parsable", *script, *recipe, *arguments[1:], missing)
    cluster.wait(printed.strip(), log, "FAILED")
    text = log.read_text()
    assert text.count("error: /nowhere.beton") == 1, text
    assert "requeued" not in text
    assert cluster.ranks() == []
