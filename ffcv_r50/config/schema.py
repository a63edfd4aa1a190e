"""The settings as a JSON Schema: what editors complete and underline recipes with.

It says all that JSON Schema can say of what :mod:`ffcv_r50.config.reader` takes: sections and keys,
types, ranges, choices, keyframes, the options of each thing that has a name. It cannot say that keyframes
are in order or that settings fit together; and it wants booleans written as true and false.
"""

from typing import Any

from pydantic import TypeAdapter
from pydantic_core import PydanticUndefined

from ffcv_r50.config import declaration, kinds
from ffcv_r50.config.declaration import Setting
from ffcv_r50.config.kinds import listed_registry_of, registry_of
from ffcv_r50.registry import Options, Registry

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def schema(cls: type[Options], title: str) -> dict[str, Any]:
    """The schema of a file of settings, ready for ``json.dumps``.

    Args:
        cls: the declaration.
        title: of the schema.
    """
    return {"$schema": DIALECT, "title": title, **_table(cls)}


def _table(cls: type[Options], name: str = "", needs_name: bool = True) -> dict[str, Any]:
    """A table of settings; of a thing, its ``name`` is one of them."""
    fields = list(declaration.fields(cls))
    required = [field.key for field in fields if field.is_required]
    properties = {field.key: _setting(field) for field in fields}
    if name:
        properties = {"name": {"const": name}, **properties}
        required = ["name"] * needs_name + required
    found: dict[str, Any] = {
        "description": " ".join((cls.__doc__ or "").split("\n\n")[0].split()),
        # A section without a required setting may be left empty.
        "type": "object" if required else ["object", "null"],
        "properties": properties,
        "additionalProperties": False,
    }
    return {**found, "required": required} if required else found


def _setting(field: Setting) -> dict[str, Any]:
    found: dict[str, Any]
    if registry := registry_of(field.kind):
        found = {"oneOf": [_table(registry[n], n, n != field.default) for n in registry.names]}
    elif registry := listed_registry_of(field.kind):
        found = {"type": "array", "items": _row(registry)}
    elif kinds.is_section(field.kind):
        return _table(field.kind)
    else:
        found = TypeAdapter(field.kind).json_schema()
    if field.default is not PydanticUndefined and not registry_of(field.kind):
        found["default"] = declaration.plain(field.default)
    return {"description": " ".join(field.text.split()), **found}


def _row(registry: Registry[Any]) -> dict[str, Any]:
    """One ``{name: {option: value}}``."""
    return {
        "type": "object",
        "properties": {name: _table(registry[name]) for name in registry.names},
        "additionalProperties": False,
        "minProperties": 1,
        "maxProperties": 1,
    }
