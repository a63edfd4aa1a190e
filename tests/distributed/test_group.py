"""The process group: who meets whom, on which cores, and errors that all ranks share."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ffcv_r50 import distributed
from ffcv_r50.errors import RunFault, UserError
from tests.conftest import Dataset, Launch

TORCHRUN = {
    "RANK": "0",
    "WORLD_SIZE": "1",
    "LOCAL_RANK": "0",
    "LOCAL_WORLD_SIZE": "1",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "29511",
}


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name in TORCHRUN or name.startswith(("SLURM_", "SUBMITIT_", "TORCHELASTIC_")):
            monkeypatch.delenv(name)


def test_a_single_process_needs_no_variables() -> None:
    with distributed.world(10) as world:
        assert (world.rank, world.size, world.is_main) == (0, 1, True)
        assert not torch.distributed.is_initialized()
        assert world.cores >= 1
        total = torch.ones(2)
        distributed.all_reduce_sum(total)
        assert total.tolist() == [1, 1]
        assert distributed.broadcast_object("x") == "x"


def test_torchruns_variables_make_a_group(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    with distributed.world(10) as world:
        assert world.size == 1
        assert torch.distributed.is_initialized()
    assert not torch.distributed.is_initialized()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"MASTER_PORT": None}, "MASTER_PORT not; start with torchrun"),
        ({"WORLD_SIZE": None, "LOCAL_WORLD_SIZE": None}, "LOCAL_WORLD_SIZE not"),
        ({"RANK": "one"}, "must be whole numbers"),
        ({"RANK": "2"}, "contradict each other"),
        ({"LOCAL_WORLD_SIZE": "3"}, "contradict each other"),
    ],
)
def test_incomplete_variables_are_refused(
    monkeypatch: pytest.MonkeyPatch, changes: dict[str, str | None], message: str
) -> None:
    for name, value in (TORCHRUN | changes).items():
        if value is not None:
            monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=message), distributed.world(10):
        pass


def test_a_single_process_keeps_its_error() -> None:
    with pytest.raises(UserError, match="mine"), distributed.errors_on_all_ranks():
        raise UserError("mine")


def test_peers_that_do_not_come_end_the_wait(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        free = str(probe.getsockname()[1])
    for name, value in (TORCHRUN | {"WORLD_SIZE": "2", "MASTER_PORT": free}).items():
        monkeypatch.setenv(name, value)
    expected = "rank 0 of 2 on .* did not meet its peers at 127.0.0.1:.*timeout_seconds=1"
    with pytest.raises(RunFault, match=expected), distributed.world(1):
        pass
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(RunFault, match="rank 1 of 2 on"), distributed.world(1):
        pass
    assert "error: rank 1 of 2 on" in capfd.readouterr().err, "nobody else could say it"


STEP = """
import os, sys
import torch
from ffcv_r50 import distributed

torch.set_num_threads(2)
for i, cores in enumerate(eval(sys.argv[1])):  # one group after the other, to start only once
    os.environ["SLURM_STEP_ID"] = str(i)
    everywhere = os.sched_getaffinity
    os.sched_getaffinity = lambda pid: cores[int(os.environ["SLURM_PROCID"])]
    with distributed.world(60) as world:
        total = torch.tensor([world.rank + 1.0])
        distributed.all_reduce_sum(total)
        print(world.cores, int(total), torch.get_num_threads(), *distributed.describe(world), sep="|")
    os.sched_getaffinity = everywhere
"""


@pytest.mark.slow
def test_a_slurm_step_meets_shares_its_cores_and_describes_itself() -> None:
    shared, bound, crowded = [{*range(8)}] * 2, [{0, 1, 2}, {4, 5}], [{0}, {0}]
    environment = {
        "PATH": os.environ["PATH"],
        "SLURM_JOB_ID": "4711",
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_STEP_TASKS_PER_NODE": "2",
        "SLURM_NODEID": "0",
        "SLURM_CPUS_ON_NODE": "6",  # of the eight, where SLURM does not bind
    }
    command = [sys.executable, "-c", STEP, repr([shared, bound, crowded])]
    tasks = [
        subprocess.Popen(
            command,
            env=environment | {"SLURM_PROCID": f"{rank}", "SLURM_LOCALID": f"{rank}"},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    outputs = [task.communicate(timeout=120)[0].splitlines() for task in tasks]
    host = socket.gethostname()
    assert outputs[0] == [
        f"3|3|2|{host}: ranks 0-1, CPU, 3 cores each, gloo on lo",
        f"3|3|2|{host}: ranks 0-1, CPU, 3 / 2 cores each, gloo on lo",
        f"1|3|1|{host}: ranks 0-1, CPU, 1 core each, gloo on lo",
    ]
    assert [line[0] for line in outputs[1]] == ["3", "2", "1"]


def test_a_single_process_in_an_allocation_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    monkeypatch.setenv("SLURM_NTASKS", "8")
    monkeypatch.setenv("SLURM_CPUS_ON_NODE", "1")
    with distributed.world(10) as world:
        lines = distributed.describe(world)
    assert lines[0].startswith(f"{socket.gethostname()}: rank 0, ")
    assert "1 core" in lines[0]
    assert lines[1:] == ["SLURM allocated 8 tasks; this is one process (srun starts all)"]


@pytest.mark.slow
def test_more_processes_than_normalisation_batches_train_as_one_does(
    dataset: Dataset, launch: Launch, tmp_path: Path
) -> None:
    """Two normalisation batches of 16 on one process, or on two groups of two."""
    weights = []
    for world_size in (1, 4):
        folder = tmp_path / f"{world_size}"
        arguments = dataset.arguments(
            folder,
            "--training.norm_batch_size=16",
            "--training.epochs=1",
            "--schedule.lr={0: 0.01}",
            "--schedule.resolution={0: 32}",
        )
        result = launch(arguments, world_size=world_size)
        assert result.codes == [0] * world_size, result.output
        weights.append(torch.load(folder / "weights.pt", weights_only=True))
    torch.testing.assert_close(weights[1], weights[0], atol=1e-5, rtol=1e-5)
