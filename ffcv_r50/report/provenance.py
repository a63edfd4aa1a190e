"""Where a result comes from, and what makes it again."""

import hashlib
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from ffcv_r50.config.settings import Config
from ffcv_r50.data.beton import Beton
from ffcv_r50.report.folder import Run
from ffcv_r50.run import compatibility

LIBRARIES = ("torch", "torchvision", "numpy", "numba")
END = "END_OF_RECIPE"


class Change(NamedTuple):
    """A setting that is not the recipe file's."""

    key: str
    recipe: str
    run: str


class Start(NamedTuple):
    """A start of the run."""

    time: str
    where: str
    command: str


class Provenance(NamedTuple):
    """All of it."""

    recipe: str
    """The file it is compared with; empty where there is none any more."""
    changes: list[Change]
    versions: list[tuple[str, str]]
    files: list[tuple[str, str, str]]
    """What, where, and a hash."""
    starts: list[Start]
    block: str
    """To paste into a shell."""


def provenance(run: Run) -> Provenance:
    """Of a run, as far as its folder tells."""
    config, versions = run.config, dict(run.starts[-1].get("versions", {})) if run.starts else {}
    changes = []
    if run.recipe:
        recipe = run.recipe.config
        changes = [
            Change(key, _written(recipe, key), _written(config, key))
            for key in compatibility.differences(recipe, config)
        ]
    files = [
        *_dataset("training set", config.data.train_dataset, run.train_set),
        *_dataset("validation set", config.data.val_dataset, run.val_set),
        *(("weights", str(path), _sha256(path)) for path in sorted(run.path.glob("weights*.pt"))),
    ]
    if run.recipe:
        files.append(("recipe", str(run.recipe.path), _sha256(run.recipe.path)))
    return Provenance(
        run.recipe.path.name if run.recipe else "",
        changes,
        [(name, version or "none") for name, version in versions.items()],
        files,
        [_start(start) for start in run.starts],
        _block(run, versions),
    )


def _written(config: Config, key: str) -> str:
    """A setting as a recipe writes it."""
    value = yaml.safe_load(config.to_yaml())
    for name in key.split("."):
        value = value[name]
    text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10_000)
    return text.removesuffix("\n").removesuffix("\n...")


def _dataset(what: str, path: str, dataset: Beton | None) -> list[tuple[str, str, str]]:
    if dataset is None:
        return [(what, path, "no longer there")] if path else []
    return [(what, path, f"{dataset.num_samples:,} samples, BLAKE2b {dataset.identity.content}")]


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            while piece := file.read(1 << 20):
                digest.update(piece)
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    return f"SHA-256 {digest.hexdigest()}"


def _start(start: dict[str, Any]) -> Start:
    where = f"{start.get('world_size', '?')} × {start.get('device', '?')}, {start.get('host', '?')}"
    return Start(str(start.get("time", "")), where, _command(start))


def _command(start: dict[str, Any]) -> str:
    words: Sequence[Any] = start.get("command", [])
    return shlex.join([*_launcher(start), *map(str, words)])


def _launcher(start: dict[str, Any]) -> list[str]:
    size = start.get("world_size", 1)
    return ["python"] if size == 1 else ["torchrun", f"--nproc_per_node={size}"]


def _block(run: Run, versions: dict[str, str]) -> str:
    """Installs the versions, writes the settings, and starts."""
    last = run.starts[-1] if run.starts else {}
    # A local version (2.15.0+cu132) is one of a build that an index may not have.
    pins = [
        f"{name}=={versions[name].partition('+')[0]}" for name in LIBRARIES if versions.get(name)
    ]
    lines = []
    if versions:
        ours = f"ffcv_r50 {versions.get('ffcv_r50', '?')}, Python {versions.get('python', '?')}"
        lines = [f"# in a checkout of {ours}", f"pip install -e . {shlex.join(pins)}"]
    start = [
        *_launcher(last),
        "train_imagenet.py",
        "--config",
        "again.yaml",
        "--logging.folder=again",
    ]
    return "\n".join(
        [
            *lines,
            f"cat > again.yaml <<'{END}'",
            run.config.to_yaml().rstrip(),
            END,
            shlex.join(start),
        ]
    )
