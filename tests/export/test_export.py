"""Exports, loaded by their own projects, against the network they were made of."""

import json
import math
import re
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import numpy.typing as npt
import onnxruntime
import pytest
import safetensors
import safetensors.torch
import timm
import torch
import torchvision
from timm.data.config import resolve_model_data_config
from torch import Tensor, nn

from ffcv_r50 import models, saved
from ffcv_r50.config import settings
from ffcv_r50.errors import FINISHED, RunFault, UserError
from ffcv_r50.export import formats, verify
from ffcv_r50.export.__main__ import export
from tests.conftest import Dataset
from tests.export.conftest import make_run

CPU = torch.device("cpu")


def images() -> Tensor:
    return torch.randn(5, 3, 40, 40, generator=torch.Generator().manual_seed(1))


def expected(run: Path) -> Tensor:
    with torch.inference_mode():
        logits: Tensor = saved.find(run, None, {}, CPU).network(images())
    return logits


def close(network: nn.Module, run: Path) -> bool:
    with torch.inference_mode():
        return torch.allclose(network.eval()(images()), expected(run), rtol=0, atol=1e-5)


def test_torchvision_loads_it(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / "log.jsonl").write_text('{"epoch": 2, "top_1": 34.5, "ema_top_1": 35.0}\n')
    out = tmp_path / "out"
    assert export([str(run), "--to=torchvision", "-o", str(out)]) == FINISHED
    assert sorted(path.name for path in out.iterdir()) == ["model.json", "model.pth"]
    network = torchvision.models.resnet18(num_classes=3)
    network.load_state_dict(torch.load(out / "model.pth", weights_only=True))
    assert close(network, run)
    said = json.loads((out / "model.json").read_text())
    assert said["classes"] == ["a", "b", "c"]
    assert (said["arch"], said["resolution"], said["crop_ratio"]) == ("resnet18", 40, 0.875)
    weights = torchvision.models.ResNet18_Weights.IMAGENET1K_V1.transforms()
    np.testing.assert_allclose(said["mean"], weights.mean)
    np.testing.assert_allclose(said["std"], weights.std)
    text = capsys.readouterr().out
    assert f"verified by torchvision {version('torchvision')} on all 29 validation images" in text
    assert "(40 px, flip averaged)" in text
    assert "the run's log says 34.500 %" in text


