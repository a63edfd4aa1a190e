"""What a class of settings declares, by key, and how one is made from values and written again.

A program declares its settings once: a class of :class:`ffcv_r50.registry.Options` whose fields are
sections (such classes again) or single settings of the types in :mod:`ffcv_r50.config.kinds`, with the
documentation as a docstring under each field. A field without a default is required.
"""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, NamedTuple, TypeVar

import yaml
from pydantic import ValidationError
from pydantic_core import PydanticUndefined

from ffcv_r50.config import kinds
from ffcv_r50.config.kinds import listed_registry_of, registry_of
from ffcv_r50.errors import InvalidSetting, UserError
from ffcv_r50.registry import Options

T = TypeVar("T", bound=Options)


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


# ------------------------------------------------------------------------------- made and written


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


def build(cls: type[T], given: Mapping[str, Given], hint: str = "", where: str = "") -> T:
    """The declared class from what was given and defaults for the rest.

    Args:
        cls: the declaration.
        given: by key.
        hint: what to do about a required setting that is missing.
        where: what an error begins with that is about none of those given; else it is the key.

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
        place = given[error.key].place if error.key in given else where or error.key
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
        else:
            tree[key] = plain(value)
    return tree


def plain(value: Any) -> Any:
    """The value of a setting, as YAML and JSON write it."""
    if isinstance(value, dict):
        return {name: plain(inner) for name, inner in value.items()}
    if isinstance(value, tuple):
        return list(value)
    return value.to_yaml() if hasattr(value, "to_yaml") else value
