"""What wnids mean: from the dataset's files into the sidecar, and from there to people."""

import json
from pathlib import Path

import pytest

from ffcv_r50.data import beton, names
from ffcv_r50.data.beton import Sidecar
from ffcv_r50.errors import UserError
from tests.writers import source_formats as made
from tests.writers.serial import in_this_process
from tests.writers.source_formats import TRAIN, VAL, WNIDS
from writers import merge, pool, writing
from writers.config import Writing

MEANING = {wnid: f"thing {i}, res {i}" for i, wnid in enumerate(WNIDS)}
OTHERS = {"n00000001": "not a class here"}


def mapping(sign: str) -> str:
    lines = [f"{wnid}{sign}{words}" for wnid, words in (OTHERS | MEANING).items()]
    return "\n".join([*lines, "what is no wnid"]) + "\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(pool, "ordered_map", in_this_process)
    path = tmp_path / "data"
    path.mkdir()
    return path


def written(data_dir: Path, split: str = "train", name: str = "x", **more: str) -> Sidecar:
    path = data_dir.parent / f"{name}.beton"
    settings = {"data_dir": str(data_dir), "split": split, "write_path": str(path), **more}
    writing.write(Writing(**settings), 1 << 21)  # type: ignore[arg-type]
    sidecar = Sidecar.read(path)
    assert sidecar is not None
    return sidecar


def test_kaggles_table(folder: Path) -> None:
    made.kaggle_train(folder, TRAIN)
    (folder / "LOC_synset_mapping.txt").write_text(mapping(" "))
    assert written(folder).words == MEANING


@pytest.mark.parametrize("within", ["", "train"])
def test_wordnets_table_beside_class_folders(within: str, folder: Path) -> None:
    made.tree(folder / "train", TRAIN)
    (folder / "words.txt").write_text(mapping("\t"))
    sidecar = written(folder / within)
    assert sidecar.words == MEANING
    assert sidecar.names == [f"thing {i}" for i in range(len(WNIDS))]


def test_the_devkit(folder: Path) -> None:
    made.ilsvrc_val(folder, VAL)
    assert written(folder, "val").words == dict.fromkeys(WNIDS, "a word")


def test_a_dataset_that_says_nothing_has_the_sidecar_of_before(folder: Path) -> None:
    made.tree(folder / "train", TRAIN)
    assert written(folder).words == {}
    assert "words" not in json.loads((folder.parent / "x.beton.json").read_text())


def test_parts_that_are_joined_keep_them(folder: Path) -> None:
    made.tree(folder, TRAIN)
    (folder.parent / "words.txt").write_text(mapping("\t"))
    for number in (1, 2):
        written(folder, name=f"{number}", shard=f"{number}/2")
    merge.main([str(folder.parent / f"{name}.beton") for name in ("whole", "1", "2")])
    whole = Sidecar.read(folder.parent / "whole.beton")
    assert whole is not None
    assert whole.words == MEANING


def test_what_is_shown() -> None:
    words = {"n1": "crane", "n2": "crane, derrick", "n3": "tench, Tinca tinca", "n9": "other"}
    stored = ["n1", "n2", "n3", "no wnid, with a comma", "n4"]
    assert names.of_classes(stored, words) == [
        *("crane (n1)", "crane, derrick (n2)", "tench", "no wnid, with a comma", "n4")
    ]


def test_words_that_are_none_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.beton"
    for words in (["a"], {"n1": 1}):
        sidecar = {"classes": ["n1"], "num_samples": 1, "class_counts": [1], "words": words}
        beton.sidecar_path(path).write_text(json.dumps(sidecar))
        with pytest.raises(UserError, match="its words ha"):
            Sidecar.read(path)
