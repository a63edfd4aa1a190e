"""The strict reader of settings: defaults <- YAML file <- command line, into frozen models.

What may be set is declared as :mod:`ffcv_r50.config.declaration` says. The outermost class may have two
tables: ``MOVED`` (a key of before -> the key of today, as which it is read) and ``FOREIGN`` (another
program's name for a setting -> what to write instead).

Nothing is dropped in silence and nothing is guessed: an unknown key, a key given twice, a value of
another type or out of range ends in a :class:`UserError` that names the key and its file and line.
Environment variables are never read. (fastargs, which ffcv-imagenet uses, does the opposite.)
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import yaml

from ffcv_r50.config import kinds, strict_yaml
from ffcv_r50.config.declaration import Given, Setting, build, declared, missing_keys
from ffcv_r50.config.kinds import listed_registry_of, registry_of
from ffcv_r50.errors import UserError, nearest
from ffcv_r50.files import YAML_BYTES
from ffcv_r50.registry import Options, Registry

Place = Callable[[str, yaml.Node], str]
"""What an error about a key, which stands at a node, begins with."""


def from_file(cls: type[Options], path: str) -> dict[str, Given]:
    """The settings in a YAML file.

    Args:
        cls: the declaration.
        path: the file, as errors shall call it.

    Raises:
        UserError: unreadable, not YAML, an unknown or doubled key, a value of another type.
    """
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read(YAML_BYTES + 1)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not UTF-8 text; save it as UTF-8") from error
    if len(text) > YAML_BYTES:
        raise UserError(f"{path}: has more than {YAML_BYTES >> 20} MiB, settings are smaller")
    return from_yaml(cls, text, path)


def from_yaml(cls: type[Options], text: str, where: str) -> dict[str, Given]:
    """As :func:`from_file`, of a text that errors shall call ``where``."""
    try:
        root = strict_yaml.compose(text)
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UserError(f"{where}{line}: {strict_yaml.problem(error)}") from error
    except yaml.YAMLError as error:
        raise UserError(f"{where}: {strict_yaml.problem(error)}") from error

    def at(key: str, node: yaml.Node) -> str:
        return f"{where}:{node.start_mark.line + 1}" + (f": {key}" if key else "")

    return {} if root is None else _table(root, cls, at)


def from_arguments(
    cls: type[Options],
    words: Mapping[str, Sequence[str]],
    onto: Mapping[str, Given] | None = None,
) -> dict[str, Given]:
    """The settings on a command line.

    Args:
        cls: the declaration.
        words: key -> the texts that were given for it; more than one only for a list of strings.
        onto: what a file gives already; its names say whose options the words are.

    Raises:
        UserError: an unknown key or a value of another type, by name.
    """
    names = {key: g.value for key, g in (onto or {}).items()} | {k: t[0] for k, t in words.items()}
    known = declared(cls, names)
    given: dict[str, Given] = {}
    # A name first: whose options the others are.
    for written, texts in sorted(words.items(), key=lambda word: not word[0].endswith(".name")):
        key, place = moved(cls, written), f"command line: --{written}"
        if key not in known:
            raise _unknown(place, key, cls, names, dashes="--")
        if key in given or (len(texts) > 1 and not kinds.is_text_list(known[key].kind)):
            raise UserError(f"{place}: is given twice")
        if texts == [""] == [known[key].default]:  # back to the default, which no other text is
            given[key] = Given("", place)
            continue
        try:
            node = _argument(texts, known[key].kind)
        except yaml.YAMLError as error:
            raise UserError(f"{place}: {strict_yaml.problem(error)}") from error
        given[key] = _convert(node, known[key], place, lambda key, _: f"command line: --{key}")
    return given


def _argument(texts: Sequence[str], kind: Any) -> yaml.Node:
    """What an option was given: a text as it is, or a table or list of YAML."""
    if kinds.is_text_list(kind):
        return yaml.SequenceNode("", [yaml.ScalarNode("", text) for text in texts])
    if kinds.bare(kind) is not str and texts[0][:1] in ("{", "["):
        node = strict_yaml.compose(texts[0])
        assert node is not None
        return node
    return yaml.ScalarNode("", texts[0])


# ------------------------------------------------------------------------------------------ tables


def _convert(node: yaml.Node, setting: Setting, place: str, at: Place) -> Given:
    """The value that ``node`` gives to a setting; UserError says what was expected instead."""
    try:
        if registry := registry_of(setting.kind):
            _thing(registry, node)
            return Given(node.value, place)
        if registry := listed_registry_of(setting.kind):
            return Given(_listed(registry, node, setting, at), place)
        return Given(kinds.read(node, setting.kind), place)
    except ValueError as error:
        raise UserError(f"{place}: {error}") from error


def _thing(registry: Registry[Any], node: yaml.Node) -> type[Options]:
    """The options of the thing that ``node`` names."""
    if not isinstance(node, yaml.ScalarNode):
        raise ValueError(f"expected {' or '.join(registry.names)}, got {kinds.shown(node)}")
    try:
        return registry[node.value]
    except KeyError as error:
        raise ValueError(error.args[0]) from error


def _listed(
    registry: Registry[Any], node: yaml.Node, setting: Setting, at: Place
) -> tuple[Options, ...]:
    """The things of a list, one ``{name: {option: value}}`` a row."""
    if not isinstance(node, yaml.SequenceNode):
        raise ValueError(f"expected {kinds.name_of(setting.kind)}, got {kinds.shown(node)}")
    found = []
    for row in node.value:
        here = at(setting.key, row)
        if not isinstance(row, yaml.MappingNode) or len(row.value) != 1:
            raise UserError(f"{here}: expected one {{name: {{option: value}}}} a row")
        [(name, options)] = row.value
        try:
            cls = _thing(registry, name)
        except ValueError as error:
            raise UserError(f"{here}: {error}") from error

        def inside(key: str, node: yaml.Node, thing: str = f"{setting.key}: {name.value}") -> str:
            return at(f"{thing}.{key}" if key else thing, node)

        given = {} if _is_empty(options) else _table(options, cls, inside, name.value)
        if missing := missing_keys(cls, given):
            raise UserError(f"{inside(missing[0], name)} is missing")
        found.append(build(cls, given, where=inside("", name)))
    return tuple(found)


def _is_empty(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and not node.value


def _pairs(node: yaml.Node) -> list[tuple[yaml.Node, yaml.Node]]:
    return node.value if isinstance(node, yaml.MappingNode) else []


def _table(node: yaml.Node, cls: type[Options], at: Place, thing: str = "") -> dict[str, Given]:
    """The settings in a table of YAML and in the tables below it.

    Args:
        node: the table.
        cls: the declaration.
        at: where an error is.
        thing: the name of that whose options ``cls`` declares.
    """
    names = {
        f"{section.value}.name": value.value
        for section, table in _pairs(node)
        for key, value in _pairs(table)
        if key.value == "name"
    }
    known = declared(cls, names)
    sections = {key.rpartition(".")[0] for key in known} - {""}
    given: dict[str, Given] = {}
    lines: dict[str, int] = {}

    def visit(node: yaml.Node, prefix: str) -> None:
        if not isinstance(node, yaml.MappingNode):
            raise UserError(f"{at('', node)}: expected a table of settings")
        # A name first: whose options the others are.
        for key_node, value in sorted(node.value, key=lambda pair: pair[0].value != "name"):
            written = f"{prefix}{key_node.value}"
            key = moved(cls, written)
            place = at(written, key_node)
            if key in lines:
                raise UserError(f"{place}: is given twice, first in line {lines[key]}")
            lines[key] = key_node.start_mark.line + 1
            if key in known:
                given[key] = _convert(value, known[key], place, at)
            elif key in sections:
                if not _is_empty(value):
                    visit(value, f"{key}.")
            else:
                if not prefix and isinstance(value, yaml.MappingNode) and value.value:
                    visit(value, f"{key}.")  # no such section: its first key is unknown
                raise _unknown(place, key, cls, names, thing=thing)

    visit(node, "")
    return given


def moved(cls: type[Options], key: str) -> str:
    """The key of today for one of before."""
    table: Mapping[str, str] = getattr(cls, "MOVED", {})
    return table.get(key, key)


def _unknown(
    place: str,
    key: str,
    cls: type[Options],
    names: Mapping[str, Any],
    *,
    dashes: str = "",
    thing: str = "",
) -> UserError:
    foreign: Mapping[str, str] = getattr(cls, "FOREIGN", {})
    if key in foreign:
        return UserError(f"{place} is not a setting here; {foreign[key]}")
    known = declared(cls, names)
    section = key[: key.rfind(".") + 1]
    name = known.get(f"{section}name")
    if name is not None and registry_of(name.kind):
        thing = names.get(name.key, name.default)
    if thing:
        has = [
            k.removeprefix(section)
            for k in known
            if k.startswith(section) and k != f"{section}name"
        ]
        return UserError(
            f"{place} is not an option of {thing}, which has {', '.join(has) or 'none'}"
        )
    near = nearest(key, known)
    hint = f"did you mean {dashes}{near}?" if near else "--help lists the settings"
    return UserError(f"{place} is not a setting; {hint}")
