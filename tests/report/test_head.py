"""What a report says first: costs, and the verdict that follows from the numbers."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ffcv_r50.config import settings
from ffcv_r50.report import course, folder, head
from ffcv_r50.report.folder import Run
from tests.report import runs

EPOCHS = 12


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run on ten classes with 600 validation images: 8 GPUs, from epoch 5 on 4."""
    names = [f"kind {i}" for i in range(10)]
    base = tmp_path_factory.mktemp("head")
    return folder.read(runs.make(base, names, per_class=60, epochs=EPOCHS).folder)


def changed(run: Run, **columns: Any) -> Run:
    """With other values in the log: one for all epochs, or one each."""
    values = {key: np.broadcast_to(value, EPOCHS).tolist() for key, value in columns.items()}
    rows = [row | {key: values[key][i] for key in values} for i, row in enumerate(run.rows)]
    return replace(run, rows=rows)


def titles(run: Run) -> list[str]:
    return [finding.title for finding in head.head(run, None).findings]


def tile(run: Run, label: str, price: float | None = None) -> head.Tile | None:
    return next((t for t in head.head(run, price).tiles if t.label == label), None)


def test_gpu_hours_follow_the_number_of_gpus(made: Run) -> None:
    seconds = made.column("epoch_seconds") + made.column("eval_seconds")
    hours = (8 * seconds[:4].sum() + 4 * seconds[4:].sum()) / 3600
    found = tile(made, "GPU-hours")
    assert found
    assert float(found.value) == pytest.approx(hours, rel=1e-3)
    assert found.detail == "on 8 then 4 GPUs"
    price = tile(made, "price", 2.5)
    assert price
    assert float(price.value) == pytest.approx(2.5 * hours, abs=0.005)
    assert [mark.text for mark in course.marks(made)] == ["restarted in epoch 5, 8 -> 4 processes"]
    assert course.marks(made)[0].epoch == 4


def test_gpu_hours_that_nobody_knows_are_left_out(made: Run) -> None:
    older = changed(made, start_seconds=None)
    assert tile(older, "GPU-hours") is None
    assert course.marks(older) == []
    assert tile(replace(older, starts=made.starts[:1]), "GPU-hours")
    on_cpus = replace(made, starts=[{"world_size": 2, "device": "cpu"}])
    assert tile(on_cpus, "GPU-hours") is None


def test_the_limit_is_what_the_training_waited_for(made: Run) -> None:
    def limit(run: Run) -> str:
        found = [title for title in titles(run) if "was the limit" in title]
        assert len(found) == 1
        return found[0]

    sizes = [128] * 6 + [192] * 6
    starved = changed(
        made, data_wait_fraction=[0.4] * 6 + [0.2] * 6, epoch_seconds=10.0, resolution=sizes
    )
    assert limit(starved).startswith("The loader was the limit: 29 %")
    assert limit(starved).endswith("most at 128 px (40 %)")
    fed = changed(made, data_wait_fraction=0.004, resolution=160)
    assert limit(fed) == "Computation was the limit: 0.4 % of the training waited for data"
    cold = changed(
        made, data_wait_fraction=[0.9, *[0.01] * 11], epoch_seconds=[999.0, *[10.0] * 11]
    )
    assert limit(cold).startswith("Computation was the limit: 1.0 %")
    [text] = [f.text for f in head.head(cold, None).findings if "limit" in f.title]
    assert "The first epoch, not counted here, waited 90 % of its time." in text


def test_what_else_stands_in_the_verdict(made: Run) -> None:
    plain = changed(made, top_1=70.0, ema_top_1=70.1, eval_seconds=1.0)
    assert len(titles(plain)) == 2, "compared with the published result, and the limit"
    slow = changed(plain, eval_seconds=30.0)
    assert any(title.startswith("Evaluation took 2") for title in titles(slow))
    # 600 images at 70 %: 95 % reach to 73.5.
    peak = changed(plain, top_1=[70.0] * 6 + [75.0] + [70.0] * 5)
    assert "Epoch 7 was better by 5.00 points" in titles(peak)
    noise = changed(plain, top_1=[70.0] * 6 + [72.0] + [70.0] * 5)
    assert titles(noise) == titles(plain)
    averaged = changed(plain, ema_top_1=76.0)
    assert "ema is better by 6.00 points" in titles(averaged)


@pytest.mark.parametrize(
    ("top_1", "title"),
    [
        (74.0, "As published"),
        (81.0, "4.90 points above the published result"),
        (60.0, "16.10 points below the published result"),
    ],
)
def test_it_is_compared_with_the_published_result(made: Run, top_1: float, title: str) -> None:
    """76.1 %, of which 600 images tell no difference of 2 points."""
    assert titles(changed(made, top_1=top_1))[0] == title


def test_a_run_under_way_is_not_compared(made: Run) -> None:
    early = replace(made, rows=made.rows[:5], status={"state": "running"})
    assert not any("published" in title for title in titles(early))
    assert "5 of 12 epochs" in head.head(early, None).about
    assert head.head(early, None).state == "running"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("# Published: 78.4 % top-1, 94.1 % top-5, 77 minutes.", {"top_1": 78.4, "top_5": 94.1}),
        ("# Published: 78.43 +- 0.11 % top-1 (8 GPUs).", {"top_1": 78.43}),
        ("# Published: up to 78.1 % top-1 (no top-5).", {"top_1": 78.1}),
        ("# Published: about 76.3 % top-1", {"top_1": 76.3}),
        ("# Nothing was.", {}),
    ],
)
def test_the_headers_of_recipes_are_read(
    made: Run, tmp_path: Path, text: str, expected: dict[str, float]
) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(f"{text}\n{made.config.to_yaml()}")
    starts = [{"command": ["train_imagenet.py", f"--config={path}"]}]
    found = replace(made, starts=starts).recipe
    assert found
    assert found.published == expected
    assert found.config == settings.load([f"--config={path}"])


def test_every_recipe_with_a_published_result_is_understood() -> None:
    for path in sorted(folder.RECIPES.glob("*.yaml")):
        text = path.read_text()
        assert bool(folder.PUBLISHED.search(text)) == ("# Published: " in text), path


def test_the_line_of_an_average_goes_through_the_epochs_that_have_it(made: Run) -> None:
    """Which is evaluated every few epochs; the newest row of a run under way may have none."""
    rows = [
        {key: value for key, value in row.items() if (i + 1) % 5 == 0 or not key.startswith("ema")}
        for i, row in enumerate(made.rows)
    ]
    run = replace(made, rows=rows)
    lines = [line for panel in course.curve_panels(run) for line in panel.series]
    found = {line.label: line for line in lines if line.label.startswith("ema")}
    assert found.keys() == {"ema", "ema top-1"}
    for label, key in (("ema", "ema_val_loss"), ("ema top-1", "ema_top_1")):
        assert np.array_equal(found[label].x, [5, 10])
        assert np.array_equal(found[label].y, made.column(key)[[4, 9]])
    assert run.networks == ["network"]
    assert course.curves(run)
