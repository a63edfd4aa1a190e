"""The comparison of methods: each is a valid recipe, and the table is what the logs say."""

import statistics
from pathlib import Path

import pytest
import yaml

from benchmarks import methods
from ffcv_r50.config import settings
from ffcv_r50.errors import UserError
from ffcv_r50.run import compatibility

TABLE = methods.read(methods.METHODS)


def load(recipe: dict[str, object], folder: Path) -> settings.Config:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    words = [f"--config={path}", "--data.train_dataset=t", "--data.val_dataset=v"]
    return settings.load([*words, "--logging.folder=f"])


@pytest.mark.parametrize("name", TABLE["methods"])
def test_a_method_is_a_recipe_that_differs_in_what_it_says(name: str, tmp_path: Path) -> None:
    changes = TABLE["methods"][name]
    base = load(TABLE["recipe"], tmp_path)
    other = load(methods.changed(TABLE["recipe"], changes), tmp_path)
    sections = {
        key
        for key, value in yaml.safe_load(other.to_yaml()).items()
        if value != yaml.safe_load(base.to_yaml())[key]
    }
    assert sections == changes.keys()


@pytest.mark.parametrize("name", ["methods.yaml", "averages.yaml"])
def test_the_first_row_is_the_recipe_with_averages(name: str, tmp_path: Path) -> None:
    """Which change nothing of the network."""
    table = methods.read(methods.METHODS.with_name(name))
    recipe, base = table["recipe"], methods.chosen(table, "")[methods.BASE]
    plain, first = (load(each, tmp_path) for each in (recipe, methods.changed(recipe, base)))
    assert first.averages
    allowed = {"averages", "validation.averages_every"}
    assert set(compatibility.differences(plain, first)) <= allowed


def test_the_recipe_may_be_a_file_beside_the_methods(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("training: {epochs: 2}")
    path = tmp_path / "methods.yaml"
    path.write_text("{recipe: recipe.yaml, base: {}, methods: {}}")
    assert methods.read(path)["recipe"] == {"training": {"epochs": 2}}
    (tmp_path / "recipe.yaml").unlink()
    with pytest.raises(UserError, match=r"methods.yaml: .*/recipe.yaml cannot be read \(No such"):
        methods.read(path)
    with pytest.raises(UserError, match=r"none.yaml: .*/none.yaml cannot be read \(No such file"):
        methods.read(tmp_path / "none.yaml")
    for text in ("[1]", "recipe: {}", "", "{"):
        path.write_text(text)
        with pytest.raises(UserError, match="expected recipe, base and methods, as"):
            methods.read(path)


def test_file_names_differ() -> None:
    assert len({methods.file_name(name) for name in TABLE["methods"]}) == len(TABLE["methods"])
    assert methods.file_name("RandAugment 2-9") == "randaugment-2-9"
    assert not any("," in name for name in TABLE["methods"])  # --only separates by commas


def test_the_table_pairs_runs_by_seed() -> None:
    base, other = [60.0, 61.0, 65.0], [61.0, 63.0, 65.5]
    rows = {}
    for seed in range(3):
        rows[methods.BASE, seed] = {
            "top_1": base[seed],
            "val_loss": 2.0 + seed,
            "ema_top_1": base[seed] + 1,
            "ema_val_loss": 1.5 + seed,
            "train_top_1": 99.0,  # of no average
        }
        rows["x", seed] = {
            "top_1": other[seed],
            "val_loss": 2.0,
            "swa_top_1": base[seed],
            "swa_val_loss": 3.0 + seed,
        }
    lines = methods.markdown(list(methods.results(rows))).splitlines()
    assert all(line.count("|") == 6 for line in lines)
    spread = f"62.00 ± {statistics.stdev(base):.2f}"
    assert lines[2:] == [
        f"| {methods.BASE} | {spread} |  | 3.0000 ± 1.0000 |  |",
        f"| ema | {spread.replace('62', '63')} | +1.00 ± 0.00 | 2.5000 ± 1.0000 | -0.5000 ± 0.0000 |",
        # Differences 1, 2 and 0.5: mean 7/6, deviation 0.7638, over the root of three.
        "| x | 63.17 ± 2.25 | +1.17 ± 0.44 | 2.0000 ± 0.0000 | -1.0000 ± 0.5774 |",
        f"| x: swa | {spread} | +0.00 ± 0.00 | 4.0000 ± 1.0000 | +1.0000 ± 0.0000 |",
    ]


def test_an_unknown_method_names_the_nearest() -> None:
    with pytest.raises(UserError, match=r"no method 'cutmixx'; did you mean cutmix 1\?"):
        methods.chosen(TABLE, "cutmixx")


def test_runs_of_another_recipe_are_not_taken_for_this_ones(tmp_path: Path) -> None:
    path = methods.write_recipe(tmp_path / "x", TABLE["recipe"])
    assert yaml.safe_load(path.read_text()) == TABLE["recipe"]
    methods.write_recipe(tmp_path / "x", TABLE["recipe"])
    with pytest.raises(UserError, match="has runs of another recipe"):
        methods.write_recipe(
            tmp_path / "x", methods.changed(TABLE["recipe"], {"data": {"flip": 0}})
        )
