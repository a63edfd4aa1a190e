"""What killed writers left beside the file they were writing."""

import os
import re
import time
from pathlib import Path

SILENCE_SECONDS = 600.0
"""A writer that lives touches its file far more often."""


def sweep(path: Path) -> list[str]:
    """Remove temporary files of dead writers of ``path`` and of its sidecar.

    Dead means: no process of its number is here, and the file has not changed for
    :data:`SILENCE_SECONDS` (the writer could run on another machine).

    Returns:
        A line to print for each: removed, or left because its writer may be alive.
    """
    name = re.compile(rf"\.{re.escape(path.name)}(\.json)?\.(\d+)\.tmp")
    lines = []
    for entry in sorted(path.parent.iterdir()):
        if (match := name.fullmatch(entry.name)) is None:
            continue
        try:
            found = entry.stat()
        except FileNotFoundError:  # another writer finished just now
            continue
        age = time.time() - found.st_mtime
        size = f"{found.st_size / 1e6:,.0f} MB"
        if age > SILENCE_SECONDS and not _is_alive(int(match[2])):
            entry.unlink(missing_ok=True)  # another writer may sweep, too
            lines.append(f"removed {entry} ({size}), left by a writer that was killed")
        else:
            lines.append(f"note: {entry} ({size}) is there; remove it unless a writer is at work")
    return lines


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return process != os.getpid()
