"""The strict reader of settings: defaults <- YAML file <- command line, into frozen dataclasses.

A program declares its settings once: a dataclass whose fields are sections (dataclasses) or single
settings, with the documentation as a docstring under each field. A field without a default is
required. Types: int, float, bool, str, Literal, tuple[float, float], any of them ``| None``,
``Annotated[..., Range(...)]``, and classes with ``from_pairs`` and ``to_yaml`` (keyframes).

Nothing is dropped in silence and nothing is guessed: an unknown key, a key given twice, a value of
another type or out of range ends in a :class:`UserError` that names the key and its file and line.
Environment variables are never read. (fastargs, which ffcv-imagenet uses, does the opposite.)
"""

import ast
import dataclasses
import difflib
import inspect
import itertools
import math
import os
import re
import sys
import textwrap
import types
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, Union, get_args, get_origin
from typing import get_type_hints as type_hints

import yaml

from ffcv_r50.errors import InvalidSetting, UserError, nearest

T = TypeVar("T")

INTEGER = re.compile(r"[-+]?(0|[1-9][0-9_]*)")
NUMBER = re.compile(r"[-+]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?")
BOOLEANS = {"true": True, "1": True, "false": False, "0": False}
NULLS = {"", "~", "null"}
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
"""Line breaks and their like: every value and key is one line, and so is every error."""
DEPTH = 10
"""Tables and lists within each other in a file; settings need three."""


