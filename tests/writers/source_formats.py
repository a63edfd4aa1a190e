"""The same few images in each form that a source reads, made by that format's own library."""

import csv
import io
import json
import tarfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
from PIL import Image
from pyarrow import parquet
from scipy.io import savemat

from writers.sources import ilsvrc_tars

WNIDS = ("n01440764", "n02102040", "n03000684")
Images = Mapping[str, bytes]
"""``<class>/<file>`` -> content, in ImageFolder's order."""


def images(names: list[str]) -> Images:
    """A small JPEG each."""
    rng = np.random.default_rng(0)
    made = {}
    for name in sorted(names):
        buffer = io.BytesIO()
        pixels = rng.integers(0, 256, (3, 4, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((32, 24)).save(buffer, "JPEG")
        made[name] = buffer.getvalue()
    return made


TRAIN = images([f"{wnid}/{wnid}_{i}.JPEG" for wnid in WNIDS for i in (2, 10, 7, 31)])
# Which class each is of says another file, and its order is none.
VAL = images([f"{WNIDS[i * 2 % 3]}/ILSVRC2012_val_{i:08}.JPEG" for i in range(1, 11)])


def tree(root: Path, content: Images) -> Path:
    """Class folders."""
    for name, data in content.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def flat(root: Path, content: Images) -> Path:
    """All in one folder."""
    return tree(root, {name.split("/")[1]: data for name, data in content.items()})


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    """A file of an archive."""
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def ilsvrc_train(folder: Path, content: Images) -> Path:
    """A tar of a tar a class; neither classes nor images are in order."""
    with tarfile.open(folder / "ILSVRC2012_img_train.tar", "w") as outer:
        for wnid in sorted({name.split("/")[0] for name in content}, reverse=True):
            buffer = io.BytesIO()
            with tarfile.open(fileobj=buffer, mode="w") as inner:
                for name in reversed(list(content)):
                    if name.startswith(wnid):
                        add(inner, name.split("/")[1], content[name])
            add(outer, f"{wnid}.tar", buffer.getvalue())
    return folder


def ilsvrc_val(folder: Path, content: Images, wnid_of_id: tuple[str, ...] = WNIDS[::-1]) -> Path:
    """A tar of files, and the devkit, whose IDs count the wnids in another order."""
    with tarfile.open(folder / "ILSVRC2012_img_val.tar", "w") as tar:
        for name in sorted(content, key=lambda name: name.split("/")[1]):
            add(tar, name.split("/")[1], content[name])
    kind = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("num_children", "O")]
    synsets = [(i, wnid, "a word", 0) for i, wnid in enumerate(wnid_of_id, 1)]
    synsets.append((len(synsets) + 1, "n00001740", "entity", 2))  # has children: is no class
    meta = io.BytesIO()
    savemat(meta, {"synsets": np.array(synsets, kind).reshape(-1, 1)})
    by_file = {name.split("/")[1]: name.split("/")[0] for name in content}
    truth = [wnid_of_id.index(by_file[file]) + 1 for file in sorted(by_file)]
    with tarfile.open(folder / ilsvrc_tars.DEVKIT, "w:gz") as tar:
        data = "ILSVRC2012_devkit_t12/data"
        add(tar, f"{data}/meta.mat", meta.getvalue())
        lines = "".join(f"{i}\n" for i in truth).encode()
        add(tar, f"{data}/ILSVRC2012_validation_ground_truth.txt", lines)
    return folder


def kaggle_train(folder: Path, content: Images) -> Path:
    """Class folders, a few levels down."""
    tree(folder / "ILSVRC/Data/CLS-LOC/train", content)
    return folder


def kaggle_val(folder: Path, content: Images) -> Path:
    """One folder, and a table of boxes."""
    flat(folder / "ILSVRC/Data/CLS-LOC/val", content)
    with open(folder / "LOC_val_solution.csv", "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["ImageId", "PredictionString"])
        for name in reversed(list(content)):
            wnid, image = name.removesuffix(".JPEG").split("/")
            table.writerow([image, f"{wnid} 85 1 499 272 {wnid} 1 2 3 4 "])
    return folder


def tiny_train(folder: Path, content: Images) -> Path:
    """Class folders with a folder ``images`` and a table of boxes each."""
    for name, data in content.items():
        wnid, file = name.split("/")
        tree(folder / "train", {f"{wnid}/images/{file}": data, f"{wnid}/{wnid}_boxes.txt": b""})
    (folder / "wnids.txt").write_text("\n".join(reversed(WNIDS)))
    return folder


def tiny_val(folder: Path, content: Images) -> Path:
    """One folder, and a table."""
    flat(folder / "val" / "images", content)
    lines = (f"{n.split('/')[1]}\t{n.split('/')[0]}\t0\t0\t6\t6\n" for n in reversed(list(content)))
    (folder / "val" / "val_annotations.txt").write_text("".join(lines))
    (folder / "wnids.txt").write_text("\n".join(reversed(WNIDS)))
    return folder


def flat_numbers(folder: Path, content: Images) -> Path:
    """As for Caffe: one folder, a table of numbers of the folders of ``train``."""
    flat(folder / "val", content)
    for wnid in WNIDS:
        (folder / "train" / wnid).mkdir(parents=True)
    lines = (f"{n.split('/')[1]} {WNIDS.index(n.split('/')[0])}\n" for n in reversed(list(content)))
    (folder / "val.txt").write_text("".join(lines))
    return folder


def flat_names(folder: Path, content: Images) -> Path:
    """One folder that holds the table, too."""
    flat(folder, content)
    return csv_table(folder / "labels.csv", [(n.split("/")[1], n.split("/")[0]) for n in content])


def csv_table(path: Path, rows: list[tuple[str, str]]) -> Path:
    """A table with a header; gives its folder."""
    with open(path, "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["path", "label"])
        table.writerows(rows)
    return path.parent


def manifest_csv(folder: Path, content: Images) -> Path:
    """Names of classes."""
    tree(folder, content)
    csv_table(folder / "list.csv", [(name, name.split("/")[0]) for name in content])
    return folder / "list.csv"


def manifest_json(folder: Path, content: Images) -> Path:
    """An object a line, with a column that is not asked for."""
    tree(folder, content)
    rows = [{"label": name.split("/")[0], "path": name, "split": "train"} for name in content]
    (folder / "list.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "list.jsonl"


def manifest_parquet(folder: Path, content: Images) -> Path:
    """Two columns."""
    tree(folder, content)
    columns = {"path": list(content), "label": [name.split("/")[0] for name in content]}
    parquet.write_table(pyarrow.table(columns), folder / "list.parquet")
    return folder / "list.parquet"


def manifest_text(folder: Path, content: Images) -> Path:
    """A path and a class a line."""
    tree(folder, content)
    lines = (f"{name} {name.split('/')[0]}\n" for name in content)
    (folder / "list.txt").write_text("".join(lines))
    return folder / "list.txt"


def hub_table(
    rows: Sequence[tuple[bytes | None, int | None]], classes: tuple[str, ...] = WNIDS
) -> Any:
    """A table as ``datasets`` writes it: the features are noted in the schema."""
    features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": classes}}
    note = {"huggingface": json.dumps({"info": {"features": features}})}
    image = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    schema = pyarrow.schema([("image", image), ("label", pyarrow.int64())], metadata=note)
    content = [{"bytes": data, "path": f"{i}.jpg"} for i, (data, _) in enumerate(rows)]
    return pyarrow.table({"image": content, "label": [label for _, label in rows]}, schema)


def hub(folder: Path, content: Images) -> Path:
    """Two shards of ``train`` with three images a row group, and one of ``validation``."""
    rows = [(data, WNIDS.index(name.split("/")[0])) for name, data in content.items()]
    (folder / "data").mkdir(parents=True)
    for i, part in enumerate((rows[:5], rows[5:])):
        path = folder / "data" / f"train-{i:05}-of-00002.parquet"
        parquet.write_table(hub_table(part), path, row_group_size=3)
    parquet.write_table(hub_table(rows[:1]), folder / "data/validation-00000-of-00001.parquet")
    return folder


def plain_parquet(folder: Path, content: Images) -> Path:
    """Bytes and class names, without a note; a row group is empty."""
    schema = pyarrow.schema([("label", pyarrow.string()), ("jpeg", pyarrow.large_binary())])
    rows = [{"label": name.split("/")[0], "jpeg": data} for name, data in content.items()]
    with parquet.ParquetWriter(folder / "some.parquet", schema) as file:
        for part in (rows[:5], [], rows[5:]):
            file.write_table(pyarrow.Table.from_pylist(part, schema))
    return folder


def shards(folder: Path, content: Images, label: Callable[[str], tuple[str, bytes]]) -> Path:
    """Two tars of samples."""
    names = list(content)
    for i, part in enumerate((names[:7], names[7:])):
        with tarfile.open(folder / f"imagenet-train-{i:06}.tar", "w") as tar:
            for name in part:
                key = name.split("/")[1].removesuffix(".JPEG")
                extension, data = label(name.split("/")[0])
                add(tar, f"{key}.{extension}", data)
                add(tar, f"{key}.jpg", content[name])
    return folder


def shards_cls(folder: Path, content: Images) -> Path:
    """Names of classes."""
    return shards(folder, content, lambda wnid: ("cls", wnid.encode()))


def shards_json(folder: Path, content: Images) -> Path:
    """The same in JSON."""
    return shards(folder, content, lambda wnid: ("json", json.dumps({"label": wnid}).encode()))
