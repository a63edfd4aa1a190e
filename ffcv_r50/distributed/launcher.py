"""Which of how many processes this one is, as the environment of its launcher says.

Four launchers are understood: torchrun (or anything that sets its variables), ``srun``, submitit's
local executor, and none. A batch script or an interactive shell inside a SLURM allocation is not a
step of several tasks, so a program started there is a single process.
"""

from collections.abc import Mapping
from typing import NamedTuple

from ffcv_r50.errors import UserError

TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
PORTS = range(10000, 30000)
"""Where a job's own port lies: above the services, below the ephemeral ports of Linux."""


class RankInfo(NamedTuple):
    """One process among its peers."""

    rank: int
    size: int
    local_rank: int
    local_size: int
    launcher: str
    """``torchrun``, ``SLURM``, ``submitit`` or ``none``."""
    init_method: str
    """The rendezvous, as an ``init_method`` of torch.distributed; empty for a single process."""


def detect(environment: Mapping[str, str]) -> RankInfo:
    """Read the launcher's variables.

    Args:
        environment: such as ``os.environ``.

    Raises:
        UserError: variables are missing, are no numbers, or contradict each other; names them.
    """
    if _slurm_tasks(environment) > 1:
        if "TORCHELASTIC_RUN_ID" not in environment:
            return _agreeing(_from_slurm(environment), environment)
        here = _tasks_of_node(environment)
        if here > 1:
            raise UserError(
                f"environment: srun started torchrun {here} times on this node; give srun "
                "--ntasks-per-node=1 and torchrun --nproc_per_node, or leave torchrun out"
            )
    given = {name: environment[name] for name in TORCHRUN if name in environment}
    if given and given != {"LOCAL_RANK": "0"}:
        return _from_torchrun(given, environment)
    if "SUBMITIT_LOCAL_NTASKS" in environment:
        return _from_submitit(environment)
    return RankInfo(0, 1, 0, 1, "none", "")


def hosts(nodelist: str) -> list[str]:
    """The host names of a SLURM host list, such as ``gpu[001-004,007],login1``.

    Raises:
        UserError: it cannot be read.
    """
    names = [""]
    listed: list[str] = []
    rest = nodelist
    while rest:
        head, bracket, tail = rest.partition("[")
        before, comma, after = head.partition(",")
        if comma:  # the host ends before any bracket
            listed += [name + before for name in names]
            names, rest = [""], after + bracket + tail
            continue
        names = [name + head for name in names]
        if bracket:
            ranges, closing, rest = tail.partition("]")
            if not closing:
                raise UserError(f"environment: the host list '{nodelist}' lacks a closing bracket")
            numbers = [number for part in ranges.split(",") for number in _numbers(part, nodelist)]
            names = [name + number for name in names for number in numbers]
        else:
            rest = ""
    return [name for name in [*listed, *names] if name]


def _numbers(part: str, nodelist: str) -> list[str]:
    first, dash, last = part.partition("-")
    if not first.isdecimal() or (dash and not last.isdecimal()):
        raise UserError(f"environment: '{part}' in the host list '{nodelist}' is no range")
    width = len(first)
    return [f"{number:0{width}}" for number in range(int(first), int(last or first) + 1)]


def _counts(text: str, name: str) -> list[int]:
    """SLURM's repeated counts: ``2(x3),1`` is 2, 2, 2, 1."""
    counts: list[int] = []
    for part in text.split(","):
        count, _, times = part.rstrip(")").partition("(x")
        if not count.isdecimal() or not (times or "1").isdecimal():
            raise UserError(f"environment: {name}={text} is no list of task counts")
        counts += [int(count)] * int(times or 1)
    return counts


def _number(environment: Mapping[str, str], name: str) -> int:
    text = environment.get(name)
    if text is None:
        raise UserError(f"environment: a SLURM step of several tasks, but {name} is not set")
    if not text.isdecimal():
        raise UserError(f"environment: {name}={text} must be a whole number")
    return int(text)


def _slurm_tasks(environment: Mapping[str, str]) -> int:
    """Tasks of the step that this process is part of: 1 outside of one.

    SLURM_NTASKS would not do: batch scripts and interactive shells have it too, where it counts
    what was allocated. A shell with a terminal is alone, whatever its step was asked for.
    """
    if "SLURM_STEP_ID" not in environment or "SLURM_PTY_PORT" in environment:
        return 1
    return int(environment.get("SLURM_STEP_NUM_TASKS", "1"))


