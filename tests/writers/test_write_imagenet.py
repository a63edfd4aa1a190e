"""The program as a user runs it: its messages, exit codes, signals and dying processes."""

import contextlib
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Set
from pathlib import Path

import pytest
from PIL import Image

from ffcv_r50.data import beton
from ffcv_r50.errors import UserError
from writers import progress, write_imagenet

SCRIPT = Path(write_imagenet.__file__)
SECONDS = 30.0
"""After which a condition that is waited for counts as failed."""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Three images of two classes, in ``tree`` below the test's folder."""
    root = tmp_path / "tree"
    for name in ("a/0.png", "a/1.png", "b/2.png"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 10), (255, 0, 0)).save(root / name)
    return root


def command(tree: Path, *more: str) -> list[str]:
    target = tree.parent / "x.beton"
    return [
        sys.executable,
        str(SCRIPT),
        f"--cfg.data_dir={tree}",
        f"--cfg.write_path={target}",
        *more,
    ]


@pytest.mark.slow
def test_it_runs_from_anywhere(tree: Path) -> None:
    done = subprocess.run(
        command(tree, "--cfg.dataset=imagenet", "--cfg.split=train", "--cfg.max_resolution=10"),
        cwd="/",
        capture_output=True,
        text=True,
        env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
        check=True,
    )
    assert done.stderr == ""
    assert done.stdout.splitlines()[-1].startswith(
        f"wrote {tree.parent / 'x.beton'}: 3 images of 2"
    )
    assert set(beton.Beton(tree.parent / "x.beton").widths.tolist()) == {10}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--cfg.writemode=raw"],
            "--cfg.writemode is not a setting; did you mean --cfg.write_mode?",
        ),
        (["--cfg.dataset=cifar"], "--cfg.dataset: there is no dataset 'cifar'; choose imagenet"),
        (["--cfg.split=test"], "--cfg.split: expected train or val, got 'test'"),
        (["--cfg.write_mode=jpeg"], "got 'jpeg'; did you mean jpg?"),
        (
            ["--cfg.jpeg_quality=101"],
            "--cfg.jpeg_quality: expected an integer at least 1 and at most 100",
        ),
        (
            ["--cfg.compress_probability=2"],
            "--cfg.compress_probability: expected a number at least 0",
        ),
        (["--cfg.max_resolution=-5"], "--cfg.max_resolution: expected an integer at least 0"),
        (
            ["--cfg.num_workers=many"],
            "--cfg.num_workers: expected an integer at least 0, got 'many'",
        ),
        (["--cfg.chunk_size=0"], "--cfg.chunk_size: expected an integer at least 1, got 0"),
        (["--cfg.on_error=ignore"], "--cfg.on_error: expected stop or skip, got 'ignore'"),
        (
            ["--cfg.seed=" + "9" * 70],
            "--cfg.seed: expected an integer at least 0 and below 4294967296",
        ),
        (
            ["--cfg.compress_probability=0.5"],
            "--cfg.compress_probability: has no effect with write_mode=jpg; add",
        ),
        (["--cfg.subset=0"], "cfg.subset: {} has 3 images, cannot take 0"),
        (["--cfg.subset=4"], "cfg.subset: {} has 3 images, cannot take 4"),
    ],
)
def test_wrong_settings(
    arguments: list[str], message: str, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(sys, "argv", command(tree, *arguments)[1:])
    with pytest.raises(UserError) as caught:
        write_imagenet.main()
    assert message.format(tree) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(sys, "argv", ["write_imagenet.py"])
    with pytest.raises(UserError, match=r"^cfg.data_dir, cfg.write_path are missing; "):
        write_imagenet.main()


def test_a_bad_image_is_one_line_and_exit_code_2(tree: Path) -> None:
    (tree / "b" / "3\n.png").write_bytes(b"")
    done = subprocess.run(command(tree), capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {tree}/b/3 .png: empty file; ")
    assert done.stderr.count("\n") == 1
    assert list(tree.parent.iterdir()) == [tree]


def test_a_full_disk_is_one_line_and_no_user_error(tree: Path) -> None:
    def limit() -> None:  # of a file's size, which fails like a full disk
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))

    done = subprocess.run(command(tree), capture_output=True, text=True, preexec_fn=limit)
    assert done.returncode == 1
    target = tree.parent / "x.beton"
    assert done.stderr == f"error: writing {target} failed: File too large; it is as it was\n"
    assert list(tree.parent.iterdir()) == [tree]


# ---------------------------------------------------------------------------- signals and deaths


