"""Whole runs: the same on one and two processes, continued as if never stopped, and guarded."""

import json
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision

from ffcv_r50.data.beton import MODE_JPEG, Beton
from ffcv_r50.data.loader import TrainLoader
from ffcv_r50.run import checkpoint
from tests import ranks
from tests.conftest import (
    REPOSITORY,
    RESNET,
    TRAIN_IMAGES,
    VAL_IMAGES,
    Dataset,
    Launch,
    write_images,
)

KEYS = [
    "epoch",
    "step",
    "lr",
    "resolution",
    "train_loss",
    "val_loss",
    "top_1",
    "top_5",
    "images_per_second",
    "data_wait_fraction",
    "epoch_seconds",
    "eval_seconds",
    "train_top_1",
    "train_top_5",
    "step_seconds",
    "wait_seconds",
    "save_seconds",
    "start_seconds",
    "peak_memory_bytes",
    "gpu_utilization",
    "gpu_power_watts",
    "gpu_clock_mhz",
]


def log(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = torch.load(folder / "weights.pt", weights_only=True)
    return state


@pytest.fixture(scope="module")
def finished(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an undisturbed run on one process."""
    folder = tmp_path_factory.mktemp("runs") / "finished"
    subprocess.run(
        [sys.executable, str(REPOSITORY / "train_imagenet.py"), *dataset.arguments(folder)],
        check=True,
        env={"OMP_NUM_THREADS": "1", "PATH": ""},
        timeout=120,
    )
    return folder


@pytest.fixture(scope="module")
def resnet(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of a ResNet-18."""
    folder = tmp_path_factory.mktemp("resnet")
    ended = ranks.run(dataset.arguments(folder / "run", *RESNET), folder / "outputs", ranks=1)
    assert ended.codes == [0], ended.outputs
    return folder / "run"


@pytest.mark.slow
def test_the_log_has_each_epoch_once_with_every_key(finished: Path) -> None:
    rows = log(finished)
    assert [list(row) for row in rows] == [KEYS] * 3
    steps = TRAIN_IMAGES // 32
    assert [(row["epoch"], row["step"]) for row in rows] == [(e, (e + 1) * steps) for e in range(3)]
    assert [row["resolution"] for row in rows] == [32, 64, 64]  # 32, 48 (rounded up), 64
    # The last step of each epoch, on the lines through (0, 0.002), (1, 0.02), (3, 0).
    expected = [0.002 + 0.018 / 2, 0.02 * (3 - 1.5) / 2, 0.02 * (3 - 2.5) / 2]
    assert [row["lr"] for row in rows] == pytest.approx(expected)


# Written by this very test on an x86-64 CPU. Loose enough for another CPU's convolution kernels
# (other instruction sets add in another order), tight enough that one wrong crop, one wrong sample
# or a learning rate off by a percent shows.
GOLDEN_TRAIN_LOSSES = [1.15812, 0.92317, 0.70208]
GOLDEN_VAL_LOSSES = [1.0759, 1.0020, 0.9297]


@pytest.mark.slow
def test_golden_loss_curve(resnet: Path) -> None:
    rows = log(resnet)
    assert [row["train_loss"] for row in rows] == pytest.approx(GOLDEN_TRAIN_LOSSES, rel=1e-3)
    assert [row["val_loss"] for row in rows] == pytest.approx(GOLDEN_VAL_LOSSES, rel=1e-2)


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["resnet18", "squeezenet1_1"])
def test_two_parts_on_one_or_two_processes_are_the_same_bits(
    dataset: Dataset, launch: Launch, tmp_path: Path, arch: str
) -> None:
    """Two micro-batches on one process, or one on each of two.

    The mean of two parts is (a + b) / 2 in any order, and halving is exact: nothing may differ.
    squeezenet has dropout, whose masks must not depend on the process either.
    """
    for world_size in (1, 2):
        arguments = dataset.arguments(
            tmp_path / f"{world_size}",
            "--training.norm_batch_size=16",
            f"--model.arch={arch}",
            f"--model.zero_init_residual={arch == 'resnet18':d}",
        )
        result = launch(arguments, world_size=world_size)
        assert result.codes == [0] * world_size, result.output
    one, two = weights(tmp_path / "1"), weights(tmp_path / "2")
    assert one.keys() == two.keys()
    for name in one:
        assert torch.equal(one[name], two[name]), name


@pytest.mark.slow
def test_four_parts_on_one_or_two_processes_agree(
    resnet: Path, dataset: Dataset, launch: Launch, tmp_path: Path
) -> None:
    """Four micro-batches on one process, or two on each of two.

    The sums are ((a + b) + c) + d against (a + b) + (c + d): each gradient rounds differently by
    2^-24 of itself (6e-8), and so does each step. Over the six steps the network amplifies that;
    2e-6 is ten times what was measured (2.4e-7).
    """
    result = launch(dataset.arguments(tmp_path, *RESNET), world_size=2)
    assert result.codes == [0, 0], result.output
    torch.testing.assert_close(weights(tmp_path), weights(resnet), atol=2e-6, rtol=2e-6)
    for a, b in zip(log(resnet), log(tmp_path), strict=True):
        assert b["train_loss"] == pytest.approx(a["train_loss"], rel=1e-5)
        assert b["top_1"] == a["top_1"]


def run_until(command: Sequence[str], line: str, send: signal.Signals) -> tuple[int, str]:
    """Run a process until it prints a line that begins so, signal it, and wait for its end."""
    output = ""
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={"OMP_NUM_THREADS": "1", "PATH": ""},
    ) as process:
        assert process.stdout is not None
        for got in process.stdout:
            output += got
            if got.startswith(line):
                process.send_signal(send)
                output += process.stdout.read()
    return process.returncode, output


