"""A run knows its datasets: copies are the same, another file under the same path is not."""

import functools
import os
import shutil
import signal
import socket
from pathlib import Path

import numpy as np
import pytest

from benchmarks.beton_parts import parts
from ffcv_r50.data.beton import Beton
from ffcv_r50.errors import BAD_INPUT, FINISHED, STOPPED_AS_ASKED
from tests import ranks
from tests.conftest import Dataset


def change(path: Path, what: str) -> None:
    """Make another dataset, valid too, of the file: in one sample, and not in its pixels."""
    content = bytearray(path.read_bytes())
    _, _, metadata, table = parts(content)
    image, label = metadata["f0"], metadata["f1"]
    jpeg = int(np.argmax(image["mode"] == 0))
    block = table["ptr"] == image["data_ptr"][jpeg]
    if what == "label":
        label[0] = (label[0] + 1) % 3
    elif what == "height":
        image["height"][jpeg] += 1
    elif what == "size":
        table["size"][block] -= 1
    elif what == "position":
        table["ptr"][block] += 1
        image["data_ptr"][jpeg] += 1
    path.write_bytes(content)


def test_a_copy_is_the_same_dataset(dataset: Dataset, tmp_path: Path) -> None:
    copy = tmp_path / "copy.beton"
    shutil.copy(dataset.train, copy)
    shutil.copy(f"{dataset.train}.json", f"{copy}.json")
    assert Beton(copy).identity == Beton(dataset.train).identity
    assert Beton(copy).identity[:2] == (70, 3)


@pytest.mark.parametrize("what", ["label", "height", "size", "position"])
def test_all_but_the_pixels_tells_datasets_apart(
    dataset: Dataset, tmp_path: Path, what: str
) -> None:
    other = tmp_path / "other.beton"
    shutil.copy(dataset.train, other)
    assert Beton(other).identity.content == Beton(dataset.train).identity.content
    change(other, what)
    assert Beton(other).identity.content != Beton(dataset.train).identity.content


# ------------------------------------------------------------------------------------- whole runs


