"""Jobs on a real SLURM: however they are started and whatever happens to them, the run is the same.

Every run is compared with the same one on a single process that nothing disturbed: the weights must
be the same bits, and the log must hold each epoch once.
"""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import ranks
from tests.conftest import REPOSITORY, RESNET, Dataset
from tests.slurm.conftest import SCRIPT, SETTINGS, Cluster, Job, until

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.timeout(600)]
both = pytest.mark.parametrize("launcher", ["submitit", "sbatch"])


def alone(dataset: Dataset, folder: Path, *more: str) -> Path:
    """The run on one process."""
    given = {word.partition("=")[0] for word in more}
    settings = [word for word in SETTINGS if word.partition("=")[0] not in given]
    subprocess.run(
        [sys.executable, "train_imagenet.py", *dataset.arguments(folder), *settings, *more],
        cwd=REPOSITORY,
        check=True,
        capture_output=True,
    )
    return folder


@pytest.fixture(scope="module")
def undisturbed(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return alone(dataset, tmp_path_factory.mktemp("reference") / "run")


def check_same(folder: Path, undisturbed: Path) -> None:
    ranks.assert_same_weights(folder, undisturbed)
    rows, reference = ranks.log(folder), ranks.log(undisturbed)
    losses, expected = ([row.pop("train_loss") for row in log] for log in (rows, reference))
    assert rows == reference
    assert losses == pytest.approx(expected, rel=1e-6)


def check_continued(cluster: Cluster, job: Job, undisturbed: Path) -> str:
    """The job was requeued once and then finished as if nothing had happened; returns its log."""
    text = cluster.wait(job)
    assert job.starts() == 2, text
    check_same(job.folder, undisturbed)
    return text


# ----------------------------------------------------------------------------------- nothing happens


def test_three_nodes_train_as_one_process_does(
    cluster: Cluster, dataset: Dataset, tmp_path: Path
) -> None:
    """The sum of three parts rounds differently in another order: see test_run_safety.py."""
    batch = ("--training.batch_size=24", "--training.norm_batch_size=8", "--schedule.lr={0: 0.001}")
    three = (*batch, *RESNET)  # smaller networks amplify what is rounded more than that
    reference = ranks.log(alone(dataset, tmp_path / "alone", *three))
    for launcher in ("submitit", "sbatch"):
        job = cluster.submit(*three, launcher=launcher, nodes=3, name=launcher)
        text = cluster.wait(job)
        assert all(f"n{node}: rank {node - 1}" in text for node in (1, 2, 3))
        for key in ("train_loss", "val_loss"):
            curve = [row[key] for row in ranks.log(job.folder)]
            assert curve == pytest.approx([row[key] for row in reference], rel=2e-6)


def test_an_array_of_seeds(cluster: Cluster, undisturbed: Path) -> None:
    cluster.submit("--seeds=0,1", launcher="submitit", nodes=1)
    folders = [cluster.held.parent / "run" / f"seed_{seed}" for seed in (0, 1)]
    for folder in folders:
        until((folder / "weights.pt").exists, "the end of both runs")
    until(lambda: not cluster.call("squeue", "--noheader"), "the end of the array")
    check_same(folders[0], undisturbed)
    assert ranks.log(folders[0])[0]["train_loss"] != ranks.log(folders[1])[0]["train_loss"]


# ------------------------------------------------------------------------------- stopped and continued


def test_preempted_by_a_higher_priority(cluster: Cluster, undisturbed: Path) -> None:
    job = cluster.submit(launcher="submitit", fault="hold")
    cluster.until_held(2)
    whole = ["--partition=urgent", "--nodes=3", "--cpus-per-task=8", "--output=/dev/null"]
    cluster.call("sbatch", *whole, "--wrap=true")
    text = check_continued(cluster, job, undisturbed)
    assert "stopped by SIGUSR2; the state is saved" in text
    assert f"job {job.number} is requeued" in text


def test_the_time_limit(cluster: Cluster, undisturbed: Path) -> None:
    """SLURM looks at time limits every 30 s, and warns what is within two minutes of its end."""
    job = cluster.submit(launcher="sbatch", fault="hold")
    cluster.until_held(2)
    cluster.call("scontrol", "update", f"JobId={job.number}", "EndTime=now+100")
    text = check_continued(cluster, job, undisturbed)
    assert "stopped by SIGUSR2; the state is saved" in text
    assert "User defined signal" not in text, "torchrun died of it, before its processes ended"
    assert f"job {job.number} is requeued" in text


def test_requeued_from_outside(cluster: Cluster, undisturbed: Path) -> None:
    job = cluster.submit(launcher="submitit", fault="hold")
    cluster.until_held(2)
    cluster.call("scontrol", "requeue", job.number)
    check_continued(cluster, job, undisturbed)


@both
def test_a_signal_at_one_rank(cluster: Cluster, undisturbed: Path, launcher: str) -> None:
    job = cluster.submit(launcher=launcher, fault="SIGUSR2@1")
    text = check_continued(cluster, job, undisturbed)
    assert "stopped by another rank; the state is saved" in text


@both
def test_a_killed_rank(cluster: Cluster, undisturbed: Path, launcher: str) -> None:
    job = cluster.submit(launcher=launcher, fault="SIGKILL@1")
    text = check_continued(cluster, job, undisturbed)
    assert f"job {job.number} is requeued" in text


# ------------------------------------------------------------------------------------- machines go


@pytest.fixture
def losing(cluster: Cluster) -> Iterator[Cluster]:
    """The cluster, whose nodes are repaired in the end."""
    yield cluster
    for node in (1, 2, 3):
        subprocess.run([SCRIPT, "back", str(node)], check=True, capture_output=True, timeout=100)


def test_a_machine_is_lost(losing: Cluster, undisturbed: Path) -> None:
    job = losing.submit(launcher="sbatch", fault="hold")
    losing.until_held(2)
    losing.call(str(SCRIPT), "lose", "2")
    text = check_continued(losing, job, undisturbed)
    assert "rank 1: no heartbeat from n2 for " in text


def test_the_machine_of_the_batch_script_is_lost(losing: Cluster, undisturbed: Path) -> None:
    job = losing.submit(launcher="submitit", fault="hold")
    losing.until_held(2)
    losing.call(str(SCRIPT), "lose", "1")
    check_continued(losing, job, undisturbed)


def test_the_daemon_of_a_node_is_killed(losing: Cluster, undisturbed: Path) -> None:
    """SLURM gives the node up, and with it processes that live on."""
    job = losing.submit(launcher="submitit", fault="hold")
    losing.until_held(2)
    losing.call(str(SCRIPT), "lose", "2", "slurmd")
    check_continued(losing, job, undisturbed)


# ------------------------------------------------------------------------------------ not tried again


def test_a_cancelled_job_ends_and_stays_so(cluster: Cluster) -> None:
    job = cluster.submit(launcher="submitit", fault="hold")
    cluster.until_held(2)
    cluster.call("scancel", job.number)
    cluster.wait(job, "CANCELLED")
    until(lambda: "was cancelled" in job.log.read_text(), "the supervisor's word")
    assert job.starts() == 1


@both
def test_a_bug_fails_once(cluster: Cluster, launcher: str) -> None:
    job = cluster.submit(launcher=launcher, fault="fail")
    text = cluster.wait(job, "FAILED")
    assert "ZeroDivisionError: by a bug" in text
    assert text.rstrip().splitlines()[-1].startswith("supervise: error: "), text
    assert "requeued" not in text
    assert job.starts() == 1


def test_bad_input_fails_once(cluster: Cluster) -> None:
    missing = "--data.val_dataset=/nowhere.beton"
    job = cluster.submit(missing, launcher="sbatch")
    text = cluster.wait(job, "FAILED")
    assert text.count("error: /nowhere.beton") == 1, text
    assert "requeued" not in text
