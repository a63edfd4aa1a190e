"""Hours, money and needs of a run before it starts, against what is published and worked out by hand."""

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ffcv_r50 import optim
from ffcv_r50.config import settings
from ffcv_r50.config.settings import Config, Model
from ffcv_r50.errors import UserError
from ffcv_r50.models import sizes
from ffcv_r50.tools import flops, show_recipe
from ffcv_r50.tools.estimate import __main__ as document
from ffcv_r50.tools.estimate import hardware, needs
from ffcv_r50.tools.estimate.hardware import Machine
from ffcv_r50.tools.estimate.needs import Images
from ffcv_r50.tools.estimate.work import Work, work
from tests.conftest import write_images
from writers import writing
from writers.config import Writing

REPOSITORY = Path(__file__).resolve().parents[2]
RECIPES = [
    str(REPOSITORY / f"rcp/rn{depth}_{epochs}ep.yaml")
    for depth in (50, 18)
    for epochs in (16, 24, 32, 40, 56, 88)
]
TINY = """
model: {arch: resnet18}
training: {epochs: 4, batch_size: 32, norm_batch_size: 32}
schedule: {lr: {0: 0.1, 4: 0}, resolution: {0: 32, 2: step 64}}
validation: {resolution: 64, tta: flip}
averages: [{ema: {half_life: 1}}, {swa: {start: 1, images: 40}}]
checkpoint: {every: 10 minutes}
"""


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    (tmp_path / "tiny.yaml").write_text(TINY)
    return tmp_path / "tiny.yaml"


def load(path: Path, *argv: str) -> Config:
    return settings.load([f"--config={path}", *argv], needs_data=False)


def page_of(capsys: pytest.CaptureFixture[str], path: Path, *argv: str) -> str:
    show_recipe.show([str(path), "--samples=3200", *argv])
    return capsys.readouterr().out


@pytest.mark.slow
def test_the_page_in_docs_is_current_and_each_time_within_15_percent() -> None:
    page = document.page(RECIPES)
    assert (REPOSITORY / "docs/estimates.md").read_text() == page, (
        "make docs/estimates.md again: python -m ffcv_r50.tools.estimate --help"
    )
    errors = re.findall(
        r"^\| `rn\d+_\d+ep` .*?([-+][\d.]+)% \| [\d.]+ \| ([-+][\d.]+)%", page, re.M
    )
    assert len(errors) == 12
    assert all(abs(float(error)) < 15 for pair in errors for error in pair)


@pytest.mark.slow
def test_the_fitted_numbers_are_those_of_the_fit() -> None:
    fitted = hardware.table().fitted
    found = document.fit(
        hardware.table().gpus[fitted.gpu], [document._time(Path(name)) for name in RECIPES]
    )
    stored = (fitted.compute, fitted.memory, fitted.start_seconds)
    assert [round(found[0], 3), round(found[1], 3), round(found[2], 1)] == list(stored)


def test_a_fit_finds_what_made_the_times() -> None:
    gpu = hardware.table().gpus["a100"]
    made = (0.3, 0.7, 50.0)
    works = [Work(1e18, 1e16), Work(2e18, 1e16), Work(3e18, 8e16), Work(1e19, 2e16)]
    times = [document.Time(f"{i}", 1 + i % 2, 1.0, w) for i, w in enumerate(works)]
    times = [t._replace(seconds=document.predict(gpu, t, made)) for t in times]
    assert document.fit(gpu, times) == pytest.approx(made)


def test_what_a_forward_pass_writes() -> None:
    """Each tensor that some operation of a hand-made network returns, and no view."""
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(256, 5)
    ).eval()
    writes = flops._Writes()
    with writes, torch.no_grad():
        network(torch.empty(1, 3, 8, 8))
    three = 3 * 4 * 8 * 8  # convolution, norm, activation
    assert writes.numbers - 3 * 8 * 8 == three + 5  # the empty image was made inside


def test_published_speeds_of_the_loader_are_those_that_were_measured() -> None:
    rows = json.loads((REPOSITORY / "docs/loader.json").read_text())
    tiled = {r["resolution"]: r for r in rows if r["loader"] == "ours_tiled_file"}
    found = hardware.table().loader
    each = {side: row["images_per_second"] / row["workers"] for side, row in tiled.items()}
    assert found == pytest.approx(each, abs=1)
    for side, rate in found.items():
        assert hardware.table().loader_rate(side) == pytest.approx(rate, rel=0.05)


def test_every_gpu_has_a_source() -> None:
    for name, gpu in hardware.table().gpus.items():
        assert gpu.datasheet, name
        assert gpu.published is None or gpu.published.source, name
        assert hardware.find(name, 1).estimated == (gpu.published is None and name != "a100")


