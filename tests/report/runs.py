"""Run folders made of random numbers, as large as wanted: nothing is trained for them."""

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from ffcv_r50.config import settings
from ffcv_r50.data import beton
from ffcv_r50.data.beton import Sidecar

RECIPE = """
model: {{arch: resnet50, blurpool: true}}
data: {{train_dataset: {folder}/train.beton, val_dataset: {folder}/val.beton}}
training: {{epochs: {epochs}, batch_size: 64, label_smoothing: 0.1, momentum: 0.9}}
augment: [{{mix: {{cutmix: {{0: 1, {epochs}: 0}}}}}}]
averages: [{{ema: {{half_life: 2}}}}]
schedule:
  lr: {{0: 0.0002, 2: 1.7, {epochs}: 0}}
  resolution: {{0: 128, {ramp}: 128, {epochs}: 192}}
logging: {{folder: {folder}/run}}
"""
EVIL = """<script>alert("x")</script>'&{{ 7 * 7 }}"""
IMAGES = 64
"""Different ones; samples share them, so that many samples make a small file."""


class Made(NamedTuple):
    """A run folder and what is in its predictions."""

    folder: Path
    names: list[str]
    target: npt.NDArray[np.int64]
    classes: npt.NDArray[np.int64]
    probabilities: npt.NDArray[np.float64]


def make(folder: Path, names: Sequence[str], per_class: int, epochs: int = 12) -> Made:
    """A finished run with everything that runs record, and its validation set, in ``folder``."""
    rng = np.random.default_rng(len(names))
    target = np.repeat(np.arange(len(names)), per_class)
    write_beton(folder / "val.beton", target, names, rng)
    run = folder / "run"
    run.mkdir()
    config = settings.load([f"--config={_recipe(folder, epochs)}"], needs_data=False)
    (run / "config.yaml").write_text(config.to_yaml())
    write_starts(run)
    (run / "status.json").write_text(json.dumps({"state": "finished", "reason": ""}))
    (run / "weights.pt").write_bytes(b"weights")
    classes, probabilities = _predictions(target, len(names), rng)
    own = np.where(classes == target[:, None], probabilities, 0).sum(1)
    np.savez(
        run / "predictions.npz",
        index=np.arange(len(target)),
        target=target,
        loss=-np.log(np.maximum(own, 1e-6)).astype(np.float32),
        classes=classes.astype(np.int32),
        probabilities=probabilities.astype(np.float32),
    )
    top_1 = 100 * float((classes[:, 0] == target).mean())
    write_log(run, epochs, top_1, rng)
    return Made(run, list(names), target, classes, probabilities)


