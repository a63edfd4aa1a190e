"""A model card: the page that the Hugging Face hub shows of a network, written from its run."""

from pathlib import Path

import yaml

import ffcv_r50
from ffcv_r50.config.settings import Checkpoint, Logging, Resume
from ffcv_r50.errors import UserError
from ffcv_r50.export.verify import Verified
from ffcv_r50.report import folder, pictures
from ffcv_r50.report.numbers import wilson
from ffcv_r50.saved import Saved
from ffcv_r50.training.evaluation import how

FILE = "README.md"
CURVES = "curves.png"

WITH_TIMM = """\
```python
import timm
from timm.data import create_transform, resolve_model_data_config

model = timm.create_model("hf-hub:OWNER/NAME", pretrained=True).eval()
transform = create_transform(**resolve_model_data_config(model), is_training=False)
logits = model(transform(image).unsqueeze(0))
```
"""
WITH_US = """\
```python
from ffcv_r50 import models
from safetensors.torch import load_file

model = models.build("{arch}", {classes}, blurpool={blurpool}).eval()
model.load_state_dict(load_file("model.safetensors"))
```

`model.json` says which images it takes.
"""


def write(saved: Saved, verified: Verified, license_name: str, to: Path) -> None:
    """As ``README.md``, with the run's curves where it is one and matplotlib is installed.

    Args:
        saved: the network.
        verified: its exact results.
        license_name: as the hub calls it, such as ``apache-2.0``.
        to: the folder, which holds the network already.
    """
    curves = _curves(saved)
    if curves:
        (to / CURVES).write_bytes(curves)
    timms = (to / "config.json").is_file()
    head = yaml.safe_dump(
        _head(saved, verified, license_name, timms), sort_keys=False, allow_unicode=True
    )
    model = saved.config.model
    load = WITH_US.format(arch=model.arch, classes=len(saved.classes), blurpool=model.blurpool)
    parts = [
        f"---\n{head}---\n\n# {model.arch}\n",
        _trained(saved),
        f"## Results\n\n{_results(saved, verified)}",
        f"![Losses and accuracies over the epochs]({CURVES})\n" if curves else "",
        f"## How to load it\n\n{WITH_TIMM if timms else load}",
        f"## Recipe\n\n```yaml\n{_recipe(saved)}```\n",
    ]
    (to / FILE).write_text("\n".join(filter(None, parts)), "utf-8")


def _head(saved: Saved, verified: Verified, license_name: str, timms: bool) -> dict[str, object]:
    """What the hub reads: https://huggingface.co/docs/hub/model-cards."""
    metrics = verified.metrics
    found = [
        {"type": "accuracy", "name": name, "value": round(value, 4)}
        for name, value in (("top-1", metrics.top_1), ("top-5", metrics.top_5))
    ]
    dataset = {"name": Path(saved.config.data.val_dataset).stem, "type": "image-folder"}
    task = {"type": "image-classification"}
    return {
        "license": license_name,
        "library_name": "timm" if timms else "ffcv_r50",
        "pipeline_tag": "image-classification",
        "tags": ["image-classification", "ffcv_r50"],
        "model-index": [
            {
                "name": saved.config.model.arch,
                "results": [{"task": task, "dataset": dataset, "metrics": found}],
            }
        ],
    }


def _trained(saved: Saved) -> str:
    training = saved.config.training
    return (
        f"Trained with ffcv_r50 {ffcv_r50.__version__}: {training.epochs} epochs, batches of "
        f"{training.batch_size:,}, {len(saved.classes):,} classes. The weights are the run's "
        f"`{saved.name}`.\n"
    )


def _results(saved: Saved, verified: Verified) -> str:
    validation, metrics = saved.config.validation, verified.metrics
    rows = ["| | % | 95 % interval |", "|---|---|---|"]
    for name, value in (("top-1", metrics.top_1), ("top-5", metrics.top_5)):
        low, high = wilson(value / 100 * metrics.count, metrics.count)
        rows.append(f"| {name} | {value:.2f} | {100 * low:.2f} to {100 * high:.2f} |")
    seen = how(validation.resolution, validation.tta)
    return "\n".join([f"On all {metrics.count:,} validation images ({seen}):", "", *rows, ""])


def _curves(saved: Saved) -> bytes | None:
    try:
        return pictures.draw(folder.read(saved.file.parent))[CURVES]
    except UserError:  # a file of weights by itself, or without matplotlib
        return None


def _recipe(saved: Saved) -> str:
    """Every setting that shaped the network; no paths, and nothing of who logged it where."""
    config = saved.config
    nowhere = {"train_dataset": "", "val_dataset": "", "stage_dir": ""}
    update = {
        "data": config.data.model_copy(update=nowhere),
        "model": config.model.model_copy(update={"weights": Path(config.model.weights).name}),
        "logging": Logging(),
        "checkpoint": Checkpoint(weights=config.checkpoint.weights),
        "resume": Resume(),
    }
    return config.model_copy(update=update).to_yaml()
