"""The learning-rate finder: its suggestion on known curves, the program, and a run that it starts."""

import functools
import math
import random
import re
import warnings
from pathlib import Path

import pytest
import yaml
from PIL import Image

from ffcv_r50.errors import UserError, exit_with
from ffcv_r50.keyframes import Keyframes
from ffcv_r50.tools import find_lr
from ffcv_r50.tools.find_lr import Tried, suggestion, with_peak
from tests import ranks
from tests.conftest import Dataset

# ------------------------------------------------------------------------------------ the suggestion


def curve(falls: float, rises: float, steps: int = 200, noise: float = 0.0) -> list[Tried]:
    """A loss that falls from 7 to 1 around one rate, and is 2.5 and rising at another."""
    draw = random.Random(0)
    tried = []
    for i in range(steps):
        rate = 1e-5 * 1e7 ** (i / (steps - 1))
        loss = 1 + 6 / (1 + (rate / falls) ** 2) + 1.5 * (rate / rises) ** 2
        tried.append(Tried(rate, loss + draw.gauss(0, noise)))
        if loss > 14:
            break
    return tried


@pytest.mark.parametrize("rises", [0.01, 0.3, 5.0])
@pytest.mark.parametrize("ratio", [0.003, 0.1])
@pytest.mark.parametrize("steps", [100, 200, 1000])
def test_it_is_the_middle_of_the_rates_that_train(rises: float, ratio: float, steps: int) -> None:
    first, last = rises * ratio, rises * math.sqrt(3 / 1.5)  # where 3 of the fall by 6 are left
    tried = curve(first, rises, steps)
    assert suggestion(tried) == pytest.approx(math.sqrt(first * last), rel=0.15)


def test_a_hump_between_them_does_not_split_them() -> None:
    """ResNets' losses often rise once, before the network has found flatter ground, and fall again."""
    plain = curve(0.003, 0.3)
    humped = [each._replace(loss=8.0) if 0.05 < each.rate < 0.1 else each for each in plain]
    assert suggestion(humped) == suggestion(plain)


def test_noise_and_single_bad_batches_move_it_little() -> None:
    plain = suggestion(curve(0.003, 0.3))
    noisy = curve(0.003, 0.3, noise=0.2)
    assert suggestion(noisy) == pytest.approx(plain, rel=0.3)
    for i in range(0, len(noisy), 25):
        noisy[i] = noisy[i]._replace(loss=40.0)
    assert suggestion(noisy) == pytest.approx(plain, rel=0.3)


def test_a_loss_that_is_not_finite_ends_the_good_rates() -> None:
    tried = [each for each in curve(0.01, 1e9) if each.rate < 1]
    assert suggestion([*tried, Tried(1, math.nan)]) == pytest.approx(0.1, rel=0.15)


@pytest.mark.parametrize(
    "tried",
    [
        [],
        [Tried(0.1, math.nan)],
        [
            Tried(each.rate, 7 + random.Random(i).gauss(0, 0.1))
            for i, each in enumerate(curve(1, 9))
        ],
        [Tried(rate, rate) for rate in range(1, 51)],
    ],
    ids=["nothing", "not a number", "noise", "rising"],
)
def test_where_nothing_falls_there_is_none(tried: list[Tried]) -> None:
    with pytest.raises(UserError, match="the loss fell at no rate; pass another --lowest"):
        suggestion(tried)


def test_where_nothing_rises_there_is_none() -> None:
    with pytest.raises(UserError, match=r"still low at the highest rate, 0\.0\d+; pass a larger"):
        suggestion(curve(100, 300)[:100])
    with pytest.raises(UserError, match=r"still low at the highest rate, 100; pass a larger --hi"):
        suggestion(curve(0.01, 1e9))


def test_a_schedule_keeps_its_shape() -> None:
    lr = Keyframes({0: 0.01, 2: 0.05, 6: "cosine 0.001", 8: 0})
    found = with_peak(lr, 0.2)
    assert found.to_yaml() == {0: 0.04, 2: 0.2, 6: "cosine 0.004", 8: 0}
    stepped = Keyframes({0: 0.3, 30: 0.1}, "step")
    assert with_peak(stepped, 0.1).to_yaml() == {0: 0.1, 30: 0.03333, "interpolation": "step"}


