"""The README is true: its commands run, its settings are the code's; all pages' links resolve."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ffcv_r50.config import command_line, reference, settings
from ffcv_r50.tools.estimate import hardware
from writers.config import Config as WriterConfig

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
# A block right after this comment cannot run here; what can be checked of its commands is.
MARK = "<!-- needs ImageNet and GPUs -->\n\n"
ELSEWHERE = "<!-- needs conda -->\n\n"


def commands(text: str) -> list[str]:
    """The commands of all bash blocks, one a line."""
    blocks = re.findall(r"^ *```bash\n(.*?)^ *```", text, re.DOTALL | re.MULTILINE)
    return [line.strip() for block in blocks for line in block.splitlines() if line.strip()]


# Each with what makes it short enough for a test.
RUN = {
    "make demo": ["DATASETS={tmp}/digits", "RUN={tmp}/run"],
    "make test": [],  # this very run
    "python -m ffcv_r50.tools.show_recipe rcp/rn50_88ep.yaml --world-size 8": [],
    "python -m benchmarks.faults --ranks 4 --rounds 50": [
        "--rounds=2",
        "--ranks=2",
        "--json={tmp}/faults.json",
    ],
    "python -m benchmarks.train_step": [
        "--steps=1",
        "--rounds=1",
        "--resolution=64",
        "--json={tmp}/step.json",
    ],
}


def test_every_command_is_run_here_or_marked() -> None:
    marked = [c for block in README.split(MARK)[1:] for c in commands(block.split("\n## ")[0])]
    elsewhere = [c for block in README.split(ELSEWHERE)[1:] for c in commands(block)[:1]]
    assert set(commands(README)) == {*RUN, *marked, *elsewhere}


def test_the_imagenet_commands_have_flags_that_exist() -> None:
    checked = 0
    for command in commands(README):
        words = command.split()
        if "train_imagenet.py" in words:
            arguments = words[words.index("train_imagenet.py") + 1 :]
            settings.load([argument.replace("rcp/", f"{ROOT}/rcp/") for argument in arguments])
            checked += 1
        elif "writers/write_imagenet.py" in words:
            command_line.read(WriterConfig, words[2:])
            checked += 1
    assert checked == 4


def run(command: str, tmp_path: Path, timeout: float) -> str:
    more = [word.format(tmp=tmp_path) for word in RUN[command]]
    words = command.split()
    for flag in {word.partition("=")[0] for word in more} & set(words):
        at = words.index(flag)
        del words[at : at + 2]  # shorter instead: a flag cannot be given twice
    environment = dict(os.environ)
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    done = subprocess.run(
        [*words, *more],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_recipe_is_printed(tmp_path: Path) -> None:
    output = run(
        "python -m ffcv_r50.tools.show_recipe rcp/rn50_88ep.yaml --world-size 8", tmp_path, 120
    )
    assert "4,096 images = 8 processes x 1 micro-batch x 512 images" in output


@pytest.mark.slow
def test_the_step_benchmark(tmp_path: Path) -> None:
    output = run("python -m benchmarks.train_step", tmp_path, 280)
    row = json.loads((tmp_path / "step.json").read_text())
    rates = [row[f"{kind}_images_per_second"] for kind in ("step", "loader", "both")]
    assert all(rate > 0 for rate in rates)
    assert row["ratio"] == pytest.approx(rates[2] / min(rates[:2]))
    assert row["bottleneck"] in ("step", "loader")
    assert f"the {row['bottleneck']} is the bottleneck" in output
    machine = hardware.find(str(tmp_path / "step.json"), None)
    assert (machine.name, machine.gpus, machine.estimated) == (row["device"], 1, False)


@pytest.mark.slow
def test_the_faults_benchmark(tmp_path: Path) -> None:
    run("python -m benchmarks.faults --ranks 4 --rounds 50", tmp_path, 280)
    row = json.loads((tmp_path / "faults.json").read_text())
    assert (row["rounds"], row["survived"], row["bit_identical"]) == (2, 2, 2)
    assert row["steps_lost_median"] <= row["steps_lost_max"]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_demo_ends_in_its_top_1(tmp_path: Path) -> None:
    output = run("make demo", tmp_path, 800)
    rows = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert rows[-1]["top_1"] >= 97
    assert f"finished: top-1 {rows[-1]['top_1']:.2f} %" in output
    assert "on all 359 validation images (32 px, flip averaged)" in output
    again = run("make demo", tmp_path, 120)
    assert "wrote" not in again, "the second time everything is there"
    assert "continuing" not in again
    assert f"finished: top-1 {rows[-1]['top_1']:.2f} %" in again


PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    *ROOT.glob("docs/*.md"),
]


def anchors(page: Path) -> set[str]:
    """What GitHub makes of its titles."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_resolve(page: Path) -> None:
    for link in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        if not link.startswith("https://"):
            target, _, anchor = link.partition("#")
            path = page.parent / target if target else page
            assert path.exists(), link
            assert not anchor or anchor in anchors(path), link


def test_every_page_is_linked_from_the_readme() -> None:
    for page in PAGES[1:]:
        assert f"]({page.relative_to(ROOT)})" in README


def test_files_named_in_it_exist() -> None:
    for name in re.findall(r"`((?:rcp|writers|benchmarks|slurm|docs)/[\w./]+)`", README):
        assert (ROOT / name).exists(), name


def test_the_settings_are_the_codes() -> None:
    page = (ROOT / "docs" / "settings.md").read_text()
    table = page.split("<!-- settings -->\n")[1].split("<!-- end of settings -->")[0]
    assert table.strip() == reference.table(settings.Config).strip(), (
        "put the output of `python -m ffcv_r50.config` between the two comments"
    )