def wait_for(condition: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < end, f"waited {SECONDS} s for {what}"
        time.sleep(0.01)


def workers_of(process: int) -> list[int]:
    """The worker processes among the children of ``process``."""
    children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    return [
        int(child)
        for child in children
        if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()
    ]


def is_running(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text()
    except FileNotFoundError:
        return False
    return state.rpartition(")")[2].split()[0] != "Z"  # an orphan that nobody has reaped yet


def ignores_interrupts(process: int) -> bool:
    """Whether SIGINT is blocked; without that, whose traceback comes first is a matter of luck."""
    status = Path(f"/proc/{process}/status").read_text()
    return bool(int(status.partition("SigBlk:")[2].split()[0], 16) & 1 << signal.SIGINT - 1)


# The workers, which import it again, wait for the bytes of b/9.png, for ever.
STUCK = """
import sys
sys.path.insert(0, {repository!r})
from ffcv_r50.errors import exit_with
from writers import write_imagenet
from writers.sources import image_folder

read = image_folder.read_file

def wait(path):
    if path.endswith("/9.png"):
        open(path.replace("9.png", "pipe")).read()
    return read(path)

image_folder.read_file = wait
if __name__ == "__main__":
    exit_with(write_imagenet.main)
"""


@pytest.fixture
def stuck(tree: Path) -> Iterator[subprocess.Popen[str]]:
    """A writer in the midst of its work."""
    script = tree / "stuck.py"
    script.write_text(STUCK.format(repository=str(SCRIPT.parents[1])))
    shutil.copy(tree / "b" / "2.png", tree / "b" / "9.png")
    pipe = tree / "b" / "pipe"
    os.mkfifo(pipe)
    (tree.parent / "x.beton").write_text("old")
    (tree.parent / "x.beton.json").write_text("old too")
    process = subprocess.Popen(
        [
            sys.executable,
            str(script),
            *command(tree, "--cfg.num_workers=2", "--cfg.chunk_size=1")[2:],
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # a process group of its own, as at a terminal
    )
    opened: list[int] = []

    def worker_reads() -> bool:
        assert process.poll() is None, process.communicate()
        try:  # a pipe can be opened for writing as soon as somebody reads
            opened.append(os.open(pipe, os.O_WRONLY | os.O_NONBLOCK))
        except OSError:
            return False
        return True

    try:
        wait_for(worker_reads, "a worker to read the pipe")
        yield process
    finally:
        for descriptor in opened:
            os.close(descriptor)
        with contextlib.suppress(ProcessLookupError):  # workers too, which hold the pipes
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


UNFINISHED = {".x.beton.journal", ".x.beton.partial", ".x.beton.samples.gz.partial"}


def check_nothing_happened(tree: Path, beside: Set[str] = frozenset()) -> None:
    folder = tree.parent
    assert (folder / "x.beton").read_text() == "old"
    assert (folder / "x.beton.json").read_text() == "old too"
    names = {path.name for path in folder.iterdir()}
    assert names == {"tree", "x.beton", "x.beton.json"} | beside


@pytest.mark.slow
def test_a_killed_writer_leaves_no_file_and_no_workers(
    stuck: subprocess.Popen[str], tree: Path
) -> None:
    check_nothing_happened(tree, UNFINISHED)
    workers = workers_of(stuck.pid)
    assert workers
    stuck.kill()
    stuck.wait(SECONDS)
    wait_for(lambda: not any(map(is_running, workers)), "the workers to end")
    check_nothing_happened(tree, UNFINISHED)


def test_a_worker_that_dies_ends_the_writing(stuck: subprocess.Popen[str], tree: Path) -> None:
    workers = workers_of(stuck.pid)
    os.kill(workers[0], signal.SIGKILL)
    _, errors = stuck.communicate(timeout=SECONDS)
    assert stuck.returncode == 1
    assert errors == (
        "error: a worker process died (killed, out of memory, or crashed); "
        f"{tree.parent / 'x.beton'} is as it was\n"
    )
    check_nothing_happened(tree)
    assert not any(map(is_running, workers))


@pytest.mark.parametrize(
    ("number", "to_all", "code", "line"),
    [
        (signal.SIGINT, True, 130, "interrupted; {} is as it was\n"),  # Ctrl-C reaches all
        (signal.SIGINT, False, 130, "interrupted; {} is as it was\n"),
        (signal.SIGTERM, False, 143, ""),
    ],
    ids=["ctrl-c", "interrupt", "terminate"],
)
@pytest.mark.slow
def test_signals_end_it_cleanly(
    number: signal.Signals,
    to_all: bool,
    code: int,
    line: str,
    stuck: subprocess.Popen[str],
    tree: Path,
) -> None:
    workers = workers_of(stuck.pid)
    assert all(map(ignores_interrupts, workers))
    assert not ignores_interrupts(stuck.pid)
    (os.killpg if to_all else os.kill)(stuck.pid, number)
    _, errors = stuck.communicate(timeout=SECONDS)
    assert stuck.returncode == code
    assert errors == line.format(tree.parent / "x.beton")
    check_nothing_happened(tree)
    assert not any(map(is_running, workers))


# --------------------------------------------------------------------------------------- progress


def test_plain_progress_says_speed_and_time_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    with progress.shown(1000) as report:
        for images in range(0, 1001, 100):
            now = 100.0 + images / 50
            report(images, images * 50_000)
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "300 of 1,000 images, 50 images/s, 15 MB, 14 s left",
        "600 of 1,000 images, 50 images/s, 30 MB, 8 s left",
        "900 of 1,000 images, 50 images/s, 45 MB, 2 s left",
    ]


def test_a_bar_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "100")
    with progress.shown(10) as report:
        for images in range(1, 11):
            report(images, images * 1_000_000)
    shown = capsys.readouterr().out
    assert "10/10" in shown
    assert "images/s, 10 MB" in shown
