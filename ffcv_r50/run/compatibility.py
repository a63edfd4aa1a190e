"""Whether this start may continue a saved run: with which settings, on which datasets."""

import dataclasses
from collections.abc import Collection
from pathlib import Path
from typing import Any

import yaml

import ffcv_r50
from ffcv_r50.config import declaration, reader, strict_yaml
from ffcv_r50.config.settings import Config
from ffcv_r50.data.beton import Beton, Identity
from ffcv_r50.errors import UserError
from ffcv_r50.files import read_settings
from ffcv_r50.run import versions
from ffcv_r50.run.progress import Progress

# What may differ between two starts of one run: where things lie and how fast they are read.
MAY_DIFFER = (
    "data.train_dataset",
    "data.val_dataset",
    "data.num_workers",
    "data.stage_dir",
    "logging.",
    "dist.",
    "checkpoint.",
    "resume.",
)

DATASETS = ("data.train_dataset", "data.val_dataset")
"""The settings that name one."""

Identities = dict[str, dict[str, Any]]
"""For each setting that names a dataset, the fields of its :class:`~ffcv_r50.data.beton.Identity`."""


# ---------------------------------------------------------------------------------------- settings


def changed_settings(where: str, saved: str, config: Config) -> list[str]:
    """What differs from saved settings, as ``resume.allow`` permits.

    A setting that is new since then counts as saved with its default.

    Args:
        where: the saved run, for the message.
        saved: its settings as YAML.
        config: of this start.

    Raises:
        UserError: something else differs, named; or a saved setting is not one of this version's,
            which ``resume.allow`` cannot permit: nobody knows what it would do.
    """
    found = _differences(
        _settings(where, saved, type(config)), _settings("", config.to_yaml(), type(config))
    )
    changes = {key: f"{key} ({before} -> {now})" for key, (before, now) in found.items()}
    allowed = config.resume.allow.split(",")
    if refused := [text for key, text in changes.items() if key not in allowed]:
        raise UserError(
            f"{where}: holds a run with other settings: {', '.join(refused)}; give the same "
            "settings to continue it, name in --resume.allow what may differ, or choose another "
            "logging.folder"
        )
    return list(changes.values())


def differences(before: Config, now: Config) -> list[str]:
    """The keys of those settings that shape a result and are not the same."""
    return list(_differences(*(_settings("", one.to_yaml(), type(one)) for one in (before, now))))


def saved_differences(a: Path, b: Path) -> dict[str, tuple[Any, Any]]:
    """The settings that shape a result and differ between two run folders, with both values.

    Raises:
        UserError: the settings of one cannot be read.
    """
    return _differences(saved_settings(a), saved_settings(b))


def saved_settings(folder: Path) -> dict[str, Any]:
    """The settings of a run folder that shape a result, by key; with defaults for what is new since.

    Raises:
        UserError: they cannot be read.
    """
    try:
        text = read_settings(folder / "config.yaml")
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}: its config.yaml cannot be read ({error})") from error
    settings = _settings(str(folder), text, Config)
    return {key: declaration.plain(value) for key, value in settings.items()}


