"""Room for the connections of a large group: each counts as an open file of its process."""

import resource
import socket

from ffcv_r50.errors import UserError

OTHER_FILES = 256
"""Images, logs, libraries and pipes of a process."""


def allow(connections: int) -> None:
    """Let this process hold so many connections, beside its files: at most its hard limit.

    Many systems start processes with a soft limit of 1,024 open files, which they may raise.

    Raises:
        UserError: the hard limit is lower.
    """
    needed = connections + OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise UserError(
            f"{socket.gethostname()}: ulimit -Hn allows {hard:,} open files, but {connections:,} "
            f"connections need {needed:,}; raise the limit (LimitNOFILE in systemd, nofile in "
            "limits.conf)"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
