"""What is said twice about how we work is said the same: Makefile, hooks, pages, contracts."""

import re
from pathlib import Path

import yaml

try:
    import tomllib
except ImportError:  # Python 3.10
    import tomli as tomllib  # type: ignore[no-redef,import-not-found]

ROOT = Path(__file__).resolve().parents[1]


def recipe_of(target: str) -> list[str]:
    """The commands of a target of the Makefile."""
    makefile = (ROOT / "Makefile").read_text()
    found = re.search(rf"^{target}:.*\n((?:\t.*\n)+)", makefile, re.MULTILINE)
    assert found
    return [line.strip().replace("$(BIN)", ".venv/bin") for line in found[1].splitlines()]


def test_the_hooks_are_what_make_check_runs() -> None:
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert repository["repo"] == "local", "nothing is downloaded"
    assert [hook["entry"] for hook in repository["hooks"]] == recipe_of("check")
    for hook in repository["hooks"]:
        assert hook["language"] == "system"
        assert not hook["pass_filenames"], "all files, as in make check"


def test_the_page_shows_the_rooms_that_make_check_keeps_apart() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    rows = page.split("<!-- rooms -->")[1].strip("\n").split("\n\n")[0].splitlines()
    shown = [re.split(r"  +", row.strip())[0] for row in rows]
    tool = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]
    assert shown == tool["importlinter"]["contracts"][0]["layers"]
