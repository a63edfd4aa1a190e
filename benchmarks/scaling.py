"""What a step and an epoch take on 1 to 1,024 GPUs: a model on paper, for docs/scaling.md.

    python -m benchmarks.scaling

Prints Markdown. Nothing here is measured but what the docstrings of the constants say was; published
figures are called published, the rest are datasheets and assumptions. A step is what its parts take,
one after the other: the passes over this GPU's images, not faster than Python starts kernels; the
all-reduce, on several nodes as far as the last backward pass does not hide it; the collectives of
batch-norm where GPUs share its statistics. An epoch is its steps at the rate of GPU or loader, whichever is slower,
the evaluation and the checkpoint.
"""

import math
from pathlib import Path
from typing import NamedTuple

from ffcv_r50 import recipe
from ffcv_r50.config import settings

RECIPES = Path(__file__).resolve().parents[1] / "rcp"
IMAGES, VALIDATION = 1_281_167, 50_000
GRADIENT_BYTES = 4 * (25_557_032 + 2 * 26_560)
"""The buffer of a step of ResNet-50: its parameters and batch-norm's statistics, in float32."""
BUCKETS = (
    (44_125_640, 0.11),
    (32_030_720, 0.29),
    (13_406_208, 0.45),
    (4_212_736, 0.50),
    (8_665_344, 1.0),
)
"""Of that buffer on several nodes, in the order of their sums: bytes, and the share of the backward pass
(of its multiply-adds, counted) after which their gradients are there."""
NORMS = 53
GPUS_A_NODE = 8
PUBLISHED_RATES = {160: 3518.0, 192: 2600.0}
"""Images/s of one A100 of eight, ffcv-imagenet (published): all-reduce and loader are in it."""
MLPERF_RATE = 7940.0
"""Images/s of one H200 of eight at 224 px, MLPerf v4.0 (published; MXNet)."""
PUBLISHED_MINUTES = {16: 14.9, 24: 21.7, 32: 28.7, 40: 35.6, 56: 49.4, 88: 77.2}
"""ffcv-imagenet's ResNet-50 runs on 8 A100s by epochs (published)."""
LAUNCHES = 0.012
"""Seconds that Python takes to start the kernels of a step, uncompiled (estimate, about 900 kernels)."""
LATENCY_NODE, LATENCY_NETWORK = 5e-6, 15e-6
"""Seconds of one hop (assumed)."""
CORE_RATE = 4389 / 2
"""Images/s that one core loads at 160 px from a tiled file (measured, docs/loader.json)."""
CORES_A_GPU = 14
"""Of a machine with 8 GPUs and 112 cores (assumed)."""
FORWARD_SHARE = 1 / 3
"""Of a training step's time that its forward pass takes (assumed)."""
CHECKPOINT_SECONDS = 0.1
"""That the loop waits for a state to be copied to the host (assumed; writing goes on beside it)."""
DATASET_GB = 340.0
"""About what ImageNet takes at 500 px and half of it as JPEG (assumed), to be copied to each node once."""


class Cluster(NamedTuple):
    """Machines of eight GPUs."""

    name: str
    inside: float
    """Bytes/s between the GPUs of a node, each way (datasheet)."""
    outside: float
    """Bytes/s between nodes, each way (datasheet of the cards, all of a node together)."""
    disk: float
    """Bytes/s that a node reads from shared storage while all do (assumed)."""


CLUSTERS = (
    Cluster("DGX H100: NVLink 450 GB/s, eight 400 Gb/s cards", 450e9, 400e9, 2e9),
    Cluster("rented H100: NVLink 450 GB/s, one 100 Gb/s card", 450e9, 12.5e9, 0.5e9),
)
COUNTS = (1, 8, 16, 64, 128, 256, 512, 1024)


def all_reduce(size: float, gpus: int, cluster: Cluster) -> float:
    """Seconds of a sum over all GPUs: within nodes by rings, between them by ring or tree.

    A ring of n moves 2 (n - 1) / n of the bytes in 2 (n - 1) hops; a tree twice the bytes in 2 log2 n
    hops. The faster one is taken, as NCCL does.
    """
    inside, nodes = min(gpus, GPUS_A_NODE), math.ceil(gpus / GPUS_A_NODE)
    within = 2 * (inside - 1) / inside * size / cluster.inside + 2 * (inside - 1) * LATENCY_NODE
    ring = 2 * (nodes - 1) / nodes * size / cluster.outside + 2 * (nodes - 1) * LATENCY_NETWORK
    depth = math.ceil(math.log2(nodes))
    tree = 2 * size / cluster.outside + 2 * depth * LATENCY_NETWORK if nodes > 1 else 0.0
    return within + min(ring, tree)