def _tasks_of_node(environment: Mapping[str, str]) -> int:
    names = ("SLURM_STEP_TASKS_PER_NODE", "SLURM_TASKS_PER_NODE", "SLURM_NTASKS_PER_NODE")
    name = next((name for name in names if name in environment), names[0])
    counts = _counts(environment.get(name, ""), name)
    node = _number(environment, "SLURM_NODEID")
    if name == "SLURM_NTASKS_PER_NODE":
        return counts[0]
    if node >= len(counts):
        raise UserError(f"environment: SLURM_NODEID={node}, but {name}={environment[name]}")
    return counts[node]


def _from_slurm(environment: Mapping[str, str]) -> RankInfo:
    rank, local_rank, job = (
        _number(environment, name) for name in ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_JOB_ID")
    )
    size, local_size = _slurm_tasks(environment), _tasks_of_node(environment)
    if not (rank < size and local_rank < local_size <= size):
        raise UserError(
            f"environment: SLURM_PROCID={rank} of SLURM_STEP_NUM_TASKS={size} and "
            f"SLURM_LOCALID={local_rank} of {local_size} on this node contradict each other; start "
            "with srun, from a shell without SLURM's variables of another step"
        )
    # Users' batch scripts often choose the rendezvous themselves.
    address, port = environment.get("MASTER_ADDR"), environment.get("MASTER_PORT")
    if address is None:
        names = ("SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST", "SLURM_NODELIST")
        listed = hosts(next((environment[name] for name in names if name in environment), ""))
        if not listed:
            raise UserError(f"environment: a SLURM step, but {names[0]} names no host")
        address = listed[0]
    if port is None:
        step = environment["SLURM_STEP_ID"]
        # Steps of one job may run at once; those of two jobs on one node hardly ever collide.
        port = str(PORTS[(job + 101 * int(step if step.isdecimal() else 0)) % len(PORTS)])
    return RankInfo(rank, size, local_rank, local_size, "SLURM", f"tcp://{address}:{port}")


def _agreeing(info: RankInfo, environment: Mapping[str, str]) -> RankInfo:
    """``info``, unless torchrun's variables say something else."""
    for name, ours in zip(TORCHRUN, info, strict=False):
        if environment.get(name, str(ours)) != str(ours):
            raise UserError(
                f"environment: {name}={environment[name]}, but SLURM started this process as "
                f"{name}={ours}; unset {', '.join(TORCHRUN)} before srun"
            )
    return info


def _from_torchrun(given: Mapping[str, str], environment: Mapping[str, str]) -> RankInfo:
    wanted = (*TORCHRUN, "MASTER_ADDR", "MASTER_PORT")
    if missing := [name for name in wanted if name not in environment]:
        raise UserError(
            f"environment: {', '.join(sorted(given))} set but {', '.join(missing)} not; start with "
            "torchrun, or unset them for a single process"
        )
    try:
        rank, size, local_rank, local_size = (int(given[name]) for name in TORCHRUN)
    except ValueError:
        raise UserError(
            f"environment: {dict(given)} must be whole numbers; start with torchrun"
        ) from None
    if not (0 <= rank < size and 0 <= local_rank < local_size <= size):
        raise UserError(f"environment: {dict(given)} contradict each other; start with torchrun")
    return RankInfo(rank, size, local_rank, local_size, "torchrun", "env://")


def _from_submitit(environment: Mapping[str, str]) -> RankInfo:
    """submitit's local executor: some tasks on this machine."""
    size = int(environment["SUBMITIT_LOCAL_NTASKS"])
    rank = int(environment.get("SUBMITIT_LOCAL_GLOBALID", "0"))
    if size == 1:
        return RankInfo(0, 1, 0, 1, "submitit", "")
    job = environment.get("SUBMITIT_LOCAL_JOB_ID", "0")
    port = PORTS[int(job if job.isdecimal() else 0) % len(PORTS)]
    return RankInfo(rank, size, rank, size, "submitit", f"tcp://127.0.0.1:{port}")
