"""Files from strangers: break small ones in every way, read them, and see that nothing else breaks.

    python -m benchmarks.fuzz [--seconds 60 | --mutations 100000] [--seed N] [--processes N]
        [--folder DIR] [--kinds dataset,sidecar,samples,recipe,checkpoint,state,run] [--keep DIR]

A mutation changes a file of one kind: a ``.beton`` file's header, field descriptors, metadata,
allocation table (also the last two together, so that they agree), pages or length; bytes of its
JPEGs; the text of its sidecar, of a recipe or of a run folder's files (settings, status, logs,
environment); the compressed names of its samples; bytes of a checkpoint, or values of the state in
one. What the toolkit reads such files with (as a run that continues, as its reports, as its supervisor)
then either succeeds or raises its own errors, which end in one line; anything else is a failure:
another exception, a process that dies, more than
``MEMORY_LIMIT``, more than ``TIME_LIMIT``. Of a dataset that opens, samples of each kind (raw, plain,
progressive and tiled JPEGs) are decoded with random and center crops; then every byte of the file
outside of one sample is changed, and its pixels must stay what they were.

A mutation is a function of the seed and its number, so ``--first=N --mutations=1`` repeats it. Exit
code 1 where something failed.
"""

import contextlib
import copy
import functools
import gzip
import io
import json
import multiprocessing
import multiprocessing.connection
import os
import random
import resource
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import rich.progress
import torch
import yaml
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch import nn

from benchmarks.beton_parts import parts
from ffcv_r50 import optim, runs, verify
from ffcv_r50.config import command_line, settings
from ffcv_r50.config.settings import Config
from ffcv_r50.data import jpeg, samples
from ffcv_r50.data.beton import ALLOCATION, HEADER, Beton, Identity, sidecar_path
from ffcv_r50.data.decode import Sampling, Scratch, Stored, decode_samples
from ffcv_r50.errors import RunFault, UserError, exit_with
from ffcv_r50.logs import jsonl
from ffcv_r50.logs.console import finished
from ffcv_r50.logs.run_logs import FolderLogs
from ffcv_r50.recorder import Counters
from ffcv_r50.registry import Options, Range
from ffcv_r50.report import folder as report_folder
from ffcv_r50.report import page
from ffcv_r50.run import checkpoint, compatibility, ends, versions
from ffcv_r50.run.progress import Progress
from ffcv_r50.run.run_folder import RunFolder
from writers.beton_writer import BetonWriter

TIME_LIMIT = 20.0
"""Seconds that one mutation may take; most take a millisecond."""
START_LIMIT = 150.0
"""Seconds until the first, which may have to compile, or until the end after the last."""
MEMORY_LIMIT = 2 << 30
"""Bytes of address space that reading a small file may take besides what a process has."""
RESOLUTION = 24
CHUNK = 5000
"""Mutations that a process does; its start takes as long as a thousand of them."""
PAGE_SIZE = 1 << 15


class Fuzzed(Options):
    """What is broken, and for how long."""

    seconds: Annotated[float | None, Range(at_least=1)] = None
    """How long; the default is so many mutations."""
    mutations: Annotated[int, Range(at_least=1)] = 100_000
    """How many, where no `--seconds` are given."""
    first: Annotated[int, Range(at_least=0)] = 0
    """The number of the first."""
    seed: int = 0
    """Of all."""
    processes: Annotated[int, Range(at_least=1, at_most=1024)] = len(os.sched_getaffinity(0))
    """At a time."""
    folder: str | None = None
    """Where the files lie, such as one in shared memory; the default is the temporary folder."""
    kinds: str = "dataset,sidecar,samples,recipe,checkpoint,state,run"
    """Kinds of files, separated by commas."""
    keep: str | None = None
    """Where a file that broke something is kept."""


# ------------------------------------------------------------------------------------ whole files


class Originals(NamedTuple):
    """Small whole files of each kind."""

    dataset: bytes
    sidecar: str
    samples: str
    recipe: str
    checkpoint: bytes
    state: dict[str, Any]
    run: dict[str, str]