@pytest.fixture(scope="module")
def stopped(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was stopped after three of its first epoch's four steps."""
    folder = tmp_path_factory.mktemp("stopped")
    ended = ranks.run(
        ranks.arguments(dataset, folder / "run"),
        folder,
        ranks=1,
        hook=ranks.at_step(0, signal.SIGTERM),
    )
    assert ended.codes == [STOPPED_AS_ASKED], ended.outputs
    return folder / "run"


@pytest.fixture
def copied(stopped: Path, dataset: Dataset, tmp_path: Path) -> tuple[Dataset, Path]:
    """The stopped run, and copies of its datasets in another place."""
    shutil.copytree(stopped, tmp_path / "run")
    files = {}
    for path in (dataset.train, dataset.val):
        files[path] = Path(shutil.copy(path, tmp_path))
        shutil.copy(f"{path}.json", tmp_path)
    return Dataset(files[dataset.train], files[dataset.val], dataset.recipe), tmp_path / "run"


def replace(path: Path, by: Path) -> None:
    """Another dataset under the same path."""
    for ending in ("", ".json"):
        shutil.copy(f"{by}{ending}", f"{path}{ending}")


@pytest.mark.slow
def test_a_dataset_may_move_and_be_staged(copied: tuple[Dataset, Path], tmp_path: Path) -> None:
    moved, run = copied
    arguments = ranks.arguments(moved, run, f"--data.stage_dir={tmp_path / 'disk'}")
    ended = ranks.run(arguments, tmp_path, ranks=1)
    assert ended.codes == [FINISHED], ended.outputs
    assert "continuing after epoch 0 of 3 and 3 of 4 steps" in ended.outputs[0]
    assert "resume.allow" not in ended.outputs[0]


@pytest.mark.slow
def test_another_file_under_the_same_path_is_refused(
    copied: tuple[Dataset, Path], tmp_path: Path
) -> None:
    moved, run = copied
    before = (run / "config.yaml").read_bytes()
    change(moved.train, "label")
    ended = ranks.run(ranks.arguments(moved, run), tmp_path, ranks=1)
    assert ended.codes == [BAD_INPUT], ended.outputs
    assert (
        f"error: data.train_dataset={moved.train}: is not the dataset of the run in {run} (other "
        "content); give that one to continue, permit this one by --resume.allow=data.train_dataset, "
        "or choose another logging.folder\n"
    ) in ended.outputs[0]
    assert (run / "config.yaml").read_bytes() == before


@pytest.mark.slow
def test_another_dataset_may_be_permitted_and_is_the_runs_from_then_on(
    copied: tuple[Dataset, Path], tmp_path: Path
) -> None:
    moved, run = copied
    val = Path(shutil.copy(moved.val, tmp_path / "kept.beton"))
    shutil.copy(f"{moved.val}.json", f"{val}.json")
    replace(moved.val, by=moved.train)
    arguments = ranks.arguments(moved, run)
    refused = ranks.run(arguments, tmp_path, ranks=1)
    assert refused.codes == [BAD_INPUT], refused.outputs
    assert "(samples 29 -> 70)" in refused.outputs[0]
    permitted = ranks.run([*arguments, "--resume.allow=data.val_dataset"], tmp_path, ranks=1)
    assert permitted.codes == [FINISHED], permitted.outputs
    assert (
        "note: data.val_dataset (samples 29 -> 70), as resume.allow permits" in permitted.outputs[0]
    )
    assert ranks.run(arguments, tmp_path, ranks=1).codes == [FINISHED]
    replace(moved.val, by=val)
    refused = ranks.run(arguments, tmp_path, ranks=1)
    assert refused.codes == [BAD_INPUT], refused.outputs
    assert "(samples 70 -> 29)" in refused.outputs[0]


@pytest.mark.slow
def test_a_step_that_the_new_dataset_does_not_have(
    copied: tuple[Dataset, Path], tmp_path: Path
) -> None:
    """Three steps of an epoch are done, and an epoch of the new dataset has one."""
    moved, run = copied
    replace(moved.train, by=moved.val)
    arguments = ranks.arguments(moved, run)
    refused = ranks.run(arguments, tmp_path, ranks=1)
    assert refused.codes == [BAD_INPUT], refused.outputs
    assert "is not the dataset of the run in" in refused.outputs[0]
    assert "(samples 70 -> 29)" in refused.outputs[0]
    outside = ranks.run([*arguments, "--resume.allow=data.train_dataset"], tmp_path, ranks=1)
    assert outside.codes == [BAD_INPUT], outside.outputs
    assert (
        f"error: data.train_dataset={moved.train}: has 1 steps an epoch, the saved state is from "
        "after step 3 of one; continue with the dataset of before to the end of that epoch\n"
    ) in outside.outputs[0]


def test_a_named_state_knows_its_datasets_too(copied: tuple[Dataset, Path], tmp_path: Path) -> None:
    moved, run = copied
    change(moved.train, "label")
    source = run / "checkpoints" / "last.pt"
    arguments = ranks.arguments(moved, tmp_path / "new", f"--resume={source}")
    refused = ranks.run(arguments, tmp_path, ranks=1)
    assert refused.codes == [BAD_INPUT], refused.outputs
    assert f"is not the dataset of the run in {source} (other content)" in refused.outputs[0]


def test_a_named_states_permitted_changes_are_said(
    copied: tuple[Dataset, Path], tmp_path: Path
) -> None:
    moved, run = copied
    source = f"--resume={run / 'checkpoints' / 'last.pt'}"
    allow = ("--training.momentum=0.5", "--resume.allow=training.momentum")
    ended = ranks.run(ranks.arguments(moved, tmp_path / "new", source, *allow), tmp_path, ranks=1)
    assert ended.codes == [FINISHED], ended.outputs
    assert "note: training.momentum (0.9 -> 0.5), as resume.allow permits" in ended.outputs[0]


def on_its_own_node(folders: list[Path]) -> None:
    """Make this rank the only one of its node, whose relative paths lie in a folder of its own."""
    os.chdir(folders[int(os.environ["RANK"])])
    os.environ |= {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}


@pytest.mark.slow
def test_nodes_with_other_files_under_one_path_are_refused(
    dataset: Dataset, tmp_path: Path
) -> None:
    folders = [tmp_path / f"node{rank}" for rank in range(4)]
    for folder in folders:
        folder.mkdir()
        for file in (dataset.train, dataset.val):
            for ending in ("", ".json"):
                shutil.copy(f"{file}{ending}", folder)
    here = Dataset(Path(dataset.train.name), Path(dataset.val.name), dataset.recipe)
    change(folders[2] / dataset.train.name, "label")
    ended = ranks.run(
        ranks.arguments(here, tmp_path / "run"),
        tmp_path,
        ranks=4,
        hook=functools.partial(on_its_own_node, folders),
    )
    assert ended.codes == [BAD_INPUT] * 4, ended.outputs
    assert (
        f"error: rank 2: {dataset.train.name}: is another dataset on {socket.gethostname()} than on "
        "rank 0's node (other content); copy it again\n"
    ) in ended.outputs[0]
    assert not (tmp_path / "run").exists()
