"""What the command line answers before it serves, and the program itself."""

import contextlib
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from ffcv_r50.demo.__main__ import listen, serve
from ffcv_r50.errors import FINISHED, UserError
from tests.conftest import REPOSITORY


def fault(*argv: str) -> str:
    with pytest.raises(UserError) as caught:
        serve(argv)
    return str(caught.value)


def test_faults(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert fault("--port=1").startswith("command line: no run or weights")
    assert fault(str(tmp_path), "--port=0").endswith("name a run's folder or a file")
    assert "'other.pt' is not a setting" in fault(str(run), "other.pt")
    assert "--port" in fault(str(run), "--port=70000")
    assert "--device=tpu9" in fault(str(run), "--port=0", "--device=tpu9")
    assert "--host=10.255.255.1 --port=0: cannot listen there" in fault(
        str(run), "--host=10.255.255.1", "--port=0"
    )
    assert "cannot listen there" in fault(str(run), f"--host={'x' * 70}.invalid")
    with contextlib.closing(listen("127.0.0.1", 0)) as taken:
        taken.listen()
        port = taken.getsockname()[1]
        assert "Address already in use" in fault(str(run), f"--port={port}")
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    monkeypatch.delitem(sys.modules, "ffcv_r50.demo.server", raising=False)
    assert fault(str(run)) == "the demo needs uvicorn: pip install 'ffcv_r50[demo]'"


@pytest.mark.slow
def test_the_program(run: Path) -> None:
    command = [sys.executable, "-W", "error", "-m", "ffcv_r50.demo", str(run), "--port=0"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=REPOSITORY
    ) as program:
        assert program.stdout is not None
        line = program.stdout.readline()
        try:
            assert line.startswith("http://127.0.0.1:"), program.communicate()
            assert line.endswith("to this machine only; Ctrl-C ends it\n")
            with urllib.request.urlopen(f"{line.split()[0]}/page.js", timeout=60) as answer:
                assert answer.status == 200
        finally:
            program.send_signal(signal.SIGINT)
        out, err = program.communicate(timeout=60)
        assert (program.returncode, out, err) == (FINISHED, "", "")
