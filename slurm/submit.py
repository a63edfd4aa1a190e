"""Submit a training to SLURM through submitit, one process per GPU on any number of nodes.

::

    python slurm/submit.py --config rcp/rn50_88ep.yaml --nodes 4 --gpus-per-node 8 --time 2:00:00 \
        --partition gpu --data.train_dataset=... --data.val_dataset=... --logging.folder=runs/rn50

Recipe and settings go to ``train_imagenet.py`` as they are, after everything that can be wrong with
them has been checked here. The job runs a copy of the code, so the checkout may change meanwhile; it
requeues itself when it is preempted or out of time and continues where it stopped (see
``supervise.py``). The same command again continues a run that ended.
"""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

import submitit  # noqa: E402

from ffcv_r50 import recipe  # noqa: E402
from ffcv_r50.config import command_line, reference, settings  # noqa: E402
from ffcv_r50.data.beton import Beton  # noqa: E402
from ffcv_r50.errors import (  # noqa: E402
    FAULT,
    STOPPED_AS_ASKED,
    InvalidSetting,
    UserError,
    exit_with,
    printable,
)
from ffcv_r50.registry import Options, Range  # noqa: E402
from ffcv_r50.run.status import read_status  # noqa: E402

CODE = ("train_imagenet.py", "ffcv_r50", "slurm/supervise.py")
"""What a job needs of the checkout."""
WARNING_SECONDS = 120
"""How long before the end of its time a job is told to save its state and stop."""
POLL_SECONDS = 5.0


class Run(NamedTuple):
    """One training: where it goes, and the settings that no other one has."""

    folder: Path
    arguments: list[str]


Count = Annotated[int, Range(at_least=1)]


class Job(Options):
    """What to ask the scheduler for; every other word on the command line is a setting of the run."""

    config: str
    """The recipe."""
    nodes: Count = 1
    """Machines."""
    gpus_per_node: Count = 1
    """GPUs, and processes, of each."""
    cpus_per_gpu: Count = 8
    """Cores of each process."""
    time: str = "8:00:00"
    """[days-]hours:minutes:seconds."""
    account: str | None = None
    """As sbatch's."""
    partition: str | None = None
    """As sbatch's."""
    qos: str | None = None
    """As sbatch's."""
    constraint: str | None = None
    """As sbatch's."""
    exclude: str | None = None
    """As sbatch's."""
    comment: str | None = None
    """As sbatch's."""
    mem: str | None = None
    """As sbatch's."""
    name: str | None = None
    """Of the job; null stands for the recipe's."""
    setup: tuple[str, ...] = ()
    """Shell command before the training, such as 'module load cuda'; may be given several times."""
    seeds: str | None = None
    """0,1,2: a job array with a run for each, in FOLDER/seed_N."""
    dry_run: bool = False
    """Check, print the sbatch file, stop."""
    local: bool = False
    """Run on this machine, without SLURM."""
    follow: bool = False
    """Show the log until the job ends."""

    def model_post_init(self, _context: Any) -> None:
        """Refuse what contradicts itself."""
        if self.dry_run and self.local:
            raise InvalidSetting("local", "is not allowed with --dry-run")


def parse(argv: Sequence[str]) -> tuple[Job, list[str]]:
    """The options of this program, and the settings for the training as ``--section.key=value``.

    ``--help`` prints the options and exits with 0.

    Raises:
        UserError: an option is missing, or its value is of another type.
    """
    words = command_line.split(argv, Job)
    if "help" in words:
        usage = "usage: submit.py --config FILE [options] [--section.key=value ...]"
        reference.print_page(reference.help_text(Job, usage))
        raise SystemExit(0)
    options = command_line.take(Job, words)
    return options, [f"--{key}={text}" for key, texts in words.items() for text in texts]