@pytest.mark.slow
def test_killed_and_continued_equals_never_stopping(
    finished: Path, dataset: Dataset, launch: Launch, tmp_path: Path
) -> None:
    command = [sys.executable, str(REPOSITORY / "train_imagenet.py"), *dataset.arguments(tmp_path)]
    code, output = run_until(command, "epoch 2/3", signal.SIGKILL)
    assert code == -signal.SIGKILL, output
    assert not (tmp_path / "weights.pt").exists()
    with open(tmp_path / "log.jsonl", "a") as file:  # as if killed between the row and the state
        file.write(json.dumps({"epoch": 2, "top_1": 0}) + "\n")
    result = launch(dataset.arguments(tmp_path))
    assert result.codes == [0], result.output
    assert "continuing after epoch" in result.output
    ranks.assert_same_run(finished, tmp_path)


@pytest.mark.slow
def test_a_finished_run_has_nothing_left_to_do(
    finished: Path, dataset: Dataset, launch: Launch
) -> None:
    before = log(finished)
    result = launch(dataset.arguments(finished))
    assert result.codes == [0]
    assert f"finished: top-1 {before[-1]['top_1']:.2f} %" in result.output
    assert log(finished) == before


@pytest.mark.slow
def test_predictions_are_what_the_log_says(finished: Path, dataset: Dataset) -> None:
    rows = log(finished)
    best = max(rows, key=lambda row: row["top_1"])
    for name, row in (("predictions.npz", rows[-1]), ("predictions_best.npz", best)):
        found = np.load(finished / name)
        right = found["classes"][:, 0] == found["target"]
        assert np.array_equal(found["target"], Beton(dataset.val).labels)
        assert 100 * right.mean() == pytest.approx(row["top_1"])
        assert found["loss"].mean() == pytest.approx(row["val_loss"], rel=1e-5)


@pytest.mark.slow
def test_each_step_is_in_the_step_log(finished: Path, dataset: Dataset) -> None:
    rows = ranks.log(finished, "steps.jsonl")
    assert [row["step"] for row in rows] == list(range(6))
    assert [row["resolution"] for row in rows] == [32, 32, 64, 64, 64, 64]
    assert [row["step"] for row in rows if "loss" in row] == [0]  # the first of every 50
    loader = TrainLoader(
        Beton(dataset.train), seed=0, batch_size=32, micro_batch_size=32, crop_scale=(0.3, 1.0)
    )
    found = [row["fingerprint"] for row in rows]
    assert found == [loader.fingerprint(*divmod(number, 2)) for number in range(6)]


@pytest.mark.slow
def test_weights_are_a_plain_torchvision_state_dict(resnet: Path) -> None:
    model = torchvision.models.resnet18(num_classes=3)
    model.load_state_dict(weights(resnet))
    best = checkpoint.load(resnet / "checkpoints" / "best.pt")
    assert best["progress"]["best_top_1"] == max(row["top_1"] for row in log(resnet))


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_evaluation_is_exact_at_any_world_size(
    finished: Path, dataset: Dataset, launch: Launch, tmp_path: Path, world_size: int
) -> None:
    """29 images do not divide; each rank has its own share and each image counts once."""
    arguments = [
        f"--config={dataset.recipe}",
        f"--data.val_dataset={dataset.val}",
        "--training.eval_only=1",
        f"--checkpoint={finished / 'weights.pt'}",
        f"--logging.folder={tmp_path / 'evaluated'}",
    ]
    result = launch(arguments, world_size=world_size)
    assert result.codes == [0] * world_size, result.output
    last = log(finished)[-1]
    assert result.output.splitlines()[-1] == (
        f"top-1 {last['top_1']:.3f} %, top-5 {last['top_5']:.3f} %, loss {last['val_loss']:.4f} on "
        f"all {VAL_IMAGES} validation images (40 px, flip averaged)"
    )
    assert_same_predictions(
        finished / "predictions.npz", tmp_path / "evaluated" / "predictions_eval.npz"
    )


