"""The formats: how each is written, and how the other side loads it.

``write`` puts a network's files into a folder; ``load`` gives what the other side makes of them, as a
module that maps float32 [n, 3, height, width] on the CPU to logits [n, classes].
"""

import copy
import importlib
import json
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torchvision
from torch import Tensor, nn

from ffcv_r50 import models
from ffcv_r50.errors import UserError
from ffcv_r50.export import described
from ffcv_r50.export.of_bytes import OfBytes
from ffcv_r50.models.timm_networks import PREFIX
from ffcv_r50.saved import Saved


class Format(NamedTuple):
    """A form that a network can be exported to."""

    packages: Sequence[str]
    """Needed to write and to load it, besides ours."""
    write: Callable[[Saved, Path], None]
    """Raises :class:`UserError` where the network cannot be expressed in it."""
    load: Callable[[Path], nn.Module]
    runtime: str
    """The package that computes what was loaded."""
    bytes_in: bool = False
    """Whether what is loaded can be given uint8 images: see :class:`~ffcv_r50.export.of_bytes.OfBytes`."""


def require(name: str, packages: Sequence[str]) -> None:
    """See that packages are installed.

    Raises:
        UserError: one is not.
    """
    for package in packages:
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise UserError(
                f"command line: --to={name}: needs {package} ({error}); "
                "pip install 'ffcv_r50[export]'"
            ) from error


def _refuse_blurpool(saved: Saved, name: str) -> None:
    """Refuse a network whose blur another project's model has no place for.

    Folded into the weights it is no 3 x 3 convolution any more, and at the borders no convolution.

    Raises:
        UserError: it has blurpool.
    """
    if saved.config.model.blurpool:
        raise UserError(
            f"command line: --to={name}: {saved.config.model.arch} blurs before its strided "
            f"convolutions (model.blurpool), which {name}'s has no place for; use --to=onnx or "
            "--to=safetensors"
        )


# ------------------------------------------------------------------------------------ safetensors


def _write_safetensors(saved: Saved, folder: Path) -> None:
    from safetensors.torch import save_file

    weights = {name: t.contiguous() for name, t in saved.network.state_dict().items()}
    metadata = described.text(described.describe(saved))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt", **metadata})


def _load_safetensors(folder: Path) -> nn.Module:
    """Into a plain network of the architecture that its metadata name."""
    from safetensors import safe_open

    with safe_open(folder / "model.safetensors", "pt") as file:
        said = file.metadata()
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no dict
    blurpool = json.loads(said["blurpool"])
    network = models.build(said["arch"], json.loads(said["num_classes"]), blurpool=blurpool)
    network.load_state_dict(weights)
    return network


# ------------------------------------------------------------------------------------ torchvision


def _write_torchvision(saved: Saved, folder: Path) -> None:
    _refuse_blurpool(saved, "torchvision")
    arch = saved.config.model.arch
    if arch.startswith(PREFIX):
        raise UserError(f"command line: --to=torchvision: {arch} is timm's; use --to=timm")
    torch.save(saved.network.state_dict(), folder / "model.pth")


def _load_torchvision(folder: Path) -> nn.Module:
    said = json.loads((folder / described.FILE).read_text("utf-8"))
    arch = said["arch"]
    options = {"aux_logits": False, "init_weights": False} if arch in models.AUXILIARY else {}
    network: nn.Module = torchvision.models.get_model(
        arch, weights=None, num_classes=said["num_classes"], **options
    )
    network.load_state_dict(torch.load(folder / "model.pth", weights_only=True))
    return network


# ------------------------------------------------------------------------- torch.export and ONNX


def _example(saved: Saved) -> tuple[nn.Module, tuple[Tensor], dict[int, Any]]:
    """A copy of the network, which exporters change; two images, lest they take one for a constant; and
    which dimension is any number."""
    side = saved.config.validation.resolution
    network = copy.deepcopy(saved.network).cpu().eval()
    if isinstance(network, OfBytes):
        images = torch.zeros(2, side, side, 3, dtype=torch.uint8)
    else:
        images = torch.zeros(2, 3, side, side)
    return network, (images,), {0: torch.export.Dim("batch")}


def _write_torch_export(saved: Saved, folder: Path) -> None:
    network, images, dynamic = _example(saved)
    said = {described.FILE: json.dumps(described.describe(saved))}
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # of buffers that are views, which verifying shows to be right
        program = torch.export.export(network, images, dynamic_shapes=(dynamic,))
        torch.export.save(program, folder / "model.pt2", extra_files=said)


