"""The test cluster's folder has a name that everybody knows: what somebody else put there is not run."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

SCRIPT = REPOSITORY / "slurm" / "local_cluster.sh"


def prepared(folder: Path) -> Path:
    """A folder as the script leaves it, with a command in what it reads; the file that would show it."""
    pwned = folder.parent / "pwned"
    folder.mkdir()
    (folder / ".made-by-local_cluster.sh").touch()
    (folder / "saved").write_text(f"touch {pwned}\n")
    return pwned


def call(verb: str, folder: Path) -> tuple[int, str]:
    done = subprocess.run(
        ["bash", str(SCRIPT), *verb.split()],
        env=os.environ | {"CLUSTER_DIR": str(folder), "CLUSTER_INSTALL": "0"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done.returncode, done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make files of another user")
@pytest.mark.parametrize("verb", ["up", "down", "status", "lose 1", "back 1"])
def test_another_users_folder_is_refused(tmp_path: Path, verb: str) -> None:
    pwned = prepared(tmp_path / "cluster")
    os.chown(tmp_path / "cluster", 65534, 65534)
    code, said = call(verb, tmp_path / "cluster")
    assert (code, said) == (
        1,
        f"local_cluster: ERROR: {tmp_path}/cluster is somebody else's: remove it, or choose another "
        "CLUSTER_DIR\n",
    )
    assert not pwned.exists()


@pytest.mark.parametrize("verb", ["status", "lose 1"])
def test_a_link_is_refused(tmp_path: Path, verb: str) -> None:
    pwned = prepared(tmp_path / "elsewhere")
    (tmp_path / "cluster").symlink_to("elsewhere")
    code, said = call(verb, tmp_path / "cluster")
    assert code == 1
    assert said.startswith(f"local_cluster: ERROR: {tmp_path}/cluster is a link: remove it")
    assert not pwned.exists()