@pytest.mark.parametrize(
    ("text", "gpus", "name", "count"),
    [
        ("a100", None, "A100", 1),
        ("A100x8", None, "A100", 8),
        ("a100x8", 8, "A100", 8),
        ("rtx4090", 2, "4090", 2),
        ("rtx4090x2", None, "4090", 2),
    ],
)
def test_a_machines_name(text: str, gpus: int | None, name: str, count: int) -> None:
    found = hardware.find(text, gpus)
    assert name in found.name
    assert found.gpus == count


@pytest.mark.parametrize(
    ("text", "gpus", "message"),
    [
        ("h10x8", None, "there is no GPU 'h10x8' in the table; did you mean h100x8?"),
        ("rtx409", None, "there is no GPU 'rtx409' in the table; did you mean rtx4090?"),
        ("h100x0", None, "there is no GPU 'h100x0' in the table; did you mean h100?"),
        ("mainframe", None, "there is no GPU 'mainframe' in the table; known are a100, "),
        ("h100x8", 4, "--hardware=h100x8 has 8 GPUs, --world-size is 4; leave one out"),
        ("nowhere.json", None, "--hardware=nowhere.json: cannot be read (No such file"),
    ],
)
def test_a_machine_that_is_not_known(text: str, gpus: int | None, message: str) -> None:
    with pytest.raises(UserError) as caught:
        hardware.find(text, gpus)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_published_speed_is_what_the_gpu_has() -> None:
    machine = hardware.find("v100x2", None)
    each = work(Model(), 1000, 224, training=True)
    assert 1 / machine.seconds(each) == pytest.approx(2 * 1200)


ROW: dict[str, Any] = {
    "device": "NVIDIA H100 80GB HBM3",
    "processes": 2,
    "loader_threads": 16,
    "model": Model(arch="resnet18").network,
    "resolution": 64,
    "step_images_per_second": 8000.0,
    "loader_images_per_second": 20000.0,
    "ratio": 1.0,
}


def test_a_machine_that_was_measured(tmp_path: Path) -> None:
    path = tmp_path / "step.json"
    path.write_text(json.dumps(ROW))
    each = work(Model(arch="resnet18"), 1000, 64, training=True)
    machine = hardware.find(str(path), None)
    assert machine.gpu is hardware.table().gpus["h100"]
    assert (machine.gpus, machine.cores, machine.estimated) == (2, 16, False)
    assert 1 / machine.seconds(each) == pytest.approx(8000)
    assert 16 * machine.loader_rate(64) == pytest.approx(20000)
    more = hardware.find(str(path), 8)
    assert (more.gpus, more.cores) == (8, 64)
    assert 1 / more.seconds(each) == pytest.approx(32000)


