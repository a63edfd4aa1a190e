"""What a trained network says of image files, against its evaluation of the same images."""

import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ffcv_r50 import models, predict, saved
from ffcv_r50.config import settings
from ffcv_r50.data import decode
from ffcv_r50.data.beton import Beton
from ffcv_r50.data.loader import EvalLoader
from ffcv_r50.data.photos import center_crop
from ffcv_r50.data.photos import decode as pixels_of
from ffcv_r50.errors import BAD_INPUT, FINISHED, UserError
from ffcv_r50.training.evaluation import logits_of
from ffcv_r50.training.forward import Forward
from ffcv_r50.training.precision import Precision
from ffcv_r50.training.transforms.normalize import Normalize
from tests.conftest import REPOSITORY, Dataset
from writers import writing
from writers.config import Writing

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def run(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as a finished run leaves it, with an average; its network has seen some noise."""
    folder = tmp_path_factory.mktemp("run")
    config = settings.load(
        dataset.arguments(folder, "--model.arch=resnet18", "--averages=[{ema: {half_life: 1}}]")
    )
    (folder / "config.yaml").write_text(config.to_yaml())
    torch.manual_seed(0)
    for name in ("weights.pt", "weights_ema.pt"):
        network = models.build("resnet18", 3)
        network(
            torch.randn(8, 3, 40, 40)
        )  # statistics of batch-norm that are none of a new network
        torch.save(network.state_dict(), folder / name)
    return folder


def photos(dataset: Dataset) -> list[str]:
    return sorted(str(path) for path in (dataset.val.parent / "val").rglob("*.jpg"))


def test_it_sees_what_the_evaluation_sees(dataset: Dataset, run: Path, tmp_path: Path) -> None:
    path = tmp_path / "raw.beton"
    folder = dataset.val.parent / "val"
    writing.write(
        Writing(split="val", data_dir=str(folder), write_path=str(path), write_mode="raw")
    )
    loader = EvalLoader(Beton(path), batch_size=100, resolution=40, crop_ratio=0.875)
    with loader.epoch() as batches:
        [batch] = [b._replace(images=b.images.clone()) for b in batches]
    names = photos(dataset)
    assert len(names) == len(batch.images) == 29
    compiled = len(decode._decode_samples.signatures)
    crops = np.stack([center_crop(pixels_of(Path(n).read_bytes()), 40, 0.875) for n in names])
    np.testing.assert_array_equal(crops, batch.images.numpy())
    assert len(decode._decode_samples.signatures) == compiled, "compiled once for both"

    found = saved.find(run, None, {}, CPU)
    images = Normalize(CPU).images(batch.images.permute(0, 3, 1, 2))
    with torch.inference_mode():
        expected = logits_of(
            found.network, images, Precision("fp32", CPU), "flip", Forward(CPU)
        ).softmax(1)
    said = list(predict.predictions(found, names, 8, CPU))
    assert [result.image for result in said] == names
    for result, row in zip(said, expected, strict=True):
        assert isinstance(result, predict.Prediction)
        assert result.classes == row.argsort(descending=True).tolist()
        assert result.probabilities == pytest.approx(sorted(row.tolist(), reverse=True), abs=1e-5)


def test_json_lines(dataset: Dataset, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = photos(dataset)[:3]
    assert predict.predict([str(run), *names, "--json", "--top=2", "--batch-size=2"]) == FINISHED
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["image"] for row in rows] == names
    for row in rows:
        assert [set(best) for best in row["top"]] == [{"class", "name", "probability"}] * 2
        assert all(best["name"] == "abc"[best["class"]] for best in row["top"])
        assert row["top"][0]["probability"] >= row["top"][1]["probability"]


def test_the_table(dataset: Dataset, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    [name] = photos(dataset)[:1]
    assert predict.predict([str(run), name]) == FINISHED
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["image", "class", "probability"]
    assert max(map(len, lines)) <= 80
    assert sum(line.endswith("%") for line in lines) == 3, "all of three classes"


@pytest.mark.slow
def test_the_program(dataset: Dataset, run: Path, tmp_path: Path) -> None:
    """In a process of its own, which has decoded nothing before."""
    (tmp_path / "text.jpg").write_text("no image")
    names = [photos(dataset)[0], str(tmp_path / "text.jpg")]
    command = [sys.executable, "-W", "error", "-m", "ffcv_r50.predict", str(run), *names]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY)
    assert done.returncode == BAD_INPUT, done.stderr
    assert done.stderr == f"{names[1]}: not an image that Pillow can read\n"
    assert done.stdout.splitlines()[1].endswith("%")


def test_a_bad_image_does_not_stop_the_others(
    dataset: Dataset, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = photos(dataset)[0]
    (tmp_path / "text.jpg").write_text("no image")
    (tmp_path / "cut.jpg").write_bytes(Path(good).read_bytes()[:300])
    bad = [str(tmp_path / name) for name in ("text.jpg", "cut.jpg", "nowhere.jpg")]
    assert predict.predict([str(run), bad[0], good, *bad[1:], good, "--json"]) == BAD_INPUT
    out, err = capsys.readouterr()
    rows = [json.loads(line) for line in out.splitlines()]
    assert ["error" in row for row in rows] == [True, False, True, True, False]
    assert f"{bad[0]}: not an image that Pillow can read\n" in err
    assert f"{bad[1]}: " in err
    assert f"{bad[2]}: No such file or directory\n" in err
    # As a table, of which nothing may be left where all are bad.
    assert predict.predict([str(run), bad[0]]) == BAD_INPUT
    assert capsys.readouterr().out == ""


def test_folders_and_standard_input(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = dataset.val.parent / "val"
    assert list(predict.files([str(folder)])) == photos(dataset)
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{folder}/a\n\nx y.png\n"))
    inside = [name for name in photos(dataset) if "/val/a/" in name]
    assert list(predict.files(["first.jpg", "-"])) == ["first.jpg", *inside, "x y.png"]
    with pytest.raises(UserError, match="no images in this folder"):
        list(predict.files([str(tmp_path)]))


def test_a_photo_lies_as_the_dataset_was_written(
    dataset: Dataset, run: Path, tmp_path: Path
) -> None:
    image = Image.fromarray(np.arange(40 * 60 * 3, dtype=np.uint8).reshape(40, 60, 3))
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.png", exif=exif)
    content = (tmp_path / "turned.png").read_bytes()
    assert pixels_of(content, exif_rotate=True).shape == (60, 40, 3)
    assert saved.find(run, None, {}, CPU).upright is False, "the writer did not turn images"
    alone = saved.find(run, None, {"data.val_dataset": [""], "data.train_dataset": [""]}, CPU)
    assert alone.upright is True
    assert alone.classes == ["0", "1", "2"]


def test_which_weights(run: Path) -> None:
    assert saved.find(run, None, {}, CPU).file == run / "weights.pt"
    found = saved.find(run, "ema", {}, CPU)
    assert (found.file, found.name, found.classes) == (run / "weights_ema.pt", "ema", [*"abc"])
    assert saved.find(run, "network", {}, CPU).name == "network"
    assert saved.find(run / "weights_ema.pt", None, {}, CPU).name == "ema"
    for name, message in [("emma", "did you mean ema?"), ("raw", "it has ema, network")]:
        with pytest.raises(UserError, match=f"has no such weights; {message}".replace("?", r"\?")):
            saved.find(run, name, {}, CPU)


def test_faults(run: Path, dataset: Dataset, tmp_path: Path) -> None:
    def fault(*argv: str) -> str:
        with pytest.raises(UserError) as caught:
            predict.predict(argv)
        return str(caught.value)

    image = photos(dataset)[0]
    assert fault(str(run)) == "command line: no images; write RUN IMAGE ... before the options"
    assert fault("--json").startswith("command line: no run or weights")
    assert fault(str(tmp_path), image).endswith("name a run's folder or a file")
    assert "name the recipe: --config=" in fault(str(tmp_path / "x.pt"), image)
    assert "cannot be read (No such file" in fault(str(run / "x.pt"), image)
    assert "--device=tpu9" in fault(str(run), image, "--device=tpu9")
    assert "--model.arhc is not a setting" in fault(str(run), image, "--model.arhc=resnet18")
    assert "does not fit model.arch=resnet34" in fault(str(run), image, "--model.arch=resnet34")
    unfinished = tmp_path / "unfinished"
    unfinished.mkdir()
    (unfinished / "config.yaml").write_text((run / "config.yaml").read_text())
    assert "has no weights.pt, the run has not finished" in fault(str(unfinished), image)


@pytest.mark.parametrize(
    ("cuda", "mps", "taken"),
    [(True, False, "cuda"), (False, True, "mps"), (True, True, "cuda"), (False, False, "cpu")],
)
def test_the_first_gpu_is_taken(
    cuda: bool, mps: bool, taken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    tried: list[torch.device] = []
    monkeypatch.setattr(torch, "empty", lambda size, device: tried.append(device))
    assert predict.device_of(None) == torch.device(taken)
    assert tried == [torch.device(taken)], "whether it works is seen at once"
    assert predict.device_of("cpu") == CPU