def assert_same_predictions(one: Path, two: Path) -> None:
    """But for the rounding of batches that are cut elsewhere."""
    before, after = np.load(one), np.load(two)
    assert before.files == after.files
    for name in ("index", "target", "classes"):
        assert np.array_equal(before[name], after[name])
    for name in ("loss", "probabilities"):
        np.testing.assert_allclose(before[name], after[name], rtol=1e-4)


@pytest.mark.slow
def test_more_ranks_than_validation_images(
    finished: Path, dataset: Dataset, launch: Launch, tmp_path: Path
) -> None:
    from writers import writing
    from writers.config import Writing

    write_images(tmp_path / "two", 2, seed=9)
    small = tmp_path / "two.beton"
    writing.write(Writing(data_dir=str(tmp_path / "two"), write_path=str(small), num_workers=1))
    (tmp_path / "two.beton.json").unlink()  # two of the three classes, and no names
    arguments = [
        f"--config={dataset.recipe}",
        f"--data.val_dataset={small}",
        "--training.eval_only=1",
        f"--checkpoint={finished / 'checkpoints' / 'best.pt'}",
    ]
    result = launch(arguments, world_size=3)
    assert result.codes == [0, 0, 0], result.output
    assert "on all 2 validation images" in result.output


def error_of(result: Any) -> str:
    assert set(result.codes) == {2}, result.output
    assert "Traceback" not in result.output, result.output
    lines = [line for line in result.output.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, result.output
    return str(lines[0])


@pytest.mark.slow
def test_wrong_input_ends_every_rank_with_one_line(
    dataset: Dataset, launch: Launch, tmp_path: Path
) -> None:
    truncated = tmp_path / "truncated.beton"
    truncated.write_bytes(dataset.train.read_bytes()[:-1000])
    folder = tmp_path / "run"
    arguments = dataset.arguments(folder, f"--data.train_dataset={truncated}")
    arguments.remove(f"--data.train_dataset={dataset.train}")
    assert f"{truncated}: truncated" in error_of(launch(arguments, world_size=2))
    assert not folder.exists()


@pytest.mark.slow
def test_world_size_must_divide(dataset: Dataset, launch: Launch, tmp_path: Path) -> None:
    error = error_of(launch(dataset.arguments(tmp_path / "run"), world_size=3))
    assert "3 processes for 4 normalisation batches" in error


@pytest.mark.slow
def test_a_batch_larger_than_the_dataset(dataset: Dataset, launch: Launch, tmp_path: Path) -> None:
    error = error_of(launch(dataset.arguments(tmp_path / "run", "--training.batch_size=128")))
    assert "128" in error
    assert str(TRAIN_IMAGES) in error


@pytest.mark.slow
@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            ["--model.arch=vit_b_16", "--schedule.resolution={0: 224}"],
            "vit_b_16: does not take images of 40 x 40 pixels, in evaluation",
        ),
        (
            ["--training.norm_batch_size=1"],
            "shufflenet_v2_x0_5: does not take images of 32 x 32 pixels, 1 at a time",
        ),
    ],
)
def test_sizes_that_do_not_fit_the_network_are_found_before_training(
    dataset: Dataset, launch: Launch, tmp_path: Path, more: list[str], message: str
) -> None:
    assert message in error_of(launch(dataset.arguments(tmp_path / "run", *more)))
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_validation_batch_larger_than_the_dataset(
    finished: Path, dataset: Dataset, launch: Launch
) -> None:
    arguments = [
        f"--config={dataset.recipe}",
        f"--data.val_dataset={dataset.val}",
        "--training.eval_only=1",
        f"--checkpoint={finished / 'weights.pt'}",
        "--validation.batch_size=1000000",
        "--validation.resolution=256",  # 200 GB
    ]
    assert launch(arguments).codes == [0]


@pytest.mark.slow
def test_unreadable_images_are_counted_over_all_ranks(
    finished: Path, dataset: Dataset, launch: Launch, tmp_path: Path
) -> None:
    content = bytearray(dataset.val.read_bytes())
    beton = Beton(dataset.val)
    jpegs = np.flatnonzero(beton.modes == MODE_JPEG)
    for index in (jpegs[0], *jpegs[-2:]):
        offset, size = int(beton.offsets[index]), int(beton.sizes[index])
        content[offset : offset + size] = bytes(size)
    damaged = tmp_path / "damaged.beton"
    damaged.write_bytes(content)
    arguments = [
        f"--config={dataset.recipe}",
        f"--data.val_dataset={damaged}",
        "--training.eval_only=1",
        f"--checkpoint={finished / 'weights.pt'}",
        "--data.bad_images=gray",
    ]
    result = launch(arguments, world_size=2)
    assert result.codes == [0, 0], result.output
    assert "3 unreadable images were replaced by gray ones" in result.output