def _differences(before: dict[str, Any], now: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    return {
        key: (declaration.plain(before[key]), declaration.plain(now[key]))
        # Where a thing is another one its options are not compared.
        for key in sorted(before.keys() & now.keys())
        if before[key] != now[key]
    }


def _settings(where: str, text: str, cls: type[Config]) -> dict[str, Any]:
    """What a YAML text sets, and defaults for the rest; without what may always differ."""
    try:
        flat = _flat(strict_yaml.load(text), {*declaration.keys(cls), *cls.MOVED})
    except (yaml.YAMLError, AttributeError, ValueError, RecursionError) as error:
        raise UserError(
            f"{where}: its saved configuration is damaged; restore it, or choose another folder"
        ) from error
    saved = {reader.moved(cls, key): value for key, value in flat.items()}
    saved = {key: value for key, value in saved.items() if not key.startswith(MAY_DIFFER)}
    known = declaration.declared(cls, saved)
    if unknown := sorted(saved.keys() - known.keys()):
        raise UserError(
            f"{where}: was saved with {', '.join(unknown)}, which ffcv_r50 {ffcv_r50.__version__} does "
            "not have; continue it with the version that saved it, or choose another logging.folder"
        )
    tree: dict[str, Any] = {}
    for key, value in saved.items():
        section, _, name = key.rpartition(".")
        (tree.setdefault(section, {}) if section else tree)[name] = value
    given = reader.from_yaml(
        cls, yaml.safe_dump(tree, sort_keys=False), f"{where}: saved configuration"
    )
    return {
        key: given[key].value if key in given else setting.default
        for key, setting in known.items()
        if not key.startswith(MAY_DIFFER)
    }


def _flat(tree: dict[str, Any], known: Collection[str], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}; a table that is the value of one setting stays whole."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        key = f"{prefix}{name}"
        if isinstance(value, dict) and any(other.startswith(f"{key}.") for other in known):
            flat |= _flat(value, known, f"{key}.")
        else:
            flat[key] = value
    return flat


# ---------------------------------------------------------------------------------------- datasets


PARTS: dict[str, type] = {
    "progress": dict,
    "learner": dict,
    "batch_size": int,
    "config": str,
    "datasets": dict,
    "versions": dict,
}
"""Of the state of a run."""
LEARNER = ("model", "optimizer", "scaler")
LARGEST = 1 << 53
"""Counts are below: so far floats count in ones."""
UNFIT = (RuntimeError, ValueError, LookupError, TypeError, AttributeError)
"""What a state raises that is of another network, which resume.allow may permit, or of something else."""


def check_state(where: str, state: Any) -> None:
    """See that a file that is whole, and may come from anybody, holds the state of a run.

    Raises:
        UserError: it does not.
    """
    wrong = "is no table"
    if isinstance(state, dict):
        wrong = ", ".join(
            key for key, kind in PARTS.items() if not isinstance(state.get(key), kind)
        )
    if not wrong:
        learner = all(isinstance(state["learner"].get(key), dict) for key in LEARNER)
        wrong = "" if _is_progress(state["progress"]) else "progress"
        wrong = wrong or ("" if learner else "learner")
        wrong = wrong or ("" if 0 < state["batch_size"] < LARGEST else "batch_size")
        wrong = wrong or ("" if _are_identities(state["datasets"]) else "datasets")
        texts = all(isinstance(version, str) for version in state["versions"].values())
        wrong = wrong or ("" if texts else "versions")
    if wrong:
        raise UserError(
            f"{where}: is not the state of a run ({wrong}); name another checkpoint, or choose another "
            "logging.folder"
        )


def _is_progress(progress: dict[str, Any]) -> bool:
    """Whether these are fields of a :class:`Progress`: steps are whole numbers, times and sums may not be."""
    kinds = {field.name: field.type for field in dataclasses.fields(Progress)}
    if not progress.keys() <= kinds.keys():
        return False
    return all(
        isinstance(value, int if kinds[key] is int else (int, float))
        and value >= (-1 if key == "best_top_1" else 0)
        and (isinstance(value, float) or value < LARGEST)
        for key, value in progress.items()
    )


def _are_identities(datasets: dict[str, Any]) -> bool:
    """Whether these are :data:`Identities`; of a state of format 0 there are none."""
    kinds = Identity.__annotations__
    return all(
        key in DATASETS
        and isinstance(identity, dict)
        and identity.keys() == kinds.keys()
        and all(isinstance(identity[name], kind) for name, kind in kinds.items())
        for key, identity in datasets.items()
    )


def identities(train_set: Beton, val_set: Beton) -> Identities:
    """What a state says of the datasets that it comes from."""
    return {
        key: dataset.identity._asdict()
        for key, dataset in zip(DATASETS, (train_set, val_set), strict=True)
    }


def notes(where: str, state: versions.State, config: Config, datasets: Identities) -> list[str]:
    """What to tell the user about continuing from a state: other datasets, other versions.

    Args:
        where: the state, for the message.
        state: of a run, as :func:`~ffcv_r50.run.checkpoint.load` returns it.
        config: of this start.
        datasets: what :func:`identities` gives for them.

    Raises:
        UserError: a dataset is another one than the state comes from, and ``resume.allow`` does not
            permit it.
    """
    lines = []
    for key, before in state["datasets"].items():
        if before == datasets[key]:
            continue
        path = getattr(config.data, key.rpartition(".")[2])
        difference = Identity(**before).difference(Identity(**datasets[key]))
        if key not in config.resume.allow.split(","):
            raise UserError(
                f"{key}={path}: is not the dataset of the run in {where} ({difference}); give that "
                f"one to continue, permit this one by --resume.allow={key}, or choose another "
                "logging.folder"
            )
        lines.append(f"{key} ({difference}), as resume.allow permits")
    if changed := versions.changed(state["versions"]):
        lines.append(changed)
    return lines
