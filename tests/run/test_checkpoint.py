"""Checkpoints: whole or not at all, verified, nothing executed."""

import argparse
import os
import resource
import threading
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from ffcv_r50.errors import RunFault, UserError
from ffcv_r50.run import checkpoint


def state(value: float) -> dict[str, Any]:
    return {"epoch": int(value), "learner": {"model": {"w": torch.full((300,), float(value))}}}


def test_the_last_two_and_the_best_are_kept(tmp_path: Path) -> None:
    for epoch, best in ((1, True), (2, True), (3, False)):
        checkpoint.write(tmp_path, state(epoch), copies=[checkpoint.BEST] if best else [])
    epochs = {name: checkpoint.load(tmp_path / name)["epoch"] for name in os.listdir(tmp_path)}
    assert epochs == {"last.pt": 3, "previous.pt": 2, "best.pt": 2}


def test_a_failed_save_leaves_everything_as_it_was(tmp_path: Path) -> None:
    checkpoint.write(tmp_path, state(1), copies=[checkpoint.BEST])
    with pytest.raises(TypeError, match="cannot be pickled"):
        checkpoint.write(tmp_path, {"epoch": 2, "bad": Unpicklable()}, copies=[checkpoint.BEST])
    assert checkpoint.newest(tmp_path)[0]["epoch"] == 1  # type: ignore[index]
    assert sorted(os.listdir(tmp_path)) == ["best.pt", "last.pt"]


class Unpicklable:
    def __reduce__(self) -> str:
        raise TypeError("cannot be pickled")


@pytest.mark.parametrize("damage", ["truncated", "flipped bit", "empty"])
def test_damage_is_recognised_and_the_one_before_is_used(tmp_path: Path, damage: str) -> None:
    checkpoint.write(tmp_path, state(1))
    checkpoint.write(tmp_path, state(2))
    last = tmp_path / checkpoint.LAST
    content = bytearray(last.read_bytes())
    if damage == "flipped bit":
        # In the middle of the tensor's numbers, where only a checksum can tell.
        content[content.index(torch.full((300,), 2.0).numpy().tobytes()) + 600] ^= 1
    keep = {"truncated": len(content) - 1000, "empty": 0}.get(damage, len(content))
    last.write_bytes(content[:keep])
    found, warnings = checkpoint.newest(tmp_path)
    assert found is not None
    assert found["epoch"] == 1
    assert len(warnings) == 1
    assert str(last) in warnings[0]


def test_only_damaged_ones_are_not_a_fresh_start(tmp_path: Path) -> None:
    (tmp_path / checkpoint.LAST).write_bytes(b"half")
    with pytest.raises(UserError, match="every checkpoint is damaged"):
        checkpoint.newest(tmp_path)


def test_an_empty_folder_is_a_fresh_start(tmp_path: Path) -> None:
    assert checkpoint.newest(tmp_path) == (None, [])


def test_loading_executes_nothing(tmp_path: Path) -> None:
    torch.save({"epoch": 1, "evil": Evil(tmp_path / "executed")}, tmp_path / checkpoint.LAST)
    with pytest.raises(checkpoint.DamagedCheckpoint):
        checkpoint.load(tmp_path / checkpoint.LAST)
    assert not (tmp_path / "executed").exists()


class Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def test_weights_come_from_a_checkpoint_and_from_a_plain_state_dict(tmp_path: Path) -> None:
    checkpoint.write(tmp_path, state(1))
    torch.save({"w": torch.full((300,), 1.0)}, tmp_path / "plain.pt")
    for name in (checkpoint.LAST, "plain.pt"):
        assert torch.equal(checkpoint.load_weights(tmp_path / name)["w"], torch.ones(300))


