"""The folder for a Space: its program against the toolkit's own predictions. gradio is not needed."""

import ast
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch import nn

from ffcv_r50 import predict, saved
from ffcv_r50.data import photos
from ffcv_r50.errors import FINISHED, RunFault, UserError
from ffcv_r50.export import space
from ffcv_r50.export.__main__ import export
from tests.conftest import Dataset
from tests.export.conftest import make_run

pytestmark = pytest.mark.slow  # the network is converted to ONNX

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def blurred(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a network that neither torchvision nor timm has."""
    return make_run(tmp_path_factory.mktemp("space") / "run", dataset, "--model.blurpool=true")


@pytest.fixture(scope="module")
def folder(blurred: Path) -> Path:
    out = blurred.parent / "out"
    assert export([str(blurred), "--to=hub", "--license=mit", "-o", str(out)]) == FINISHED
    return out / "space"


class Sentence(Exception):
    """What a person reads: ``gr.Error``."""

    def __init__(self, sentence: str, print_exception: bool) -> None:
        super().__init__(sentence)
        assert not print_exception, "nobody's upload fills the log"


@pytest.fixture
def app(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The program in the folder, with a gradio that only takes down what it is asked for."""
    gradio = MagicMock(spec=ModuleType("gradio"))
    gradio.Error, gradio.Image, gradio.Label, gradio.Interface = (
        Sentence,
        MagicMock(),
        MagicMock(),
        MagicMock(),
    )
    monkeypatch.setitem(sys.modules, "gradio", gradio)
    spec = importlib.util.spec_from_file_location("app", folder / "app.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def photo(path: Path, width: int, height: int, mode: str = "RGB", orientation: int = 1) -> Path:
    coarse = np.random.default_rng(width).integers(0, 256, (5, 7, 3), np.uint8)
    image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    else:
        image = image.convert(mode)
    exif = Image.Exif()
    exif[photos.EXIF_ORIENTATION] = orientation
    image.save(path, exif=exif)
    return path


@pytest.fixture
def taken(tmp_path: Path) -> list[Path]:
    """Photos of all kinds."""
    return [
        photo(tmp_path / "wide.jpg", 301, 97),
        photo(tmp_path / "tall.png", 64, 333),
        photo(tmp_path / "small.png", 11, 13),
        photo(tmp_path / "sliver.png", 200, 1),
        photo(tmp_path / "turned.jpg", 120, 80, orientation=6),
        photo(tmp_path / "palette.gif", 90, 90, "P"),
        photo(tmp_path / "clear.png", 70, 50, "RGBA"),
        photo(tmp_path / "print.jpg", 75, 60, "CMYK"),
        photo(tmp_path / "deep.png", 80, 60, "I;16"),
    ]


def test_it_sees_what_the_evaluation_sees(app: Any, folder: Path, taken: list[Path]) -> None:
    classifier = app.Classifier(folder)
    for path in taken:
        wanted = photos.center_crop(photos.decode(path.read_bytes(), exif_rotate=True), 40, 0.875)
        crop = classifier.crop(app.read(str(path)))
        assert crop.shape == (40, 40, 3)
        assert np.abs(crop.astype(int) - wanted).max() <= 1, path  # Pillow rounds twice


def test_it_answers_what_predict_answers(
    app: Any, folder: Path, blurred: Path, dataset: Dataset
) -> None:
    files = [str(path) for path in sorted(dataset.val.with_suffix("").rglob("*.jpg"))]
    found = saved.find(blurred, None, {}, CPU)
    classifier = app.Classifier(folder)
    for said in predict.predictions(found, files, 32, CPU):
        assert isinstance(said, predict.Prediction)
        answer = classifier.top(app.read(said.image))
        assert list(answer) == [found.classes[number] for number in said.classes]
        np.testing.assert_allclose(list(answer.values()), said.probabilities, rtol=0, atol=5e-5)


def test_the_network_is_the_runs(app: Any, folder: Path, blurred: Path) -> None:
    crop = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
    found = saved.find(blurred, None, {}, CPU)
    [wanted] = predict.probabilities(found, torch.from_numpy(crop)[None], CPU)
    shares = app.Classifier(folder).probabilities(crop)
    np.testing.assert_allclose(shares, wanted, rtol=0, atol=1e-6)


def test_bad_photos_get_a_sentence(app: Any, tmp_path: Path) -> None:
    def sentence(content: bytes) -> str:
        (tmp_path / "bad.jpg").write_bytes(content)
        with pytest.raises(Sentence) as caught:
            app.read(str(tmp_path / "bad.jpg"))
        return str(caught.value)

    assert sentence(b"no image").startswith("This is not an image. Choose a JPEG")
    assert sentence(b"").startswith("This is not an image.")
    whole = photo(tmp_path / "whole.jpg", 200, 200).read_bytes()
    assert (
        sentence(whole[: len(whole) // 2]) == "The image is damaged, or too large. Choose another."
    )
    app.MOST_PIXELS = 39_999
    assert sentence(whole).startswith("The photo is too large, it has 200 x 200 pixels.")


def test_the_page(app: Any, folder: Path, tmp_path: Path) -> None:
    (folder / "examples").mkdir()
    for name in ("b.jpg", "a.jpg"):
        photo(folder / "examples" / name, 90, 60)
    app.page(folder)
    [called] = app.gr.Interface.call_args_list
    answer, upload, _ = called.args
    assert called.kwargs["examples"] == [str(folder / "examples" / f) for f in ("a.jpg", "b.jpg")]
    assert upload.preprocess(SimpleNamespace(path="x.jpg")) == "x.jpg"
    assert answer(upload.preprocess(None)) is None
    shares = answer(called.kwargs["examples"][0])
    assert set(shares) == {"a", "b", "c"}
    assert sum(shares.values()) == pytest.approx(1)


def test_what_the_hub_reads(folder: Path) -> None:
    _, head, text = (folder / "README.md").read_text().split("---\n", 2)
    said = yaml.safe_load(head)
    assert (said["sdk"], said["title"], said["license"]) == ("gradio", "resnet18", "mit")
    assert isinstance(said["python_version"], str), "3.10 would be 3.1"
    assert (folder / said["app_file"]).is_file()
    assert "python app.py" in text
    assert str(folder.parent) not in text


def test_it_needs_what_it_says_and_nothing_of_ours(folder: Path) -> None:
    nodes = list(ast.walk(ast.parse((folder / "app.py").read_text())))
    imported = {
        alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names
    }
    imported |= {str(node.module) for node in nodes if isinstance(node, ast.ImportFrom)}
    tops = {name.partition(".")[0] for name in imported} - set(sys.stdlib_module_names)
    packages = {"PIL": "pillow"}
    said = (folder / "requirements.txt").read_text().split()
    assert sorted(packages.get(top, top) for top in tops) == said


def refuse(*args: object, **more: object) -> None:
    raise torch.onnx.errors.OnnxExporterError("no such\noperator")


def test_a_network_that_cannot_be_onnx_goes_to_the_hub_without(
    blurred: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(torch.onnx, "export", refuse)
    reason = "--to=onnx: torch.onnx.export cannot convert resnet18: no such operator"
    with pytest.raises(UserError, match=reason):
        export([str(blurred), "--to=onnx", "-o", str(tmp_path / "out")])
    assert export([str(blurred), "--to=hub", "-o", str(tmp_path / "out")]) == FINISHED
    assert f"space/ is left out: command line: {reason}" in capsys.readouterr().err
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"README.md", "model.json", "model.safetensors"}


def altered(load: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    """What loads a network whose logits are others."""
    return lambda *args: nn.Sequential(load(*args), nn.Hardtanh(-0.01, 0.01))


def test_a_space_that_computes_something_else_is_not_written(
    blurred: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(space, "load", altered(space.load))
    with pytest.raises(RunFault, match="the export computes something else"):
        export([str(blurred), "--to=hub", "-o", str(tmp_path / "out")])
    assert not list((tmp_path / "out").iterdir())