# --------------------------------------------------------------------------------------- the program


def words(dataset: Dataset, *more: str) -> list[str]:
    """A small network, and rates from where it trains to where it breaks."""
    return [
        f"--config={dataset.recipe}",
        f"--data.train_dataset={dataset.train}",
        "--model.arch=mobilenet_v3_small",
        "--model.zero_init_residual=0",
        "--training.batch_size=16",
        "--schedule.lr={0: 0.01, 1: cosine 0.1, 2: 0}",
        "--schedule.resolution={0: 32}",
        "--training.epochs=2",
        "--steps=50",
        "--lowest=1e-4",
        "--highest=1000",
        *more,
    ]


def program(arguments: list[str]) -> None:
    warnings.simplefilter("error")
    exit_with(lambda: find_lr.find(arguments), together=True)


def run_program(arguments: list[str], folder: Path, count: int = 2) -> str:
    """By so many ranks; what rank 0 printed."""
    run = functools.partial(program, arguments)
    return ranks.run_program(run, folder, ranks=count, seconds=150)[0]


@pytest.mark.slow
def test_it_prints_and_draws_and_leaves_no_run(dataset: Dataset, tmp_path: Path) -> None:
    output, folder = tmp_path / "lr.png", tmp_path / "run"
    arguments = words(dataset, f"--output={output}", f"--logging.folder={folder}")
    printed = run_program(arguments, tmp_path, count=1)
    found = re.search(r"Suggested peak: ([\d.e-]+)\. For .*recipe\.yaml at batch 16:\n", printed)
    assert found, printed
    row = re.search(r"\nschedule:\n  lr: (\{0: .*, 1: cosine .*, 2: 0\})\n", printed)
    assert row, printed
    table = yaml.safe_load(row[1])
    assert float(table[1].split()[1]) == pytest.approx(float(found[1]))
    assert table[0] == pytest.approx(float(found[1]) / 10, rel=1e-3)
    assert printed.count("<- suggested") == 1
    with Image.open(output) as picture:
        assert picture.size == (1050, 600)
    assert {path.name for path in tmp_path.iterdir()} == {"lr.png", "output-0"}


@pytest.mark.slow
def test_the_run_it_starts_is_one_that_nothing_was_tried_before(
    dataset: Dataset, tmp_path: Path
) -> None:
    """To the bit; and the same command continues it."""
    val = f"--data.val_dataset={dataset.val}"
    applied = words(
        dataset, val, "--output=null", "--apply", f"--logging.folder={tmp_path / 'applied'}"
    )
    printed = run_program(applied, tmp_path)
    found = re.search(r"Suggested peak: ([\d.e-]+)\.", printed)
    assert found, printed
    assert "finished: top-1" in printed
    settings = tmp_path / "applied" / "config.yaml"
    lr = yaml.safe_load(settings.read_text())["schedule"]["lr"]
    assert float(lr[1].split()[1]) == pytest.approx(float(found[1]))
    plain = [f"--config={settings}", f"--logging.folder={tmp_path / 'plain'}"]
    ended = ranks.run(plain, tmp_path / "outputs", ranks=2)
    assert ended.codes == [0, 0], ended.outputs
    ranks.assert_same_run(tmp_path / "applied", tmp_path / "plain")
    again = run_program(applied, tmp_path)
    assert "holds a run; it continues with the rates it has" in again
    assert "Suggested" not in again


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("--lowest=2000", "command line: --lowest=2000 is not below --highest=1000"),
        ("--steps=3", "command line: --steps: expected an integer at least 50"),
        ("--apply", "data.val_dataset, logging.folder are missing"),
        ("--data.train_dataset=", "data.train_dataset is missing; pass --data.train_dataset=PATH"),
        ("--output=lr.txt", "--output=lr.txt: give it the name of an image, such as .png"),
        ("--output=nowhere/lr.png", "--output=nowhere/lr.png: there is no folder nowhere"),
    ],
)
def test_what_cannot_be_tried(dataset: Dataset, word: str, message: str) -> None:
    given = [each for each in words(dataset) if each.partition("=")[0] != word.partition("=")[0]]
    with pytest.raises(UserError) as raised:
        find_lr.find([*given, word])
    assert message in str(raised.value)
