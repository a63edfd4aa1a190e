"""The comparison of methods: each is a valid recipe, and the table is what the logs say."""

import statistics
from pathlib import Path

import pytest
import yaml

from benchmarks import methods
from ffcv_r50.config import settings
from ffcv_r50.errors import UserError

TABLE = yaml.safe_load(methods.METHODS.read_text())


@pytest.mark.parametrize("name", TABLE["methods"])
def test_a_method_is_a_recipe_that_differs_in_what_it_says(name: str, tmp_path: Path) -> None:
    def load(changes: dict[str, object]) -> settings.Config:
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(methods.changed(TABLE["recipe"], changes)))
        words = [f"--config={path}", "--data.train_dataset=t", "--data.val_dataset=v"]
        return settings.load([*words, "--logging.folder=f"])

    base, other = load({}), load(TABLE["methods"][name])
    sections = {
        key
        for key, value in yaml.safe_load(other.to_yaml()).items()
        if value != yaml.safe_load(base.to_yaml())[key]
    }
    assert sections == TABLE["methods"][name].keys()


def test_file_names_differ() -> None:
    assert len({methods.file_name(name) for name in TABLE["methods"]}) == len(TABLE["methods"])
    assert methods.file_name("RandAugment 2-9") == "randaugment-2-9"
    assert not any("," in name for name in TABLE["methods"])  # --only separates by commas


def test_the_table_pairs_runs_by_seed() -> None:
    base, other = [60.0, 61.0, 65.0], [61.0, 63.0, 65.5]
    rows = {}
    for seed in range(3):
        rows[methods.BASE, seed] = {"top_1": base[seed], "ema_top_1": base[seed] + 1}
        rows[methods.BASE, seed]["train_top_1"] = 99.0  # of no average
        rows["x", seed] = {"top_1": other[seed]}
    lines = methods.markdown(list(methods.results(rows))).splitlines()[2:]
    assert lines[0] == f"| {methods.BASE} | 62.00 ± {statistics.stdev(base):.2f} |  |"
    assert lines[1].startswith("| ema | 63.00 ±")
    assert lines[1].endswith("| +1.00 ± 0.00 |")
    # Differences 1, 2 and 0.5: mean 7/6, deviation 0.7638, over the root of three.
    assert lines[2].endswith("| +1.17 ± 0.44 |")


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
