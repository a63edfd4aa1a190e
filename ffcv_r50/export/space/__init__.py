"""A folder for a Space of the Hugging Face hub: a page to try a network on photos.

It is complete by itself: the network as ONNX, a short program, and what the hub reads. Nothing of this
toolkit is needed there, nor torch.
"""

import shutil
from pathlib import Path

import yaml
from torch import nn

from ffcv_r50.errors import UserError
from ffcv_r50.export import described
from ffcv_r50.export.formats import FORMATS
from ffcv_r50.export.of_bytes import OfBytes, Restored
from ffcv_r50.saved import Saved

FOLDER = "space"
FORMAT = FORMATS["onnx"]
"""Of its network."""
HERE = Path(__file__).parent
FILES = ("app.py", "requirements.txt")
"""Written as they are."""
GRADIO, PYTHON = "6.31.0", "3.11"
"""The versions it was tried with, which the hub installs."""

ABOUT = """\
A page to try {arch} on photos. It was trained with ffcv_r50; what the network is given and what its
classes are called is in `model.json`.

`pip install -r requirements.txt && python app.py` starts the page on any machine. Photos in a folder
`examples` are offered on it.
"""


def write(saved: Saved, license_name: str, folder: Path) -> None:
    """Make the folder.

    Args:
        saved: the network.
        license_name: as the hub calls it, such as ``apache-2.0``.
        folder: is made.

    Raises:
        UserError: the network cannot be written as ONNX; there is no folder then.
    """
    of_bytes = saved._replace(network=OfBytes(saved.network, saved.config.data.statistics))
    folder.mkdir()
    try:
        FORMAT.write(of_bytes, folder)
    except UserError:
        shutil.rmtree(folder)
        raise
    described.write(described.describe(of_bytes), folder)
    for file in FILES:
        shutil.copyfile(HERE / file, folder / file)
    arch = saved.config.model.arch
    head = yaml.safe_dump(_head(arch, license_name), sort_keys=False)
    (folder / "README.md").write_text(f"---\n{head}---\n\n{ABOUT.format(arch=arch)}", "utf-8")


def load(saved: Saved, folder: Path) -> nn.Module:
    """Its network, as a module that maps normalised images on the CPU to logits."""
    return Restored(FORMAT.load(folder), saved.config.data.statistics)


def _head(arch: str, license_name: str) -> dict[str, str]:
    """What the hub reads: https://huggingface.co/docs/hub/spaces-config-reference."""
    return {
        "title": arch,
        "sdk": "gradio",
        "sdk_version": GRADIO,
        "python_version": PYTHON,
        "app_file": "app.py",
        "license": license_name,
    }
