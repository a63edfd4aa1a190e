"""Which process this is: from the variables that a real SLURM, torchrun and submitit set."""

import pytest

from ffcv_r50.distributed import launcher
from ffcv_r50.distributed.launcher import RankInfo, hosts
from ffcv_r50.errors import UserError

TORCHRUN = {
    "RANK": "3",
    "WORLD_SIZE": "4",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "n1",
    "MASTER_PORT": "29500",
    "TORCHELASTIC_RUN_ID": "none",
}
# As SLURM 22.05 sets them: sbatch --nodes=2 --ntasks-per-node=2, in the batch script,
ALLOCATION = {
    "SLURM_JOB_ID": "5223520",
    "SLURM_JOB_NODELIST": "n[1-2]",
    "SLURM_NODEID": "0",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
    "SLURM_NTASKS": "4",
    "SLURM_NTASKS_PER_NODE": "2",
    "SLURM_TASKS_PER_NODE": "2(x2)",
}
# and in the last task of the srun in it.
STEP = ALLOCATION | {
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NODELIST": "n[1-2]",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
    "SLURM_NODEID": "1",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
}
ALONE = (0, 1, 0, 1, "none", "")


def test_nothing_set_is_a_single_process() -> None:
    assert launcher.detect({}) == ALONE
    assert launcher.detect({"LOCAL_RANK": "0"}) == ALONE


def test_torchrun() -> None:
    assert launcher.detect(TORCHRUN) == (3, 4, 1, 2, "torchrun", "env://")


def test_a_slurm_step() -> None:
    info = launcher.detect(STEP)
    assert info[:5] == (3, 4, 1, 2, "SLURM")
    address, port = info.init_method.removeprefix("tcp://").split(":")
    assert address == "n1", "rank 0 is on the first node"
    assert 10000 <= int(port) < 30000
    others = [
        launcher.detect(STEP | changes).init_method
        for changes in ({"SLURM_JOB_ID": "5223521"}, {"SLURM_STEP_ID": "1"})
    ]
    assert len({info.init_method, *others}) == 3, "each job and step has a port of its own"


def test_every_task_of_uneven_nodes() -> None:
    uneven = {"SLURM_STEP_TASKS_PER_NODE": "3(x2),1", "SLURM_STEP_NUM_TASKS": "7"}
    uneven["SLURM_STEP_NODELIST"] = "gpu[008-010]"
    sizes = []
    for rank in range(7):
        node, local = divmod(rank, 3)
        task = {"SLURM_PROCID": f"{rank}", "SLURM_NODEID": f"{node}", "SLURM_LOCALID": f"{local}"}
        info = launcher.detect(STEP | uneven | task)
        assert (info.rank, info.size, info.local_rank) == (rank, 7, local)
        assert info.init_method.startswith("tcp://gpu008:")
        sizes.append(info.local_size)
    assert sizes == [3] * 6 + [1]


def test_the_users_own_rendezvous_is_taken() -> None:
    info = launcher.detect(STEP | {"MASTER_ADDR": "10.0.0.7", "MASTER_PORT": "1234"})
    assert info.init_method == "tcp://10.0.0.7:1234"


@pytest.mark.parametrize(
    "environment",
    [
        ALLOCATION,  # in a batch script, without srun
        {k: v for k, v in ALLOCATION.items() if "ID" not in k},  # salloc's shell, login node
        # srun --pty bash, and the shell that salloc opens on the first node
        STEP | {"SLURM_PTY_PORT": "41143", "SLURM_STEP_ID": "4294967290"},
        STEP | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_STEP_TASKS_PER_NODE": "1"},  # srun -n1
    ],
)
def test_a_shell_in_an_allocation_starts_a_single_process(environment: dict[str, str]) -> None:
    assert launcher.detect(environment) == ALONE


def test_torchrun_on_each_node_of_a_slurm_job() -> None:
    one_a_node = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_TASKS_PER_NODE": "1(x2)"}
    agent = one_a_node | {"SLURM_PROCID": "1", "SLURM_LOCALID": "0"}
    assert launcher.detect(STEP | agent | TORCHRUN) == launcher.detect(TORCHRUN)
    with pytest.raises(UserError, match="srun started torchrun 2 times on this node"):
        launcher.detect(STEP | TORCHRUN)


def test_submitits_local_executor() -> None:
    task = {"SUBMITIT_LOCAL_NTASKS": "2", "SUBMITIT_LOCAL_GLOBALID": "1"}
    info = launcher.detect(task | {"SUBMITIT_LOCAL_JOB_ID": "77"})
    assert info == RankInfo(1, 2, 1, 2, "submitit", "tcp://127.0.0.1:10077")
    assert launcher.detect(task | {"SUBMITIT_LOCAL_NTASKS": "1"}).size == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"RANK": "0"}, "RANK=0, but SLURM started this process as RANK=3"),
        ({"WORLD_SIZE": "1"}, "WORLD_SIZE=1, but SLURM started this process as WORLD_SIZE=4"),
        ({"SLURM_PROCID": "4"}, "contradict each other"),
        ({"SLURM_LOCALID": "2"}, "contradict each other"),
        ({"SLURM_NODEID": "2"}, "SLURM_NODEID=2, but SLURM_STEP_TASKS_PER_NODE"),
        ({"SLURM_PROCID": "x"}, "SLURM_PROCID=x must be a whole number"),
        ({"SLURM_STEP_TASKS_PER_NODE": "two"}, "no list of task counts"),
        ({"SLURM_STEP_NODELIST": "n[1-2"}, "lacks a closing bracket"),
        ({"SLURM_STEP_NODELIST": ""}, "names no host"),
    ],
)
def test_contradictions_are_named(changes: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        launcher.detect(STEP | changes)


def test_agreeing_variables_are_no_contradiction() -> None:
    ours = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}
    assert launcher.detect(STEP | ours) == launcher.detect(STEP)


@pytest.mark.parametrize(
    ("nodelist", "expected"),
    [
        ("gpu7", ["gpu7"]),
        ("a,b", ["a", "b"]),
        (
            "gpu[001-004,007],login1",
            ["gpu001", "gpu002", "gpu003", "gpu004", "gpu007", "login1"],
        ),
        ("n[9-11]", ["n9", "n10", "n11"]),
        ("r[1-2]n[08-09]-ib", ["r1n08-ib", "r1n09-ib", "r2n08-ib", "r2n09-ib"]),
        ("login-1,gpu[1,3]", ["login-1", "gpu1", "gpu3"]),
        ("", []),
    ],
)
def test_host_lists(nodelist: str, expected: list[str]) -> None:
    assert hosts(nodelist) == expected


@pytest.mark.parametrize("nodelist", ["n[1-2", "n[a-b]", "n[1-]", "n[]"])
def test_host_lists_that_cannot_be_read(nodelist: str) -> None:
    with pytest.raises(UserError, match="host list"):
        hosts(nodelist)
