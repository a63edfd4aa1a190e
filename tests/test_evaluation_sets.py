"""One network on several evaluation sets, against a loop over images, names and sorted logits."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from torch import nn

from ffcv_r50 import distributed, eval_only, models
from ffcv_r50.config import settings
from ffcv_r50.data import names, samples
from ffcv_r50.data.beton import Beton
from ffcv_r50.data.loader import EvalLoader
from ffcv_r50.errors import UserError
from ffcv_r50.logs.console import Console
from ffcv_r50.report import numbers, sets
from tests.conftest import Launch
from tests.writers.serial import in_this_process
from writers import pool, writing
from writers.config import Writing

CPU = torch.device("cpu")
KNOWN = ["n5", "n0", "n7", "n2", "n6", "n1", "n4", "n3"]
"""The network's classes, in an order that is not that of their names."""
SOME = ["n1", "n6", "n7"]
IMAGES = 33
"""Of each set; no number of ranks divides them."""
RECIPE = """
model:    {arch: shufflenet_v2_x0_5}
data:     {num_workers: 1}
training: {epochs: 3, batch_size: 32}
schedule: {lr: {0: 0.1, 3: 0}, resolution: {0: 32}}
validation: {resolution: 32, crop_ratio: 0.875, tta: flip, batch_size: 8}
"""


class Made(NamedTuple):
    """A folder with ``recipe.yaml``, ``val.beton`` and the sets, and a finished run in ``run``."""

    folder: Path
    network: nn.Module
    real: list[list[int]]
    """ReaL's labels, whose numbers count the sorted names."""

    def arguments(self, *more: str, sets: str = "", val: Path | None = None) -> list[str]:
        """The command line of an evaluation; ``sets`` are named as their files."""
        listed = ", ".join(f"{f.split('.')[0]}: {self.folder / f}" for f in sets.split())
        return [
            f"--config={self.folder / 'recipe.yaml'}",
            f"--data.val_dataset={val or self.folder / 'val.beton'}",
            "--training.eval_only=1",
            f"--checkpoint={self.folder / 'run'}",
            *([f"--validation.sets={{{listed}}}"] if sets else []),
            *more,
        ]


