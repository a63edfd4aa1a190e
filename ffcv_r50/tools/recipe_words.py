"""Command lines of programs that are about a recipe: ``PROGRAM FILE [--option=value ...]``."""

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from ffcv_r50.config import command_line, reference, settings
from ffcv_r50.config.settings import Config
from ffcv_r50.errors import UserError
from ffcv_r50.registry import Options

T = TypeVar("T", bound=Options)


def read(argv: Sequence[str], own: type[T], usage: str) -> tuple[Path, T, Config]:
    """The recipe's file, the program's own options, and the recipe with what the command line changes.

    ``--help`` prints both kinds of options and exits with 0.

    Args:
        argv: the words after the program's name: the file first, or as ``--config``.
        own: the program's options.
        usage: what ``--help`` prints above them.

    Raises:
        UserError: no recipe, two, or a fault in it or in an option.
    """
    named = bool(argv) and not argv[0].startswith("-")
    words = command_line.split(argv[1:] if named else argv, own)
    if "help" in words:
        text = reference.help_text(own, usage)
        reference.print_page(reference.help_text(Config, f"{text}\n\nSettings of the recipe:"))
        raise SystemExit(0)
    paths = [*argv[:named], *words.get("config", [])]
    if not paths:
        raise UserError("command line: no recipe; pass one, such as rcp/rn50_16ep.yaml")
    if len(paths) > 1:
        raise UserError(f"command line: two recipes, {paths[0]} and {paths[1]}; pass one")
    options = command_line.take(own, words)
    config = settings.resolve({**words, "config": paths}, needs_data=False)
    return Path(paths[0]), options, config
