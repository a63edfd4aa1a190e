"""The strict reader of settings: defaults <- YAML file <- command line, into frozen models.

A program declares its settings once: a class of :class:`ffcv_r50.registry.Options` whose fields are
sections (such classes again) or single settings of the types in :mod:`ffcv_r50.config.kinds`, with the
documentation as a docstring under each field. A field without a default is required. The outermost
class may have two tables: ``MOVED`` (a key of before -> the key of today, as which it is read) and
``FOREIGN`` (another program's name for a setting -> what to write instead).

Nothing is dropped in silence and nothing is guessed: an unknown key, a key given twice, a value of
another type or out of range ends in a :class:`UserError` that names the key and its file and line.
Environment variables are never read. (fastargs, which ffcv-imagenet uses, does the opposite.)
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any, NamedTuple, TypeVar

import yaml
from pydantic import ValidationError
from pydantic_core import PydanticUndefined

from ffcv_r50.config import kinds, strict_yaml
from ffcv_r50.config.kinds import listed_registry_of, registry_of
from ffcv_r50.errors import InvalidSetting, UserError, nearest
from ffcv_r50.registry import Options, Registry

T = TypeVar("T", bound=Options)
Place = Callable[[str, yaml.Node], str]
"""What an error about a key, which stands at a node, begins with."""


class Given(NamedTuple):
    """A setting that somebody gave, and where: what an error about it begins with."""

    value: Any
    place: str
    """``rcp/x.yaml:7: training.epochs`` or ``command line: --training.epochs``."""


class Setting(NamedTuple):
    """One declared setting."""

    key: str
    """``section.name``, or ``name`` for one outside of sections."""
    kind: Any
    """Its type annotation."""
    default: Any
    """``PydanticUndefined`` for a required setting."""
    text: str
    """Its documentation."""

    @property
    def is_required(self) -> bool:
        """Whether it has no default."""
        return self.default is PydanticUndefined


# ------------------------------------------------------------------------------------ declarations


def declared(cls: type[Options], names: Mapping[str, str] | None = None) -> dict[str, Setting]:
    """Every setting of ``cls`` and its sections by key, in the order of declaration.

    Args:
        cls: the declaration.
        names: of the things whose options are wanted, where not those of the default:
            ``{"optimizer.name": "adamw"}``.
    """
    return _declared(cls, names or {}, "")


def _declared(cls: type[Options], names: Mapping[str, Any], prefix: str) -> dict[str, Setting]:
    found = {}
    for name, kind, default, text in fields(cls):
        key = f"{prefix}{name}"
        if registry := registry_of(kind):
            found[f"{key}.name"] = Setting(f"{key}.name", kind, default, text)
            chosen = names.get(f"{key}.name")
            chosen = chosen if chosen in registry.names else default
            if chosen is not PydanticUndefined:
                found |= _declared(registry[chosen], names, f"{key}.")
        elif kinds.is_section(kind):
            found |= _declared(kind, names, f"{key}.")
        else:
            found[key] = Setting(key, kind, default, text)
    return found


def keys(cls: type[Options]) -> set[str]:
    """Every key that may be set, the options of all things that have a name included."""
    found = declared(cls)
    for key, setting in declared(cls).items():
        if registry := registry_of(setting.kind):
            for name in registry.names:
                found |= declared(cls, {key: name})
    return set(found)


def fields(cls: type[Options]) -> Iterator[Setting]:
    """The fields of one class: sections, settings, and things by name (whose default is a name)."""
    for name, field in cls.model_fields.items():
        kind: Any = field.annotation
        if field.metadata:
            kind = Annotated[(kind, *field.metadata)]
        default = field.get_default(call_default_factory=True)
        if (registry := registry_of(kind)) and default is not PydanticUndefined:
            default = registry.name_of(default)
        yield Setting(field.alias or name, kind, default, field.description or "")


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
        found.append(build(cls, given))
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


# ----------------------------------------------------------------------------------------- reading


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
            return from_yaml(cls, file.read(), path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not UTF-8 text; save it as UTF-8") from error


def from_yaml(cls: type[Options], text: str, where: str) -> dict[str, Given]:
    """As :func:`from_file`, of a text that errors shall call ``where``."""
    try:
        root = strict_yaml.compose(text)
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UserError(f"{where}{line}: {strict_yaml.problem(error)}") from error
    except yaml.YAMLError as error:
        raise UserError(f"{where}: not a YAML text file") from error

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
        if (
            texts == [""] and known[key].default == ""
        ):  # back to the default, which no other text is
            given[key] = Given("", place)
            continue
        try:
            node = _argument(texts, known[key].kind)
        except yaml.MarkedYAMLError as error:
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


def merge(
    cls: type[Options], below: Mapping[str, Given], above: Mapping[str, Given]
) -> dict[str, Given]:
    """What two sources give together; ``above`` wins.

    Where it names another thing than ``below`` does, the options of that one are dropped.
    """
    merged = dict(below)
    for key, setting in declared(cls).items():
        if registry_of(setting.kind) and key in above:
            before = below[key].value if key in below else setting.default
            if above[key].value != before:
                section = key.removesuffix("name")
                merged = {k: g for k, g in merged.items() if not k.startswith(section)}
    return {**merged, **above}


def missing_keys(cls: type[Options], given: Mapping[str, Given]) -> list[str]:
    """The required settings that nobody gave."""
    known = declared(cls, {key: g.value for key, g in given.items()})
    return [key for key, setting in known.items() if setting.is_required and key not in given]


def build(cls: type[T], given: Mapping[str, Given], hint: str = "") -> T:
    """The declared class from what was given and defaults for the rest.

    Raises:
        UserError: a required setting is missing, or the class refuses the combination.
    """
    if missing := missing_keys(cls, given):
        verb = "is" if len(missing) == 1 else "are"
        raise UserError(
            f"{', '.join(missing)} {verb} missing; " + (hint or f"pass --{missing[0]}=VALUE")
        )
    try:
        return _make(cls, {key: g.value for key, g in given.items()}, "")
    except InvalidSetting as error:
        place = given[error.key].place if error.key in given else error.key
        raise UserError(f"{place}: {error.message}") from error


def _make(cls: type[T], values: dict[str, Any], prefix: str) -> T:
    parts: dict[str, Any] = {}
    for key, kind, default, _ in fields(cls):
        full = f"{prefix}{key}"
        if full in values:
            parts[key] = values[full]
        elif any(other.startswith(f"{full}.") for other in values) or (
            kinds.is_section(kind) and default is PydanticUndefined
        ):
            if registry := registry_of(kind):
                kind = registry[values.pop(f"{full}.name", default)]
            parts[key] = _make(kind, values, f"{full}.")
    try:
        return cls(**parts)
    except ValidationError as error:  # from a check of the class's own
        first = error.errors(include_url=False)[0]
        key = ".".join([prefix.rstrip("."), *map(str, first["loc"])]).strip(".")
        raise InvalidSetting(key, first["msg"].removeprefix("Value error, ")) from error


# ----------------------------------------------------------------------------------------- writing


def to_yaml(config: Options) -> str:
    """Every setting with its value, as YAML that reads back to an equal object."""
    return yaml.safe_dump(
        _tree(config), sort_keys=False, default_flow_style=None, width=96, allow_unicode=True
    )


def _tree(config: Options) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for (key, kind, _, _), (_, value) in zip(fields(type(config)), config, strict=True):
        if registry := registry_of(kind):
            tree[key] = {"name": registry.name_of(value), **_tree(value)}
        elif registry := listed_registry_of(kind):
            tree[key] = [{registry.name_of(thing): _tree(thing)} for thing in value]
        elif isinstance(value, Options):
            tree[key] = _tree(value)
        elif isinstance(value, tuple):
            tree[key] = list(value)
        else:
            tree[key] = value.to_yaml() if hasattr(value, "to_yaml") else value
    return tree