def minutes(text: str) -> int:
    """SLURM's ways to write a time, in whole minutes, rounded up.

    Raises:
        UserError: it is none of them.
    """
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", text)
    if match is None:
        raise UserError(f"--time={text}: write [days-]hours:minutes:seconds, such as 2:00:00")
    days, *fields = (int(group) if group else None for group in match.groups())
    first, second, third = fields
    if days is not None or third is not None:  # days-hours[:minutes[:seconds]], or h:m:s
        hours, mins, seconds = first or 0, second or 0, third or 0
    else:  # minutes[:seconds]
        hours, mins, seconds = 0, first or 0, second or 0
    total = ((days or 0) * 24 + hours) * 3600 + mins * 60 + seconds
    if not total:
        raise UserError(f"--time={text}: is no time at all")
    return -(-total // 60)


def check(options: Job, overrides: list[str]) -> list[Run]:
    """Everything that can be found wrong before a job waits in a queue for it.

    Prints how a step is shared among the GPUs.

    Raises:
        UserError: the settings, the data files, or the number of GPUs.
    """
    config = settings.load(["--config", options.config, *overrides])
    for notice in config.notices:
        print(f"note: {notice}")
    processes = options.nodes * options.gpus_per_node
    plan = recipe.plan(config, processes)
    for path in (config.data.train_dataset, config.data.val_dataset):
        Beton(path)
    groups = f", batch-norm in groups of {plan.group_size}" if plan.group_size > 1 else ""
    print(
        f"batch {config.training.batch_size:,} = {options.nodes} nodes x {options.gpus_per_node} "
        f"GPUs x {plan.micro_batches} micro-batches x {plan.micro_batch_size} images{groups}"
    )
    folder = Path(config.logging.folder).absolute()
    if not str(folder).isprintable():  # else it would be further lines of the batch script
        raise UserError(f"logging.folder={folder}: holds a line break or a control character")
    if options.seeds is None:
        return [Run(folder, [])]
    if any(word.startswith("--training.seed") for word in overrides):
        raise UserError("--seeds and --training.seed: give one of them")
    try:
        seeds = [int(seed) for seed in options.seeds.split(",")]
    except ValueError:
        raise UserError(f"--seeds={options.seeds}: write whole numbers, such as 0,1,2") from None
    if len(set(seeds)) != len(seeds):
        raise UserError(f"--seeds={options.seeds}: names a seed twice")
    return [
        Run(folder / f"seed_{n}", [f"--training.seed={n}", f"--logging.folder={folder}/seed_{n}"])
        for n in seeds
    ]


def snapshot(recipe_file: str, folder: Path) -> Path:
    """Copy the code and the recipe into the run's folder; returns where they are."""
    base = folder / "code" / time.strftime("%Y%m%d-%H%M%S")
    copy, count = base, 1
    while copy.exists():
        count += 1
        copy = base.with_name(f"{base.name}-{count}")
    try:
        copy.mkdir(parents=True)
        for name in CODE:
            source, target = REPOSITORY / name, copy / name
            target.parent.mkdir(exist_ok=True)
            if source.is_dir():
                # With __pycache__: what numba compiled (a minute's work) is valid in the copy too.
                shutil.copytree(source, target)
            else:
                shutil.copy2(source, target)
        shutil.copy2(recipe_file, copy / Path(recipe_file).name)
    except OSError as error:
        raise UserError(f"{copy}: cannot be written ({error.strerror})") from error
    return copy


def command(options: Job, overrides: list[str], run: Run, code: Path, folder: Path) -> list[str]:
    """What a job runs: the supervisor, and below it one process per GPU."""
    own = {word.partition("=")[0] for word in run.arguments}
    shared = [word for word in overrides if word.partition("=")[0] not in own]
    training = [
        str(code / "train_imagenet.py"),
        f"--config={code / Path(options.config).name}",
        *shared,
        *run.arguments,
    ]
    if options.local:
        start = [
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--signals-to-handle=SIGTERM,SIGUSR2",
        ]
        launch = [sys.executable, *start, f"--nproc_per_node={options.gpus_per_node}"]
    else:
        # A process that ends tells the others itself; --wait is for what cannot be told any more.
        ends = ["--kill-on-bad-exit=0", "--wait=60"]
        launch = ["srun", *ends, sys.executable, "-u"]
    return [sys.executable, str(code / "slurm" / "supervise.py"), str(folder), *launch, *training]


def supervised(words: list[str]) -> None:
    """The job: in submitit's process, which passes on signals that reach it alone."""
    with subprocess.Popen(words) as process:
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
            signal.signal(number, lambda number, frame: process.send_signal(number))
        code = process.wait()
    if code:
        # Requeued, the result is for the last start to write; failed, submitit's report of it would
        # bury the reason, which is the log's last line.
        os._exit(code)


def executor(options: Job, folder: Path) -> Any:
    """submitit's executor with the resources asked for; its files go to ``folder``.

    Raises:
        UserError: there is no SLURM here.
    """
    if options.local:
        local = submitit.LocalExecutor(folder)
        local.update_parameters(
            timeout_min=10**6,  # as long as it takes
            gpus_per_node=options.gpus_per_node,
            stderr_to_stdout=True,
            setup=list(options.setup),
        )
        return local
    if shutil.which("sbatch") is None or shutil.which("srun") is None:
        raise UserError("no sbatch and srun here; submit from a login node, or use --local")
    slurm = submitit.SlurmExecutor(folder)
    asked = ("account", "partition", "qos", "constraint", "exclude", "comment", "mem")
    slurm.update_parameters(
        job_name=options.name or Path(options.config).stem,
        time=minutes(options.time),
        # The batch script starts one supervisor; it starts the processes with srun.
        use_srun=False,
        stderr_to_stdout=True,
        signal_delay_s=WARNING_SECONDS,
        setup=list(options.setup),
        additional_parameters={
            "nodes": options.nodes,
            "ntasks-per-node": options.gpus_per_node,
            "gpus-per-node": options.gpus_per_node,
            "cpus-per-task": options.cpus_per_gpu,
            "requeue": True,
            **{name: value for name in asked if (value := getattr(options, name))},
        },
    )
    return slurm


def submit(argv: Sequence[str]) -> int:
    """Check, submit, and follow if asked to; returns the exit code."""
    options, overrides = parse(argv)
    runs = check(options, overrides)
    top = runs[0].folder if options.seeds is None else runs[0].folder.parent
    jobs_folder = top / "jobs"
    if options.dry_run:
        slurm = executor(options, jobs_folder)
        words = command(options, overrides, runs[0], top / "code" / "TIME", runs[0].folder)
        print(slurm._make_submission_file_text(slurm._submitit_command_str, "dry-run"))
        print(printable(f"# which runs, for {runs[0].folder}:"))
        print(printable(f"# {shlex.join(words)}"))
        return 0
    slurm = executor(options, jobs_folder)
    code = snapshot(options.config, top)
    jobs = []
    try:
        with slurm.batch():
            for run in runs:
                words = command(options, overrides, run, code, run.folder)
                jobs.append(slurm.submit(supervised, words))
    except (submitit.core.utils.FailedJobError, subprocess.CalledProcessError) as error:
        reason = (str(error).strip().splitlines() or ["sbatch failed"])[-1]
        raise UserError(f"sbatch did not take the job: {reason}") from error
    for run, job in zip(runs, jobs, strict=True):
        print(f"job {job.job_id}: {run.folder}\n  log {job.paths.stdout}", flush=True)
    if not (options.follow or options.local):
        return 0
    codes = [follow(run, job) for run, job in zip(runs, jobs, strict=True)]
    return max(codes)


def follow(run: Run, job: Any) -> int:
    """Copy the job's log to standard output until it ends; returns the run's exit code."""
    shown = 0
    while True:
        over = _over(job)
        if job.paths.stdout.exists():
            with open(job.paths.stdout, "rb") as log:
                log.seek(shown)
                text = log.read()
            shown += len(text)
            sys.stdout.buffer.write(text)
            sys.stdout.flush()
        if over:
            break
        time.sleep(POLL_SECONDS if not isinstance(job, submitit.LocalJob) else 0.2)
    status = read_status(run.folder)
    state = status.get("state", "never began")
    print(printable(f"job {job.job_id} ended; {run.folder}: {state}"))
    return {"finished": 0, "stopped": STOPPED_AS_ASKED}.get(state, status.get("exit_code") or FAULT)


def _over(job: Any) -> bool:
    if isinstance(job, submitit.LocalJob):
        return bool(job.done())
    # Not sacct, which submitit asks: many sites keep no accounts.
    found = subprocess.run(
        ["squeue", "--noheader", f"--jobs={job.job_id}", "--states=all", "--format=%T"],
        capture_output=True, text=True,
    )  # fmt: skip
    if found.returncode:
        return "Invalid job id" in found.stderr  # forgotten already; else the controller is busy
    states = set(found.stdout.split())
    return states <= {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY",
                      "BOOT_FAIL", "DEADLINE"}  # fmt: skip


if __name__ == "__main__":
    exit_with(lambda: submit(sys.argv[1:]))
