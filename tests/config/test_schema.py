"""The JSON Schema of recipes: current, takes every recipe, refuses each kind of bad one."""

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import jsonschema
import pytest
import yaml

from ffcv_r50.config import declaration, reader, schema
from ffcv_r50.config.settings import Config
from ffcv_r50.registry import Options, Range, Registry

RCP = Path(__file__).resolve().parents[2] / "rcp"
FILE = RCP / "recipe.schema.json"
SCHEMA = json.loads(FILE.read_text())
CHECK = jsonschema.Draft202012Validator(SCHEMA)

GOOD = """
model: {arch: resnet18}
data:
training: {epochs: 16, batch_size: 4096, norm_batch_size: null}
optimizer: {name: adamw, eps: 1.0e-6}
schedule:
  lr: {0: 0.005, 0.5: 0.5, 16: cosine 0}
  resolution: {0: 160, interpolation: step}
  momentum: {0: 0.95, 8: power 2 0.85}
"""


def as_editors_read(text: str) -> Any:
    """YAML as JSON has it: keys are strings."""

    def keyed(value: Any) -> Any:
        if isinstance(value, dict):
            return {str(key): keyed(inner) for key, inner in value.items()}
        return [keyed(inner) for inner in value] if isinstance(value, list) else value

    return keyed(yaml.safe_load(text))


def test_the_file_is_current() -> None:
    printed = subprocess.run(
        [sys.executable, "-m", "ffcv_r50.config", "--schema"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert printed == FILE.read_text(), (
        "write it anew: python -m ffcv_r50.config --schema > rcp/recipe.schema.json"
    )


def test_it_is_a_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


@pytest.mark.parametrize("path", sorted(RCP.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_is_taken_and_names_it_in_its_first_line(path: Path) -> None:
    text = path.read_text()
    CHECK.validate(as_editors_read(text))
    assert text.startswith(f"# yaml-language-server: $schema={FILE.name}\n")


def test_what_a_run_writes_is_taken() -> None:
    config = declaration.build(Config, reader.from_yaml(Config, GOOD, "x.yaml"))
    CHECK.validate(as_editors_read(config.to_yaml()))


BAD: list[tuple[str, str, Any]] = [
    ("unknown section", "modell", {"arch": "resnet18"}),
    ("unknown key", "training.epoch", 3),
    ("unknown row", "schedule.beta", {"0": 1}),
    ("missing section", "schedule", None),
    ("missing key", "training.epochs", ...),
    ("integer as a text", "training.epochs", "16"),
    ("fraction for an integer", "training.epochs", 1.5),
    ("number for a text", "model.arch", 18),
    ("yes for a boolean", "model.blurpool", "yes"),
    ("null for what may not be", "training.seed", None),
    ("too small", "training.epochs", 0),
    ("too large", "training.epochs", 10_001),
    ("at the bound that is excluded", "training.label_smoothing", 1),
    ("out of the range of a list's item", "data.crop_scale", [0, 1]),
    ("list of another length", "data.crop_scale", [0.5]),
    ("choice that is none", "validation.tta", "flips"),
    ("keyframes that are a number", "schedule.lr", 0.1),
    ("keyframes without the first", "schedule.lr", {"2": 1}),
    ("keyframe that is a word", "schedule.lr", {"0": 1, "8": "hot"}),
    ("kind that is none", "schedule.lr", {"0": 1, "8": "cosin 0"}),
    ("power without a number", "schedule.lr", {"0": 1, "8": "power 0"}),
    ("epoch that is a word", "schedule.lr", {"0": 1, "end": 0}),
    ("interpolation that is none", "schedule.lr", {"0": 1, "interpolation": "cubic"}),
    ("bad keyframes in a row that may be null", "schedule.momentum", {"0": "high"}),
    ("unknown optimizer", "optimizer", {"name": "adamv"}),
    ("foreign option", "optimizer", {"name": "adamw", "nesterov": True}),
    ("option of another where none is named", "optimizer", {"eps": 1e-6}),
    ("option out of range", "optimizer", {"name": "adamw", "eps": 0}),
]


@pytest.mark.parametrize(("key", "value"), [bad[1:] for bad in BAD], ids=[bad[0] for bad in BAD])
def test_each_kind_of_bad_recipe_is_refused(key: str, value: Any) -> None:
    good = as_editors_read(GOOD)
    CHECK.validate(good)
    bad = copy.deepcopy(good)
    *sections, name = key.split(".")
    table = bad
    for section in sections:
        table[section] = table.get(section) or {}
        table = table[section]
    if value is ...:
        del table[name]
    else:
        table[name] = value
    with pytest.raises(jsonschema.ValidationError):
        CHECK.validate(bad)


def test_an_option_without_a_name_is_the_defaults() -> None:
    CHECK.validate({**as_editors_read(GOOD), "optimizer": {"nesterov": True}})


def test_every_setting_is_described() -> None:
    def visit(node: Any, where: str) -> None:
        for name, inner in node.get("properties", {}).items():
            is_name = inner.keys() == {"const"}
            is_keyframe = where.startswith("/schedule/")
            assert is_name or is_keyframe or inner["description"], f"{where}/{name}"
            visit(inner, f"{where}/{name}")
            for branch in inner.get("oneOf", []):
                visit(branch, f"{where}/{name}")

    visit(SCHEMA, "")


# ------------------------------------------------------------------------- lists of named things


class Layer(Options):
    """A layer."""


LAYERS: Registry[Layer] = Registry("layer")


@LAYERS.register("cream")
class Cream(Layer):
    """Cream."""

    grams: Annotated[float, Range(above=0)] = 10.0
    """Of it."""


@LAYERS.register("dough")
class Dough(Layer):
    """Dough."""

    flour: str
    """Of what."""


class Pie(Options):
    """A pie."""

    layers: tuple[Annotated[Layer, LAYERS], ...] = ()
    """From the bottom up."""


@pytest.mark.parametrize(
    ("layers", "good"),
    [
        ([], True),
        ([{"cream": {}}, {"dough": {"flour": "rye"}}, {"cream": {"grams": 2}}], True),
        ([{"cream": None}], True),
        ({"cream": {}}, False),
        (["cream"], False),
        ([{}], False),
        ([{"dough": {}}], False),
        ([{"cream": {}, "dough": {"flour": "rye"}}], False),
        ([{"jam": {}}], False),
        ([{"cream": {"grams": 0}}], False),
        ([{"cream": {"flour": "rye"}}], False),
    ],
)
def test_a_list_of_named_things(layers: Any, good: bool) -> None:
    found = schema.schema(Pie, "Pie")
    assert jsonschema.Draft202012Validator(found).is_valid({"layers": layers}) == good
