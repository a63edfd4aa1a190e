"""The page for cluster users: each of its commands is one that our programs accept."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from ffcv_r50 import recipe
from ffcv_r50.config import settings
from ffcv_r50.tools import show_recipe
from slurm import submit
from tests.conftest import REPOSITORY

TEXT = (REPOSITORY / "docs" / "cluster.md").read_text()
COMMANDS = [
    line
    for block in re.findall(r"^```bash\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)
    for line in block.splitlines()
]
# Programs that are not ours, in the forms that the page uses; sbatch --wrap: see test_array.py.
FFCV_IMAGENET_NAMES = r"module load |source |conda activate |python3 -m venv |pip (install|download) |export |conda env create -f environment.yml |(JOB=\$\()?sbatch --\S+ .*--wrap="


def program(command: str) -> tuple[str, list[str]]:
    """Which of our programs a command runs, and what it gives it."""
    words = shlex.split(command)
    for name in ("slurm/submit.py", "slurm/train.sbatch", "train_imagenet.py"):
        if name in words:
            return name, words[words.index(name) + 1 :]
    assert "-m" in words, command
    module = words[words.index("-m") + 1]
    return module, words[words.index(module) + 1 :]


@pytest.mark.slow
@pytest.mark.parametrize("command", [c for c in COMMANDS if not re.match(FFCV_IMAGENET_NAMES, c)])
def test_our_programs_take_these_words(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(REPOSITORY)
    name, words = program(command)
    if name == "slurm/submit.py":
        options, overrides = submit.parse(words)
        assert submit.minutes(options.time)
        loaded = settings.load(["--config", options.config, *overrides])
        assert recipe.plan(loaded, options.nodes * options.gpus_per_node)
    elif name == "slurm/train.sbatch":
        assert settings.load(["--config", words[0], *words[1:]])
        subprocess.run(["bash", "-n", name], check=True)
    elif name == "train_imagenet.py":
        assert recipe.plan(settings.load(words), 32)
    elif name == "ffcv_r50.tools.show_recipe":
        show_recipe.show(words)
        assert "groups of 4 processes" in " ".join(capsys.readouterr().out.split())
    else:
        assert name == "ffcv_r50.tools.doctor"
        done = subprocess.run(
            [sys.executable, "-m", name, "--help"], capture_output=True, text=True, check=True
        )
        assert all(word.partition("=")[0] in done.stdout for word in words)


def test_every_option_of_the_page_exists(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        submit.parse(["--help"])
    options = capsys.readouterr().out
    for option in ("--dry-run", "--follow", "--local", "--seeds"):
        assert f"`{option}" in TEXT
        assert option in options


def test_the_files_it_installs_from_are_there() -> None:
    for name in ("constraints.txt", "environment.yml"):
        assert name in TEXT
        assert (REPOSITORY / name).is_file()
    assert 'slurm = ["submitit' in (REPOSITORY / "pyproject.toml").read_text()


@pytest.mark.parametrize(
    ("words", "path"),
    [
        ("srun started torchrun", "ffcv_r50/distributed/launcher.py"),
        ("but SLURM started this process as", "ffcv_r50/distributed/launcher.py"),
        ("the rendezvous at", "ffcv_r50/distributed/rendezvous.py"),
        ("SLURM allocated", "ffcv_r50/distributed/group.py"),
    ],
)
def test_the_messages_it_explains_are_ours(words: str, path: str) -> None:
    assert words in TEXT
    assert words in Path(REPOSITORY / path).read_text()
