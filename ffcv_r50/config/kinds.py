"""The types that settings have: how errors call them, and what a node of YAML says as one of them.

Int, float, bool, str, Literal, tuples of them, any of them ``| None``, ``Annotated[..., Range(...)]``,
keyframes (classes with ``from_pairs`` and ``to_yaml``) and numbers that may have them, tables of such
by names that the user chooses (``dict[str, ...]``), and things by name, see
:mod:`ffcv_r50.registry`.
"""

import difflib
import functools
import itertools
import re
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import TypeAdapter, ValidationError

from ffcv_r50.keyframes import NUMBER, Varying, parse_number
from ffcv_r50.registry import Options, Range, Registry

INTEGER = re.compile(r"[-+]?(0|[1-9][0-9_]*)")
BOOLEANS = {"true": True, "1": True, "false": False, "0": False}
NULLS = {"", "~", "null"}


def is_section(kind: Any) -> bool:
    """Whether it is a class of settings."""
    return isinstance(kind, type) and issubclass(kind, Options)


def is_text_list(kind: Any) -> bool:
    """Whether it is a list of strings: its option may be given several times."""
    return get_args(kind) == (str, ...)


def registry_of(kind: Any) -> Registry[Any] | None:
    """The registry of a setting that takes a thing by name."""
    extras = get_args(kind)[1:] if get_origin(kind) is Annotated else ()
    return next((extra for extra in extras if isinstance(extra, Registry)), None)


def listed_registry_of(kind: Any) -> Registry[Any] | None:
    """The registry of a setting that takes a list of things by name."""
    return registry_of(get_args(kind)[0]) if get_origin(kind) is tuple else None


def bare(kind: Any) -> Any:
    """A type without its range and without ``| None``."""
    while get_origin(kind) in (Annotated, Union, UnionType):
        kind = get_args(kind)[0]
    return kind


def name_of(kind: Any) -> str:
    """How documentation and errors call a type: ``an integer at least 1``, ``fp16 or bf16``."""
    origin, arguments = get_origin(kind), get_args(kind)
    if registry := registry_of(kind):
        return " or ".join(registry.names)
    if registry := listed_registry_of(kind):
        return f"a list of {{{' or '.join(registry.names) or 'name'}: {{option: value}}}}"
    if origin is Annotated:
        ranges = [f" {extra}" for extra in arguments[1:] if isinstance(extra, Range)]
        return name_of(arguments[0]) + "".join(ranges)
    if origin in (Union, UnionType):
        return f"{name_of(arguments[0])} or null"
    if origin is Literal:
        return " or ".join(arguments)
    if origin is tuple:
        several = re.sub(r"^an? (\w+)", r"\1s", name_of(arguments[0]))
        count = "" if ... in arguments else {2: "two ", 3: "three "}[len(arguments)]
        return f"a list of {count}{several}"
    if origin is dict:
        return f"a table {{name: value}} of {name_of(arguments[1])}"
    names = {int: "an integer", float: "a number", bool: "true or false", str: "a string"}
    return names[kind] if kind in names else str(kind.expected)


def shown(node: yaml.Node) -> str:
    """How an error calls what somebody wrote."""
    if isinstance(node, yaml.ScalarNode):
        if node.style in ("'", '"'):
            return f'the quoted text "{node.value}"'
        return f"'{node.value}'" if node.value else "nothing"
    return "a list" if isinstance(node, yaml.SequenceNode) else "a table"


def read(node: yaml.Node, kind: Any) -> Any:
    """The value that ``node`` says.

    Raises:
        ValueError: it says none of this kind, or one out of its range; says what was expected.
    """
    return check(_plain(node, kind), kind, shown(node))


def check(value: Any, kind: Any, got: str = "") -> Any:
    """``value``, of Python, where it is of ``kind`` and in its range.

    Raises:
        ValueError: it is not; says what was expected, and what was ``got`` where that is no number.
    """
    try:
        return _adapter(kind).validate_python(value, strict=True)
    except ValidationError as error:
        wrong = error.errors(include_url=False)[0]["input"]
        if isinstance(wrong, (int, float)):
            got = f"{wrong}" if isinstance(wrong, int) else f"{wrong:.15g}"
        choices = get_args(bare(kind)) if get_origin(bare(kind)) is Literal else ()
        near = difflib.get_close_matches(wrong, choices, 1) if isinstance(wrong, str) else ()
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(f"expected {name_of(kind)}, got {got}{hint}") from error


@functools.cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def _plain(node: yaml.Node, kind: Any) -> Any:
    """What ``node`` says, as the Python type that ``kind`` asks for; else its text."""
    wanted = bare(kind)
    if isinstance(node, yaml.SequenceNode) and get_origin(wanted) is tuple:
        kinds = get_args(wanted)
        each = itertools.chain(kinds, itertools.repeat(str))
        return tuple(map(_plain, node.value, itertools.repeat(kinds[0]) if ... in kinds else each))
    if isinstance(node, yaml.MappingNode) and get_origin(wanted) is dict:
        return _rows(node, get_args(wanted)[1])
    if isinstance(node, yaml.MappingNode) and hasattr(wanted, "from_pairs"):
        pairs = [(key.value, value.value) for key, value in node.value]
        return wanted.from_pairs(pairs) if all(isinstance(v, str) for _, v in pairs) else pairs
    text = node.value
    if not isinstance(node, yaml.ScalarNode) or node.style in ("'", '"'):
        return text
    if text in NULLS:
        return None
    if wanted is bool:
        return BOOLEANS.get(text.lower(), text)
    if wanted is int and INTEGER.fullmatch(text):
        return int(text)
    if wanted in (float, Varying) and NUMBER.fullmatch(text):
        return parse_number(text)
    return text


def _rows(node: yaml.MappingNode, kind: Any) -> dict[str, Any]:
    """The values of a table by name; each is checked here, where an error knows which it is."""
    rows: dict[str, Any] = {}
    for key, value in node.value:
        if key.value in rows:
            raise ValueError(f"{key.value} is given twice")
        try:
            rows[key.value] = read(value, kind)
        except ValueError as error:
            raise ValueError(f"{key.value}: {error}") from error
    return rows
