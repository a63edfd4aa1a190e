"""The process group: from torchrun's variables or none, and errors that all ranks share."""

import pytest
import torch

from ffcv_r50 import distributed
from ffcv_r50.errors import UserError

TORCHRUN = {
    "RANK": "0",
    "WORLD_SIZE": "1",
    "LOCAL_RANK": "0",
    "LOCAL_WORLD_SIZE": "1",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "29511",
}


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in TORCHRUN:
        monkeypatch.delenv(name, raising=False)


def test_a_single_process_needs_no_variables() -> None:
    with distributed.world(10) as world:
        assert (world.rank, world.size, world.is_main) == (0, 1, True)
        assert not torch.distributed.is_initialized()
        assert world.cores >= 1
        total = torch.ones(2)
        distributed.all_reduce_sum(total)
        assert total.tolist() == [1, 1]
        assert distributed.from_main("x") == "x"


def test_torchruns_variables_make_a_group(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    with distributed.world(10) as world:
        assert world.size == 1
        assert torch.distributed.is_initialized()
    assert not torch.distributed.is_initialized()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"MASTER_PORT": None}, "MASTER_PORT not; start with torchrun"),
        ({"WORLD_SIZE": None, "LOCAL_WORLD_SIZE": None}, "LOCAL_WORLD_SIZE not"),
        ({"RANK": "one"}, "must be whole numbers"),
        ({"RANK": "2"}, "contradict each other"),
        ({"LOCAL_WORLD_SIZE": "3"}, "contradict each other"),
    ],
)
def test_incomplete_variables_are_refused(
    monkeypatch: pytest.MonkeyPatch, changes: dict[str, str | None], message: str
) -> None:
    for name, value in (TORCHRUN | changes).items():
        if value is not None:
            monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=message), distributed.world(10):
        pass


def test_a_single_process_keeps_its_error() -> None:
    with pytest.raises(UserError, match="mine"), distributed.agreed_errors():
        raise UserError("mine")
