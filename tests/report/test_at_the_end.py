"""The trainer writes a report when it has finished, and has finished whether it can or not."""

import json
from pathlib import Path

import pytest

from ffcv_r50.errors import FINISHED
from ffcv_r50.logs.console import Console
from ffcv_r50.report import page
from tests.conftest import Dataset, Launch
from tests.report import runs


@pytest.mark.slow
def test_a_finished_run_has_a_report(dataset: Dataset, launch: Launch, tmp_path: Path) -> None:
    run = tmp_path / "run"
    result = launch(dataset.arguments(run, "--training.epochs=1", "--schedule.lr={0: 0.01}",
                                      "--schedule.resolution={0: 32}"), world_size=2)  # fmt: skip
    assert result.codes == [FINISHED, FINISHED], result.output
    text = (run / "report.html").read_text()
    [row] = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert f'<dd class="value">{row["top_1"]:.2f}' in text
    assert "The last training batch as the network saw it" in text


@pytest.mark.parametrize("fault", ["no such folder", "cannot be written", "a fault of ours"])
def test_what_goes_wrong_with_it_is_a_line(
    tmp_path: Path, fault: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = runs.make(tmp_path, ["a", "b"], per_class=5).folder
    if fault == "no such folder":
        made = tmp_path / "nowhere"
    elif fault == "cannot be written":
        (made / "report.html").mkdir()
    else:
        monkeypatch.setattr(page, "render", lambda *_: [][0])
    page.at_the_end(str(made), Console(enabled=False))
    assert capsys.readouterr().out == ""
    page.at_the_end(str(made), Console(enabled=True))
    [line] = capsys.readouterr().out.splitlines()
    assert line.startswith("warning: no report was written: ")
    assert line.endswith(f"; python -m ffcv_r50.report {made} tries again")
    assert fault in line or "list index out of range" in line
