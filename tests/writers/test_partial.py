"""Writers that are killed and started again."""

import os
import random
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Generator, Iterable
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ffcv_r50.data import beton, samples
from ffcv_r50.errors import UserError
from tests.writers.serial import in_this_process
from writers import partial, pool, writing
from writers.config import Writing

IMAGES = 60
PAGE = 4096
"""Bytes, which hold five images of 768, or more JPEGs."""
PACKAGE = str(Path(writing.__file__).parent)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "ordered_map", in_this_process)
    monkeypatch.setattr(partial, "CHECKPOINT_SECONDS", 0.0)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noise of 16 x 16 pixels in three classes; two of the images cannot be read."""
    root = tmp_path_factory.mktemp("tree")
    rng = np.random.default_rng(0)
    for i in range(IMAGES):
        path = root / "abc"[i // 20] / f"{i:02}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(path)
    for damaged in ("a/07.png", "c/59.png"):
        (root / damaged).write_bytes(b"")
    return root


def settings(tree: Path, path: Path, **more: Any) -> Writing:
    defaults = {"write_mode": "proportion", "on_error": "skip", "chunk_size": 2}
    return Writing(**{"data_dir": str(tree), "write_path": str(path), **defaults, **more})


def files(path: Path) -> list[bytes]:
    """The finished files, of which none is missing and nothing lies beside."""
    there = {path, samples.path_beside(path), beton.sidecar_path(path)}
    assert {p for p in path.parent.iterdir() if p.name.lstrip(".").startswith(path.name)} == there
    return [p.read_bytes() for p in sorted(there)]


def run(job: Callable[[], None], kill_at: int = 0) -> int:
    """Run ``job`` in a child that kills itself before the given line of the writers' code (from 1).

    Returns:
        How many lines it has run; -1 if it was killed.
    """
    reader, count = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking with threads
        child = os.fork()
    if child == 0:
        lines = 0

        def trace(frame: FrameType, event: str, _: Any) -> Any:
            nonlocal lines
            if not frame.f_code.co_filename.startswith(PACKAGE):
                return None
            if event == "line":
                lines += 1
                if lines == kill_at:
                    os.kill(os.getpid(), signal.SIGKILL)
            return trace

        try:
            sys.settrace(trace)
            job()
            sys.settrace(None)
            os.write(count, b"%d" % lines)
        except BaseException:
            traceback.print_exc()
        os._exit(0)
    os.close(count)

    status = os.waitpid(child, 0)[1]
    text = os.read(reader, 100)
    os.close(reader)
    assert text or os.WIFSIGNALED(status), "the child raised, see its output"
    return int(text) if text else -1


@pytest.mark.slow
def test_killed_and_started_again_it_ends_with_the_same_bytes(tree: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.beton"

    def job() -> None:
        writing.write(settings(tree, path), PAGE)

    lines = run(job)
    undisturbed = files(path)
    rng = random.Random(0)
    kills = finished = 0
    while kills < 20 or finished < 3:
        if run(job, kill_at=rng.randrange(1, lines)) == -1:
            kills += 1
        else:
            finished += 1
            assert files(path) == undisturbed
            path.unlink()
    # And before lines of the end, where files get their names.
    for before in range(0, 60, 2):
        if run(job, kill_at=lines - before) == -1:
            assert path.exists() or (tmp_path / ".x.beton.partial").exists()
            run(job)
        assert files(path) == undisturbed


def test_what_is_done_is_not_done_again(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "x.beton"
    cfg = settings(tree, path, write_mode="raw")
    writing.write(cfg, PAGE)
    undisturbed = files(path)
    encoded: list[int] = []

    def counted(
        function: Callable[..., Any], chunks: Iterable[tuple[Any, ...]], num_workers: int
    ) -> Generator[Any, None, None]:
        for chunk in chunks:
            if len(encoded) == 30:
                raise KeyboardInterrupt
            yield function(*chunk)
            encoded.append(len(chunk[0]))

    with monkeypatch.context() as patch:
        patch.setattr(pool, "ordered_map", counted)
        with pytest.raises(KeyboardInterrupt):
            writing.write(settings(tree, path, write_mode="raw", chunk_size=1), PAGE)
    # Of 30 images one is skipped; the last page that was filled ends with the 25th that is stored.
    assert f"kept 26 images for {path}; the same command continues" in capsys.readouterr().out
    assert samples.path_beside(path).read_bytes() == undisturbed[2]
    encoded.clear()
    with monkeypatch.context() as patch:
        patch.setattr(pool, "ordered_map", counted)
        # What has no effect on the bytes may differ.
        writing.write(settings(tree, path, write_mode="raw", num_workers=3), PAGE)
    assert sum(encoded) == IMAGES - 26
    assert f"{path}: continuing after 26 images\n" in capsys.readouterr().out
    assert files(path)[0] == undisturbed[0]
    assert files(path)[2] == undisturbed[2]


def interrupt(tree: Path, path: Path, monkeypatch: pytest.MonkeyPatch, **more: Any) -> None:
    """Leave an unfinished file of half of the images."""

    def half(
        function: Callable[..., Any], chunks: Iterable[tuple[Any, ...]], num_workers: int
    ) -> Generator[Any, None, None]:
        for done, chunk in enumerate(chunks):
            if done == IMAGES // 2:
                raise KeyboardInterrupt
            yield function(*chunk)

    with monkeypatch.context() as patch:
        patch.setattr(pool, "ordered_map", half)
        with pytest.raises(KeyboardInterrupt):
            writing.write(settings(tree, path, chunk_size=1, **more), PAGE)


def test_an_index_is_continued(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.beton"
    cfg = settings(tree, path, shuffle=True, index_field=True)
    writing.write(cfg, PAGE)
    undisturbed = files(path)
    interrupt(tree, path, monkeypatch, shuffle=True, index_field=True)
    assert b'"rows"' in (tmp_path / ".x.beton.journal").read_bytes()
    writing.write(cfg, PAGE)
    assert files(path) == undisturbed


@pytest.mark.parametrize(
    "change", ["settings", "images", "library", "page size", "a file is gone", "no change"]
)
def test_what_another_command_left_is_not_used(
    change: str,
    tree: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "x.beton"
    interrupt(tree, path, monkeypatch)
    more: dict[str, Any] = {"chunk_size": 1}
    page = PAGE
    said = "images that another command left are discarded"
    if change == "settings":
        more["seed"] = 1
    elif change == "images":
        more["subset"] = IMAGES - 1
    elif change == "library":
        monkeypatch.setattr(writing, "_versions", lambda: {"pillow": "0.1"})
    elif change == "page size":
        page *= 2
    elif change == "a file is gone":
        (tmp_path / ".x.beton.partial").unlink()
        said = "images are gone that a killed writer had done"
    else:
        said = "continuing after"
    capsys.readouterr()
    writing.write(settings(tree, path, **more), page)
    assert said in capsys.readouterr().out
    found = files(path)
    path.unlink()
    writing.write(settings(tree, path, **more), page)
    assert files(path) == found


def test_a_torn_journal_costs_a_page(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.beton"
    interrupt(tree, path, monkeypatch)
    left = {p: p.read_bytes() for p in tmp_path.glob(".x.beton*")}
    journal = left[tmp_path / ".x.beton.journal"]
    writing.write(settings(tree, path, chunk_size=1), PAGE)
    undisturbed = files(path)
    for end in (*range(0, len(journal), 97), len(journal) - 1):
        for flipped in (False, True):
            for p, content in left.items():
                p.write_bytes(content + bytes(100_000))  # written, but not journaled
            torn = bytearray(journal)
            if flipped:
                torn[end] ^= 1
            else:
                del torn[end:]
            (tmp_path / ".x.beton.journal").write_bytes(torn)
            writing.write(settings(tree, path, chunk_size=1), PAGE)
            assert files(path) == undisturbed


def test_nothing_is_journaled_before_it_is_durable(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is lost with the power is what was not synced: the journal speaks of synced bytes only."""
    path = tmp_path / "x.beton"
    durable = {".x.beton.partial": b"", ".x.beton.samples.gz.partial": b""}
    sync = os.fsync

    def noted(descriptor: int) -> None:
        sync(descriptor)
        name = os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}"))
        durable[name] = Path(f"/proc/self/fd/{descriptor}").read_bytes()
        if name == ".x.beton.journal":
            states.append(dict(durable))

    states: list[dict[str, bytes]] = []
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", noted)
        writing.write(settings(tree, path), PAGE)
    undisturbed = files(path)
    assert len(states) > 8
    for state in states[1:-1]:
        path.unlink(missing_ok=True)
        for name, content in state.items():
            (tmp_path / name).write_bytes(content)
        writing.write(settings(tree, path), PAGE)
        assert files(path) == undisturbed


def test_a_second_writer_is_refused(tree: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.beton"
    with (
        partial.opened(path, "key"),
        pytest.raises(UserError, match=r"x\.beton: another writer is at work on it; wait for it, "),
    ):
        writing.write(settings(tree, path), PAGE)
    assert (tmp_path / ".x.beton.journal").exists()
    (tmp_path / ".x.beton.journal").unlink()


def test_a_lock_that_its_holder_removed_is_no_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second writer opens the journal, the first finishes and removes it, the second locks it."""
    path = tmp_path / "x.beton"
    lock = partial.fcntl.flock  # type: ignore[attr-defined]
    removed: list[str] = []

    def late(file: Any, operation: int) -> None:
        if not removed:
            removed.append("journal")
            (tmp_path / ".x.beton.journal").unlink()
        lock(file, operation)

    monkeypatch.setattr(partial.fcntl, "flock", late)  # type: ignore[attr-defined]
    with (
        partial.opened(path, "key"),
        pytest.raises(UserError, match="another writer"),
        partial.opened(path, "key"),
    ):
        pass
