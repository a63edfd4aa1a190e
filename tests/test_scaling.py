"""The model of many GPUs: its page is current, and its sums have the limits they must have."""

import pytest

from benchmarks import scaling
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


def test_a_group_of_one_has_no_collectives_of_batch_norm() -> None:
    parts = scaling.step(8, 4096, 512, 1000.0, scaling.CLUSTERS[0])
    assert parts["batch-norm"] == 0
    assert parts["passes"] == pytest.approx(512 / 1000)
    assert scaling.step(64, 4096, 512, 1000.0, scaling.CLUSTERS[0])["batch-norm"] > 0