def originals() -> Originals:
    """Made anew, the same each time."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:70, :96]
    waves = 127 + 100 * np.sin(np.stack([x / 9, y / 5, (x + y) / 7], -1))
    pixels = (waves + rng.normal(0, 20, waves.shape)).clip(0, 255).astype(np.uint8)
    image = Image.fromarray(pixels)
    kinds: list[dict[str, Any]] = [
        {"subsampling": "4:2:0"},
        {"subsampling": "4:2:0", "restart_marker_blocks": 2},
        {"subsampling": "4:4:4", "restart_marker_blocks": 3},
        {"progressive": True},
    ]
    blobs = [pixels[:31, :47].tobytes()]
    for options in kinds:
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=80, **options)
        blobs.append(buffer.getvalue())
    file = io.BytesIO()
    writer = BetonWriter(file, len(blobs), PAGE_SIZE)
    for i, blob in enumerate(blobs):
        raw = i == 0
        height, width = (31, 47) if raw else (70, 96)
        writer.add(int(raw), height, width, blob, i % 3)
    writer.finish()
    sidecar = {
        "classes": ["cat", "dog", "owl"],
        "num_samples": len(blobs),
        "class_counts": [2, 2, 1],
        "settings": {"write_mode": "jpg"},
        "versions": {"ffcv_r50": "0"},
        "source": "images",
        "skipped": [{"path": "a.jpg", "reason": "empty"}],
    }
    recipe = {
        "model": {"arch": "resnet18"},
        "training": {"epochs": 3, "batch_size": 32, "momentum": 0.9},
        "augment": [{"mix": {"mixup": 0.2}}],
        "averages": [{"ema": {"half_life": 2}}],
        "schedule": {"lr": {0: 0.1, 3: "cosine 0"}, "resolution": {0: 32}},
    }
    digest = samples.digest(b"")
    lines = [json.dumps([f"cat/{i}.jpg", digest, digest]) for i in range(len(blobs))]
    weights = io.BytesIO()
    torch.save({"learner": {"model": {"w": torch.ones(3, 4)}}, "progress": {"epoch": 1}}, weights)
    identity = Identity(len(blobs), 3, digest)._asdict()
    network, optimizer = learner()
    state = {
        "format": versions.FORMAT,
        "progress": asdict(Progress(epoch=1, step=2)),
        "batch_size": 32,
        "learner": {
            "model": network.state_dict(),
            "optimizer": optimizer.state_dict(),
            "scaler": {},
            "averages": {},
        },
        "recorder": asdict(Counters()),
        "config": yaml.safe_dump(recipe),
        "datasets": dict.fromkeys(compatibility.DATASETS, identity),
        "versions": {"torch": "2"},
    }
    row = dict.fromkeys(
        ("epoch", "step", "lr", "resolution", "train_loss", "val_loss", "top_1", "top_5",
         "ema_top_1", "ema_top_5", "ema_val_loss", "images_per_second", "data_wait_fraction", "epoch_seconds", "eval_seconds", "start_seconds"),
        1.5,
    )  # fmt: skip
    rows = [row | {"epoch": epoch, "step": epoch, "resolution": 32} for epoch in range(2)]
    step = {"lr": 0.1, "resolution": 32, "fingerprint": "f" * 32}
    measured = {"epoch": 0.5, "loss": 2.0, "gradient_norm": 1.0, "images_per_second": 9.0}
    steps = [step | {"step": number} | (measured if number % 2 else {}) for number in range(4)]
    start = {
        "time": "2026-11-22T01:00:00+0000",
        "command": ["train_imagenet.py", "--config=recipe.yaml"],
        "host": "node",
        "world_size": 2,
        "device": "cpu",
        "format": 1,
        "versions": {"ffcv_r50": "0.1.0", "torch": "2", "python": "3.11"},
    }
    run = {
        "config.yaml": yaml.safe_dump(recipe),
        "status.json": json.dumps({"state": "failed", "reason": "no disk", "exit_code": 2}),
        "log.jsonl": "".join(f"{json.dumps(row)}\n" for row in rows),
        "steps.jsonl": "".join(f"{json.dumps(row)}\n" for row in steps),
        "environment.json": json.dumps([start]),
        "sinks/tensorboard.json": json.dumps({"epochs": 1, "steps": 2}),
    }
    return Originals(
        file.getvalue(),
        json.dumps(sidecar),
        "".join(f"{line}\n" for line in lines),
        yaml.safe_dump(recipe),
        weights.getvalue(),
        state,
        run,
    )


def learner() -> tuple[nn.Module, torch.optim.Optimizer]:
    """The smallest network with all that one has, after a step."""
    network = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    optimizer = torch.optim.SGD(
        optim.parameter_groups(network, False, 0.1), lr=0.1, momentum=0.9, nesterov=True
    )
    network(torch.ones(2, 3)).sum().backward()
    optimizer.step()
    return network, optimizer


# ------------------------------------------------------------------------------------- mutations


def number(draw: random.Random, old: int) -> int:
    """One that somebody would choose to break things; of up to 64 bits."""
    edges = [0, 1, 7, 255, 65535, 1 << 20, (1 << 31) - 1, 1 << 32, 1 << 40, (1 << 63) - 1, 1 << 63]
    match draw.randrange(5):
        case 0:
            return draw.choice(edges)
        case 1:
            return old + draw.choice([-3, -2, -1, 1, 2, 3])
        case 2:
            return (draw.choice(edges) - draw.randrange(1 << 16)) % (1 << 64)
        case 3:
            return old ^ (1 << draw.randrange(64))
        case _:
            return draw.getrandbits(draw.randrange(1, 65))


def put(record: np.void, name: str, draw: random.Random) -> int:
    """Change an integer of a record; returns the new one."""
    kind = record.dtype[name]
    value = number(draw, int(record[name])) % (1 << 8 * kind.itemsize)
    record[name] = np.array([value], np.uint64).astype(f"u{kind.itemsize}").view(kind)[0]
    return int(record[name])


def change_bytes(data: bytearray, draw: random.Random, begin: int, end: int) -> None:
    """Some bytes of a part: others, markers, put in, taken out, cut off."""
    at = draw.randrange(begin, max(begin + 1, end))
    match draw.randrange(6):
        case 0:
            data[at : at + 1] = bytes([draw.randrange(256)])
        case 1:
            data[at : at + 2] = bytes([0xFF, draw.randrange(0xC0, 0x100)])
        case 2:
            count = draw.randrange(1, 40)
            data[at : at + count] = draw.randbytes(count)
        case 3:
            data[at:at] = draw.randbytes(draw.randrange(1, 40))
        case 4:
            del data[at : at + draw.randrange(1, 40)]
        case 5:
            data[at : at + 4] = b"\0\0\0\0"


def mutated_dataset(original: bytes, draw: random.Random) -> bytes:
    """A ``.beton`` file, broken in up to four places."""
    content = bytearray(original)
    header, fields, metadata, table = parts(content)
    blocks = [(int(row["ptr"]), int(row["size"])) for row in table]
    places = draw.choice([1, 1, 1, 2, 4])
    for _ in range(places):
        i = draw.randrange(len(metadata))
        image, row = metadata["f0"][i], table[i]
        match draw.randrange(9):
            case 0:
                put(header, draw.choice(HEADER.names or ()), draw)
            case 1:
                field = fields[draw.randrange(2)]
                field["type_id"] = draw.randrange(256)
                field["name"][draw.randrange(16)] = draw.randrange(256)
            case 2:
                put(image, draw.choice(["mode", "width", "height", "data_ptr"]), draw)
            case 3:
                put(metadata[i], "f1", draw)
            case 4:
                put(row, draw.choice(ALLOCATION.names or ()), draw)
            case 5:  # a sample elsewhere, and both agree on it
                row["ptr"] = put(image, "data_ptr", draw)
            case 6:  # a raw sample of another shape, elsewhere: pixels of whatever lies there
                image["mode"] = 1
                height, width = put(image, "height", draw), put(image, "width", draw)
                row["size"] = 3 * height * width
                row["ptr"] = put(image, "data_ptr", draw)
            case 7 | 8:  # bytes of an image, most often a JPEG's header
                at, size = blocks[i]
                changed = content[at : at + size]
                change_bytes(changed, draw, 0, draw.choice([size, 700]))
                content[at : at + size] = changed[:size].ljust(size, b"\0")
    data = bytearray(content)
    match draw.randrange(10):
        case 0:
            change_bytes(data, draw, 0, len(data))
        case 1:
            del data[draw.randrange(len(data)) :]
    return bytes(data)


def mutated_text(original: str, draw: random.Random) -> bytes:
    """JSON or YAML, broken: bytes, numbers, nesting, size."""
    data = bytearray(original.encode())
    for _ in range(draw.choice([1, 1, 2, 4])):
        digits = [i for i, byte in enumerate(data) if chr(byte).isdigit()]
        at = draw.randrange(max(1, len(data)))
        match draw.randrange(8):
            case 0 | 1:
                change_bytes(data, draw, 0, len(data))
            case 2 if digits:
                at = draw.choice(digits)
                words = ["-1", "1e999", "nan", "null", "true", "[]", "{}", '"x"', "9" * 400, "0.5",
                         "9" * 5000, "2001-13-45", "0o99", "1:99:99", "\\ud800"]  # fmt: skip
                data[at : at + 1] = draw.choice(words).encode()
            case 3:
                data[at:at] = draw.choice([b"[", b"{", b'{"a":', b"- ", b"? "]) * 100_000
            case 4:
                data[at:at] = draw.choice(
                    [b"\xff\xfe", b"\0", b"\x1b[31m", b"\xe2\x80\xa8", b"&a *a "]
                )
            case 5:
                del data[at:]
            case 6:
                lines = bytes(data).splitlines(keepends=True)
                draw.shuffle(lines)
                data = bytearray(b"".join(lines))
            case 7:
                one = draw.choice([b"b%d: &a%d {<<: [%s]}\n", b"b%d: &a%d [%s]\n"])
                bomb = (one % (i, i, b"*a%d, " % (i - 1) * 9) for i in range(1, 30))
                at = data.find(b"\n", at) + 1
                data[at:at] = b"b0: &a0 {c: 1}\n" + b"".join(bomb)
    return bytes(data)


def mutated_names(original: str, draw: random.Random) -> bytes:
    """The compressed lines of a dataset's samples: other lines, other bytes, or far too many."""
    match draw.randrange(4):
        case 0:
            return mutated_bytes(gzip.compress(original.encode()), draw)
        case 1:
            times = draw.choice([b"\n", b" ", original.splitlines(keepends=True)[0].encode()])
            return gzip.compress(original.encode() + times * (1 << 20), 1)
        case _:
            return gzip.compress(mutated_text(original, draw))