def _load_torch_export(folder: Path) -> nn.Module:
    return _Program(torch.export.load(folder / "model.pt2").module())


class _Program(nn.Module):
    """An exported program, which knows no ``eval``: that it was exported in."""

    def __init__(self, program: nn.Module) -> None:
        super().__init__()
        self._program = [program]  # no child

    def forward(self, images: Tensor) -> Tensor:
        """Images, as it was exported for -> logits [n, classes]."""
        logits: Tensor = self._program[0](images)
        return logits


def _write_onnx(saved: Saved, folder: Path) -> None:
    import onnx

    path = folder / "model.onnx"
    network, images, dynamic = _example(saved)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its own deprecations, which no user can change
        try:
            torch.onnx.export(
                network,
                images,
                path,
                input_names=["images"],
                output_names=["logits"],
                dynamic_shapes=(dynamic,),
                dynamo=True,
                external_data=False,
                verbose=False,
            )
        except torch.onnx.errors.OnnxExporterError as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"command line: --to=onnx: torch.onnx.export cannot convert "
                f"{saved.config.model.arch}: {reason}"
            ) from error
    model = onnx.load(path)
    onnx.helper.set_model_props(model, described.text(described.describe(saved)))
    onnx.save(model, path)


def _load_onnx(folder: Path) -> nn.Module:
    import onnxruntime

    path = str(folder / "model.onnx")
    return _OnnxRuntime(onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]))


class _OnnxRuntime(nn.Module):
    """A session as a module."""

    def __init__(self, session: Any) -> None:
        super().__init__()
        self._session = session

    def forward(self, images: Tensor) -> Tensor:
        """Images, as it was exported for -> logits [n, classes]."""
        [logits] = self._session.run(["logits"], {"images": images.contiguous().numpy()})
        return torch.from_numpy(logits)


# ------------------------------------------------------------------------------------------- timm


def _timms(saved: Saved) -> Any:
    """timm's own network with these weights.

    Raises:
        UserError: it has none that computes the same.
    """
    import timm

    _refuse_blurpool(saved, "timm")
    arch = saved.config.model.arch.removeprefix(PREFIX)
    try:
        theirs: Any = timm.create_model(arch, num_classes=len(saved.classes))
        theirs.load_state_dict(saved.network.state_dict())
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"command line: --to=timm: timm's {arch} is another network, or it has none: {reason}"
        ) from error
    return theirs


def _write_timm(saved: Saved, folder: Path) -> None:
    from safetensors.torch import save_file

    theirs, said = _timms(saved), described.describe(saved)
    weights = {name: t.contiguous() for name, t in theirs.state_dict().items()}
    arch, side = saved.config.model.arch.removeprefix(PREFIX), said["resolution"]
    config = {
        "architecture": arch,
        "num_classes": said["num_classes"],
        "label_names": said["classes"],
        "pretrained_cfg": {
            "num_classes": said["num_classes"],
            "input_size": [3, side, side],
            "crop_pct": said["crop_ratio"],
            "crop_mode": "center",
            "interpolation": said["interpolation"],
            "mean": said["mean"],
            "std": said["std"],
            "first_conv": theirs.pretrained_cfg["first_conv"],
            "classifier": theirs.pretrained_cfg["classifier"],
        },
    }
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def _load_timm(folder: Path) -> nn.Module:
    import timm

    network: nn.Module = timm.create_model(f"local-dir:{folder}", pretrained=True)
    return network


FORMATS = {
    "safetensors": Format(["safetensors"], _write_safetensors, _load_safetensors, "safetensors"),
    "torchvision": Format([], _write_torchvision, _load_torchvision, "torchvision"),
    "onnx": Format(
        ["onnx", "onnxscript", "onnxruntime"], _write_onnx, _load_onnx, "onnxruntime", bytes_in=True
    ),
    "torch_export": Format([], _write_torch_export, _load_torch_export, "torch", bytes_in=True),
    "timm": Format(["timm", "safetensors"], _write_timm, _load_timm, "timm"),
}


def for_hub(saved: Saved) -> Format:
    """The format of a folder for the Hugging Face hub: timm's layout where timm has the network, else our
    safetensors."""
    try:
        _timms(saved)
    except UserError:
        return FORMATS["safetensors"]
    return FORMATS["timm"]