def _recipe(folder: Path, epochs: int) -> Path:
    path = folder / "recipe.yaml"
    text = RECIPE.format(folder=folder, epochs=epochs, ramp=epochs // 2)
    path.write_text(f"# A test.\n# Published: 76.1 % top-1, 92.9 % top-5.\n{text}")
    return path


def _predictions(
    target: npt.NDArray[np.int64], num_classes: int, rng: np.random.Generator
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Errors mostly go to classes near by; confidences are a bit too high."""
    samples, k = len(target), min(5, num_classes)
    hardness = rng.beta(2, 5, num_classes)[target]
    wrong = rng.random(samples) < hardness * 0.8
    near = target // 5 * 5 + rng.integers(0, 5, samples)
    far = rng.integers(0, num_classes, samples)
    taken = np.where(rng.random(samples) < 0.75, near, far) % num_classes
    first = np.where(wrong, taken, target)
    others = (first[:, None] + np.cumsum(rng.integers(1, 3, (samples, k - 1)), 1)) % num_classes
    slot = rng.integers(0, 2 * (k - 1), samples)
    for j in range(k - 1):  # a missed target is often among the next ones
        others[:, j] = np.where(wrong & (slot == j), target, others[:, j])
    sure = np.clip(rng.beta(6, 1.5, samples) - 0.35 * wrong * rng.random(samples), 1 / k, 0.999)
    rest = (1 - sure)[:, None] * 0.9 * (0.5 ** np.arange(1, k))
    return np.column_stack([first, others]), np.column_stack([sure, rest])


def write_log(run: Path, epochs: int, top_1: float, rng: np.random.Generator) -> None:
    """Curves as a good run has them, ending in ``top_1`` %."""
    steps = 40
    rows, step_rows = [], []
    for epoch in range(epochs):
        t = (epoch + 1) / epochs
        rise = (1 - np.exp(-4 * t)) / (1 - np.exp(-4))
        seconds = 58 + 60 * t**2 + float(rng.normal(0, 1))
        wait = 0.28 * (1 - t) + 0.01
        top = top_1 * rise
        rows.append(
            {
                "epoch": epoch,
                "step": (epoch + 1) * steps,
                "lr": 1.7 * (1 - t),
                "resolution": 128 if t < 0.6 else 192,
                "train_loss": 6.9 - 4.6 * rise + float(rng.normal(0, 0.02)),
                "val_loss": 6.9 - 5.8 * rise + float(rng.normal(0, 0.03)),
                "top_1": top if t == 1 else top + float(rng.normal(0, 0.4)),
                "top_5": top + (100 - top) * 0.7,
                "ema_val_loss": 6.9 - 5.9 * rise,
                "ema_top_1": min(top + 0.4, 100.0),
                "ema_top_5": top + (100 - top) * 0.72,
                "train_top_1": None if epoch == 0 else 0.85 * top,
                "images_per_second": 25_000 / seconds * 40,
                "data_wait_fraction": wait,
                "epoch_seconds": seconds,
                "eval_seconds": 6.5,
                "step_seconds": seconds * (1 - wait) - 0.5,
                "save_seconds": 0.8,
                "peak_memory_bytes": 61_300_000_000,
                "gpu_utilization": 97.0 - 40 * wait,
                "gpu_power_watts": 540.0 + float(rng.normal(0, 5)),
                "start_seconds": 21.0 if epoch in (0, epochs // 3) else 0.0,
            }
        )
        for number in range(0, steps, 4):
            noise = float(rng.normal(0, 0.25))
            step_rows.append(
                {
                    "step": epoch * steps + number,
                    "lr": 1.7 * (1 - t),
                    "fingerprint": "0" * 16,
                    "epoch": epoch + number / steps,
                    "loss": rows[-1]["train_loss"] + noise,
                    "gradient_norm": float(np.exp(rng.normal(0.5 - t, 0.3))),
                    "images_per_second": rows[-1]["images_per_second"] * (1 + noise / 10),
                }
            )
            step_rows.append({"step": epoch * steps + number + 1, "lr": 1.0, "fingerprint": "1"})
    for name, written in (("log.jsonl", rows), ("steps.jsonl", step_rows)):
        (run / name).write_text("".join(f"{json.dumps(row)}\n" for row in written))


def write_starts(run: Path) -> None:
    """Started on 8 GPUs, continued on 4."""
    starts = [
        {
            "time": f"2026-11-2{day}T09:1{day}:00+0000",
            "command": [
                "train_imagenet.py",
                "--config",
                str(run.parent / "recipe.yaml"),
                f"--logging.folder={run}",
            ],
            "host": "node-<b>7</b>",
            "world_size": size,
            "device": "NVIDIA H100 80GB HBM3",
            "format": 1,
            "versions": {"ffcv_r50": "0.1.0", "python": "3.11.7", "torch": "2.15.0+cu132"},
        }
        for day, size in ((0, 8), (1, 4))
    ]
    (run / "environment.json").write_text(json.dumps(starts))


def write_beton(
    path: Path, labels: npt.NDArray[np.int64], names: Sequence[str], rng: np.random.Generator
) -> None:
    """A dataset with these labels, of :data:`IMAGES` JPEGs that samples share."""
    images = [_jpeg(i, rng) for i in range(IMAGES)]
    sizes = np.array([len(data) for data, _, _ in images])
    fields = np.zeros(2, beton.FIELD)
    fields["type_id"] = [beton.TYPE_IMAGE, beton.TYPE_INT]
    for field, name in zip(fields, (b"image", b"label"), strict=True):
        field["name"][: len(name)] = np.frombuffer(name, np.uint8)
    metadata = np.zeros(len(labels), beton.metadata_dtype([beton.TYPE_IMAGE, beton.TYPE_INT]))
    pages = beton.HEADER.itemsize + fields.nbytes + metadata.nbytes
    starts = pages + np.concatenate([[0], np.cumsum(sizes)[:-1]])
    which = rng.integers(0, IMAGES, len(labels))
    metadata["f0"]["mode"] = beton.MODE_JPEG
    metadata["f0"]["height"] = np.array([height for _, height, _ in images])[which]
    metadata["f0"]["width"] = np.array([width for _, _, width in images])[which]
    metadata["f0"]["data_ptr"] = starts[which]
    metadata["f1"] = labels
    table = np.zeros(len(labels), beton.ALLOCATION)
    table["sample_id"], table["ptr"], table["size"] = (
        np.arange(len(labels)),
        starts[which],
        sizes[which],
    )
    header = np.zeros(1, beton.HEADER)
    header[0] = (2, 2, 1 << 23, len(labels), pages + sizes.sum())
    blocks = [part.tobytes() for part in (header, fields, metadata)]
    path.write_bytes(b"".join([*blocks, *(data for data, _, _ in images), table.tobytes()]))
    sidecar = Sidecar(list(names), len(labels), np.bincount(labels).tolist())
    beton.sidecar_path(path).write_bytes(sidecar.to_json())


def _jpeg(number: int, rng: np.random.Generator) -> tuple[bytes, int, int]:
    """An image with some texture, and its height and width."""
    height, width = (int(side) for side in rng.integers(120, 420, 2))
    coarse = Image.fromarray(rng.integers(40, 220, (5, 5, 3)).astype(np.uint8))
    image = coarse.resize((width, height), Image.Resampling.BICUBIC)
    noise = rng.normal(0, 12, (height, width, 3))
    image = Image.fromarray(np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8))
    ImageDraw.Draw(image).ellipse(
        (width // 4, height // 4, width // 2, height // 2), fill=number * 3
    )
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85)
    return buffer.getvalue(), height, width