@pytest.mark.parametrize("text", ["{}", "no JSON", "[1]", json.dumps({**ROW, "processes": "two"})])
def test_a_file_that_holds_no_speeds(text: str, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(UserError, match="is not what this version measures"):
        hardware.find(str(tmp_path / "x.json"), None)


def test_the_phases_of_a_run(tiny: Path) -> None:
    config = load(tiny)
    machine = Machine("x", 2, "", False, hardware.table().gpus["a100"])
    found = needs.phases(config, Images(3200, 3210, 100, 10), machine, None)
    # SWA is there from the end of the second epoch on; its 40 images are two steps.
    assert [p.kind[:3] for p in found] == [
        ("training 32 px", 2, 6400),
        ("training 64 px", 2, 6400),
        ("statistics 32 px", 1, 64),
        ("statistics 64 px", 2, 128),
        ("evaluation 64 px", 4, (4 + 4 + 3) * 100),
    ]
    forward = work(config.model, 10, 64, training=False)
    assert found[4].gpu_rate == pytest.approx(1 / machine.seconds(forward) / 2), "flipped too"
    # By hand: the datasheet's two rates and the two fitted shares, on two GPUs.
    fitted = hardware.table().fitted
    each = work(config.model, 10, 32, training=True)
    by_hand = each.operations / (312e12 * fitted.compute) + each.num_bytes / (
        1555e9 * fitted.memory
    )
    assert found[0].seconds == pytest.approx(6400 * by_hand / 2)


def test_averages_that_are_evaluated_less_often_cost_less(tiny: Path) -> None:
    """Of four epochs after the third and the last."""
    found = needs.kinds(load(tiny, "--validation.averages_every=3"), Images(3200, 3210, 100, 10))
    assert [kind[:3] for kind in found][2:] == [
        ("statistics 64 px", 2, 128),
        ("evaluation 64 px", 4, (4 + 2 + 2) * 100),
    ]


def test_a_loader_with_few_cores_is_what_the_run_waits_for(tiny: Path) -> None:
    machine = hardware.find("a100", 1)
    images = Images(3200, 3200, 0, 10)
    free = needs.phases(load(tiny), images, machine, None)[1]
    needed = math.ceil(free.gpu_rate / machine.loader_rate(64))
    assert needed > 1
    for cores, waits in [(needed, True), (needed - 1, False)]:
        phase = needs.phases(load(tiny), images, machine, cores)[1]
        assert phase.loader_waits == waits
        assert phase.rate == pytest.approx(min(free.rate, cores * machine.loader_rate(64)))


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_the_size_of_a_checkpoint(optimizer: str, tiny: Path) -> None:
    """Against the same training state made for real, of which two averages are copies of the network."""
    config = load(tiny, f"--optimizer.name={optimizer}")
    network = sizes.on_meta("resnet18", 10).to_empty(device="cpu")
    made = config.optimizer.build(optim.parameter_groups(network, False), momentum=0.9)
    for parameter in network.parameters():
        parameter.grad = torch.ones_like(parameter)
    made.step()
    weights = 3 * sum(t.numel() * t.element_size() for t in network.state_dict().values())
    kept = sum(
        t.numel() * t.element_size()
        for state in made.state_dict()["state"].values()
        for t in state.values()
        if isinstance(t, torch.Tensor)
    )
    assert needs.checkpoint_bytes(config, 10) == (weights + kept, weights)


def test_preemptions() -> None:
    # Twice a day, each an hour: a twelfth of all time is lost.
    found = needs.preempted("2/day", 11.0, 1.0)
    assert found.hours == pytest.approx(12.0)
    assert found.times == pytest.approx(1.0)
    assert needs.preempted("0/week", 11.0, 1.0).hours == 11.0
    for text in ("2", "two/day", "2/month", "2 per day", "-1/day"):
        with pytest.raises(
            UserError, match="expected a number a week, day or hour, such as 2/week"
        ):
            needs.preempted(text, 11.0, 1.0)
    with pytest.raises(UserError, match=r"each costs 60\.0 minutes, so the run would never end"):
        needs.preempted("1/hour", 11.0, 1.0)


def test_between_checkpoints_is_at_most_an_epoch(tiny: Path) -> None:
    config = load(tiny)
    assert needs.checkpoint_hours(config, 400, 40.0) == pytest.approx(1 / 6)
    assert needs.checkpoint_hours(config, 400, 0.4) == pytest.approx(0.1)
    steps = load(tiny, "--checkpoint.every=20 steps")
    assert needs.checkpoint_hours(steps, 400, 40.0) == pytest.approx(2.0)


def test_the_page(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["--hardware=h100x2", "--training.batch_size=64", "--price=10", "--preemptions=2/week"]
    page = page_of(capsys, tiny, *argv, "--training.epochs=4")
    ours = page[page.index("Estimate for 2 x NVIDIA H100") :]
    assert max(map(len, ours.splitlines())) <= 80
    text = " ".join(ours.split())
    assert "an estimate: nobody has published how fast this GPU trains" in text
    assert "step 64 images = 2 processes x 1 micro-batch x 32 images" in " ".join(page.split())
    rows = {
        name: rest.split() for name, rest in re.findall(r"^(all|training \d+ px) (.*)$", ours, re.M)
    }
    hours = needs.phases(
        load(tiny, "--training.batch_size=64"), Images(3200, 3200, 0, 1000),
        hardware.find("h100x2", None), None,
    )  # fmt: skip
    total = hardware.table().fitted.start_seconds + sum(p.seconds for p in hours)
    assert rows["all"] == [f"{total / 3600:.2f}", f"{total / 360:.2f}"]
    assert rows["training 64 px"][0] == "2"
    assert rows["training 64 px"][-3] == "GPU"
    assert "2/week: " in text
    known = page_of(capsys, tiny, "--hardware=v100")
    assert "Expected on 1 x NVIDIA V100" in known
    assert "an estimate" not in known


def test_a_file_that_is_there_is_measured(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_images(tmp_path / "train", 64, 0)
    path = tmp_path / "train.beton"
    writing.write(Writing(data_dir=str(tmp_path / "train"), write_path=str(path)))
    show_recipe.show([str(tiny), f"--data.train_dataset={path}", "--hardware=v100", "--cores=1"])
    text = " ".join(capsys.readouterr().out.split())
    assert f"data {path.stat().st_size / 1e6:,.0f} MB (" in text
    assert "evaluation not counted: its images are not known" in text
    assert "loader 1 core; with fewer cores than needed" in text


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--price=3"], "command line: --price: of which machine? Pass --hardware, such as h100x8"),
        (["--preemptions=2/week"], "command line: --preemptions: of which machine? Pass"),
        (["--hardware=h10"], "command line: --hardware: there is no GPU 'h10' in the table; did you"),
        (["--hardware=h100", "--preemptions=often"], "command line: --preemptions: expected a number"),
    ],
)  # fmt: skip
def test_errors_come_before_anything_is_printed(
    argv: list[str], message: str, tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        page_of(capsys, tiny, *argv)
    assert capsys.readouterr().out == ""