def visible(backward: float, gpus: int, cluster: Cluster) -> float:
    """Seconds that the all-reduce makes a step longer.

    Args:
        backward: seconds of the last backward pass, which sums between nodes are taken not to slow down.
        gpus: that share the step.
        cluster: that they stand in.
    """
    if gpus <= GPUS_A_NODE:
        return all_reduce(GRADIENT_BYTES, gpus, cluster)
    end = 0.0
    for size, share in BUCKETS:
        end = max(end, share * backward) + all_reduce(size, gpus, cluster)
    return end - backward


def step(gpus: int, batch: int, norm_batch: int, rate: float, cluster: Cluster) -> dict[str, float]:
    """Seconds of the parts of a step.

    Args:
        gpus: that share it.
        batch: images of all of them.
        norm_batch: that batch-norm sees together.
        rate: images/s of a GPU that is alone and fed.
        cluster: that they stand in.
    """
    own = batch / gpus
    passes = math.ceil(own / norm_batch)
    computing = max(own / rate, passes * LAUNCHES)
    group = max(1, round(norm_batch / own))
    hop = LATENCY_NODE if group <= GPUS_A_NODE else LATENCY_NETWORK
    return {
        "passes": computing,
        "all-reduce": visible(computing / passes * (1 - FORWARD_SHARE), gpus, cluster),
        # Of a few thousand numbers, so hops count, not bytes: a ring that gathers, and a sum back.
        "batch-norm": NORMS
        * hop
        * (group - 1 + min(2 * (group - 1), 2 * math.ceil(math.log2(group)))),
    }


def epoch(
    gpus: int, batch: int, norm_batch: int, rate: float, cluster: Cluster
) -> dict[str, float]:
    """Seconds of an epoch at 160 px: of its steps, of what the loader makes them wait, of its end."""
    seconds = IMAGES // batch * sum(step(gpus, batch, norm_batch, rate, cluster).values())
    loading = IMAGES / (gpus * CORES_A_GPU * CORE_RATE)
    each = VALIDATION / gpus * 2 * FORWARD_SHARE / rate * (256 / 160) ** 2
    return {
        "steps": seconds,
        "loader": max(0.0, loading - seconds),
        "evaluation": each,
        "checkpoint": CHECKPOINT_SECONDS,
    }


def published() -> list[str]:
    """The minutes of ffcv-imagenet's runs against the rates at two sizes and the evaluations."""
    lines = ["| epochs | published, min | model, min | error |", "|--:|--:|--:|--:|"]
    a100 = Cluster("8 x A100", 300e9, 25e9, 2e9)
    for epochs, minutes in PUBLISHED_MINUTES.items():
        words = {"config": [str(RECIPES / f"rn50_{epochs}ep.yaml")]}
        config = settings.resolve(words, needs_data=False)
        seconds = 0.0
        for number in range(epochs):
            rate = PUBLISHED_RATES[160 if recipe.resolution(config, number) < 176 else 192]
            end = epoch(8, 4096, 512, PUBLISHED_RATES[160], a100)
            seconds += IMAGES / (8 * rate) + end["evaluation"]
        error = seconds / 60 / minutes - 1
        lines.append(f"| {epochs} | {minutes} | {seconds / 60:.1f} | {100 * error:+.1f} % |")
    return lines


def tables() -> str:
    """What docs/scaling.md shows."""
    lines = ["### Against published runs", ""]
    lines += published()
    rate = MLPERF_RATE * (224 / 160) ** 2
    for cluster in CLUSTERS:
        lines += ["", f"### {cluster.name}", ""]
        lines += [
            "| GPUs | batch | step, ms | passes | all-reduce | batch-norm | efficiency | loader waits, s "
            "| epoch, s | copy of the data, min |",
            "|" + "--:|" * 10,
        ]
        for gpus in COUNTS:
            for batch, norm_batch in ((4096, 512), (32768, 64)):
                if batch // gpus < 4 or (batch == 32768 and gpus < 64):
                    continue
                parts = step(gpus, batch, norm_batch, rate, cluster)
                whole = sum(parts.values())
                times = epoch(gpus, batch, norm_batch, rate, cluster)
                copy = DATASET_GB * 1e9 / cluster.disk / 60
                lines.append(
                    f"| {gpus:,} | {batch:,} | {1e3 * whole:.1f} | "
                    + " | ".join(f"{1e3 * seconds:.1f}" for seconds in parts.values())
                    + f" | {batch / gpus / rate / whole:.0%} | {times['loader']:.1f} | "
                    f"{sum(times.values()):.1f} | {copy:.0f} |"
                )
    return "\n".join(lines)


if __name__ == "__main__":
    print(tables())