class Given(NamedTuple):
    """A setting that somebody gave, and where: what an error about it begins with."""

    value: Any
    place: str
    """``rcp/x.yaml:7: training.epochs`` or ``command line: --training.epochs``."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Range:
    """The values a number may take: ``Annotated[float, Range(above=0, at_most=1)]``."""

    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None

    def __contains__(self, value: float) -> bool:
        """Whether a number lies inside."""
        return (
            (self.at_least is None or value >= self.at_least)
            and (self.above is None or value > self.above)
            and (self.at_most is None or value <= self.at_most)
            and (self.below is None or value < self.below)
        )

    def __str__(self) -> str:
        """``at least 0 and below 1``."""
        bounds = [(name.replace("_", " "), bound) for name, bound in vars(self).items()]
        return " and ".join(f"{name} {bound:.15g}" for name, bound in bounds if bound is not None)


class Setting(NamedTuple):
    """One declared setting."""

    key: str
    """``section.name``, or ``name`` for one outside of sections."""
    kind: Any
    """Its type annotation."""
    default: Any
    """``dataclasses.MISSING`` for a required setting."""


# ------------------------------------------------------------------------------------ declarations


def declared(cls: type) -> dict[str, Setting]:
    """Every setting of ``cls`` and its sections by key, in the order of declaration."""
    found = {}
    hints = type_hints(cls, include_extras=True)
    for field in dataclasses.fields(cls):
        kind = hints[field.name]
        if dataclasses.is_dataclass(kind) and not hasattr(kind, "from_pairs"):
            for inner in declared(kind).values():  # type: ignore[arg-type]
                key = f"{field.name}.{inner.key}"
                found[key] = inner._replace(key=key)
        elif field.metadata.get("setting", True):
            found[field.name] = Setting(field.name, kind, field.default)
    return found


def _sections(cls: type) -> dict[str, type]:
    hints = type_hints(cls)
    keys = {key.partition(".")[0] for key in declared(cls) if "." in key}
    return {name: hints[name] for name in hints if name in keys}


# ------------------------------------------------------------------------------------------ values


def parse_number(text: str) -> float:
    """A number as YAML 1.2 writes it (``1.0e-4`` and ``1e-4``; no ``inf``, no ``nan``).

    Raises:
        ValueError: it is not one.
    """
    # 1e999 is written as a number but is one that no float holds.
    if not NUMBER.fullmatch(text) or math.isinf(float(text)):
        raise ValueError(f"expected a number, got '{text}'")
    return float(text)


def _name(kind: Any) -> str:
    """How documentation and errors call a type: ``an integer``, ``fp16 or bf16``."""
    arguments = get_args(kind)
    if get_origin(kind) is Annotated:
        return f"{_name(arguments[0])} {arguments[1]}"
    if get_origin(kind) in (Union, types.UnionType):
        return f"{_name(arguments[0])} or null"
    if get_origin(kind) is Literal:
        return " or ".join(arguments)
    if get_origin(kind) is tuple:
        return "a list of two numbers"
    names = {int: "an integer", float: "a number", bool: "true or false", str: "a string"}
    return names[kind] if kind in names else str(kind.expected)


def _shown(node: yaml.Node) -> str:
    if isinstance(node, yaml.ScalarNode):
        if node.style in ("'", '"'):
            return f'the quoted text "{node.value}"'
        return f"'{node.value}'" if node.value else "nothing"
    return "a list" if isinstance(node, yaml.SequenceNode) else "a table"


def _convert(node: yaml.Node, kind: Any) -> Any:
    """The value of ``node`` as ``kind``; ValueError says what was expected and what is there."""
    arguments = get_args(kind)
    if get_origin(kind) is Annotated:
        value = _convert(node, arguments[0])
        numbers = value if isinstance(value, tuple) else () if value is None else (value,)
        for number in numbers:
            if number not in arguments[1]:
                shown = number if isinstance(number, int) else f"{number:.15g}"
                raise ValueError(f"expected {_name(kind)}, got {shown}")
        return value
    mismatch = ValueError(f"expected {_name(kind)}, got {_shown(node)}")
    is_null = isinstance(node, yaml.ScalarNode) and not node.style and node.value in NULLS
    if get_origin(kind) in (Union, types.UnionType):
        try:
            return None if is_null else _convert(node, arguments[0])
        except ValueError as error:
            raise mismatch from error
    if get_origin(kind) is tuple:
        if not isinstance(node, yaml.SequenceNode) or len(node.value) != len(arguments):
            raise mismatch
        return tuple(map(_convert, node.value, arguments))
    if hasattr(kind, "from_pairs"):
        if not isinstance(node, yaml.MappingNode):
            raise mismatch
        for scalar in (scalar for pair in node.value for scalar in pair):
            if not isinstance(scalar, yaml.ScalarNode):
                raise mismatch
        return kind.from_pairs([(key.value, value.value) for key, value in node.value])
    if not isinstance(node, yaml.ScalarNode) or is_null:
        raise mismatch
    text = node.value
    if get_origin(kind) is Literal:
        if text in arguments:
            return text
        near = difflib.get_close_matches(text, arguments, 1)
        raise ValueError(f"{mismatch}" + (f"; did you mean {near[0]}?" if near else ""))
    if kind is str:
        return text
    if node.style in ("'", '"'):
        raise mismatch
    if kind is bool and text.lower() in BOOLEANS:
        return BOOLEANS[text.lower()]
    if kind is int and INTEGER.fullmatch(text):
        return int(text)
    if kind is float:
        return parse_number(text)
    raise mismatch


def _unknown(place: str, key: str, cls: type, foreign: Mapping[str, str], dashes: str) -> UserError:
    if key in foreign:
        return UserError(f"{place} is not a setting here; {foreign[key]}")
    near = nearest(key, declared(cls))
    hint = f"did you mean {dashes}{near}?" if near else "--help lists the settings"
    return UserError(f"{place} is not a setting; {hint}")


# ----------------------------------------------------------------------------------------- reading


class _TooMuch(yaml.MarkedYAMLError):
    """YAML, but more of it than settings are written in."""

    def __init__(self, problem: str, event: yaml.Event) -> None:
        super().__init__(problem=problem, problem_mark=event.start_mark)  # type: ignore[arg-type]


class _Loader(yaml.SafeLoader):
    """Plain tables, lists and words, nested a few deep."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """As PyYAML's, refusing what no setting is written in."""
        event = self.peek_event()
        if tag := getattr(event, "tag", None):
            raise _TooMuch(f"expected no tags, got '{tag}'", event)
        if isinstance(event, yaml.ScalarEvent) and CONTROL.search(event.value):
            raise _TooMuch("expected text of one line without control characters", event)
        if self.depth == DEPTH:
            raise _TooMuch("is nested deeper than settings are", event)
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        is_key = isinstance(parent, yaml.MappingNode) and index is None
        if is_key and not isinstance(node, yaml.ScalarNode):
            raise _TooMuch("expected a word as a key, got a list or a table", event)
        return node


def _problem(error: yaml.MarkedYAMLError) -> str:
    return f"{error.problem}" if isinstance(error, _TooMuch) else f"not YAML: {error.problem}"


