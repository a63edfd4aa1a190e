"""What a run says of itself, to somebody who does not hold its folder.

Programs that only look at runs load neither torch nor numba for it.
"""

import fcntl
from pathlib import Path
from typing import Any

from ffcv_r50.files import read_record, regular_file

STATUS = "status.json"
LOCK = "lock"
KINDS: dict[str, Any] = {"state": str, "reason": str, "exit_code": int}


def read_status(path: Path) -> dict[str, Any]:
    """What :meth:`.RunFolder.set_status` recorded last; empty before the first time.

    A process that was killed could not say so: a state ``running`` that nobody holds is ``lost``.
    """
    record = read_record(path / STATUS)
    status = {k: v for k, v in record.items() if isinstance(v, KINDS.get(k, object))}
    if status.get("state") == "running" and not _held(path / LOCK):
        status |= {"state": "lost", "reason": "its processes ended without a word"}
    return status


def _held(lock: Path) -> bool:
    """Whether a live run holds its folder; so it seems where that cannot be asked.

    Asking takes a shared lock for a moment, which a run that starts just then waits for.
    """
    try:
        with open(lock, "rb", opener=regular_file) as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:  # held, or a file system without locks
        return True
    return False