def test_weights_as_others_save_them(tmp_path: Path) -> None:
    weights = {"w": torch.arange(300.0)}
    torch.save(weights, tmp_path / "of_old.pth", _use_new_zipfile_serialization=False)
    # As timm's train.py does.
    script = {"epoch": 3, "state_dict": weights, "args": argparse.Namespace(model="resnet50")}
    torch.save(script, tmp_path / "checkpoint.pth.tar")
    safetensors.torch.save_file(weights, tmp_path / "model.safetensors")
    for path in tmp_path.iterdir():
        assert torch.equal(checkpoint.load_weights(path)["w"], weights["w"]), path
        content = path.read_bytes()
        path.write_bytes(content[: len(content) * 2 // 3])
        with pytest.raises(UserError, match=rf"^--checkpoint={path}: "):
            checkpoint.load_weights(path)
    with pytest.raises(UserError, match=r"none\.safetensors: cannot be read \(No such file"):
        checkpoint.load_weights(tmp_path / "none.safetensors")


def test_weights_that_diverged_are_refused(tmp_path: Path) -> None:
    weights = {"v": torch.ones(3), "w": torch.tensor([1.0, torch.nan])}
    torch.save(weights, tmp_path / "x.pt")
    safetensors.torch.save_file(weights, tmp_path / "x.safetensors")
    for path in tmp_path.iterdir():
        with pytest.raises(UserError, match=r"its w has values that are not finite; take weights"):
            checkpoint.load_weights(path)


@pytest.mark.parametrize(
    "content",
    [
        {"learner": 3},
        {"learner": {"model": [1]}},
        {"learner": {"model": {}}},
        {"model": {1: torch.ones(2)}},
        {"format": "1", "learner": {"model": {"w": torch.ones(2)}}},
        {"versions": [], "learner": {"model": {"w": torch.ones(2)}}},
        [torch.ones(2)],
    ],
)
def test_a_whole_file_of_something_else_is_one_line(tmp_path: Path, content: Any) -> None:
    path = tmp_path / "x.pt"
    torch.save(content, path)
    with pytest.raises(UserError, match=rf"^--checkpoint={path}: "):
        checkpoint.load_weights(path)


def test_errors_name_the_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"missing\.pt: cannot be read \(No such file"):
        checkpoint.load_weights(tmp_path / "missing.pt")
    (tmp_path / "text.pt").write_text("hello")
    with pytest.raises(UserError, match=r"text\.pt: not a whole checkpoint"):
        checkpoint.load_weights(tmp_path / "text.pt")
    torch.save({"epoch": 3}, tmp_path / "other.pt")
    with pytest.raises(UserError, match=r"other\.pt: holds no state dict"):
        checkpoint.load_weights(tmp_path / "other.pt")


# ------------------------------------------------------------------------------------------- saving


def test_a_damaged_state_never_becomes_the_one_before(tmp_path: Path) -> None:
    checkpoint.write(tmp_path, state(1))
    checkpoint.write(tmp_path, state(2))
    (tmp_path / checkpoint.LAST).write_bytes(b"half")
    checkpoint.newest(tmp_path)
    checkpoint.write(tmp_path, state(3))
    (tmp_path / checkpoint.LAST).write_bytes(b"half")
    found, _ = checkpoint.newest(tmp_path)
    assert found is not None
    assert found["epoch"] == 1


def test_both_damaged_is_an_error_that_names_them(tmp_path: Path) -> None:
    for name in (checkpoint.LAST, checkpoint.PREVIOUS):
        (tmp_path / name).write_bytes(b"half")
    with pytest.raises(UserError, match=r"every checkpoint is damaged .*last\.pt"):
        checkpoint.newest(tmp_path)


def test_a_kill_between_the_renames_leaves_the_state_and_its_best(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever a state says of best.pt is true at every moment of its writing."""
    checkpoint.write(tmp_path, state(1), copies=[checkpoint.BEST])
    replaced = []
    replace = os.replace

    def watched(source: Any, target: Any) -> None:
        replace(source, target)
        replaced.append(Path(target).name)
        found, _ = checkpoint.newest(tmp_path)
        best = checkpoint.load(tmp_path / checkpoint.BEST)
        assert found is not None
        assert best["epoch"] >= found["epoch"]

    monkeypatch.setattr(os, "replace", watched)
    checkpoint.write(tmp_path, state(2), copies=[checkpoint.BEST])
    assert replaced == [checkpoint.BEST, checkpoint.PREVIOUS, checkpoint.LAST]


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(time, "monotonic", lambda: self.now)


def trap(folder: Path) -> Path:
    """Make the next write of the newest checkpoint meet a full disk, the system's own."""
    half = folder / f".{checkpoint.LAST}.{os.getpid()}.tmp"
    half.symlink_to("/dev/full")
    return half


def test_a_full_disk_is_a_warning_and_in_the_end_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    warnings: list[str] = []
    saver = checkpoint.Saver(tmp_path, 60, warnings.append)
    saver.save(state(1))
    assert saver.finish()
    for now in (100, 159):
        clock.now = now
        trap(tmp_path)
        saver.save(state(2))
        assert not saver.finish()
    assert len(warnings) == 2
    assert warnings[0].startswith(f"{tmp_path}: the checkpoint could not be written (No space left")
    assert warnings[0].endswith("Training goes on")
    assert checkpoint.newest(tmp_path)[0]["epoch"] == 1  # type: ignore[index]
    saver.save(state(3))  # there is room again: the count of minutes starts anew
    assert saver.finish()
    clock.now = 200
    trap(tmp_path)
    saver.save(state(4))
    saver.finish()
    clock.now = 260
    trap(tmp_path)
    saver.save(state(5))
    with pytest.raises(RunFault, match="nor could any for 1 minutes"):
        saver.finish()
    assert checkpoint.newest(tmp_path)[0]["epoch"] == 3  # type: ignore[index]


def test_a_vanished_folder_is_a_warning(tmp_path: Path) -> None:
    warnings: list[str] = []
    saver = checkpoint.Saver(tmp_path / "gone", 60, warnings.append)
    saver.save(state(1))
    assert not saver.finish()
    assert "No such file or directory" in warnings[0]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_a_warning(tmp_path: Path) -> None:
    warnings: list[str] = []
    saver = checkpoint.Saver(tmp_path, 60, warnings.append)
    tmp_path.chmod(0o500)
    saver.save(state(1))
    assert not saver.finish()
    tmp_path.chmod(0o700)
    assert "Permission denied" in warnings[0]


def test_no_error_of_the_saving_thread_goes_unseen(tmp_path: Path) -> None:
    saver = checkpoint.Saver(tmp_path, 60, lambda _: None)
    saver.save({"bad": Unpicklable()})
    with pytest.raises(TypeError, match="cannot be pickled"):
        saver.save(state(2))


def test_what_is_saved_is_the_state_at_the_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training goes on, and changes its tensors, while the thread writes."""
    training_went_on = threading.Event()
    write = checkpoint.write

    def late(*arguments: Any, **more: Any) -> None:
        assert training_went_on.wait(30)
        write(*arguments, **more)

    monkeypatch.setattr(checkpoint, "write", late)
    saver = checkpoint.Saver(tmp_path, 60, lambda _: None)
    weights = torch.ones(300)
    saver.save({"epoch": 1, "weights": weights})
    weights.fill_(7)
    training_went_on.set()
    assert saver.finish()
    assert torch.equal(checkpoint.load(tmp_path / checkpoint.LAST)["weights"], torch.ones(300))


def test_finished_weights_on_a_full_disk_are_one_line(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    path.with_name(f".{path.name}.{os.getpid()}.tmp").symlink_to("/dev/full")
    with pytest.raises(RunFault, match=r"weights\.pt: cannot be written \(No space left"):
        checkpoint.write_weights(path, {"w": torch.zeros(300)})


def test_a_disk_that_fills_up_midway_is_told_as_such(tmp_path: Path) -> None:
    """torch makes a RuntimeError about positions in a zip archive of it."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            checkpoint.write(tmp_path, {"w": torch.zeros(1 << 20)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []


def test_a_state_that_cannot_be_read_is_not_started_over(tmp_path: Path) -> None:
    (tmp_path / checkpoint.LAST).mkdir()  # what root cannot read either
    with pytest.raises(UserError, match=r"last\.pt: cannot be read \(Is a directory\)"):
        checkpoint.newest(tmp_path)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(1).expand(1 << 40),  # four bytes in the file
        torch.eye(3).to_sparse(),
        torch.empty(3, device="meta"),
    ],
    ids=["expanded", "sparse", "meta"],
)
def test_tensors_without_numbers_of_their_own_are_refused(
    tmp_path: Path, tensor: torch.Tensor
) -> None:
    torch.save({"w": tensor}, tmp_path / "x.pt")
    with pytest.raises(UserError, match=r"x\.pt: its w is no plain tensor; save it as one$"):
        checkpoint.load_weights(tmp_path / "x.pt")


def test_a_compressed_checkpoint_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    torch.save({"w": torch.zeros(1 << 20)}, tmp_path / "x.pt")
    with (
        zipfile.ZipFile(tmp_path / "x.pt") as whole,
        zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as bomb,
    ):
        for name in whole.namelist():
            bomb.writestr(name, whole.read(name))
    with pytest.raises(
        UserError, match=r"bomb\.pt: not a whole checkpoint \(its [0-9,]+ bytes say"
    ):
        checkpoint.load_weights(tmp_path / "bomb.pt")