@pytest.mark.slow
def test_torchvisions_networks_with_auxiliary_heads_are_evaluated(
    dataset: Dataset, launch: Launch, tmp_path: Path
) -> None:
    network = torchvision.models.googlenet(num_classes=3, aux_logits=True, init_weights=False)
    torch.save(network.state_dict(), tmp_path / "googlenet.pt")
    arguments = [
        f"--config={dataset.recipe}",
        f"--data.val_dataset={dataset.val}",
        "--training.eval_only=1",
        "--model.arch=googlenet",
        "--validation.resolution=64",
        f"--checkpoint={tmp_path / 'googlenet.pt'}",
    ]
    result = launch(arguments)
    assert result.codes == [0], result.output


@pytest.mark.slow
def test_classes_must_agree(dataset: Dataset, launch: Launch, tmp_path: Path) -> None:
    other = tmp_path / "val.beton"
    other.write_bytes(dataset.val.read_bytes())
    sidecar = json.loads(Path(f"{dataset.val}.json").read_text())
    sidecar["classes"] = ["a", "b", "d"]
    Path(f"{other}.json").write_text(json.dumps(sidecar))
    arguments = dataset.arguments(tmp_path / "run", f"--data.val_dataset={other}")
    arguments.remove(f"--data.val_dataset={dataset.val}")
    assert "its classes are not those of" in error_of(launch(arguments))


@pytest.mark.slow
def test_fewer_classes_in_the_checkpoint(dataset: Dataset, launch: Launch, tmp_path: Path) -> None:
    torch.save(
        torchvision.models.shufflenet_v2_x0_5(num_classes=2).state_dict(), tmp_path / "two.pt"
    )
    arguments = [
        f"--config={dataset.recipe}",
        f"--data.val_dataset={dataset.val}",
        "--training.eval_only=1",
        f"--checkpoint={tmp_path / 'two.pt'}",
    ]
    assert "two.pt: has 2 classes, " in error_of(launch(arguments))
    torch.save(torchvision.models.resnet34(num_classes=3).state_dict(), tmp_path / "34.pt")
    arguments[-1] = f"--checkpoint={tmp_path / '34.pt'}"
    assert "does not fit model.arch=shufflenet_v2_x0_5" in error_of(launch(arguments))


@pytest.mark.slow
def test_a_folder_with_another_run_is_refused(
    finished: Path, dataset: Dataset, launch: Launch
) -> None:
    error = error_of(launch(dataset.arguments(finished, "--training.momentum=0.8")))
    assert "training.momentum (0.9 -> 0.8)" in error
    assert len(log(finished)) == 3


@pytest.mark.slow
def test_a_folder_that_cannot_be_made(dataset: Dataset, launch: Launch) -> None:
    error = error_of(launch(dataset.arguments(dataset.train / "run")))
    assert "logging.folder=" in error
    assert "cannot be made" in error


@pytest.mark.slow
def test_a_loss_that_is_not_finite_names_the_step(
    dataset: Dataset, launch: Launch, tmp_path: Path
) -> None:
    arguments = dataset.arguments(tmp_path / "run", "--schedule.lr={0: 0.0, 1: 1e30, 3: 0}")
    result = launch(arguments, world_size=2)
    assert result.codes == [1, 1], result.output
    assert "error: the loss is nan in step 2" in result.output
    assert "Traceback" not in result.output


def test_the_dataset_fixture_is_what_the_tests_think(dataset: Dataset) -> None:
    assert Beton(dataset.train).num_samples == TRAIN_IMAGES
    assert Beton(dataset.val).num_samples == VAL_IMAGES


@pytest.mark.slow
@pytest.mark.parametrize("where", ["a closed pipe", "/dev/full"])
def test_training_does_not_end_with_what_it_writes_to(
    dataset: Dataset, tmp_path: Path, where: str
) -> None:
    more = ["--training.epochs=1", "--schedule.lr={0: 0.01}", "--schedule.resolution={0: 32}"]
    command = [sys.executable, str(REPOSITORY / "train_imagenet.py")]
    with (
        open("/dev/full", "w") as full,
        subprocess.Popen(
            [*command, *dataset.arguments(tmp_path / "run", *more)],
            stdout=full if where == "/dev/full" else subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process,
    ):
        if process.stdout:
            process.stdout.close()
        assert process.stderr is not None
        error = process.stderr.read()
    assert (process.returncode, error) == (0, "")
    assert ranks.status(tmp_path / "run")["state"] == "finished"
