"""The page that a recipe is printed as."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from ffcv_r50.config import settings
from ffcv_r50.config.settings import Config, Model
from ffcv_r50.errors import BAD_INPUT, UserError
from ffcv_r50.tools import flops, show_recipe

REPOSITORY = Path(__file__).resolve().parents[2]
STEPS = 7  # an odd number: no step falls on a round fraction of an epoch


def load(name: str, *argv: str) -> Config:
    return settings.load([f"--config={REPOSITORY}/rcp/{name}.yaml", *argv], needs_data=False)


def page_of(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    show_recipe.show([str(REPOSITORY / "rcp/rn50_16ep.yaml"), *argv])
    return capsys.readouterr().out


def squeeze(text: str) -> str:
    return " ".join(text.split())


def test_the_printed_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    page = page_of(capsys, "--world-size", "4")
    text = squeeze(page)
    assert page.startswith("ResNet-50 on ImageNet, 16 epochs.\nPublished: 73.8 % top-1, 90.8 %")
    assert "data 1,281,167 images, 1,000 classes (ImageNet's numbers: data.train_dataset" in text
    assert (
        "step 4,096 images = 4 processes x 2 micro-batches x 512 images; batch-norm over 512 "
        "epoch 312 steps, 1,277,952 images; 3,215 images are left out" in text
    )
    rows = [line.split() for line in page.splitlines() if re.match(r" *\d+ +1\d\d ", line)]
    assert [int(row[0]) for row in rows] == list(range(16))
    assert [int(row[1]) for row in rows] == [160] * 12 + [192] * 4
    # The peak of 1.7 falls on the start of epoch 2; the last step of epoch 15 is one short of 0.
    assert rows[0][2] == "0.000170"
    assert rows[2][2] == "1.700000"
    assert rows[15][3] == f"{1.7 / 14 / 312:.6f}"
    assert {(row[4], row[5]) for row in rows} == {("312", "1,277,952")}

    costs = {
        side: sum(flops.count(Model(arch="resnet50", blurpool=True), 1000, side, training=True).values())
        for side in (160, 192)
    }  # fmt: skip
    images = 312 * 4096
    for row in rows:
        assert row[6] == f"{costs[int(row[1])] / 1e9:.3f}"
        assert row[7] == f"{images * costs[int(row[1])] / 1e15:.3f}"
    total = images * (12 * costs[160] + 4 * costs[192]) / 1e15
    assert re.search(rf"all +4,992 +20,447,232 +\d+\.\d+ +{total:.3f}$", page, re.M)

    # Evaluation: 50,000 images and their mirror images after each epoch, forward only.
    forward = flops.count(Model(arch="resnet50", blurpool=True), 1000, 256, training=False)
    evaluation = 16 * 2 * 50_000 * sum(forward.values()) / 1e15
    last = [line.split() for line in page.splitlines() if line.startswith(" all ")][-1]
    assert last[3:] == [f"{evaluation:.3f}", f"{total + evaluation:.3f}", "100.0%"]
    assert [line.split()[0] for line in page.splitlines() if line.endswith("%")][:6] == [
        *("stem", "layer1", "layer2", "layer3", "layer4", "head")
    ]


def test_the_page_is_as_wide_as_it_has_to_be(capsys: pytest.CaptureFixture[str]) -> None:
    lines = page_of(capsys).splitlines()
    assert max(map(len, lines)) <= 100
    assert all(line == line.rstrip() for line in lines)
    many = page_of(capsys, "--schedule.resolution={0: 160, 15.9: 320}")
    assert "…" not in many
    assert "100.0%" in many


def test_the_page_has_a_column_for_each_row_of_the_schedule(
    capsys: pytest.CaptureFixture[str],
) -> None:
    page = page_of(
        capsys,
        "--schedule.lr={0: 0.005, 2: 1.7, 16: cosine 0}",
        "--schedule.momentum={0: 0.95, 2: 0.85}",
        "--schedule.weight_decay={0: 1e-5, 16: step 5e-5}",
        "--samples=40960",
    )
    text = squeeze(page)
    assert "lr {0: 0.005, 2: 1.7, 16: cosine 0} resolution {0: 160," in text
    assert "momentum {0: 0.95, 2: 0.85} weight_decay {0: 1e-05, 16: step 5e-05}" in text
    assert "sgd, momentum as scheduled; weight decay as scheduled not on norms" in text
    assert "label" not in text.partition("epoch px")[2], "a constant"
    rows = [line.split() for line in page.splitlines() if re.match(r" *\d+ +1\d\d ", line)]
    assert rows[0][2:8] == ["0.005000", "0.767750", "0.95", "0.905", "1e-05", "1e-05"]
    assert rows[15][4:8] == ["0.85", "0.85", "1e-05", "1e-05"]
    assert rows[9][2] == "0.850000"


def test_the_page_names_the_optimizer_and_its_options(capsys: pytest.CaptureFixture[str]) -> None:
    text = squeeze(page_of(capsys, "--optimizer.name=adamw", "--optimizer.eps=1e-6"))
    assert "adamw, momentum 0.9, beta2 0.999, eps 1e-06; weight decay 0.0001 not on" in text
    text = squeeze(page_of(capsys, "--optimizer.nesterov=1"))
    assert "sgd, momentum 0.9, nesterov; weight decay 0.0001 not on" in text
    assert "clipping" not in text
    text = squeeze(page_of(capsys, "--clipping.name=agc", "--clipping.at=0.02"))
    assert "clipping agc, at 0.02, eps 0.001 run" in text
    assert "sam rho" not in text
    text = squeeze(page_of(capsys, "--sam.rho=0.05", "--sam.interval=5"))
    assert "sam rho 0.05, interval 5; its second passes are not among the operations" in text


def test_the_page_says_how_the_command_line_changed_the_recipe(
    capsys: pytest.CaptureFixture[str],
) -> None:
    page = page_of(capsys, "--training.batch_size=1024", "--samples=10000")
    assert "(peak 1.7 -> 0.425)" in squeeze(page)
    assert "data 10,000 images, 1,000 classes (--samples; classes as in ImageNet)" in squeeze(page)
    assert "epoch 9 steps, 9,216 images; 784 images are left out" in squeeze(page)


def test_the_page_counts_a_dataset_that_is_there(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("train.beton", "val.beton"):
        (tmp_path / name).touch()

    class Fake:
        num_classes = 3

        def __init__(self, path: Path) -> None:
            self.num_samples = 9000 if path.name == "train.beton" else 77

    monkeypatch.setattr(show_recipe, "Beton", Fake)
    monkeypatch.chdir(tmp_path)  # a long path would be broken over two lines of the page
    data = [f"--data.{split}_dataset={split}.beton" for split in ("train", "val")]
    page = squeeze(page_of(capsys, *data))
    assert "data 9,000 images, 3 classes (counted in train.beton)" in page
    assert "flipped images averaged in; 77 images" in page
    missing = squeeze(page_of(capsys, "--data.train_dataset=nowhere.beton"))
    assert "(ImageNet's numbers: nowhere.beton does not exist)" in missing
    missing = squeeze(page_of(capsys, data[0], "--data.val_dataset=nowhere.beton"))
    assert "images not counted, nowhere.beton does not exist" in missing
    assert "images not counted, data.val_dataset not given" in squeeze(page_of(capsys, data[0]))


def test_the_header_of_a_file_that_an_editor_marked_as_utf8(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    text = (REPOSITORY / "rcp/rn18_16ep.yaml").read_text(encoding="utf-8")
    (tmp_path / "x.yaml").write_text(text, encoding="utf-8-sig")
    show_recipe.show([str(tmp_path / "x.yaml")])
    assert capsys.readouterr().out.startswith("ResNet-18 on ImageNet, 16 epochs.\n")


@pytest.mark.slow
def test_the_program(tmp_path: Path) -> None:
    def run(*argv: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-W", "error", "-m", "ffcv_r50.tools.show_recipe", *argv]
        return subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY)

    good = run("rcp/rn18_16ep.yaml")
    assert (good.returncode, good.stderr) == (0, "")
    assert good.stdout.startswith("ResNet-18 on ImageNet, 16 epochs.\n")
    # Nobody reads: `true` has long ended when the page is printed.
    unread = subprocess.run(
        f"{sys.executable} -m ffcv_r50.tools.show_recipe --help | true",
        shell=True,
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
    )
    assert unread.stderr == ""
    bad = run("rcp/rn18_16ep.yaml", "--training.epoch=3")
    assert (bad.returncode, bad.stdout) == (BAD_INPUT, "")
    assert bad.stderr == (
        "error: command line: --training.epoch is not a setting; did you mean --training.epochs?\n"
    )


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "command line: no recipe; pass one, such as rcp/rn50_16ep.yaml"),
        (["--world-size=two"], "command line: --world_size: expected an integer at least 1 and at most 1000000000000 or null, got 'two'"),
        (["--world-size=0"], "command line: --world_size: expected an integer at least 1 and at most 1000000000000 or null, got 0"),
        (["--config=x.yaml"], f"command line: two recipes, {REPOSITORY}/rcp/rn50_16ep.yaml and x.yaml; pass one"),
        (["--samples=4000"], "training.batch_size: 4096 is more than the 4000 training images; pass a smaller --training.batch_size"),
        (["--world-size=3"], "3 processes for 8 normalisation batches a step (training.batch_size 4096 / training.norm_batch_size 512): they do not divide evenly; start 2 or 4 processes, or pass another --training.norm_batch_size (the run then departs from its recipe)"),
    ],
)  # fmt: skip
def test_errors_come_before_anything_is_printed(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = [str(REPOSITORY / "rcp/rn50_16ep.yaml")] if argv else []
    with pytest.raises(UserError) as caught:
        show_recipe.show([*path, *argv])
    assert str(caught.value) == message
    assert capsys.readouterr().out == ""


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        show_recipe.show(["--help"])
    assert ended.value.code == 0
    page = capsys.readouterr().out
    assert page.startswith("usage: python -m ffcv_r50.tools.show_recipe FILE [--world-size N]")
    assert "--training.batch_size" in page


def test_what_is_chosen_by_name_is_on_the_page(capsys: pytest.CaptureFixture[str]) -> None:
    page = squeeze(page_of(capsys))
    assert "averages" not in page
    page = squeeze(page_of(capsys, "--averages=[{ema: {half_life: 2}}]"))
    assert "averages ema, half life 2.0" in page
    assert "evaluated every" not in page
    page = squeeze(
        page_of(capsys, "--averages=[{ema: {half_life: 2}}]", "--validation.averages_every=4")
    )
    assert "averages ema, half life 2.0; evaluated every 4 epochs" in page


def test_rates_of_parts_are_on_the_page(capsys: pytest.CaptureFixture[str]) -> None:
    rates = ["--training.lr_multipliers={conv1: 0, layer1: {0: 0, 4: 1}}"]
    page = squeeze(page_of(capsys, *rates, "--training.layer_decay=0.9"))
    expected = (
        "rates conv1 x 0; layer1 x {0: 0, 4: 1}; x 0.9 from each of 18 layers to the next lower"
    )
    assert expected in page
    # Also where it starts and ends in each epoch, and what it costs.
    assert page.count("layer1") == 4
    with pytest.raises(UserError, match=r"lr_multipliers: .* no part 'layer5' .* mean layer\d\?"):
        page_of(capsys, "--training.lr_multipliers={layer5: 0}")
