"""The page's array of jobs that write a dataset, and the job that joins its parts."""

import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ffcv_r50.data import beton, samples
from tests.conftest import REPOSITORY
from tests.slurm.conftest import Cluster, until
from tests.writers.serial import in_this_process
from writers import pool, writing
from writers.config import Writing

PAGE = (REPOSITORY / "docs" / "cluster.md").read_text()
PARTS = 3


@pytest.mark.slurm
@pytest.mark.slow
@pytest.mark.timeout(400)
def test_an_array_writes_what_one_job_writes(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    tree = tmp_path / "images" / "train"
    for i in range(20):
        path = tree / "ab"[i // 10] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(path)
    (block,) = re.findall(r"^```bash\n(JOB=.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    for there, here in (
        ("1-16", f"1-{PARTS}"),
        ("TASK_ID/16", f"TASK_ID/{PARTS}"),
        ("=16 --time=4:00:00", f"=2 --time=10 --output={tmp_path}/%a.log"),
        ("--time=4:00:00", f"--time=10 --output={tmp_path}/merge.log"),
        ("/data/imagenet", str(tree.parent)),
        ("_ID/3 ", "_ID/3 --cfg.num_workers=1 "),
    ):
        assert there in block
        block = block.replace(there, here)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    cluster.environment |= {
        "SCRATCH": str(scratch),
        "PATH": f"{sys.prefix}/bin:{os.environ['PATH']}",
    }
    cluster.call("bash", "-e", "-c", block)
    until(lambda: not cluster.call("squeue", "--noheader"), "the end of the jobs", 300)
    logs = {path.name: path.read_text() for path in sorted(tmp_path.glob("*.log"))}
    assert list(logs) == ["1.log", "2.log", "3.log", "merge.log"], logs
    joined = scratch / "train.beton"
    assert {path.name for path in scratch.iterdir()} == {
        "train.beton",
        "train.beton.json",
        "train.beton.samples.gz",
    }, logs
    monkeypatch.setattr(pool, "ordered_map", in_this_process)
    whole = tmp_path / "whole.beton"
    writing.write(Writing(data_dir=str(tree.parent), write_path=str(whole)))
    for place in (Path, samples.path_beside):
        assert place(joined).read_bytes() == place(whole).read_bytes()
    sidecar, expected = beton.Sidecar.read(joined), beton.Sidecar.read(whole)
    assert sidecar
    assert expected
    assert sidecar.class_counts == expected.class_counts
    assert sidecar.settings["shard"] is None
