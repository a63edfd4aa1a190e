"""Settings for people to read: the table in `docs/settings.md`, and what ``--help`` prints."""

import re
import sys
import textwrap
from collections.abc import Iterator
from typing import Any

from pydantic_core import PydanticUndefined

from ffcv_r50.config import declaration, kinds
from ffcv_r50.config.kinds import listed_registry_of, registry_of
from ffcv_r50.errors import discard_output
from ffcv_r50.keyframes import Keyframes
from ffcv_r50.registry import Options


def _rows(
    cls: type[Options], prefix: str = "", of: str = ""
) -> Iterator[tuple[str, str, str, str]]:
    """Key, type, default and documentation of each setting, and of all things that have a name."""
    for key, kind, default, text in declaration.fields(cls):
        full = f"{prefix}{key}"
        if kinds.is_section(kind):
            yield from _rows(kind, f"{full}.")
            continue
        one, several = registry_of(kind), listed_registry_of(kind)
        row = (
            re.sub(r"^an? ", "", kinds.name_of(kind)),
            _shown(default),
            of + " ".join(text.split()),
        )
        yield f"{full}.name" if one else full, *row
        if registry := one or several:
            for name in registry.names:
                inside = f"{full}." if one else f"{full}: {name}."
                yield from _rows(registry[name], inside, f"`{name}`: ")


def _shown(default: Any) -> str:
    """A default, as the table and the help show it."""
    if default is PydanticUndefined:
        return "required"
    if isinstance(default, Keyframes):
        default = default.to_yaml()
    if isinstance(default, dict):
        return "{" + ", ".join(f"{key}: {_shown(value)}" for key, value in default.items()) + "}"
    if isinstance(default, tuple):
        return "[" + ", ".join(map(_shown, default)) + "]"
    if isinstance(default, (int, float)) and not isinstance(default, bool):
        return f"{default:.6g}"
    names = {None: "null", True: "true", False: "false", "": "none given"}
    return names[default] if default in names else str(default)


def table(cls: type[Options]) -> str:
    """The settings as a Markdown table: what ``docs/settings.md`` shows."""
    lines = ["| setting | type | default | meaning |", "|---|---|---|---|"]
    for key, kind, default, text in _rows(cls):
        lines.append(f"| `{key}` | {kind} | {default} | {text} |".replace("<", "\\<"))
    return "\n".join(lines)


def help_text(cls: type[Options], usage: str = "") -> str:
    """The settings as plain text: what ``--help`` prints."""
    lines = [usage.strip(), ""] if usage else []
    for key, kind, default, text in _rows(cls):
        flag = key if "." in key else key.replace("_", "-")
        lines.append(f"  --{flag}  ({kind}; {default})")
        lines += textwrap.wrap(text, 92, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return "\n".join(lines)


def print_page(text: str) -> None:
    """Print many lines at once; a reader that has seen enough of them (``| head``) is no error."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        discard_output(sys.stdout)
