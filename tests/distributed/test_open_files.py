"""A large group's connections need more open files than many systems allow by default."""

import resource

import pytest

from ffcv_r50.distributed import open_files
from ffcv_r50.errors import UserError

UNLIMITED = resource.RLIM_INFINITY


@pytest.mark.parametrize(
    ("limits", "connections", "raised"),
    [
        ((1024, 4096), 3072, (3328, 4096)),
        ((1024, UNLIMITED), 3072, (3328, UNLIMITED)),
        ((1024, 4096), 192, None),
        ((UNLIMITED, UNLIMITED), 3072, None),
    ],
)
def test_the_soft_limit_is_raised_as_far_as_needed(
    monkeypatch: pytest.MonkeyPatch,
    limits: tuple[int, int],
    connections: int,
    raised: tuple[int, int] | None,
) -> None:
    calls: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda which: limits)
    monkeypatch.setattr(resource, "setrlimit", lambda which, pair: calls.append(pair))
    open_files.allow(connections)
    assert calls == ([raised] if raised else [])


def test_a_hard_limit_that_is_too_low_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda which: (1024, 2048))
    message = "ulimit -Hn allows 2,048 open files, but 3,072 connections need 3,328; raise"
    with pytest.raises(UserError, match=message):
        open_files.allow(3072)
