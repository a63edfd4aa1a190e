"""The one kind of error that is the user's to correct, and the exit codes of every program."""

import contextlib
import difflib
import io
import os
import sys
from collections.abc import Callable, Iterable
from typing import NoReturn, TextIO

FINISHED = 0
"""The work is done."""
FAULT = 1
"""Something broke that is not the user's input; Python's own code for an exception."""
BAD_INPUT = 2
"""The user's input is wrong; the same command will fail again until it is corrected."""
STOPPED_AS_ASKED = 75
"""A signal stopped the run after a checkpoint; the same command continues it (EX_TEMPFAIL)."""


LONGEST = 2000
"""Characters of a message; what quotes a file from a stranger may have many more."""


def printable(text: str) -> str:
    """A text that may hold anything, as a terminal can show it: no line breaks, no control characters
    (escape sequences move cursors and set titles)."""
    return "".join(
        c if c.isprintable() or 0xDC80 <= ord(c) <= 0xDCFF else _visible(c) for c in text
    )


def one_line(text: str) -> str:
    """The same, of no more than :data:`LONGEST` characters."""
    text = printable(text)
    half = LONGEST // 2
    return text if len(text) <= LONGEST else f"{text[:half]} ... {text[-half:]}"


def _visible(character: str) -> str:
    return " " if character.isspace() else character.encode("unicode_escape").decode()


class UserError(Exception):
    """The user's input is wrong: a setting, a path, a file.

    The message is one line that says what is wrong, where, and what to do. Programs print it
    without a traceback and exit with :data:`BAD_INPUT`.
    """

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


class InvalidSetting(UserError):
    """Settings that do not fit together, or one that names nothing there is; says which to change.

    The reader of settings puts the place where it was given instead of the key.
    """

    def __init__(self, key: str, message: str) -> None:
        super().__init__(f"{key}: {message}")
        self.key = key
        self.message = message


class RunFault(Exception):
    """The run cannot go on, and a traceback would not say more than the message's one line."""

    everywhere = False
    """Whether every rank meets it by itself at the same point; else the others must be told."""


class Stopped(Exception):
    """All ranks agreed to stop as they were asked to, and the state is saved."""


def nearest(word: str, words: Iterable[str]) -> str | None:
    """The one of ``words`` that ``word`` was probably meant to be, or None."""
    words = list(words)
    same_name = [w for w in words if w.rpartition(".")[2] == word.rpartition(".")[2]]
    near = same_name or difflib.get_close_matches(word, words, 1)
    if not near:  # the right name in a wrong section: compare the names alone
        names = {w.rpartition(".")[2]: w for w in words}
        near = [names[n] for n in difflib.get_close_matches(word.rpartition(".")[2], names, 1)]
    return near[0] if near else None


def discard_output(stream: TextIO) -> None:
    """Send what is still in a stream's buffer, and all that follows, to nowhere.

    For standard output or error whose reader is gone (``| head``, a closed terminal).
    """
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def exit_with(main: Callable[[], int | None], *, together: bool = False) -> NoReturn:
    """Run a program's ``main`` and exit with its code; our own errors become one line.

    Args:
        main: returns the exit code, or None for :data:`FINISHED`.
        together: several processes run it as the ranks of one group and meet the same errors, so
            only rank 0 prints them.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # file names may be any bytes
    code: int | None
    try:
        code = main()
    except (UserError, RunFault) as error:
        rank = os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0"))
        if rank == "0" or not together:
            line = one_line(str(error))
            with contextlib.suppress(OSError):
                print(f"error: {line}", file=sys.stderr, flush=True)
        code = BAD_INPUT if isinstance(error, UserError) else FAULT
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:  # or Python fails at it again and exits with a code of its own
            discard_output(stream)
    sys.exit(FINISHED if code is None else code)