def mutated_state(original: dict[str, Any], draw: random.Random) -> bytes:
    """What ``torch.save`` makes of a state with other values in up to four places."""
    state = copy.deepcopy(original)
    for _ in range(draw.choice([1, 1, 2, 4])):
        inner: Any = state
        while True:
            keys = [*inner] if isinstance(inner, dict) else [*range(len(inner))]
            key = draw.choice(keys)
            deeper = isinstance(inner[key], (dict, list)) and len(inner[key]) > 0
            if not deeper or draw.random() < 0.2:
                break
            inner = inner[key]
        if draw.random() < 0.2:
            del inner[key]
            if not state:
                break
        else:
            inner[key] = draw.choice(
                [None, True, -1, 0.5, 1 << 70, 10**400, float("nan"), float("inf"), "", "x" * 9000, [], {},
                 [[]] * 9, {"a": {1: 2}}, torch.ones(2), torch.ones(3, 3), torch.tensor(7), b"\0",
                 torch.zeros(1).expand(1 << 40), torch.ones(2, dtype=torch.complex64),
                 torch.ones(2).to_sparse(), torch.empty(2, device="meta")]
            )  # fmt: skip
    file = io.BytesIO()
    torch.save(state, file)
    return file.getvalue()


def mutated_bytes(original: bytes, draw: random.Random) -> bytes:
    """A binary file, broken."""
    data = bytearray(original)
    for _ in range(draw.choice([1, 1, 2, 4])):
        change_bytes(data, draw, 0, len(data))
    return bytes(data)