def write_set(folder: Path, name: str, classes: Sequence[str], listed: Sequence[str] = ()) -> None:
    """``name.beton`` of images of these classes; labels in the order of ``listed``, if given."""
    rng = np.random.default_rng(len(name))
    for i in range(IMAGES):
        path = folder / name / classes[i % len(classes)] / f"ILSVRC2012_val_{i + 1:08}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(rng.integers(0, 256, (3, 3, 3)).astype(np.uint8))
        coarse.resize((40, 36), Image.Resampling.BICUBIC).save(path)
    (folder / "listed.txt").write_text("\n".join(listed))
    writing.write(
        Writing(
            split="val",
            data_dir=str(folder / name),
            write_path=str(folder / f"{name}.beton"),
            write_mode="raw",
            classes=str(folder / "listed.txt") if listed else None,
        ),
        page_size=1 << 16,
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("sets")
    (folder / "recipe.yaml").write_text(RECIPE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pool, "ordered_map", in_this_process)
        write_set(folder, "val", KNOWN, KNOWN)
        write_set(folder, "again", KNOWN)
        write_set(folder, "some", SOME)
        write_set(folder, "v2", [str(number) for number in range(len(KNOWN))])
        write_set(folder, "other", ["n1", "n9"])
    rng = np.random.default_rng(3)
    real = [rng.permutation(8)[: rng.integers(0, 4)].tolist() for _ in range(IMAGES)]
    (folder / "real.json").write_text(json.dumps(real))
    torch.manual_seed(0)
    network = models.build("shufflenet_v2_x0_5", len(KNOWN))
    network(torch.randn(16, 3, 32, 32))
    network.eval()
    with torch.inference_mode():  # so that no class is always the likeliest
        fc = network.get_submodule("fc")
        assert isinstance(fc, nn.Linear)
        fc.bias.sub_(torch.from_numpy(logits(network, folder / "val.beton")).float().mean(0))
    (folder / "run").mkdir()
    torch.save(network.state_dict(), folder / "run" / "weights.pt")
    return Made(folder, network, real)


def logits(network: nn.Module, path: Path) -> npt.NDArray[np.float64]:
    """[images, classes]."""
    loader = EvalLoader(
        Beton(path), batch_size=IMAGES, resolution=32, crop_ratio=0.875, num_workers=1
    )
    rows = []
    with loader.epoch() as batches, torch.inference_mode():
        for batch in batches:
            x = (batch.images / 255 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor(
                [0.229, 0.224, 0.225]
            )
            x = x.permute(0, 3, 1, 2).float()
            rows.append(((network(x) + network(x.flip(3))) / 2).double().numpy())
    return np.concatenate(rows)


def expected(made: Made, name: str) -> tuple[int, int, int]:
    """Images that count, and how many are right at once and among the first five."""
    path = made.folder / f"{'val' if name == 'real' else name}.beton"
    dataset = Beton(path)
    assert dataset.sidecar is not None
    here = dataset.sidecar.classes
    if name == "v2":
        here = [sorted(KNOWN)[int(number)] for number in here]
    images = top_1 = top_5 = 0
    stored = [sample.name for sample in samples.read(path, IMAGES) or ()]
    for row, label, file in zip(logits(made.network, path), dataset.labels, stored, strict=True):
        right = {here[label]}
        if name == "real":
            number = int(file.split("_")[-1].split(".")[0])
            right = {sorted(KNOWN)[k] for k in made.real[number - 1]}
        if not right:
            continue
        order = sorted(here, key=lambda one: -row[KNOWN.index(one)])
        images += 1
        top_1 += order[0] in right
        top_5 += bool(right & set(order[:5]))
    return images, top_1, top_5


def check(made: Made, evaluated: Path) -> None:
    found = sets.read(evaluated)
    assert found is not None
    assert [one.name for one in found.sets] == ["val", "again", "real", "some", "v2"]
    assert [one.classes for one in found.sets] == [8, 8, 8, 3, 8]
    seen = set()
    for one in found.sets:
        images, top_1, top_5 = expected(made, one.name)
        assert one.images == images, one.name
        assert one.top_1 == pytest.approx(100 * top_1 / images), one.name
        assert one.top_5 == pytest.approx(100 * top_5 / images), one.name
        low, high = numbers.wilson(top_1, images)
        assert one.top_1_interval == pytest.approx((100 * low, 100 * high))
        seen |= {top_1, top_5}
    assert len(seen) > 4, "results that could not tell a right answer from a wrong one"


FILES = "again.beton real.json some.beton v2.beton"


def run(arguments: Sequence[str]) -> None:
    world = distributed.World(0, 1, 0, 1, CPU)
    eval_only.run(settings.load(arguments), world, Console(True))


def test_each_set_is_evaluated_as_a_plain_loop_does(
    made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(made.arguments(f"--logging.folder={tmp_path}", sets=FILES))
    check(made, tmp_path)
    out = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in out[-6:]] == ["set", "val", "again", "real", "some", "v2"]
    assert len(set(map(len, out[-6:]))) == 1, "columns that stand under each other"
    images, top_1, _ = expected(made, "some")
    assert f"{100 * top_1 / images:.3f}  " in out[-2]


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [2, 4])
def test_any_number_of_processes_says_the_same(
    made: Made, launch: Launch, tmp_path: Path, world_size: int
) -> None:
    arguments = made.arguments(f"--logging.folder={tmp_path / 'e'}", sets=FILES)
    result = launch(arguments, world_size=world_size)
    assert result.codes == [0] * world_size, result.output
    check(made, tmp_path / "e")


def test_names_decide_not_positions() -> None:
    assert names.positions(["b", "c", "a"], ["a", "b"]) == [2, 0]
    assert names.positions(["b", "c", "a"], ["2", "0", "1"]) == [1, 2, 0]
    assert names.positions(["2", "0", "1"], ["0", "1", "2"]) == [1, 2, 0], "their own names"
    for wanted in (["0", "1"], ["a", "d"], ["0", "1", "3"]):
        with pytest.raises(KeyError, match=f"'{wanted[-1] if 'a' in wanted else wanted[0]}'"):
            names.positions(["b", "c", "a"], wanted)


def fault(arguments: Sequence[str]) -> str:
    with pytest.raises(UserError) as caught:
        run(arguments)
    return str(caught.value)


def test_faults(made: Made, tmp_path: Path) -> None:
    folder = made.folder
    message = fault(made.arguments(sets="other.beton"))
    assert f"other: {folder / 'other.beton'} has the class 'n9', the network does not" in message
    bare = tmp_path / "bare.beton"
    bare.write_bytes((folder / "some.beton").read_bytes())
    message = fault(made.arguments(f"--validation.sets={{a: {bare}}}"))
    assert f"validation.sets: a: {bare}.json, which has the names of its classes" in message
    message = fault(made.arguments(sets="v2.beton nowhere.beton"))
    assert f"{folder / 'nowhere.beton'}: cannot be read" in message
    message = fault(
        made.arguments(f"--data.train_dataset={folder / 'again.beton'}", sets="v2.beton")
    )
    assert f"its classes are not those of {folder / 'again.beton'}" in message
    message = fault(made.arguments(sets="v2.beton", val=bare))
    assert "what the network's 8 classes are called is not known" in message


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("nothing", "cannot be read (Expecting value"),
        ("{}", "is not a JSON list of lists of class numbers"),
        ("[[1], 2]", "entry 2 is not a list of class numbers"),
        ("[[1], [true]]", "entry 2 is not a list of class numbers"),
        ("[[1], [8]]", "entry 2 has a class that is not in 0 to 7"),
        ("[[1], [-1]]", "entry 2 has a class that is not in 0 to 7"),
        ("[[1]]", "labels ILSVRC2012_val_00000001 to 00000001"),
        (json.dumps([[]] * IMAGES), "has no label for any image"),
    ],
)
def test_labels_that_do_not_fit(made: Made, tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "labels.json"
    file.write_text(content)
    found = fault(made.arguments(f"--validation.sets={{real: {file}}}"))
    assert message in found
    assert str(file) in found


def test_labels_go_by_names_that_must_be_known(made: Made, tmp_path: Path) -> None:
    moved = tmp_path / "val.beton"
    for ending in ("", ".json"):
        Path(f"{moved}{ending}").write_bytes(
            Path(f"{made.folder / 'val.beton'}{ending}").read_bytes()
        )
    found = fault(made.arguments(sets="real.json", val=moved))
    assert f"{moved}.samples.gz, which has those of {moved}, is not there" in found


def test_a_damaged_record_is_named(tmp_path: Path) -> None:
    assert sets.read(tmp_path) is None
    (tmp_path / sets.FILE).write_text('{"sets": 1}')
    with pytest.raises(UserError, match="is not what an evaluation writes"):
        sets.read(tmp_path)