def split(argv: Sequence[str]) -> dict[str, str]:
    """The words of a command line as a dict: ``--key=value`` or ``--key value`` each.

    A dash inside a key counts as an underscore; ``--help`` and ``-h`` become the key ``help``.

    Raises:
        UserError: another kind of word, a key without a value, a key given twice.
    """
    found: dict[str, str] = {}
    words = list(argv)
    for word in words:
        if CONTROL.search(word):
            raise UserError(f"command line: {word!r} holds a line break or a control character")
    while words:
        word = words.pop(0)
        if word in ("--help", "-h"):
            found["help"] = ""
            continue
        if not word.startswith("--"):
            raise UserError(f"command line: '{word}' is not a setting; write --section.key=value")
        name, equals, text = word[2:].partition("=")
        key = name.replace("-", "_")
        if not equals:
            if not words or words[0].startswith("--"):
                raise UserError(f"command line: --{name}: has no value; write --{name}=VALUE")
            text = words.pop(0)
        if key in found:
            raise UserError(f"command line: --{name}: is given twice")
        found[key] = text
    return found


def parse_argument(key: str, text: str, kind: Any) -> Given:
    """One ``--key=text`` of the command line, read as ``kind``.

    Raises:
        UserError: the text is not of that kind.
    """
    place = f"command line: --{key}"
    node: yaml.Node | None = yaml.ScalarNode("", text)
    try:
        if kind is not str and text[:1] in ("{", "["):
            node = yaml.compose(text, Loader=_Loader)
        assert node is not None
        return Given(_convert(node, kind), place)
    except (ValueError, yaml.YAMLError) as error:
        reason = _problem(error) if isinstance(error, yaml.MarkedYAMLError) else error
        raise UserError(f"{place}: {reason}") from error


def from_arguments(
    cls: type, words: Mapping[str, str], foreign: Mapping[str, str] | None = None
) -> dict[str, Given]:
    """The settings on a command line that :func:`split` took apart.

    Raises:
        UserError: an unknown key or a value of another type, by name.
    """
    known = declared(cls)
    given = {}
    for key, text in words.items():
        if key not in known:
            raise _unknown(f"command line: --{key}", key, cls, foreign or {}, "--")
        if text == "" == known[key].default:  # back to the default, which no other text is
            given[key] = Given("", f"command line: --{key}")
        else:
            given[key] = parse_argument(key, text, known[key].kind)
    return given


def from_file(cls: type, path: str, foreign: Mapping[str, str] | None = None) -> dict[str, Given]:
    """The settings in a YAML file.

    Args:
        cls: the declaration.
        path: the file, as errors shall call it.
        foreign: names that another program gives to settings -> what to write instead.

    Raises:
        UserError: unreadable, not YAML, an unknown or doubled key, a value of another type.
    """
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not UTF-8 text; save it as UTF-8") from error
    return from_text(cls, text, path, foreign)


def from_text(
    cls: type, text: str, path: str, foreign: Mapping[str, str] | None = None
) -> dict[str, Given]:
    """The settings in the text of a YAML file; see :func:`from_file`."""
    try:
        root = yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UserError(f"{path}{line}: {_problem(error)}") from error
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not a YAML text file") from error
    known = declared(cls)
    sections = _sections(cls)
    given: dict[str, Given] = {}

    def visit(node: yaml.Node, prefix: str) -> None:
        if not isinstance(node, yaml.MappingNode):
            raise UserError(f"{path}:{node.start_mark.line + 1}: expected a table of settings")
        lines: dict[str, int] = {}
        for key_node, value in node.value:
            line = key_node.start_mark.line + 1
            key = f"{prefix}{key_node.value}"
            place = f"{path}:{line}: {key}"
            if key in lines:
                raise UserError(f"{place}: is given twice, first in line {lines[key]}")
            lines[key] = line
            if key in known:
                try:
                    given[key] = Given(_convert(value, known[key].kind), place)
                except ValueError as error:
                    raise UserError(f"{place}: {error}") from error
            elif key in sections and not (isinstance(value, yaml.ScalarNode) and not value.value):
                visit(value, f"{key}.")
            elif key not in sections:
                if not prefix and isinstance(value, yaml.MappingNode) and value.value:
                    visit(value, f"{key}.")  # no such section: its first key is unknown
                raise _unknown(place, key, cls, foreign or {}, "")

    if root is not None:
        visit(root, "")
    return given