# --------------------------------------------------------------------------------------- readers


def read_dataset(path: Path, draw: random.Random) -> str:
    """Open it, decode each sample twice, and once more after all other bytes have changed."""
    dataset = Beton(path)
    center = Sampling(np.uint64(1), 0, False, (1, 1), (1, 1), 0.0, 0.875, False)
    crops = Sampling(
        np.uint64(draw.randrange(99)), 3, True, (0.08, 1.0), (3 / 4, 4 / 3), 0.5, 1.0, True
    )
    stored = Stored.of(dataset)
    scratch = Scratch.allocate(stored, RESOLUTION)
    decoder = jpeg.Decompressor()

    def decode(sample: int, sampling: Sampling) -> tuple[int, bytes]:
        out = np.zeros((1, RESOLUTION, RESOLUTION, 3), np.uint8)
        views = np.array([sample])
        _, status = decode_samples(decoder.handle, stored, sampling, views, 0, scratch, out)
        return status, out.tobytes()

    samples = range(min(dataset.num_samples, 8))
    before = {(i, s): decode(i, s) for i in samples for s in (center, crops)}
    one = draw.choice(samples)
    begin, end = int(dataset.offsets[one]), int(dataset.offsets[one] + dataset.sizes[one])
    with open(path, "r+b") as file:
        length = file.seek(0, os.SEEK_END)
        for at, count in ((0, begin), (end, length - end)):
            file.seek(at)
            file.write(draw.randbytes(count) if count < 1 << 16 else b"\xa5" * count)
    after = {(one, s): decode(one, s) for s in (center, crops)}
    decoder.close()
    for key, found in after.items():
        if found != before[key]:
            raise AssertionError(f"pixels of sample {one} depend on bytes outside of it")
    good = sum(status == jpeg.GOOD for status, _ in before.values())
    return "decoded" if good == len(before) else "opened, some samples refused"


