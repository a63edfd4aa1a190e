"""The process group: its start and end, its cores, and errors that all ranks share."""

import datetime
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ffcv_r50 import distributed
from ffcv_r50.distributed import group, rendezvous
from ffcv_r50.errors import BAD_INPUT, FAULT, RunFault, UserError
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
        assert distributed.collective_timeout() == datetime.timedelta(seconds=10)
    assert not torch.distributed.is_initialized()


def test_after_an_error_the_group_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Taking it down waits for peers, and on a GPU for kernels, that may never come to an end."""
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    for error in (UserError("input"), RunFault("broken"), ValueError("a bug"), RuntimeError()):
        with pytest.raises(type(error)), distributed.world(10):
            raise error
        assert torch.distributed.is_initialized()
        torch.distributed.destroy_process_group()


# What a GPU would do: nothing that runs at exit after our own code comes to an end.
STUCK_AT_EXIT = """
import atexit, threading
import torch
from ffcv_r50 import distributed
from ffcv_r50.distributed import cores, group
from ffcv_r50.errors import UserError, exit_with

atexit.register(threading.Event().wait)
group._device = lambda info: torch.device("cuda", 0)
group._join = lambda *_: None
group._restarted = lambda: False
cores.share = lambda *_: 1
torch.cuda.set_device = lambda device: None

def main():
    with distributed.world(10):
        print("working", flush=False)
        raise {error}

exit_with(main)
"""


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        ("UserError('input')", BAD_INPUT, "error: input"),
        ("KeyError('bug')", FAULT, "KeyError: 'bug'"),
    ],
)
@pytest.mark.slow
def test_a_process_with_a_gpu_ends_after_an_error(error: str, code: int, line: str) -> None:
    result = subprocess.run(
        [sys.executable, "-c", STUCK_AT_EXIT.format(error=error)],
        env={"PATH": os.environ["PATH"], **TORCHRUN},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert result.returncode == code
    assert result.stdout == "working\n"
    assert result.stderr.splitlines()[-1] == line


# A kernel of a minute or more, an all-reduce that waits for it, and an error on the CPU.
KERNEL = """
import torch
from ffcv_r50 import distributed

with distributed.world(10) as world:
    value = torch.ones(1, device=world.device)
    torch.distributed.all_reduce(value)
    torch.cuda._sleep(200_000_000_000)
    torch.distributed.all_reduce(value)
    raise KeyError("bug")
"""


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_kernel_that_goes_on_does_not_keep_the_process() -> None:
    result = subprocess.run(
        [sys.executable, "-c", KERNEL],
        env=os.environ | TORCHRUN,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode == FAULT
    assert "KeyError: 'bug'" in result.stderr


@pytest.mark.parametrize(
    ("device", "deterministic", "given", "algorithm", "seconds"),
    [
        ("cuda", False, None, None, 20),
        ("cuda", True, None, "Ring", 20),
        ("cuda", True, "Tree", "Tree", 20),  # the user knows better
        ("cpu", True, None, None, 10),
    ],
)
def test_what_nccl_is_told_before_the_group_starts(
    monkeypatch: pytest.MonkeyPatch,
    device: str,
    deterministic: bool,
    given: str | None,
    algorithm: str | None,
    seconds: int,
) -> None:
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("NCCL_ALGO", given or "")
    if not given:
        monkeypatch.delenv("NCCL_ALGO")
    told: dict[str, object] = {}

    def init_process_group(backend: str, **options: object) -> None:
        told.update(options, backend=backend, algorithm=os.environ.get("NCCL_ALGO"))
        raise torch.distributed.DistError("as far as a CPU gets")

    monkeypatch.setattr(group, "_device", lambda info: torch.device(device, 0))
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(rendezvous, "create_store", lambda *_: None)
    monkeypatch.setattr(torch.distributed, "init_process_group", init_process_group)
    with (
        pytest.raises(RunFault, match="as far as a CPU gets"),
        distributed.world(10, deterministic=deterministic),
    ):
        pass
    assert told["backend"] == ("cpu:gloo,cuda:nccl" if device == "cuda" else "gloo")
    assert told["algorithm"] == algorithm
    assert told["timeout"] == datetime.timedelta(seconds=seconds)


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


@pytest.mark.slow
def test_peers_that_do_not_come_end_the_wait(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        free = str(probe.getsockname()[1])
    for name, value in (TORCHRUN | {"WORLD_SIZE": "2", "MASTER_PORT": free}).items():
        monkeypatch.setenv(name, value)
    expected = (
        "rank 0 of 2 on .*: the rendezvous at 127.0.0.1:.* failed within dist.timeout_seconds=1"
    )
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
def test_a_slurm_step_forms_a_group_shares_its_cores_and_describes_itself() -> None:
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
@pytest.mark.parametrize("arch", ["resnet18", "squeezenet1_1"])
def test_more_processes_than_normalisation_batches_train_as_one_does(
    dataset: Dataset, launch: Launch, tmp_path: Path, arch: str
) -> None:
    """Two normalisation batches of 16 on one process, or on two groups of two.

    squeezenet has dropout: its masks belong to the samples' positions in the global batch.
    """
    weights = []
    for world_size in (1, 4):
        folder = tmp_path / f"{world_size}"
        arguments = dataset.arguments(
            folder,
            "--training.norm_batch_size=16",
            "--training.epochs=1",
            "--schedule.lr={0: 0.01}",
            "--schedule.resolution={0: 32}",
            f"--model.arch={arch}",
            f"--model.zero_init_residual={arch == 'resnet18':d}",
        )
        result = launch(arguments, world_size=world_size)
        assert result.codes == [0] * world_size, result.output
        weights.append(torch.load(folder / "weights.pt", weights_only=True))
    torch.testing.assert_close(weights[1], weights[0], atol=1e-5, rtol=1e-5)
