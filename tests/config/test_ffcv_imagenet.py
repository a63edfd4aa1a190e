"""ffcv-imagenet's configuration files become recipes: the same plan at every step, nothing dropped."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from ffcv_r50 import recipe
from ffcv_r50.config import ffcv_imagenet, reader, settings
from ffcv_r50.config.settings import Config
from ffcv_r50.errors import UserError
from ffcv_r50.tools import import_recipe

RCP = Path(__file__).resolve().parents[2] / "rcp"
RAMPS = {16: (11, 13), 24: (17, 20), 32: (23, 27), 40: (29, 34), 56: (41, 48), 88: (65, 76)}


def theirs(short: str, epochs: int) -> dict[str, Any]:
    """One of the twelve files, as published: they differ in epochs, ramp and network."""
    rn50 = short == "rn50"
    start, end = RAMPS[epochs]
    lr: dict[str, Any] = {"lr": 1.7 if rn50 else 0.5, "lr_schedule_type": "cyclic"}
    return {
        "data": {**({} if rn50 else {"gpu": 0}), "in_memory": 1, "num_workers": 12},
        "dist": {"world_size": 8 if rn50 else 1},
        "logging": {"folder": "/tmp/", **({} if rn50 else {"log_level": 0})},
        "lr": lr if rn50 else {**lr, "lr_peak_epoch": 2},
        "model": {"arch": "resnet50" if rn50 else "resnet18"},
        "resolution": {"end_ramp": end, "max_res": 192, "min_res": 160, "start_ramp": start},
        "training": {
            "batch_size": 512 if rn50 else 1024,
            "bn_wd": 0,
            "distributed": int(rn50),
            "epochs": epochs,
            "label_smoothing": 0.1,
            "momentum": 0.9,
            "optimizer": "sgd",
            "weight_decay": 1e-4 if rn50 else 5e-5,
            "use_blurpool": 1,
        },
        "validation": {"lr_tta": True, "resolution": 256},
    }


def their_lr(file: dict[str, Any], epoch: int, step: int, steps: int) -> float:
    """As its train_loop computes it, from get_cyclic_lr or get_step_lr at both ends of an epoch."""
    lr, epochs = file["lr"], file["training"]["epochs"]

    def at(epoch: int) -> float:
        if lr["lr_schedule_type"] == "step":
            gone = epoch // lr["step_length"]
            return 0.0 if epoch >= epochs else float(lr["step_ratio"] ** gone * lr["lr"])
        peak = lr.get("lr_peak_epoch", 2)
        return float(np.interp([epoch], [0, peak, epochs], [1e-4 * lr["lr"], lr["lr"], 0])[0])

    return float(np.interp(np.arange(steps), [0, steps], [at(epoch), at(epoch + 1)])[step])


def their_resolution(file: dict[str, Any], epoch: int) -> int:
    """As its get_resolution."""
    low, high, end, start = (
        file["resolution"][name] for name in ("min_res", "max_res", "end_ramp", "start_ramp")
    )
    if epoch <= start:
        return int(low)
    if epoch >= end:
        return int(high)
    return int(np.round(np.interp([epoch], [start, end], [low, high])[0] / 32)) * 32


def converted(path: Path, file: dict[str, Any], *words: str) -> tuple[Config, str]:
    path.write_text(yaml.safe_dump(file))
    text = ffcv_imagenet.from_command_line([str(path), *words], "")
    (recipe_file := path.with_suffix(".made.yaml")).write_text(text)
    return settings.load([f"--config={recipe_file}"], needs_data=False), text


def check_plan(config: Config, file: dict[str, Any]) -> None:
    steps = 7
    for epoch in range(file["training"]["epochs"]):
        assert recipe.resolution(config, epoch) == their_resolution(file, epoch)
        for number in range(steps):
            lr = recipe.step(config, epoch, number, steps).values["lr"]
            assert lr == pytest.approx(their_lr(file, epoch, number, steps), rel=1e-12, abs=1e-15)


@pytest.mark.parametrize("epochs", RAMPS)
@pytest.mark.parametrize("short", ["rn50", "rn18"])
def test_the_published_files_are_our_recipes(tmp_path: Path, short: str, epochs: int) -> None:
    file = theirs(short, epochs)
    config, text = converted(tmp_path / "theirs.yaml", file)
    ours = settings.load([f"--config={RCP / f'{short}_{epochs}ep.yaml'}"], needs_data=False)
    check_plan(config, file)
    check_plan(ours, file)
    data = ours.data.model_copy(update={"num_workers": 12})
    validation = ours.validation.model_copy(update={"batch_size": 512})
    assert config.schedule.lr.points[1:] == ours.schedule.lr.points[1:]
    same = {"schedule": ours.schedule, "data": data, "validation": validation}
    assert config.model_copy(update={"schedule": ours.schedule}) == ours.model_copy(update=same)
    world = file["dist"]["world_size"]
    assert recipe.plan(config, world) == recipe.plan(ours, world)
    # Each key is in the recipe, or named.
    for section, values in file.items():
        for name in values:
            key = f"{section}.{name}"
            carried = section in ("lr", "resolution", "model", "validation") or name in (
                "num_workers batch_size epochs label_smoothing momentum weight_decay use_blurpool"
            )
            assert carried != (f"# Not carried over: {key}: " in text), key


@pytest.mark.parametrize(
    ("section", "change"),
    [
        ("lr", {"lr_schedule_type": "step", "step_ratio": 0.2, "step_length": 5}),
        ("lr", {"lr_schedule_type": "step", "step_ratio": 0.5, "step_length": 1}),
        ("lr", {"lr_peak_epoch": 7}),
        ("resolution", {"min_res": 128, "max_res": 256, "start_ramp": 3, "end_ramp": 14}),
        ("resolution", {"min_res": 104, "max_res": 216, "start_ramp": 0, "end_ramp": 16}),
        ("resolution", {"start_ramp": 9, "end_ramp": 4}),
        ("resolution", {"start_ramp": 30, "end_ramp": 40}),
        ("resolution", {"start_ramp": 0, "end_ramp": 0}),
        ("resolution", {"max_res": 160}),
    ],
)
def test_other_schedules_at_every_step(
    tmp_path: Path, section: str, change: dict[str, Any]
) -> None:
    file = theirs("rn18", 16)
    file[section].update(change)
    check_plan(converted(tmp_path / "theirs.yaml", file)[0], file)


def test_their_command_line_is_understood(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "theirs.yaml"
    path.write_text(yaml.safe_dump(theirs("rn18", 16)))
    words = [
        "--data.train_dataset=/a/train.ffcv",
        "--data.val_dataset=/a/val.ffcv",
        "--data.in_memory=0",
    ]
    words += [
        "--logging.folder=/runs",
        "--lr.lr=0.25",
        "--training.distributed=1",
        "--dist.world_size=4",
    ]
    words += ["--model.pretrained=1"]
    monkeypatch.setattr("sys.argv", ["", "--config-file", str(path), *words])
    with pytest.raises(SystemExit) as ended:
        import_recipe.main()
    assert ended.value.code == 0
    text = capsys.readouterr().out
    made = reader.from_yaml(Config, text, "made")
    assert made["data.train_dataset"].value == "/a/train.ffcv"
    assert made["data.order"].value == "quasi_random"
    assert made["training.batch_size"].value == 4 * 1024
    assert max(made["schedule.lr"].value.values) == 0.25
    assert made["model.weights"].value == "ResNet18_Weights.IMAGENET1K_V1"
    assert "# Not carried over: logging.folder: a run is its folder, not a new one in /runs" in text
    assert "torchrun --nproc_per_node=4 train_imagenet.py" in text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"lr": {"lr_peek_epoch": 2}},
            r":2: lr.lr_peek_epoch is not a setting; did you mean lr.lr_peak_epoch",
        ),
        ({"training": {"epochs": "many"}}, ":2: training.epochs: expected an integer"),
        (
            {"resolution": {"min_res": 224, "max_res": 192}},
            "min_res: is above resolution.max_res, 192",
        ),
        ({"lr": {"lr_peak_epoch": 30}}, "lr.lr_peak_epoch: 30 does not lie between"),
        (
            {"lr": {"lr_schedule_type": "cosine"}},
            "lr_schedule_type: expected step or cyclic, got 'cosine'",
        ),
        ({"training": {"optimizer": "adam"}}, "training.optimizer: expected sgd"),
        (
            {"model": {"arch": "resnet51"}},
            ":2: model.arch: torchvision has no classification model",
        ),
        ({"resolution": {"min_res": 100}}, "schedule.resolution: expected multiples of 8 from 32"),
        ({"optimizer": {"name": "sgd"}}, ":2: optimizer"),
    ],
)
def test_a_broken_file_gets_a_line(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = tmp_path / "theirs.yaml"
    path.write_text(yaml.safe_dump(change))
    with pytest.raises(UserError, match=message) as error:
        ffcv_imagenet.from_command_line([str(path)], "")
    assert str(error.value).startswith(str(path))


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "no file; pass one"),
        (["a.yaml", "--config-file=b.yaml"], "two files, a.yaml and b.yaml"),
        (["missing.yaml"], "missing.yaml: cannot be read"),
    ],
)
def test_command_lines_without_one_file(argv: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ffcv_imagenet.from_command_line(argv, "")