def read_sidecar(path: Path, dataset: bytes) -> str:
    """As a dataset's."""
    path.write_bytes(dataset)
    Beton(path)
    return "read"


def read_samples(path: Path) -> str:
    """As a dataset's."""
    for sample in samples.read(path, 5) or ():
        bytes.fromhex(sample.source + sample.stored)
    return "read"


@functools.cache
def configuration(recipe: Path) -> Config:
    """Of an original, which is the same each time."""
    words = ["--data.train_dataset=t", "--data.val_dataset=v", "--logging.folder=f"]
    return settings.load([f"--config={recipe}", *words])


def read_state(path: Path, recipe: Path, draw: random.Random) -> str:
    """As :meth:`ffcv_r50.trainer.Run._load` and what is called before it do."""
    with contextlib.suppress(UserError):
        checkpoint.load_weights(path)
    config = configuration(recipe)
    found, _ = checkpoint.newest(path.parent)
    assert found is not None
    compatibility.check_state(str(path), found)
    if draw.random() < 0.1:  # takes as long as ten others
        compatibility.changed_settings(str(path), found["config"], config)
    here = dict.fromkeys(compatibility.DATASETS, Identity(5, 3, samples.digest(b""))._asdict())
    compatibility.notes(str(path), found, config, here)
    network, optimizer = learner()
    try:
        network.load_state_dict(found["learner"]["model"])
        optim.load_state(optimizer, found["learner"]["optimizer"])
        Counters(**found.get("recorder", {}))
    except compatibility.UNFIT as error:
        raise UserError(str(error) or "does not fit") from error
    progress = Progress(**found["progress"])
    progress.scale_steps(found["batch_size"] / 32)
    network(torch.ones(2, 3)).sum().backward()
    optimizer.step()
    return "continued"


def read_recipe(path: Path) -> str:
    """As the trainer does."""
    words = ["--data.train_dataset=t", "--data.val_dataset=v", "--logging.folder=f"]
    settings.load([f"--config={path}", *words])
    return "read"


def read_checkpoint(path: Path) -> str:
    """As the state of a run, and as weights."""
    with contextlib.suppress(UserError):
        checkpoint.load_state(path)
    checkpoint.load_weights(path)
    return "read"


