"""environment.yml, constraints.txt and pyproject.toml tell the same story."""

import itertools
import re
from pathlib import Path

import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from setuptools import find_packages

try:
    import tomllib
except ImportError:  # Python 3.10
    import tomli as tomllib  # type: ignore[no-redef,import-not-found]

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
ENVIRONMENT = yaml.safe_load((ROOT / "environment.yml").read_text())
MAKEFILE = (ROOT / "Makefile").read_text()


def test_conda_installs_the_project_with_an_extra_that_exists() -> None:
    pip = next(entry["pip"] for entry in ENVIRONMENT["dependencies"] if isinstance(entry, dict))
    assert "--constraint constraints.txt" in pip
    editable = next(line for line in pip if line.startswith("--editable"))
    extra = re.fullmatch(r"--editable \.\[(\w+)\]", editable)
    assert extra
    assert extra[1] in PROJECT["optional-dependencies"]
    # The same words as the Makefile's, so both set-ups install the same.
    assert f".[{extra[1]}]" in MAKEFILE


def test_conda_has_what_the_builds_and_the_loader_need() -> None:
    names = {str(entry).partition("=")[0] for entry in ENVIRONMENT["dependencies"]}
    assert {"python", "pip", "compilers", "pkg-config", "opencv", "libjpeg-turbo"} <= names
    assert ENVIRONMENT["channels"] == ["conda-forge"]


def test_condas_python_is_one_that_the_project_takes() -> None:
    python = next(entry for entry in ENVIRONMENT["dependencies"] if "python=" in str(entry))
    assert python.partition("=")[2] in SpecifierSet(PROJECT["requires-python"])


def test_the_constraints_satisfy_pyproject() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {}
    for line in lines:
        if line and not line.startswith("#"):
            requirement = Requirement(line)
            pinned[requirement.name.lower()] = next(iter(requirement.specifier)).version
    groups = [PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()]
    for requirement in map(Requirement, itertools.chain.from_iterable(groups)):
        if requirement.name == PROJECT["name"]:
            continue
        assert pinned[requirement.name.lower()] in requirement.specifier, requirement


def test_every_package_is_in_the_wheel() -> None:
    """Installed, the package can write datasets too: ``writers`` belongs to it."""
    tool = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]
    found = set(find_packages(str(ROOT), include=tool["setuptools"]["packages"]["find"]["include"]))
    expected = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for top in ("ffcv_r50", "writers")
        for path in ROOT.glob(f"{top}/**/__init__.py")
    }
    assert found == expected


def test_every_other_file_of_a_package_is_in_the_wheel() -> None:
    tool = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]
    for package, patterns in tool["setuptools"]["package-data"].items():
        there = {path for path in (ROOT / package).rglob("*.*") if "__pycache__" not in path.parts}
        code = {path for path in there if path.suffix == ".py"}
        assert not there - code - {path for p in patterns for path in (ROOT / package).glob(p)}
