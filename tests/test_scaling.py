"""The model of many GPUs: its page is current, and its sums have the limits they must have."""

import pytest
import torch
import torchvision

from benchmarks import scaling
from ffcv_r50.training.reduction import StepSums
from tests.conftest import REPOSITORY


def test_the_page_shows_what_the_model_says() -> None:
    page = (REPOSITORY / "docs" / "scaling.md").read_text()
    shown = page.split("<!-- benchmarks.scaling -->\n")[1].split("\n<!-- /benchmarks")[0]
    assert shown == scaling.tables()


def test_an_all_reduce_costs_nothing_alone_and_its_bytes_twice_at_most() -> None:
    cluster = scaling.CLUSTERS[1]
    assert scaling.all_reduce(1e9, 1, cluster) == 0
    two_nodes = scaling.all_reduce(1e9, 16, cluster) - scaling.all_reduce(1e9, 8, cluster)
    # A ring of two moves each byte once.
    assert two_nodes == pytest.approx(1e9 / cluster.outside, rel=1e-3)
    times = [scaling.all_reduce(1e9, gpus, cluster) for gpus in scaling.COUNTS]
    assert times == sorted(times)
    assert times[-1] - times[1] == pytest.approx(2e9 / cluster.outside, rel=0.01)


def test_buckets_are_those_of_a_step() -> None:
    with torch.device("meta"):
        network = torchvision.models.resnet50()
        sums = StepSums(network.parameters(), 2 * 26_560, overlapped=True)
    assert [4 * len(bucket) for bucket in sums._buckets] == [size for size, _ in scaling.BUCKETS]
    assert sum(size for size, _ in scaling.BUCKETS) == pytest.approx(
        scaling.GRADIENT_BYTES, rel=1e-4
    )


def test_a_long_backward_pass_hides_all_but_the_last_bucket() -> None:
    cluster = scaling.CLUSTERS[1]
    last = scaling.all_reduce(scaling.BUCKETS[-1][0], 16, cluster)
    assert scaling.visible(1.0, 16, cluster) == pytest.approx(last)
    each = sum(scaling.all_reduce(size, 16, cluster) for size, _ in scaling.BUCKETS)
    assert scaling.visible(0.0, 16, cluster) == pytest.approx(each)


def test_a_group_of_one_has_no_collectives_of_batch_norm() -> None:
    parts = scaling.step(8, 4096, 512, 1000.0, scaling.CLUSTERS[0])
    assert parts["batch-norm"] == 0
    assert parts["passes"] == pytest.approx(512 / 1000)
    assert scaling.step(64, 4096, 512, 1000.0, scaling.CLUSTERS[0])["batch-norm"] > 0
