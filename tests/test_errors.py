"""How programs end: codes, one line, and who prints it."""

import os
import subprocess
import sys

import pytest

PROGRAM = """
import sys
from ffcv_r50.errors import RunFault, UserError, exit_with

def main():
    {body}

exit_with(main, together={together})
"""


def end(
    body: str, environment: dict[str, str] | None = None, *, together: bool = False
) -> tuple[int, str]:
    clean = {k: v for k, v in os.environ.items() if k not in ("RANK", "SLURM_PROCID")}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(body=body, together=together)],
        env=clean | (environment or {}),
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    ("body", "code", "line"),
    [
        ("return None", 0, ""),
        ("return 75", 75, ""),
        ("raise UserError('x: is no file')", 2, "error: x: is no file\n"),
        ("raise RunFault('step 3')", 1, "error: step 3\n"),
        ("raise UserError('a name with\\na line break')", 2, "error: a name with a line break\n"),
        ("raise UserError('a\\udcff: no text')", 2, "error: a\\udcff: no text\n"),
    ],
)
def test_codes_and_one_line(body: str, code: int, line: str) -> None:
    assert end(body.replace("\n", "\\n")) == (code, line)


@pytest.mark.parametrize("variable", ["RANK", "SLURM_PROCID"])
def test_only_rank_0_prints_what_all_ranks_meet(variable: str) -> None:
    body = "raise UserError('x')"
    assert end(body, {variable: "0"}, together=True) == (2, "error: x\n")
    assert end(body, {variable: "1"}, together=True) == (2, "")
    # Two programs that know nothing of each other, as two tasks of srun.
    assert end(body, {variable: "1"}) == (2, "error: x\n")