def read_run(folder: Path, changed: str, draw: random.Random) -> str:
    """As whoever looks at it, and as its next start."""
    runs.read(folder)
    seen = ends.look(folder)
    for before in (seen, ends.Seen({}, None)):
        ends.judge(1, before, seen)
        ends.own_code(1, before, seen)
    with contextlib.suppress(UserError):
        verify.compare(verify.rows(folder), verify.rows(folder))
    if draw.random() < 0.05:  # takes as long as a hundred others
        with contextlib.suppress(UserError):
            page.render(report_folder.read(folder))
    config = configuration(folder.with_suffix(".yaml"))
    held = RunFolder(str(folder))
    warned: list[str] = []
    try:
        if changed in ("config.yaml", "environment.json"):
            held.changes(config)
        held.begin(config, 1)
        logs = FolderLogs(folder, {}, warned.append)
        logs.rewind(2, 3)
        finished(jsonl.last_row(held.log), 0.0, 0.0, "")
        logs.close()
    finally:
        held.release()
    assert not warned, warned
    return "continued"


def mutate(
    files: Originals, kinds: list[str], seed: int, index: int, folder: Path
) -> tuple[str, Callable[[], str]]:
    """Put a mutation's file into a folder; returns its kind, and how it is read."""
    draw = random.Random(f"{seed} {index}")
    # Datasets have the most ways to break, and take the least time.
    kind = draw.choice(["dataset"] * (5 if "dataset" in kinds else 0) + kinds)
    path = folder / "x.beton"
    sidecar_path(path).unlink(missing_ok=True)
    if kind == "dataset":
        path.write_bytes(mutated_dataset(files.dataset, draw))
        return kind, lambda: read_dataset(path, draw)
    if kind == "sidecar":
        sidecar_path(path).write_bytes(mutated_text(files.sidecar, draw))
        return kind, lambda: read_sidecar(path, files.dataset)
    if kind == "samples":
        samples.path_beside(path).write_bytes(mutated_names(files.samples, draw))
        return kind, lambda: read_samples(path)
    path = folder / "x"
    if kind == "recipe":
        path.write_bytes(mutated_text(files.recipe, draw))
        return kind, lambda: read_recipe(path)
    if kind == "checkpoint":
        path.write_bytes(mutated_bytes(files.checkpoint, draw))
        return kind, lambda: read_checkpoint(path)
    if kind == "state":
        path = folder / "checkpoints" / checkpoint.LAST
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(mutated_state(files.state, draw))
        recipe = folder / "recipe.yaml"
        recipe.write_text(files.recipe)
        return kind, lambda: read_state(path, recipe, draw)
    run = folder / "run"
    run.with_suffix(".yaml").write_text(files.recipe)
    for name, text in files.run.items():
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text(text)
    name = draw.choice([*files.run])
    (run / name).write_bytes(mutated_text(files.run[name], draw))
    return "run", lambda: read_run(run, name, draw)


# --------------------------------------------------------------------------------------- processes


class Task(NamedTuple):
    """What a process does."""

    kinds: list[str]
    seed: int
    indices: range
    folder: Path
    keep: Path | None


def work(task: Task, results: "multiprocessing.connection.Connection[Any, Any]") -> None:
    """A process's life: send (index, None) before each mutation, and after it its outcome."""
    files = originals()
    folder = task.folder / str(os.getpid())
    folder.mkdir()
    warm_up(files, folder)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY_LIMIT, used + MEMORY_LIMIT))
    for index in task.indices:
        results.send((index, None))
        kind, read = mutate(files, task.kinds, task.seed, index, folder)
        try:
            outcome = read()
        except (UserError, RunFault) as error:
            outcome = "refused"
            if not str(error).strip() or len(str(error)) > 4000:
                outcome = f"FAILED: the message has {len(str(error))} characters"
        except BaseException:
            last = traceback.format_exc().strip().splitlines()
            outcome = "FAILED: " + " | ".join(line.strip() for line in last[-4:])[:1000]
        if task.keep and outcome.startswith("FAILED"):
            shutil.copytree(folder, task.keep / str(index), dirs_exist_ok=True)
        results.send((index, f"{kind}: {outcome}"))
    shutil.rmtree(folder)


