"""``make bench-gpu`` at its smallest: all steps agree on what is measured, and it goes on where it was."""

import json
import time
from pathlib import Path

import pytest
import torch

from benchmarks import gpu
from ffcv_r50.errors import UserError

TINY = gpu.Scale("resnet18", [gpu.Cell(32, 2, "fp32")], rounds=1, matrix=16, copied=1 << 10)
CPU = torch.device("cpu")


@pytest.mark.slow
def test_rows_are_written_as_they_come_and_not_measured_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(gpu.STEPS, "ours compiled")  # compiling takes longer than all the rest
    soon = time.monotonic() + 1000
    benchmark = gpu.Benchmark(tmp_path, soon, CPU, TINY)
    assert benchmark.ceilings()
    assert benchmark.steps(TINY.cells)
    rows = gpu.read(tmp_path / "rows.jsonl")
    assert rows == benchmark.rows
    rates = {row["kind"]: row["images_per_s"] for row in rows if "px" in row}
    assert rates.keys() == gpu.STEPS.keys()
    assert all(rate > 0 for rate in rates.values())

    with (tmp_path / "rows.jsonl").open("a") as file:
        file.write(json.dumps(rows[0])[:20])  # killed while it wrote
    again = gpu.Benchmark(tmp_path, soon, CPU, TINY)
    assert again.rows == rows
    late = gpu.Benchmark(tmp_path, time.monotonic() - 1, CPU, TINY)
    assert late.ceilings(), "nothing is missing"
    assert late.steps(TINY.cells), "nothing is missing"
    assert not late.profile()
    assert late.rows == rows

    table = gpu.table(rows)
    base = rates["ffcv-imagenet"]
    assert f"| {base:,.0f} (1.00x) |" in table
    gpu.draw(rows, tmp_path / "steps.png")
    assert (tmp_path / "steps.png").read_bytes().startswith(b"\x89PNG")


def test_another_devices_rows_are_not_mixed_in(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(
        json.dumps({"kind": "copy", "device": "NVIDIA H100"}) + "\n"
    )
    with pytest.raises(UserError, match="rows of another device"):
        gpu.Benchmark(tmp_path, 0.0, CPU, TINY)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("sm90_xmma_fprop_implicit_gemm_bf16", "convolution, matrix product"),
        ("batch_norm_backward_reduce_channels_last", "batch-norm"),
        ("triton_poi_fused_add_relu_3", "compiled"),
        ("void at::native::multi_tensor_apply_kernel<FusedSgd>", "optimizer"),
        ("Memcpy HtoD (Pinned -> Device)", "copy"),
        ("void at::native::vectorized_elementwise_kernel<4>", "elementwise, reduction, other"),
    ],
)
def test_kernels_have_classes(name: str, kind: str) -> None:
    assert gpu.kernel_class(name) == kind