def test_safetensors_keeps_the_blur(blurred: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert export([str(blurred), "--to=safetensors", f"--output={out}"]) == FINISHED
    weights = safetensors.torch.load_file(out / "model.safetensors")
    network = models.build("resnet18", 3, blurpool=True)
    network.load_state_dict(weights)
    assert close(network, blurred)
    plain = torchvision.models.resnet18(num_classes=3)
    plain.load_state_dict(weights)  # the names are torchvision's, the blur is not in it
    assert not close(plain, blurred)
    with safetensors.safe_open(out / "model.safetensors", "pt") as file:
        said = file.metadata()
    assert said["blurpool"] == "true"
    assert json.loads(said["classes"]) == ["a", "b", "c"]


def test_timm_loads_it(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert export([str(run), "--to=timm", "-o", str(out)]) == FINISHED
    network = timm.create_model(f"local-dir:{out}", pretrained=True)
    assert close(network, run)
    data = resolve_model_data_config(network)
    assert (tuple(data["input_size"]), data["crop_pct"]) == ((3, 40, 40), 0.875)
    assert data["interpolation"] == "bilinear"
    assert json.loads((out / "config.json").read_text())["label_names"] == ["a", "b", "c"]


@pytest.mark.slow
def test_onnx_runtime_loads_it(blurred: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert export([str(blurred), "--to=onnx", "-o", str(out)]) == FINISHED
    session = onnxruntime.InferenceSession(
        str(out / "model.onnx"), providers=["CPUExecutionProvider"]
    )
    for count in (1, 5):  # the batch is dynamic
        [logits] = session.run(None, {"images": images()[:count].numpy()})
        np.testing.assert_allclose(logits, expected(blurred)[:count].numpy(), rtol=0, atol=1e-4)
    said = session.get_modelmeta().custom_metadata_map
    assert json.loads(said["classes"]) == ["a", "b", "c"]
    assert said["resolution"] == "40"


def of_bytes(normalised: Tensor) -> npt.NDArray[np.uint8]:
    """Images of whole bytes; what the network is given of them goes back into ``normalised``."""
    pixels = torch.randint(0, 256, (5, 40, 40, 3), generator=torch.Generator().manual_seed(2))
    transform = torchvision.models.ResNet18_Weights.IMAGENET1K_V1.transforms()
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (transform.mean, transform.std))
    normalised.copy_((pixels.permute(0, 3, 1, 2) / 255 - mean) / std)
    return pixels.to(torch.uint8).numpy()


@pytest.mark.slow
@pytest.mark.parametrize("form", ["torch_export", "onnx"])
def test_networks_that_take_bytes(form: str, blurred: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert export([str(blurred), f"--to={form}", "--normalise=1", "-o", str(out)]) == FINISHED
    normalised = torch.empty(5, 3, 40, 40)
    pixels = of_bytes(normalised)
    with torch.inference_mode():
        wanted = saved.find(blurred, None, {}, CPU).network(normalised).numpy()
        for count in (1, 5):
            if form == "onnx":
                path = str(out / "model.onnx")
                session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
                [logits] = session.run(None, {"images": pixels[:count]})
            else:
                program = torch.export.load(out / "model.pt2").module()
                logits = program(torch.from_numpy(pixels[:count])).numpy()
            np.testing.assert_allclose(logits, wanted[:count], rtol=0, atol=1e-4)
    assert json.loads((out / "model.json").read_text())["input"] == "uint8 [n, height, width, 3]"


@pytest.mark.slow
def test_torch_loads_it(blurred: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert export([str(blurred), "--to=torch_export", "-o", str(out)]) == FINISHED
    program = torch.export.load(out / "model.pt2").module()
    with torch.inference_mode():
        for count in (1, 5):
            wanted = expected(blurred)[:count]
            assert torch.allclose(program(images()[:count]), wanted, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_a_folder_for_the_hub(run: Path, tmp_path: Path) -> None:
    row = {"epoch": 0, "top_1": 34.5, "top_5": 100.0, "val_loss": 1.1, "train_loss": 1.2, "lr": 0.1}
    (run / "log.jsonl").write_text(json.dumps(row) + "\n")
    out = tmp_path / "out"
    assert export([str(run), "--to=hub", "--license=apache-2.0", "-o", str(out)]) == FINISHED
    assert close(timm.create_model(f"local-dir:{out}", pretrained=True), run)
    card = huggingface_hub.ModelCard.load(out / "README.md")
    assert (card.data.license, card.data.library_name) == ("apache-2.0", "timm")
    [top_1, top_5] = card.data.eval_results
    assert (top_1.metric_name, top_5.metric_value) == ("top-1", 100)
    assert f"| top-1 | {top_1.metric_value:.2f} |" in card.text
    assert 'timm.create_model("hf-hub:' in card.text
    assert str(tmp_path) not in card.text
    [recipe] = re.findall("```yaml\n(.*?)```", card.text, re.DOTALL)
    (tmp_path / "recipe.yaml").write_text(recipe)
    again = settings.load([f"--config={tmp_path / 'recipe.yaml'}"], needs_data=False)
    config = settings.load([f"--config={run / 'config.yaml'}"], needs_data=False)
    assert (again.training, again.schedule) == (config.training, config.schedule)


@pytest.mark.slow
def test_a_network_that_timm_lacks_goes_to_the_hub_as_ours(blurred: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert export([str(blurred), "--to=hub", "-o", str(out)]) == FINISHED
    assert not (out / "config.json").exists()
    card = huggingface_hub.ModelCard.load(out / "README.md")
    assert (card.data.license, card.data.library_name) == ("unknown", "ffcv_r50")
    [code] = re.findall("```python\n(.*?)```", card.text, re.DOTALL)
    found: dict[str, Any] = {}
    exec(code.replace('"model.safetensors"', repr(str(out / "model.safetensors"))), found)
    assert close(found["model"], blurred)


@pytest.mark.parametrize("form", ["torchvision", "timm"])
def test_a_blur_that_others_cannot_express(form: str, blurred: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"--to={form}: resnet18 blurs before its strided conv"):
        export([str(blurred), f"--to={form}", "-o", str(tmp_path / "out")])
    assert not list((tmp_path / "out").iterdir())


def test_timm_has_other_networks_by_the_same_name(dataset: Dataset, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", dataset, "--model.arch=mobilenet_v2")
    with pytest.raises(UserError, match="timm's mobilenet_v2 is another network, or it has none"):
        export([str(run), "--to=timm", "-o", str(tmp_path / "out")])


@pytest.mark.slow
def test_a_network_of_timms(dataset: Dataset, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", dataset, "--model.arch=timm/resnet18d")
    with pytest.raises(UserError, match="timm/resnet18d is timm's; use --to=timm"):
        export([str(run), "--to=torchvision", "-o", str(tmp_path / "out")])
    assert export([str(run), "--to=timm", "-o", str(tmp_path / "out")]) == FINISHED
    assert close(timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True), run)


def altered(load: Callable[[Path], nn.Module], by: float) -> Callable[[Path], nn.Module]:
    """What loads a network whose first logit is another."""

    def load_altered(folder: Path) -> nn.Module:
        network = load(folder)
        with torch.no_grad():
            network.get_parameter("fc.bias")[0] += by
        return network

    return load_altered


@pytest.mark.parametrize("by", [0.01, math.nan])
def test_an_export_that_computes_something_else_is_not_written(
    by: float, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    form = formats.FORMATS["torchvision"]
    monkeypatch.setitem(formats.FORMATS, "torchvision", form._replace(load=altered(form.load, by)))
    with pytest.raises(RunFault, match="the export computes something else: logits differ by up"):
        export([str(run), "--to=torchvision", "-o", str(tmp_path / "out")])
    assert not list((tmp_path / "out").iterdir())


def test_a_logit_that_is_no_number_is_not_forgotten() -> None:
    bad = torch.tensor([[0.0, math.nan]])
    comparer = verify._Comparer(nn.Identity(), iter([torch.zeros(1, 2)] * 2))
    comparer(bad)
    comparer(torch.ones(1, 2))
    assert math.isnan(comparer.difference.item())


def test_faults(run: Path, tmp_path: Path, dataset: Dataset) -> None:
    def fault(*argv: str) -> str:
        with pytest.raises(UserError) as caught:
            export(argv)
        return str(caught.value)

    out = f"--output={tmp_path / 'out'}"
    assert "expected safetensors or torchvision or onnx or timm or" in fault(
        str(run), "--to=onx", out
    )
    assert "did you mean onnx?" in fault(str(run), "--to=onx", out)
    assert "--normalise=1: has no effect with --to=timm" in fault(
        str(run), "--to=timm", "--normalise=1", out
    )
    assert "--license: has no effect with" in fault(str(run), "--to=timm", "--license=mit", out)
    assert "no run or weights; write RUN before" in fault("--to=onnx", out)
    missing = fault(str(run), "--to=torchvision", out, "--data.val_dataset=")
    assert missing.startswith("data.val_dataset is missing: an export is verified on it")
    (tmp_path / "file").touch()
    bad = fault(str(run), "--to=torchvision", f"--output={tmp_path / 'file'}")
    assert "cannot be written (File exists); choose another" in bad
    with pytest.raises(UserError, match=r"--to=onnx: needs no_such_package \(No module named"):
        formats.require("onnx", ["json", "no_such_package"])