def warm_up(files: Originals, folder: Path) -> None:
    """Compile and import before memory and time are counted."""
    path = folder / "x.beton"
    path.write_bytes(files.dataset)
    read_dataset(path, random.Random(0))
    path.write_bytes(files.checkpoint)
    read_checkpoint(path)
    path.write_text(files.recipe)
    read_recipe(path)
    _, read = mutate(files, ["run"], 0, 0, folder)
    with contextlib.suppress(UserError):
        read()


class Process:
    """A process and where it is.

    Args:
        task: its work.
    """

    def __init__(self, task: Task) -> None:
        self.task = task
        context = multiprocessing.get_context("spawn")
        self.results, theirs = context.Pipe(duplex=False)
        self._process = context.Process(target=work, args=(task, theirs), daemon=True)
        self._process.start()
        theirs.close()
        self.at: int | None = None
        self.since = time.monotonic()

    def take(self) -> tuple[int, str] | None:
        """A result that is there.

        Raises:
            EOFError: the process has ended.
        """
        index, outcome = self.results.recv()
        self.at, self.since = index, time.monotonic()
        if outcome is None:
            return None
        self.at = None
        return index, outcome

    def ended(self) -> str:
        """Wait for its end and say what it died of; empty where it did not."""
        self._process.join(10)
        code = self._process.exitcode
        return f"FAILED: the process ended with {code}" if self.at is not None or code else ""

    def hangs(self) -> bool:
        """Whether its mutation takes too long, or its start."""
        limit = START_LIMIT if self.at is None else TIME_LIMIT
        return time.monotonic() - self.since > limit

    def kill(self) -> None:
        """End it."""
        self._process.kill()
        self._process.join()


def fuzz(options: Fuzzed, folder: Path) -> Counter[str]:
    """How often each outcome was met; a failure's has its mutation's number."""
    keep = Path(options.keep) if options.keep else None
    kinds = [kind.strip() for kind in options.kinds.split(",")]
    if unknown := sorted(set(kinds) - {*Originals._fields}):
        raise UserError(f"--kinds: {unknown[0]} is none of {', '.join(Originals._fields)}")
    began, outcomes = time.monotonic(), Counter[str]()
    stop = options.first + options.mutations if options.seconds is None else sys.maxsize
    following = options.first

    def start(first: int, stop: int) -> Process:
        return Process(Task(kinds, options.seed, range(first, stop), folder, keep))

    def more() -> bool:
        in_time = options.seconds is None or time.monotonic() - began < options.seconds
        return in_time and following < stop

    processes: list[Process] = []
    with rich.progress.Progress(transient=True) as progress:
        bar = progress.add_task("mutations", total=None if options.seconds else options.mutations)
        while True:
            while len(processes) < options.processes and more():
                end = min(stop, following + CHUNK)
                processes.append(start(following, end))
                following = end
            if not processes:
                return outcomes
            multiprocessing.connection.wait([process.results for process in processes], 1.0)
            for process in [*processes]:
                failure = ""
                try:
                    while process.results.poll():
                        if result := process.take():
                            index, outcome = result
                            failed = "FAILED" in outcome
                            outcomes[f"{outcome} (mutation {index})" if failed else outcome] += 1
                            progress.advance(bar)
                except EOFError:
                    failure = process.ended()
                    processes.remove(process)
                if not failure and process in processes and process.hangs():
                    failure = f"FAILED: took more than {TIME_LIMIT:g} s"
                    process.kill()
                    processes.remove(process)
                if failure:
                    at = process.task.indices.start if process.at is None else process.at
                    outcomes[f"{failure} (mutation {at})"] += 1
                    progress.advance(bar)
                    if at + 1 < process.task.indices.stop:
                        processes.append(start(at + 1, process.task.indices.stop))


def main() -> int:
    """Fuzz and print what happened."""
    options = command_line.read(Fuzzed, sys.argv[1:], __doc__ or "")
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        outcomes = fuzz(options, Path(folder))
    table = Table("outcome", box=None)
    table.add_column("mutations", justify="right")
    for outcome, count in sorted(outcomes.items()):
        table.add_row(outcome, f"{count:,}")
    table.add_row("all", f"{outcomes.total():,}")
    Console().print(table)
    return int(any("FAILED" in outcome for outcome in outcomes))


if __name__ == "__main__":
    exit_with(main)
