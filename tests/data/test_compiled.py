"""Compiled code is kept for one state of the source of all that it may call."""

import importlib.util
import shutil
from pathlib import Path

import pytest

from ffcv_r50.data import compiled


def checksum(folder: Path) -> int:
    """That of a package's copy."""
    spec = importlib.util.spec_from_file_location("copied", folder / "compiled.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return int(module.CHECKSUM)


@pytest.mark.parametrize("edited", ["philox.py", "pixels/tone.py"])
def test_an_edit_anywhere_in_the_package_compiles_anew(tmp_path: Path, edited: str) -> None:
    folder = tmp_path / "data"
    source = Path(compiled.__file__).parent
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("__pycache__"))
    before = checksum(folder)
    assert before == compiled.CHECKSUM
    path = folder / edited
    path.write_text(path.read_text() + "\n# Another state of it.\n")
    assert checksum(folder) != before
