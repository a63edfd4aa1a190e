"""Submission with a faked scheduler: what is refused, what sbatch gets, what a job will run."""

import json
import pickle
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from ffcv_r50.data.beton import Beton
from ffcv_r50.errors import UserError
from slurm import submit
from tests.conftest import REPOSITORY, Dataset

SBATCH = '#!/bin/sh\ncp "$1" "{folder}/submitted.sh"\necho "Submitted batch job 4711"\n'


@pytest.fixture
def scheduler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose ``sbatch`` keeps what it is given as ``submitted.sh``."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, text in {"sbatch": SBATCH.format(folder=folder), "srun": "#!/bin/sh\n"}.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    return folder


def words(dataset: Dataset, folder: Path, *more: str) -> list[str]:
    return ["--nodes=2", "--gpus-per-node=2", *dataset.arguments(folder), *more]


def test_a_job_gets_its_resources_and_a_copy_of_the_code(
    scheduler: Path, dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    asked = "--partition=gpu --account=me --qos=low --constraint=a100 --exclude=n[3-4] --mem=64G"
    more = [
        "--time=1-02:30:00",
        "--comment=a b",
        "--setup=module load cuda",
        "--training.seed",
        "3",
    ]
    assert submit.submit(words(dataset, folder, *asked.split(), *more)) == 0
    output = capsys.readouterr().out
    assert "batch 32 = 2 nodes x 2 GPUs x 1 micro-batches x 8 images" in output
    assert f"job 4711: {folder}" in output
    script = (scheduler / "submitted.sh").read_text()
    for line in [
        "nodes=2",
        "ntasks-per-node=2",
        "gpus-per-node=2",
        "cpus-per-task=8",
        "time=1590",
        "partition=gpu",
        "account=me",
        "qos=low",
        "constraint=a100",
        "exclude='n[3-4]'",
        "mem=64G",
        "comment='a b'",
        "requeue",
        "signal=USR2@120",
        "open-mode=append",
        f"output={folder}/jobs/%j_0_log.out",
    ]:
        assert f"#SBATCH --{line}\n" in script
    assert "module load cuda\n" in script
    assert "srun" not in script, "one supervisor; it starts the processes"

    job = pickle.loads((folder / "jobs" / "4711_submitted.pkl").read_bytes())
    (command,) = job.args
    (code,) = (folder / "code").iterdir()
    assert command[:3] == [sys.executable, f"{code}/slurm/supervise.py", str(folder)]
    assert command[3] == "srun"
    assert f"{code}/train_imagenet.py" in command
    assert f"--config={code}/recipe.yaml" in command
    assert "--training.seed=3" in command
    for path in ("ffcv_r50/trainer.py", "train_imagenet.py", "slurm/supervise.py"):
        assert (code / path).read_bytes() == (REPOSITORY / path).read_bytes()
    assert (code / "recipe.yaml").read_bytes() == dataset.recipe.read_bytes()
    assert str(REPOSITORY) not in " ".join(command).replace(sys.executable, "")


def test_seeds_become_an_array(
    scheduler: Path, dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    assert submit.submit(words(dataset, folder, "--seeds=0,5")) == 0
    assert "#SBATCH --array=0-1%2\n" in (scheduler / "submitted.sh").read_text()
    output = capsys.readouterr().out
    for index, seed in enumerate((0, 5)):
        assert f"job 4711_{index}: {folder}/seed_{seed}\n" in output
        job = pickle.loads((folder / "jobs" / f"4711_{index}_submitted.pkl").read_bytes())
        (command,) = job.args
        assert command[2] == f"{folder}/seed_{seed}"
        own = ("--training.seed", "--logging.folder")
        assert [word for word in command if word.startswith(own)] == [
            f"--training.seed={seed}",
            f"--logging.folder={folder}/seed_{seed}",
        ]


def test_a_dry_run_prints_the_file_and_writes_nothing(
    scheduler: Path, dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    assert submit.submit(words(dataset, folder, "--dry-run")) == 0
    output = capsys.readouterr().out
    assert "#!/bin/bash" in output
    assert "#SBATCH --nodes=2" in output
    assert "train_imagenet.py" in output
    assert not folder.exists()
    assert not (scheduler / "submitted.sh").exists()


def test_what_a_dry_run_prints_is_quoted(
    scheduler: Path, dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The last line runs the same words in a shell; every other line is a comment or submitit's."""
    folder = tmp_path / "a b; touch $(pwned) 'x'"
    recipe = tmp_path / "$HOME `pwned` & x.yaml"
    shutil.copy(dataset.recipe, recipe)
    arguments = [w for w in words(dataset, folder) if not w.startswith("--config=")]
    assert submit.submit([*arguments, f"--config={recipe}", "--dry-run"]) == 0
    script = capsys.readouterr().out
    told = script.splitlines()[-1].removeprefix("# ")
    assert f"--logging.folder={folder}" in shlex.split(told)
    for line in ("job-name", "output"):
        (written,) = re.findall(rf"^#SBATCH --{line}=(.*)$", script, re.MULTILINE)
        (read,) = shlex.split(written)
        assert read in (recipe.stem, f"{folder}/jobs/%j_0_log.out")
    assert subprocess.run(["bash", "-n"], input=script, text=True).returncode == 0
    command = next(line for line in script.splitlines() if "submitit.core._submit" in line)
    assert shlex.split(command)[-1] == f"{folder}/jobs"


def test_a_folder_with_a_line_break_above_it_is_refused(
    scheduler: Path, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Settings have none; the current folder may."""
    (tmp_path / "x\ntouch pwned").mkdir()
    monkeypatch.chdir(tmp_path / "x\ntouch pwned")
    with pytest.raises(UserError, match=r"^logging.folder=.*x touch pwned/run: holds a line break"):
        submit.submit(words(dataset, Path("run"), "--dry-run"))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--nodes=3"], "6 processes for 4 normalisation batches"),
        (["--nods=3"], "nods"),
        (["--nodes=-1", "--gpus-per-node=-1"], "--nodes: expected an integer at least 1, got -1"),
        (["--nodes=two"], "command line: --nodes: expected an integer at least 1, got 'two'"),
        (["--data.train_dataset=/nowhere.beton"], "/nowhere.beton"),
        (["--training.batch_sise=3"], "did you mean --training.batch_size"),
        (["--time=soon"], "--time=soon: write"),
        (["--seeds=0,x"], "--seeds=0,x: write whole numbers"),
        (["--seeds=1,1"], "names a seed twice"),
        (["--seeds=1", "--training.seed=2"], "give one of them"),
        (["--dry-run", "--local"], "command line: --local: is not allowed with --dry-run"),
        (["--qos=a", "--qos=b"], "command line: --qos: is given twice"),
    ],
)
def test_what_is_wrong_is_refused_before_submission(
    scheduler: Path, dataset: Dataset, tmp_path: Path, more: list[str], message: str
) -> None:
    arguments = [
        word
        for word in words(dataset, tmp_path / "run")
        if word.partition("=")[0] not in {other.partition("=")[0] for other in more}
    ]
    with pytest.raises(UserError, match=re.escape(message)):
        submit.submit([*arguments, *more])
    assert not (scheduler / "submitted.sh").exists()


def test_sbatchs_own_refusal_is_one_line(scheduler: Path, dataset: Dataset, tmp_path: Path) -> None:
    refusal = "#!/bin/sh\necho 'sbatch: error: invalid partition specified: gpus' >&2\nexit 1\n"
    (scheduler / "sbatch").write_text(refusal)
    with pytest.raises(UserError, match=r"sbatch did not take the job: .*invalid partition"):
        submit.submit(words(dataset, tmp_path / "run"))


def test_no_scheduler_here(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(UserError, match="no sbatch and srun here; submit from a login node"):
        submit.submit(words(dataset, tmp_path / "run"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("30", 30),
        ("1:30", 2),
        ("2:00:00", 120),
        ("1-0", 1440),
        ("2-3:30", 2 * 1440 + 210),
        ("1-02:30:00", 1590),
    ],
)
def test_times_are_slurms(text: str, expected: int) -> None:
    assert submit.minutes(text) == expected


@pytest.mark.parametrize(
    ("status", "code"),
    [
        ({"state": "finished", "exit_code": 0}, 0),
        ({"state": "stopped", "exit_code": 75}, 75),
        ({"state": "failed", "exit_code": None}, 1),
        (None, 1),
    ],
)
def test_following_shows_the_log_and_ends_with_the_result(
    scheduler: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    status: dict[str, object] | None,
    code: int,
) -> None:
    log = tmp_path / "log"
    states = scheduler / "states"
    states.write_text("PENDING\nRUNNING\nCOMPLETED\n")
    # Each question takes the next state; while it runs, the job writes a line.
    (scheduler / "squeue").write_text(
        f"#!/bin/sh\nhead -n 1 {states}\nsed -i 1d {states}\necho line >>{log}\n"
    )
    (scheduler / "squeue").chmod(0o755)
    monkeypatch.setattr(submit, "POLL_SECONDS", 0.01)
    if status:
        (tmp_path / "status.json").write_text(json.dumps(status))
    job = SimpleNamespace(job_id="4711", paths=SimpleNamespace(stdout=log))
    assert submit.follow(submit.Run(tmp_path, []), job) == code
    printed = capfd.readouterr().out
    assert printed.count("line\n") == 3
    assert printed.endswith(f"{status['state'] if status else 'never began'}\n")


def damage_every_jpeg(source: Path, target: Path) -> None:
    """A ``.beton`` of which no JPEG can be decoded."""
    content = bytearray(source.read_bytes())
    beton = Beton(source)
    for offset, size in zip(beton.offsets, beton.sizes, strict=True):
        if content[offset : offset + 2] == b"\xff\xd8":
            content[offset : offset + size] = bytes(int(size))
    target.write_bytes(content)
    shutil.copy(f"{source}.json", f"{target}.json")


@pytest.mark.slow
def test_the_same_on_this_machine_without_slurm(dataset: Dataset, tmp_path: Path) -> None:
    short = ["--training.epochs=1", "--schedule.lr={0: 0.01}", "--schedule.resolution={0: 32}"]
    words = ["--local", "--gpus-per-node=2", *dataset.arguments(tmp_path / "run"), *short]
    done = subprocess.run(
        [sys.executable, str(REPOSITORY / "slurm" / "submit.py"), *words],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "finished: top-1" in done.stdout
    assert done.stdout.endswith(f"{tmp_path / 'run'}: finished\n")
    assert (tmp_path / "run" / "weights.pt").exists()


@pytest.mark.slow
def test_a_failure_on_this_machine_ends_with_its_reason(dataset: Dataset, tmp_path: Path) -> None:
    """What only the run itself can find: an image that cannot be decoded."""
    broken = tmp_path / "broken.beton"
    damage_every_jpeg(dataset.train, broken)
    arguments = [
        word for word in dataset.arguments(tmp_path / "run") if "train_dataset" not in word
    ]
    words = ["--local", "--gpus-per-node=2", *arguments, f"--data.train_dataset={broken}"]
    done = subprocess.run(
        [sys.executable, str(REPOSITORY / "slurm" / "submit.py"), *words],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2, done.stdout + done.stderr
    *_, reason, last = done.stdout.splitlines()
    assert reason.startswith("supervise: error: "), done.stdout
    assert str(broken) in reason
    assert last.endswith(f"{tmp_path / 'run'}: failed")
