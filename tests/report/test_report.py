"""The report of a run: right numbers, harmless text, one file, and one line where it cannot be made."""

import csv
import html
import importlib.util
import io
import json
import os
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn import metrics

from ffcv_r50.config import settings
from ffcv_r50.data import names
from ffcv_r50.data.beton import Beton
from ffcv_r50.data.loader import TrainLoader
from ffcv_r50.errors import UserError
from ffcv_r50.report import __main__ as report
from ffcv_r50.report import batches, folder, numbers, page, provenance, samples, sets
from tests.conftest import Dataset
from tests.report import runs
from tests.report.runs import Made

NAMES = [
    "amber",
    "$birch_",
    "$cobalt^{$",
    runs.EVIL,
    "ember",
    "fjord",
    "grove",
    "harbor",
    "iris",
    "jade",
]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A run on ten classes, evaluated on another set too."""
    run = runs.make(tmp_path_factory.mktemp("small"), NAMES, per_class=60)
    rows = (
        sets.result("val", "val.beton", 10, 600, 450, 590),
        sets.result(runs.EVIL, "/data/<i>a.beton", 4, 75, 30, 75),
    )
    sets.write(
        sets.Evaluation(weights="run/weights.pt", time="noon", seen="40 px", sets=rows), run.folder
    )
    return run


@pytest.fixture(scope="module")
def text(made: Made) -> str:
    """Its page."""
    return page.render(folder.read(made.folder), price=2.5)


class Reader(HTMLParser):
    """Sees that tags are closed in order; keeps what addresses there are, and the text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.scripts = 0
        self.text: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.scripts += tag == "script"
        self.addresses += [value or "" for key, value in attrs if key in ("src", "href")]
        assert not [key for key, _ in attrs if key.startswith("on")]
        if tag not in ("meta", "img", "link", "input", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Closed in itself, as in drawings."""

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def test_one_file_without_addresses_whose_names_are_text(text: str) -> None:
    read = Reader(text)
    assert read.open == []
    assert read.scripts == 1, "ours"
    assert {address[:5] for address in read.addresses if address[0] != "#"} == {"data:"}
    assert "49" not in [word.strip("'&") for word in read.text if "alert" in word]
    assert runs.EVIL in "".join(read.text)
    assert "<b>7</b>" in "".join(read.text), "a host's name"


def test_the_head(text: str, made: Made) -> None:
    """Top-1 with Wilson's interval, difference to the recipe's published value, price."""
    top_1 = 100 * float((made.classes[:, 0] == made.target).mean())
    low, high = (100 * end for end in numbers.wilson(round(6 * top_1), 600))
    assert f'<dd class="value">{top_1:.2f}<span class="unit"> %</span>' in text
    assert f"95 %: {low:.2f} – {high:.2f}\n{top_1 - 76.1:+.2f} to the published 76.1" in text
    assert "<td>ema</td>" in text
    assert "Every setting that shapes the result is the recipe" in text
    assert "The loader was the limit" in text
    assert '61.3<span class="unit"> GB</span>' in text


def test_the_table_of_classes_is_scikit_learns(made: Made) -> None:
    found = folder.read_predictions(made.folder / "predictions.npz")
    assert found is not None
    expected = metrics.classification_report(
        made.target, made.classes[:, 0], target_names=NAMES, output_dict=True, zero_division=np.nan
    )
    table = samples.classes(found, NAMES)
    assert [row.recall for row in table.rows] == sorted(row.recall for row in table.rows)
    for row in table.rows:
        theirs = expected[row.name]
        assert (row.precision, row.recall, row.f1, row.support) == pytest.approx(
            tuple(theirs[key] for key in ("precision", "recall", "f1-score", "support"))
        )
    matrix = metrics.confusion_matrix(made.target, made.classes[:, 0])
    for row in table.rows:
        errors = {j: matrix[row.number, j] for j in range(10) if j != row.number}
        count = int(re.fullmatch(r".* \((\d+)\)", row.taken_for)[1])  # type: ignore[index]
        assert count == max(errors.values())


def test_the_csv_is_scikit_learns(made: Made, tmp_path: Path) -> None:
    report.main([str(made.folder), "--format=csv", f"--output={tmp_path}"])
    expected = metrics.classification_report(
        made.target, made.classes[:, 0], target_names=NAMES, output_dict=True
    )
    rows = {
        row["name"]: row
        for row in csv.DictReader(io.StringIO((tmp_path / "classes.csv").read_text()))
    }
    for name in [*NAMES, "macro avg", "weighted avg"]:
        for key in ("precision", "recall", "f1-score", "support"):
            assert float(rows[name][key]) == pytest.approx(expected[name][key], abs=1e-6)
    assert float(rows["accuracy"]["recall"]) == pytest.approx(expected["accuracy"], abs=1e-6)
    [head, *body] = csv.reader(io.StringIO((tmp_path / "confusion.csv").read_text()))
    assert head[1:] == [row[0] for row in body] == NAMES
    matrix = metrics.confusion_matrix(made.target, made.classes[:, 0])
    assert (np.array([row[1:] for row in body], int) == matrix).all()


@pytest.mark.slow  # matplotlib
def test_the_pictures(made: Made, tmp_path: Path) -> None:
    report.main([str(made.folder), "--format=png", f"--output={tmp_path}"])
    for name in ("curves.png", "rates.png", "confusion.png"):
        with Image.open(tmp_path / name) as image:
            assert min(image.size) >= 400


def test_settings_that_differ_from_the_recipe_are_named(made: Made, tmp_path: Path) -> None:
    folder_ = shutil.copytree(made.folder, tmp_path / "run")
    config = (folder_ / "config.yaml").read_text()
    config = config.replace("batch_size: 64", "batch_size: 32").replace("0: 1, 12: 0", "0: 1, 6: 0")
    (folder_ / "config.yaml").write_text(config)
    found = provenance.provenance(folder.read(folder_))
    mix = "[{mix: {mixup: 0, cutmix: {0: 1, %d: 0}, switch: 0.5, probability: 1}}]"
    assert found.changes == [("augment", mix % 12, mix % 6), ("training.batch_size", "64", "32")]
    assert provenance.provenance(folder.read(made.folder)).changes == []


def test_the_block_to_paste_holds_the_same_settings(made: Made, tmp_path: Path) -> None:
    run = folder.read(made.folder)
    block = provenance.provenance(run).block
    [recipe] = re.findall(r"<<'END_OF_RECIPE'\n(.*)\nEND_OF_RECIPE\n", block, re.DOTALL)
    path = tmp_path / "again.yaml"
    path.write_text(recipe)
    assert settings.load([f"--config={path}"]) == run.config
    assert "pip install -e . torch==2.15.0" in block
    assert block.endswith(
        "torchrun --nproc_per_node=4 train_imagenet.py --config again.yaml --logging.folder=again"
    )


def test_an_old_run_has_a_report_of_what_it_recorded(made: Made, tmp_path: Path) -> None:
    """Of a version that wrote only these; nor is the dataset there any more."""
    old = tmp_path / "old"
    old.mkdir()
    for name in ("log.jsonl", "status.json"):
        shutil.copy(made.folder / name, old)
    config = (made.folder / "config.yaml").read_text().replace("val.beton", "gone.beton")
    (old / "config.yaml").write_text(config)
    text = page.render(folder.read(old))
    Reader(text)
    contents = re.findall(r'<a href="#(\w+)">', text)
    assert contents == ["course", "speed", "provenance"]
    assert "95 %:" not in text, "of how many images is not known"


def test_a_run_that_is_perfect_or_broken_has_a_page(made: Made, tmp_path: Path) -> None:
    run = folder.read(made.folder)
    assert run.predictions is not None
    perfect = replace(run.predictions, classes=run.predictions.target[:, None].copy())
    perfect = replace(perfect, probabilities=np.ones((600, 1)), loss=np.zeros(600))
    nan_rows = [{**run.rows[0], "val_loss": float("nan"), "train_loss": float("nan"), "top_1": 0.0}]
    for predictions, rows in ((perfect, run.rows), (None, nan_rows)):
        changed = folder.Run(run.path, run.config, rows, [], {}, predictions)
        Reader(page.render(changed))


def test_images_are_left_out_where_the_dataset_is_another_one(made: Made, tmp_path: Path) -> None:
    run = folder.read(made.folder)
    assert run.predictions is not None
    other = replace(run.predictions, target=run.predictions.target[::-1])
    changed = folder.Run(run.path, run.config, run.rows, run.starts, run.status, other)
    text = page.render(changed)
    assert 'id="classes"' in text
    assert "data:image/jpeg" not in text
    assert "class 9" in text, "whose names nobody knows"


def test_likely_label_errors_and_losses_come_first(made: Made) -> None:
    run = folder.read(made.folder)
    assert run.predictions is not None
    galleries = {g.title: g.cards for g in samples.galleries(run, run.predictions, NAMES)}
    losses = [card.loss for card in galleries["Highest losses"]]
    assert losses == sorted(run.predictions.loss, reverse=True)[: samples.SHOWN_IMAGES]
    sure = [card.confidence for card in galleries["Confident errors"]]
    assert sure == sorted(sure, reverse=True)
    assert all(card.target != card.predicted for card in galleries["Confident errors"])
    for card in galleries["Likely label errors"]:
        assert card.target != card.predicted
        assert card.image.startswith("data:image/jpeg")


def test_the_first_and_the_last_batch_are_those_of_the_run(
    dataset: Dataset, tmp_path: Path
) -> None:
    words = dataset.arguments(tmp_path, "--augment=[{mix: {mixup: 5}}]", "--training.epochs=2",
                              "--schedule.lr={0: 1}", "--schedule.resolution={0: 32, 1: 64}")  # fmt: skip
    config = settings.load(words)
    row = {"epoch": 1, "top_1": 50.0, "top_5": 90.0, "val_loss": 1.0}
    first, last = batches.first_and_last(folder.Run(tmp_path, config, [row], [], {}, None))
    assert len(first.cards) == len(last.cards) == batches.SHOWN_IMAGES
    assert (first.note.split()[4:6], last.note.split()[4:6]) == (["at", "32"], ["at", "64"])
    loader = TrainLoader(
        Beton(dataset.train), seed=0, batch_size=32, micro_batch_size=32, crop_scale=(0.3, 1.0)
    )
    for shown, epoch, step in ((first, 0, 0), (last, 1, 1)):
        with loader.epoch(epoch, 32, first_step=step) as loaded:
            labels = next(loaded).labels.tolist()
        for card, label in zip(shown.cards, labels, strict=False):
            assert any(word.split()[-1] == "abc"[label] for word in card.words)
            assert card.image.startswith("data:image/jpeg")
    assert any(len(card.words) == 2 for card in first.cards), "mixed"


def test_training_images_that_stay_wrong_come_first(dataset: Dataset, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    planted = [5, 17, 33]
    (tmp_path / "ledger").mkdir()
    for epoch in range(3):
        loss = rng.uniform(0, 2, 70)
        loss[planted] = 5.0, 4.0, 3.0
        loss[60:] = np.nan if epoch else 0.1  # shown in the first epoch alone
        loss[69] = np.nan  # never
        correct = loss < 1
        np.savez(
            tmp_path / "ledger" / f"epoch_{epoch}.npz",
            loss=loss.astype(np.float16),
            correct=correct,
        )
    run = folder.Run(tmp_path, settings.load(dataset.arguments(tmp_path)), [{}], [], {}, None)
    [shown] = batches.hardest(run)
    labels = ["abc"[label] for label in Beton(dataset.train).labels]
    for place, (sample, mean) in enumerate(zip(planted, ("5.0", "4.0", "3.0"), strict=True)):
        assert shown.cards[place].words == [labels[sample], f"loss {mean}", "right 0 of 3"]
        assert shown.cards[place].image.startswith("data:image/jpeg")
    assert run.ledger
    assert run.ledger.shown.tolist() == [3] * 60 + [1] * 9 + [0]
    assert np.isnan(run.ledger.loss[69])
    smaller = settings.load(dataset._replace(train=dataset.val).arguments(tmp_path))
    assert batches.hardest(replace(run, config=smaller)) == [], "another dataset by now"
    (tmp_path / "ledger" / "epoch_1.npz").write_bytes(b"PK")
    with pytest.raises(UserError, match=r"epoch_1\.npz: cannot be read"):
        batches.hardest(replace(run))


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda run: shutil.rmtree(run), "there is no such folder; give the folder of a run"),
        (lambda run: (run / "config.yaml").unlink(), "holds no run, config.yaml is missing"),
        (lambda run: (run / "log.jsonl").unlink(), "no epoch of this run is done"),
        (
            lambda run: (run / "log.jsonl").write_text("nonsense\n[]\n"),
            "no epoch of this run is done",
        ),
        (
            lambda run: (run / "predictions.npz").write_bytes(b"PK"),
            "predictions.npz: cannot be read",
        ),
        (
            lambda run: np.savez(run / "predictions.npz", index=[1]),
            "predictions.npz: cannot be read",
        ),
        (
            lambda run: np.savez(
                run / "predictions.npz",
                index=[0],
                target=[1],
                loss=[1],
                classes=[[-1]],
                probabilities=[[1]],
            ),
            "predictions.npz: its arrays do not belong together",
        ),
        (lambda run: (run / "config.yaml").write_text("model: [1"), "config.yaml"),
    ],
)
def test_what_cannot_be_reported(made: Made, tmp_path: Path, break_it, message: str) -> None:  # type: ignore[no-untyped-def]
    run = shutil.copytree(made.folder, tmp_path / "run")
    break_it(run)
    with pytest.raises(UserError) as raised:
        report.main([str(run)])
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)
    assert not (run / "report.html").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "no run; pass its folder first"),
        (["{run}", "--format=pdf"], "--format: expected html or png or csv"),
        (["{run}", "--colour=red"], "--colour: there is no such option"),
        (["{run}", "-o", "{run}/config.yaml/x.html"], "cannot be written"),
    ],
)
def test_wrong_commands(made: Made, words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        report.main([word.format(run=made.folder) for word in words])


def test_tables_need_predictions(made: Made, tmp_path: Path) -> None:
    run = shutil.copytree(made.folder, tmp_path / "run")
    (run / "predictions.npz").unlink()
    with pytest.raises(UserError, match=r"has no predictions\.npz"):
        report.main([str(run), "--format=csv"])


def test_the_page_is_written_where_it_is_asked_for(
    made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report.main([str(made.folder), "-o", str(tmp_path / "x.html")])
    assert capsys.readouterr().out.strip() == str(tmp_path / "x.html")
    assert (tmp_path / "x.html").read_text().startswith("<!doctype html>")


def test_evaluation_sets(text: str) -> None:
    section = text.split('<section id="evaluation">')[1].split("</section>")[0]
    cells = re.findall(r"<td[^>]*>(.*?)</td>", section)
    assert cells[:5] == ["val", "600", "10", "75.000", "71.38 to 78.30"]
    assert [html.unescape(cell) for cell in cells[7:11]] == [runs.EVIL, "75", "4", "40.000"]
    assert '<a href="#evaluation">Evaluation sets</a>' in text
    assert "run/weights.pt" in section


def test_imagenets_classes_have_words() -> None:
    timm = importlib.util.find_spec("timm")  # not imported, which takes seconds
    assert timm
    assert timm.origin
    info = Path(timm.origin).parent / "data" / "_info"
    wnids = (info / "imagenet_synsets.txt").read_text().split()
    lemmas = dict(
        line.split("\t")
        for line in (info / "imagenet_synset_to_lemma.txt").read_text().splitlines()
    )
    found = names.of_classes(wnids, {})
    same = [word in lemmas[wnid] for wnid, word in zip(wnids, found, strict=True)]
    assert sum(same) > 900
    assert (found[0], found[999]) == ("tench", "toilet tissue")
    assert names.of_classes(wnids[::-1], {}) == wnids[::-1], (
        "in another order they are other classes"
    )
    assert names.of_classes(["cat", "dog"], {}) == ["cat", "dog"]


def test_what_a_folder_says_is_never_more_than_words(made: Made, tmp_path: Path) -> None:
    """Of versions, which the block for a shell quotes, and of rows of the log."""
    run = shutil.copytree(made.folder, tmp_path / "run")
    evil = {"ffcv_r50": "0\ntouch pwned", "torch": "1'; touch pwned #", "python": ["\x1b[2J"]}
    starts = [{"versions": evil, "command": "no list", "world_size": "2"}, 7, {"host": {}}]
    starts.append({"versions": evil, "world_size": -1, "command": [{}, "a\nb"], "device": 3})
    (run / "environment.json").write_text(json.dumps(starts))
    row = json.loads((run / "log.jsonl").read_text().splitlines()[0])
    junk = [{"epoch": 0}, {"epoch": "1", "top_1": 2.0}, {"epoch": 10**30, "top_1": 2.0}, row, row]
    junk += [row | {"epoch": 1, "lr": "x", "val_loss": [], "gpu_clock_mhz": 10**400}]
    (run / "log.jsonl").write_text("".join(f"{json.dumps(one)}\n" for one in junk))
    found = folder.read(run)
    assert [one["epoch"] for one in found.rows] == [0, 1]
    assert "lr" not in found.last
    page.render(found)
    block = provenance.provenance(found).block
    assert "# in a checkout of ffcv_r50 0 touch pwned, Python ['\\x1b[2J']\n" in block
    (tmp_path / "bin").mkdir()
    for name in ("pip", "python", "torchrun"):
        (tmp_path / "bin" / name).write_text("#!/bin/sh\n")
        (tmp_path / "bin" / name).chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    subprocess.run(["bash", "-c", block], cwd=tmp_path, env=environment, check=True, timeout=60)
    assert not (tmp_path / "pwned").exists()
