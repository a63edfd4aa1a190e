"""Checkpoints: whole or not at all, verified, nothing executed."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from ffcv_r50 import checkpoint
from ffcv_r50.errors import UserError


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


def test_errors_name_the_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"missing\.pt: cannot be read \(No such file"):
        checkpoint.load_weights(tmp_path / "missing.pt")
    (tmp_path / "text.pt").write_text("hello")
    with pytest.raises(UserError, match=r"text\.pt: not a whole checkpoint"):
        checkpoint.load_weights(tmp_path / "text.pt")
    torch.save({"epoch": 3}, tmp_path / "other.pt")
    with pytest.raises(UserError, match=r"other\.pt: holds no state dict"):
        checkpoint.load_weights(tmp_path / "other.pt")
