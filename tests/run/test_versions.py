"""Runs outlive versions: formats, settings that came, moved and went, libraries that changed."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import ffcv_r50
from ffcv_r50.config import declaration, reader, settings
from ffcv_r50.config.settings import Config
from ffcv_r50.errors import UserError
from ffcv_r50.run import checkpoint, compatibility, versions
from ffcv_r50.run.run_folder import RunFolder
from tests.conftest import RECIPE


def configuration(*more: str, cls: type[Config] = Config) -> Config:
    recipe = reader.from_yaml(cls, RECIPE, "recipe")
    words = {key: [text] for key, _, text in (word.partition("=") for word in more)}
    arguments = reader.from_arguments(cls, words, recipe)
    return declaration.build(cls, declaration.merge(cls, recipe, arguments))


# --------------------------------------------------------------------------------------- formats


def state(**more: Any) -> dict[str, Any]:
    weights = {"model": {"w": torch.ones(3)}}
    return {"learner": weights, "progress": {}, "versions": {"ffcv_r50": "7.8"}, **more}


def test_a_checkpoint_carries_its_format(tmp_path: Path) -> None:
    checkpoint.write(tmp_path, state())
    content = torch.load(tmp_path / checkpoint.LAST, weights_only=True)
    assert content["format"] == versions.FORMAT


@pytest.mark.parametrize(
    "read", [checkpoint.newest, checkpoint.load_state, checkpoint.load_weights]
)
def test_a_checkpoint_of_a_newer_format_is_refused(tmp_path: Path, read: Any) -> None:
    path = tmp_path / checkpoint.LAST
    torch.save(state(format=versions.FORMAT + 1), path)
    expected = (
        f"{path}: was written by ffcv_r50 7.8 in format {versions.FORMAT + 1}, ffcv_r50 "
        f"{ffcv_r50.__version__} reads formats up to {versions.FORMAT}; install that version or a "
        "later one"
    )
    with pytest.raises(UserError) as refused:
        read(tmp_path if read is checkpoint.newest else path)
    assert str(refused.value) == expected


IDENTITY = {"samples": 7, "classes": 3, "content": "0" * 32}
STATE = {
    "progress": {"epoch": 1, "step": 3, "best_top_1": -1.0},
    "learner": {"model": {}, "optimizer": {}, "scaler": {}},
    "batch_size": 32,
    "config": "",
    "datasets": {"data.train_dataset": IDENTITY, "data.val_dataset": IDENTITY},
    "versions": {},
}


@pytest.mark.parametrize(
    ("change", "wrong"),
    [
        ({"progress": {"epoch": "1"}}, "progress"),
        ({"progress": {"epoch": -1}}, "progress"),
        ({"progress": {"epoch": float("nan")}}, "progress"),
        ({"progress": {"epoch": 1.5}}, "progress"),
        ({"progress": {"step": 10**400}}, "progress"),
        ({"progress": {"loss_sum": 10**400}}, "progress"),
        ({"progress": {"from_the_future": 1}}, "progress"),
        ({"learner": {"model": {}, "optimizer": {}}}, "learner"),
        ({"learner": [], "config": None}, "learner, config"),
        ({"batch_size": 0}, "batch_size"),
        ({"batch_size": 10**400}, "batch_size"),
        ({"versions": {"torch": torch.ones(2)}}, "versions"),
        ({"datasets": {"data.else": IDENTITY}}, "datasets"),
        ({"datasets": {"data.train_dataset": [1]}}, "datasets"),
        ({"datasets": {"data.train_dataset": IDENTITY | {"samples": "7"}}}, "datasets"),
        ({"datasets": {"data.train_dataset": IDENTITY | {"more": 1}}}, "datasets"),
    ],
)
def test_a_state_that_somebody_made_up_is_refused(change: dict[str, Any], wrong: str) -> None:
    compatibility.check_state("x.pt", STATE)
    with pytest.raises(UserError, match=rf"^x\.pt: is not the state of a run \({wrong}\); name"):
        compatibility.check_state("x.pt", STATE | change)
    with pytest.raises(UserError, match="is no table"):
        compatibility.check_state("x.pt", [1])


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[RunFolder]:
    folder = RunFolder(str(tmp_path))
    yield folder
    folder.release()


def test_a_folder_of_a_newer_format_is_refused(folder: RunFolder, tmp_path: Path) -> None:
    config = configuration()
    folder.begin(config, world_size=1)
    assert folder.changes(config) == []
    environment = tmp_path / "environment.json"
    starts = json.loads(environment.read_text())
    starts.append({"format": versions.FORMAT + 1, "versions": {"ffcv_r50": "7.8"}})
    environment.write_text(json.dumps(starts))
    with pytest.raises(UserError, match=rf"^{tmp_path}: was written by ffcv_r50 7\.8 in format "):
        folder.changes(config)
    folder.put_aside()  # what --resume=none does: nothing of the newer version is continued
    assert folder.changes(config) == []


def test_a_state_of_any_older_format_is_upgraded(tmp_path: Path) -> None:
    assert len(versions.UPGRADES) == versions.FORMAT
    torch.save(state(), tmp_path / checkpoint.LAST)
    upgraded = checkpoint.load(tmp_path / checkpoint.LAST)
    assert (upgraded["format"], upgraded["datasets"]) == (versions.FORMAT, {})


# -------------------------------------------------------------------------------------- versions


def test_a_run_that_is_continued_by_other_versions_says_so() -> None:
    now = versions.current()
    assert versions.changed(now) is None
    assert versions.changed({}) is None  # nobody knows
    assert versions.changed({**now, "torch": "2.6.0", "numpy": "1.26", "forgotten": "1"}) == (
        f"continued with other versions than it was saved with (torch 2.6.0 -> {now['torch']}, "
        f"numpy 1.26 -> {now['numpy']}); bits may differ"
    )


def test_the_note_comes_with_the_state() -> None:
    saved = {"datasets": {}, "versions": {**versions.current(), "ffcv_r50": "0.0.1"}}
    [line] = compatibility.notes("run", saved, configuration(), {})
    assert f"(ffcv_r50 0.0.1 -> {ffcv_r50.__version__})" in line


# -------------------------------------------------------------------------------------- settings


class Newer(Config):
    """Settings of a later version."""

    novelty: float = 0.5
    """A setting that is new, and does something by default."""


def test_a_new_setting_counts_as_saved_with_its_default() -> None:
    saved = configuration().to_yaml()
    assert compatibility.changed_settings("run", saved, configuration(cls=Newer)) == []
    with pytest.raises(UserError, match=r"run: .* other settings: novelty \(0\.5 -> 0\.7\)"):
        compatibility.changed_settings("run", saved, configuration("novelty=0.7", cls=Newer))


def test_a_new_setting_inside_of_a_section_counts_as_saved_with_its_default() -> None:
    lines = configuration().to_yaml().splitlines()
    saved = "\n".join(line for line in lines if line.strip() != "flip: 0.5")
    assert len(saved.splitlines()) == len(lines) - 1
    assert compatibility.changed_settings("run", saved, configuration()) == []
    with pytest.raises(UserError, match=r"data\.flip \(0\.5 -> 0\.0\)"):
        compatibility.changed_settings("run", saved, configuration("data.flip=0.0"))


def test_a_saved_setting_that_is_unknown_is_named() -> None:
    saved = configuration(cls=Newer).to_yaml() + "ema: {decay: 0.99}\n"
    expected = (
        f"run: was saved with ema, novelty, which ffcv_r50 {ffcv_r50.__version__} does not have; "
        "continue it with the version that saved it, or choose another logging.folder"
    )
    with pytest.raises(UserError) as refused:
        compatibility.changed_settings("run", saved, configuration())
    assert str(refused.value) == expected


def test_an_unknown_one_of_those_that_may_differ_is_no_matter() -> None:
    tree = yaml.safe_load(configuration().to_yaml())
    tree["logging"]["parrot"] = True
    saved = yaml.safe_dump(tree)
    assert compatibility.changed_settings("run", saved, configuration()) == []


@pytest.mark.parametrize("old", ["training.inertia", "physics.inertia"])
def test_a_setting_that_moved_is_the_same_setting(
    monkeypatch: pytest.MonkeyPatch, old: str
) -> None:
    """Also out of a section that is no more."""
    tree = yaml.safe_load(configuration("training.momentum=0.8").to_yaml())
    section, _, name = old.partition(".")
    tree.setdefault(section, {})[name] = tree["training"].pop("momentum")
    saved = yaml.safe_dump(tree)
    monkeypatch.setattr(Config, "MOVED", {old: "training.momentum"})
    now = configuration("training.momentum=0.8")
    assert compatibility.changed_settings("run", saved, now) == []
    with pytest.raises(UserError, match=r"training\.momentum \(0\.8 -> 0\.9\)"):
        compatibility.changed_settings("run", saved, configuration())


def test_the_same_values_in_another_form_are_the_same_settings() -> None:
    """What a later version writes in another way, such as keyframes."""
    saved = configuration().to_yaml()
    lr = "lr: {0: 0.002, 1: 0.02, 3: 0}"
    assert lr in saved
    other = saved.replace(lr, "lr: {0: 2.0e-3, 1.0: 0.02, 3: 0.0, interpolation: linear}")
    assert compatibility.changed_settings("run", other, configuration()) == []


def test_the_saved_settings_of_a_run_are_those_of_the_command_line(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE)
    config = settings.load([f"--config={recipe}"], needs_data=False)
    assert compatibility.changed_settings("run", configuration().to_yaml(), config) == []
