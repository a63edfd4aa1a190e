"""The command lines of all programs: ``--key=value`` words, read as strictly as a file."""

import itertools
from collections.abc import Mapping, Sequence
from typing import TypeVar

from ffcv_r50.config import declaration, reader, reference, strict_yaml
from ffcv_r50.errors import UserError
from ffcv_r50.registry import Options

T = TypeVar("T", bound=Options)


def split(argv: Sequence[str], *programs: type[Options]) -> dict[str, list[str]]:
    """The words of a command line: key -> the texts given for it.

    ``--key=value`` or ``--key value`` each; a dash inside a key counts as an underscore; ``--help``
    and ``-h`` become the key ``help``.

    Args:
        argv: the words after the program's name.
        programs: options of a program itself, of which those that are true or false are switched on
            by ``--key`` alone.

    Raises:
        UserError: another kind of word, a key without a value.
    """
    switches = {
        key
        for cls in programs
        for key, s in declaration.declared(cls).items()
        if s.kind is bool and "." not in key
    }
    found: dict[str, list[str]] = {}
    words = list(argv)
    for word in words:
        if strict_yaml.CONTROL.search(word):
            raise UserError(f"command line: {word!r} holds a line break or a control character")
    while words:
        word = words.pop(0)
        if word in ("--help", "-h"):
            found["help"] = [""]
            continue
        if not word.startswith("--"):
            raise UserError(f"command line: '{word}' is not a setting; write --section.key=value")
        name, equals, text = word[2:].partition("=")
        key = name.replace("-", "_")
        if not equals and key in switches:
            text = "true"
        elif not equals:
            if not words or words[0].startswith("--"):
                raise UserError(f"command line: --{name}: has no value; write --{name}=VALUE")
            text = words.pop(0)
        found.setdefault(key, []).append(text)
    return found


def take(cls: type[T], words: dict[str, list[str]]) -> T:
    """A program's own options, taken out of ``words``.

    Raises:
        UserError: a value of another type, or a required option that is missing.
    """
    own = {key: words.pop(key) for key in declaration.declared(cls) if key in words}
    return declaration.build(cls, reader.from_arguments(cls, own))


def read(cls: type[T], argv: Sequence[str], usage: str = "") -> T:
    """All settings from the command line; ``--help`` prints the reference and exits with 0.

    Args:
        cls: the declaration.
        argv: the words after the program's name.
        usage: what ``--help`` prints above the reference.

    Raises:
        UserError: see :func:`split`, :func:`reader.from_arguments`, :func:`declaration.build`.
    """
    words = split(argv, cls)
    if "help" in words:
        reference.print_page(reference.help_text(cls, usage))
        raise SystemExit(0)
    return declaration.build(cls, reader.from_arguments(cls, words))


def refuse(words: Mapping[str, Sequence[str]]) -> None:
    """Refuse what is left of a command line whose program has no settings besides its options.

    Raises:
        UserError: something is left.
    """
    if words:
        raise UserError(f"command line: --{next(iter(words))}: there is no such option; see --help")


def with_names(
    cls: type[T], argv: Sequence[str], usage: str, most: int | None = None
) -> tuple[list[str], T, dict[str, list[str]]]:
    """The command line of a program that is about files or folders: ``NAME ... [--option=value ...]``.

    ``-`` is a name, ``-o`` is short for ``--output``; ``--help`` prints the reference and exits with 0.

    Args:
        cls: the program's own options.
        argv: the words after the program's name.
        usage: what ``--help`` prints above the reference.
        most: names at most; a further one is refused as a word that is no setting.

    Returns:
        The names, the options, and the words that are neither, for :func:`settings.resolve` or :func:`refuse`.

    Raises:
        UserError: see :func:`split`, :func:`take`.
    """
    names = [*itertools.takewhile(lambda word: word == "-" or not word.startswith("-"), argv)]
    names = names[:most]
    rest = ["--output" if word == "-o" else word for word in argv[len(names) :]]
    words = split(rest, cls)
    if "help" in words:
        reference.print_page(reference.help_text(cls, usage))
        raise SystemExit(0)
    return names, take(cls, words), words