def build(cls: type[T], given: Mapping[str, Given], hint: str = "") -> T:
    """The declared dataclass from what was given and defaults for the rest.

    Raises:
        UserError: a required setting is missing, or the dataclass refuses the combination.
    """
    known = declared(cls)
    required = [key for key, setting in known.items() if setting.default is dataclasses.MISSING]
    if missing := [key for key in required if key not in given]:
        verb = "is" if len(missing) == 1 else "are"
        raise UserError(
            f"{', '.join(missing)} {verb} missing; " + (hint or f"pass --{missing[0]}=VALUE")
        )
    try:
        parts: dict[str, Any] = {key: given[key].value for key in given if "." not in key}
        for name, section in _sections(cls).items():
            own = {
                key.partition(".")[2]: g.value
                for key, g in given.items()
                if key.startswith(f"{name}.")
            }
            parts[name] = section(**own)
        return cls(**parts)
    except InvalidSetting as error:
        place = given[error.key].place if error.key in given else error.key
        raise UserError(f"{place}: {error.message}") from error


def read(cls: type[T], argv: Sequence[str], usage: str = "") -> T:
    """Settings from the command line alone; ``--help`` prints the reference and exits with 0.

    Args:
        cls: the declaration.
        argv: the words after the program's name.
        usage: what ``--help`` prints above the reference.

    Raises:
        UserError: see :func:`split`, :func:`from_arguments`, :func:`build`.
    """
    words = split(argv)
    if "help" in words:
        print_page(help_text(cls, usage))
        raise SystemExit(0)
    return build(cls, from_arguments(cls, words))


# ----------------------------------------------------------------------------------------- writing


def to_yaml(config: Any) -> str:
    """Every setting with its value, as YAML that reads back to an equal object."""
    tree: dict[str, Any] = {}
    for key in declared(type(config)):
        section, _, name = key.rpartition(".")
        value = getattr(getattr(config, section) if section else config, name)
        value = value.to_yaml() if hasattr(value, "to_yaml") else value
        value = list(value) if isinstance(value, tuple) else value
        (tree.setdefault(section, {}) if section else tree)[name] = value
    return yaml.safe_dump(
        tree, sort_keys=False, default_flow_style=None, width=96, allow_unicode=True
    )


def _documentation(cls: type) -> dict[str, str]:
    """The docstring under each setting, read from the source."""
    found = {}
    body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0].body  # type: ignore[attr-defined]
    for statement, below in itertools.pairwise(body):
        if isinstance(statement, ast.AnnAssign) and isinstance(below, ast.Expr):
            name = statement.target.id  # type: ignore[union-attr]
            found[name] = inspect.cleandoc(ast.literal_eval(below.value))
    for name, section in _sections(cls).items():
        found.update({f"{name}.{k}": text for k, text in _documentation(section).items()})
    return found


def _rows(cls: type) -> list[tuple[str, str, str, str]]:
    """Key, type, default and documentation of each setting."""
    texts = _documentation(cls)
    names = {None: "null", True: "true", False: "false", "": "none given"}
    rows = []
    for key, setting in declared(cls).items():
        default = setting.default
        if default is dataclasses.MISSING:
            shown = "required"
        elif isinstance(default, tuple):
            shown = "[" + ", ".join(f"{number:.6g}" for number in default) + "]"
        elif isinstance(default, (int, float)) and not isinstance(default, bool):
            shown = f"{default:.6g}"
        else:
            shown = names.get(default, default)
        kind = re.sub(r"^an? ", "", _name(setting.kind))
        rows.append((key, kind, shown, " ".join(texts[key].split())))
    return rows


def reference(cls: type) -> str:
    """The settings as a Markdown table: what the README shows."""
    lines = ["| setting | type | default | meaning |", "|---|---|---|---|"]
    for key, kind, default, text in _rows(cls):
        lines.append(f"| `{key}` | {kind} | {default} | {text} |".replace("<", "\\<"))
    return "\n".join(lines)


def help_text(cls: type, usage: str = "") -> str:
    """The settings as plain text: what ``--help`` prints."""
    lines = [usage, ""] if usage else []
    for key, kind, default, text in _rows(cls):
        lines.append(f"  --{key}  ({kind}; {default})")
        lines += textwrap.wrap(text, 92, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return "\n".join(lines)


def print_page(text: str) -> None:
    """Print many lines at once; a reader that has seen enough of them (``| head``) is no error."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        # What is left in the buffer would fail again when Python flushes it at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
