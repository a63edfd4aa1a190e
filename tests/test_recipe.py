"""Recipes over time: learning rate and resolution, shared steps, the printed table, operations."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from torch import nn

from ffcv_r50 import config, flops, recipe
from ffcv_r50.config import Config, Model
from ffcv_r50.errors import BAD_INPUT, UserError
from ffcv_r50.keyframes import Keyframes

REPOSITORY = Path(__file__).resolve().parents[1]
STEPS = 7  # an odd number: no step falls on a round fraction of an epoch


def load(name: str, *argv: str) -> Config:
    return config.load([f"--config={REPOSITORY}/rcp/{name}.yaml", *argv], needs_data=False)


# --------------------------------------------------------------------------- what holds when


def published_lr(epoch: float, peak: float, epochs: int) -> float:
    """The cyclic schedule of ffcv-imagenet at a whole epoch."""
    return float(np.interp([epoch], [0, 2, epochs], [1e-4 * peak, peak, 0])[0])


def published_resolution(epoch: int, ramp: tuple[int, int]) -> int:
    interpolated = np.interp([epoch], ramp, [160, 192])[0]
    return int(np.round(interpolated / 32)) * 32


@pytest.mark.parametrize(("arch", "peak"), [("rn50", 1.7), ("rn18", 0.5)])
@pytest.mark.parametrize(
    ("epochs", "ramp"),
    [
        (16, (11, 13)),
        (24, (17, 20)),
        (32, (23, 27)),
        (40, (29, 34)),
        (56, (41, 48)),
        (88, (65, 76)),
    ],
)
def test_the_published_schedule_at_every_step(
    arch: str, peak: float, epochs: int, ramp: tuple[int, int]
) -> None:
    loaded = load(f"{arch}_{epochs}ep")
    for epoch in range(epochs):
        # Theirs interpolates between whole epochs, step by step.
        ends = [published_lr(epoch, peak, epochs), published_lr(epoch + 1, peak, epochs)]
        expected = np.interp(np.arange(STEPS), [0, STEPS], ends)
        ours = [recipe.learning_rate(loaded, epoch, step, STEPS) for step in range(STEPS)]
        np.testing.assert_allclose(ours, expected, rtol=1e-12)
        assert recipe.resolution(loaded, epoch) == published_resolution(epoch, ramp)


def test_resolutions_round_to_the_nearest_multiple_and_halves_as_published() -> None:
    loaded = load("rn50_16ep", "--schedule.resolution={0: 128, 14: 224, 16: 224}")
    raw = np.interp(np.arange(16), [0, 14], [128, 224])
    expected = [int(np.round(side / 32)) * 32 for side in raw]
    assert [recipe.resolution(loaded, epoch) for epoch in range(16)] == expected
    # 144 lies halfway between 128 and 160, 176 between 160 and 192: both go to an even multiple.
    halves = Keyframes({0: 144, 1: 176}, "step")
    assert [config.resolution_at(halves, epoch) for epoch in (0, 1)] == [128, 192]


def lr_by_torch(schedule: type, steps: int, **options: object) -> list[float]:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.7)
    scheduler = schedule(optimizer, **options)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def test_cosine_is_torchs_cosine() -> None:
    loaded = load("rn50_16ep", "--schedule.lr={0: 1.7, 16: 0.1, interpolation: cosine}")
    ours = [recipe.learning_rate(loaded, i // STEPS, i % STEPS, STEPS) for i in range(16 * STEPS)]
    theirs = lr_by_torch(
        torch.optim.lr_scheduler.CosineAnnealingLR, 16 * STEPS, T_max=16 * STEPS, eta_min=0.1
    )
    np.testing.assert_allclose(ours, theirs, rtol=1e-9)


def test_step_is_torchs_step() -> None:
    rows = "{0: 1.7, 5: 0.17, 10: 0.017, 15: 0.0017, interpolation: step}"
    loaded = load("rn50_16ep", f"--schedule.lr={rows}")
    ours = [recipe.learning_rate(loaded, i // STEPS, i % STEPS, STEPS) for i in range(16 * STEPS)]
    theirs = lr_by_torch(torch.optim.lr_scheduler.StepLR, 16 * STEPS, step_size=5 * STEPS)
    np.testing.assert_allclose(ours, theirs, rtol=1e-9)


def test_keyframes_hold_their_ends_and_may_lie_within_an_epoch() -> None:
    frames = Keyframes({0: 2.0, 0.5: 4.0, 3: 0.0})
    assert [frames.at(epoch) for epoch in (-1, 0, 0.25, 0.5, 3, 9)] == [2, 2, 3, 4, 0, 0]
    assert frames.scaled(0.5).at(0.25) == 1.5
    assert frames == Keyframes([(0, 2), (0.5, 4), (3, 0)])


# --------------------------------------------------------------------------------- who does what


@pytest.mark.parametrize(("world_size", "micro_batches"), [(1, 8), (2, 4), (4, 2), (8, 1)])
def test_a_step_is_shared_in_normalisation_batches(world_size: int, micro_batches: int) -> None:
    assert recipe.plan(load("rn50_16ep"), world_size) == (512, micro_batches, 1)


@pytest.mark.parametrize(("world_size", "images"), [(16, 256), (64, 64), (4096, 1)])
def test_more_processes_share_normalisation_batches(world_size: int, images: int) -> None:
    assert recipe.plan(load("rn50_16ep"), world_size) == (images, 1, 512 // images)
    assert world_size * images == 4096


@pytest.mark.parametrize(
    ("world_size", "near"), [(3, "2 or 4"), (12, "8 or 16"), (24, "16 or 32"), (8192, "4096")]
)
def test_a_step_that_cannot_be_shared(world_size: int, near: str) -> None:
    with pytest.raises(UserError) as caught:
        recipe.plan(load("rn50_16ep"), world_size)
    assert str(caught.value) == (
        f"{world_size} processes for 8 normalisation batches a step (training.batch_size 4096 / "
        f"training.norm_batch_size 512): they do not divide evenly; start {near} processes, or pass "
        "another --training.norm_batch_size (the run then departs from its recipe)"
    )


def test_one_normalisation_batch() -> None:
    assert recipe.plan(load("rn18_16ep"), 1) == (1024, 1, 1)
    assert recipe.plan(load("rn18_16ep"), 2) == (512, 1, 2)


# ------------------------------------------------------------------------------ what it costs


def test_resnet50_costs_what_is_known_of_it() -> None:
    forward = flops.count(Model(arch="resnet50"), 1000, 224, training=False)
    published = torchvision.models.ResNet50_Weights.IMAGENET1K_V1.meta["_ops"]  # 4.089 GMAC
    assert sum(forward.values()) / 2e9 == pytest.approx(published, abs=5e-4)
    assert list(forward) == ["stem", "layer1", "layer2", "layer3", "layer4", "head"]
    assert forward["head"] == 2 * 2048 * 1000
    # The backward pass computes two gradients a layer; the stem's input needs none.
    both = flops.count(Model(arch="resnet50"), 1000, 224, training=True)
    stem = 2 * (64 * 3 * 7 * 7) * 112 * 112
    assert forward["stem"] == stem
    assert both["stem"] == 2 * stem
    assert {part: 3 * cost for part, cost in forward.items()} == {**both, "stem": 3 * stem}


def test_blurpool_adds_its_filters() -> None:
    plain = flops.count(Model(arch="resnet18"), 10, 64, training=False)
    blurred = flops.count(Model(arch="resnet18", blurpool=True), 10, 64, training=False)
    # Two strided convolutions at the start of each of layer2 to layer4, blurred by 3 x 3: the
    # first over all of its input, the shortcut's only where the 1 x 1 convolution reads.
    side, channels = 16, 64
    for layer in ("layer2", "layer3", "layer4"):
        extra = 2 * 9 * channels * (side**2 + (side // 2) ** 2)
        assert blurred[layer] - plain[layer] == extra
        side, channels = side // 2, channels * 2


def test_grouped_convolutions_cost_three_passes_too() -> None:
    # torch's own formula takes the gradient of a depthwise weight for a dense one's.
    forward = flops.count(Model(arch="mobilenet_v2"), 1000, 64, training=False)
    both = flops.count(Model(arch="mobilenet_v2"), 1000, 64, training=True)
    stem = 2 * (32 * 3 * 3 * 3) * 32 * 32
    assert sum(both.values()) == 3 * sum(forward.values()) - stem


def test_a_network_that_looks_at_its_weights_while_it_is_built_is_counted() -> None:
    regnet = flops.count(Model(arch="regnet_x_400mf"), 1000, 224, training=False)
    published = torchvision.models.RegNet_X_400MF_Weights.IMAGENET1K_V1.meta["_ops"]
    assert sum(regnet.values()) / 2e9 == pytest.approx(published, abs=5e-4)


def test_a_network_that_refuses_a_resolution() -> None:
    with pytest.raises(UserError, match="vit_b_16 does not take images of 160 x 160 pixels"):
        flops.count(Model(arch="vit_b_16"), 1000, 160, training=True)
    with pytest.raises(UserError, match=r"resnet18 does not take images of 10{14} x 10{14} pixels"):
        flops.count(Model(arch="resnet18"), 1000, 10**14, training=True)


# ------------------------------------------------------------------------------- what it prints


def page_of(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    recipe.show([str(REPOSITORY / "rcp/rn50_16ep.yaml"), *argv])
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

    monkeypatch.setattr(recipe, "Beton", Fake)
    data = [f"--data.{split}_dataset={tmp_path}/{split}.beton" for split in ("train", "val")]
    page = squeeze(page_of(capsys, *data))
    assert f"data 9,000 images, 3 classes (counted in {tmp_path}/train.beton)" in page
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
    recipe.show([str(tmp_path / "x.yaml")])
    assert capsys.readouterr().out.startswith("ResNet-18 on ImageNet, 16 epochs.\n")


def test_the_program(tmp_path: Path) -> None:
    def run(*argv: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-W", "error", "-m", "ffcv_r50.recipe", *argv]
        return subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY)

    good = run("rcp/rn18_16ep.yaml")
    assert (good.returncode, good.stderr) == (0, "")
    assert good.stdout.startswith("ResNet-18 on ImageNet, 16 epochs.\n")
    # Nobody reads: `true` has long ended when the page is printed.
    unread = subprocess.run(
        f"{sys.executable} -m ffcv_r50.recipe --help | true",
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
        (["--world-size=two"], "command line: --world_size: expected an integer, got 'two'"),
        (["--world-size=0"], "command line: --world_size: expected an integer at least 1 and at most 1000000000000, got 0"),
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
        recipe.show([*path, *argv])
    assert str(caught.value) == message
    assert capsys.readouterr().out == ""


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    recipe.show(["--help"])
    page = capsys.readouterr().out
    assert page.startswith("usage: python -m ffcv_r50.recipe FILE [--world-size N]")
    assert "--training.batch_size" in page
