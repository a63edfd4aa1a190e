"""The numbers of a report, against scikit-learn, scipy and loops that count by hand."""

import numpy as np
import pytest
from scipy.cluster import hierarchy
from scipy.spatial.distance import squareform
from scipy.stats import binomtest, bootstrap
from sklearn import metrics

from ffcv_r50.report import numbers


def predictions(
    samples: int, num_classes: int, seed: int = 0
) -> tuple[numbers.Ints, numbers.Ints, numbers.Floats]:
    """Targets, predictions that are right more often than not, and confidences."""
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, num_classes, samples)
    predicted = np.where(rng.random(samples) < 0.6, targets, rng.integers(0, num_classes, samples))
    return targets, predicted, rng.random(samples)


@pytest.mark.parametrize(("hits", "trials"), [(0, 10), (10, 10), (81, 263), (39_200, 50_000)])
def test_the_wilson_interval_is_scipys(hits: int, trials: int) -> None:
    expected = binomtest(hits, trials).proportion_ci(method="wilson")
    assert numbers.wilson(hits, trials) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert np.isnan(numbers.wilson(0, 0)).all()


def test_precision_recall_and_f1_are_scikit_learns() -> None:
    targets, predicted, _ = predictions(500, 12)
    targets[targets == 3] = 4  # no samples
    predicted[predicted == 5] = 6  # never predicted
    targets[targets == 7], predicted[predicted == 7] = 8, 8  # neither
    expected = metrics.precision_recall_fscore_support(
        targets, predicted, labels=range(12), zero_division=np.nan
    )
    found = numbers.classes(targets, predicted, 12)
    for mine, theirs in zip(found[:4], expected, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-12)
    assert np.isnan(found.precision[5])
    assert np.isnan(found.f1[7])


def test_the_confusion_matrix_is_scikit_learns() -> None:
    targets, predicted, _ = predictions(400, 9)
    expected = metrics.confusion_matrix(targets, predicted, labels=range(9))
    np.testing.assert_array_equal(numbers.confusion_matrix(targets, predicted, 9), expected)
    rows, columns, counts = numbers.confusions(targets, predicted, 9)
    assert counts.all()
    assert (expected[rows, columns] == counts).all()


def test_the_most_confused_pairs() -> None:
    targets, predicted, _ = predictions(3000, 8, seed=1)
    matrix = metrics.confusion_matrix(targets, predicted)
    every = [(a, b, matrix[a, b], matrix[b, a]) for a in range(8) for b in range(a + 1, 8)]
    every.sort(key=lambda pair: -(pair[2] + pair[3]))  # stable: equal ones by class
    assert numbers.confused_pairs(targets, predicted, 8, most=5) == every[:5]
    assert numbers.confused_pairs(targets, targets, 8, most=5) == []


def test_the_matrix_is_clustered_by_average_linkage() -> None:
    rng = np.random.default_rng(3)
    confusion = rng.integers(0, 9, (24, 24)) + 40 * np.eye(24, dtype=np.int64)
    confusion += np.where(np.subtract.outer(np.arange(24) % 5, np.arange(24) % 5) == 0, 12, 0)
    found = numbers.clusters(confusion)
    assert sorted(found.order) == list(range(24))
    support = confusion.sum(1)
    distance = 1 - (confusion + confusion.T) / (support[:, None] + support)
    np.fill_diagonal(distance, 0)
    tree = hierarchy.linkage(squareform(distance), "average")
    labels = hierarchy.fcluster(tree, 1 - numbers.FAMILY, "distance")
    # Each of scipy's clusters, at any height, is a run in our order.
    place = np.argsort(found.order)
    for row in range(1, 24):
        flat = hierarchy.fcluster(tree, row, "maxclust")
        for label in np.unique(flat):
            places = np.sort(place[flat == label])
            assert places[-1] - places[0] == len(places) - 1
    expected = {frozenset(np.flatnonzero(labels == label)) for label in np.unique(labels)}
    assert {frozenset(family) for family in found.families} == {f for f in expected if len(f) > 1}


def test_families_are_those_who_are_confused() -> None:
    confusion = 50 * np.eye(7, dtype=np.int64)
    confusion[1, 5] = confusion[5, 3] = confusion[3, 1] = 8
    confusion[0, 6] = 30
    found = numbers.clusters(confusion)
    assert [set(family) for family in found.families] == [{1, 3, 5}, {0, 6}]
    assert numbers.clusters(50 * np.eye(3, dtype=np.int64)).families == []
    assert list(numbers.clusters(np.array([[5]])).order) == [0]


def test_calibration_is_what_a_loop_counts() -> None:
    _, _, confidence = predictions(2000, 10)
    confidence[:3] = (0.0, 1.0, 3 / 15)  # a bin has its upper edge
    right = np.random.default_rng(1).random(2000) < confidence**2
    found = numbers.calibration(confidence, right)
    expected = 0.0
    for i in range(15):
        mine = [
            n for n, c in enumerate(confidence) if i / 15 < c <= (i + 1) / 15 or (c == 0 and i == 0)
        ]
        assert found.count[i] == len(mine)
        assert found.accuracy[i] == pytest.approx(right[mine].mean())
        assert found.confidence[i] == pytest.approx(confidence[mine].mean())
        expected += len(mine) / 2000 * abs(confidence[mine].mean() - right[mine].mean())
    assert found.ece == pytest.approx(expected)
    assert found.ece > 0.1
    few = numbers.calibration(np.array([0.9, 0.95]), np.array([True, False]))
    assert few.ece == pytest.approx(0.5 * 0.1 + 0.5 * 0.95)
    assert np.isnan(few.accuracy[0])


@pytest.mark.parametrize(("samples", "shift"), [(12, 0.2), (1000, 0.03), (50_000, 0.002)])
def test_mcnemars_test_is_scipys_binomial_test(samples: int, shift: float) -> None:
    rng = np.random.default_rng(samples)
    a, b = rng.random(samples) < 0.7, rng.random(samples) < 0.7 + shift
    found = numbers.mcnemar(a, b)
    assert found.only_a == sum(x and not y for x, y in zip(a, b, strict=True))
    expected = binomtest(found.only_a, found.only_a + found.only_b).pvalue
    assert found.p_value == pytest.approx(expected, rel=1e-9)
    assert numbers.mcnemar(a, a) == (0, 0, 1.0)


def test_the_bootstrap_interval_is_near_scipys() -> None:
    rng = np.random.default_rng(0)
    a = rng.random(1000) < 0.7
    b = np.where(rng.random(1000) < 0.1, ~a, a)
    found = numbers.bootstrap_difference(a, b)
    drawn = bootstrap(
        (a.astype(float), b.astype(float)), lambda x, y, axis: (y - x).mean(axis), paired=True,
        n_resamples=4000, method="percentile", random_state=1,
    )  # fmt: skip
    assert found == pytest.approx(tuple(drawn.confidence_interval), abs=2e-3)
    assert found == numbers.bootstrap_difference(a, b), "the same each time"


def test_label_errors_are_found_where_they_were_planted() -> None:
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 10, 3000)
    targets = truth.copy()
    planted = rng.choice(3000, 60, replace=False)
    targets[planted] = (truth[planted] + 1 + rng.integers(0, 9, 60)) % 10
    # A network that is right 95 times in 100, and sure of it; where it errs, less so.
    errs = rng.random(3000) < 0.05
    predicted = np.where(errs, (truth + 1) % 10, truth)
    sure = np.where(errs, rng.uniform(0.3, 0.7, 3000), rng.uniform(0.85, 1, 3000))
    right = predicted == targets
    own = np.where(right, sure, (1 - sure) / 9)
    found = numbers.likely_label_errors(targets, predicted, own, sure, 10)
    hits = np.isin(found, planted)
    assert hits.sum() >= 45
    assert hits.mean() >= 0.95
    margins = sure[found] - own[found]
    assert (np.diff(margins) <= 0).all()


def test_accuracy_by_size() -> None:
    values = np.repeat([32, 40, 64, 100], [50, 10, 30, 10])
    right = values > 35
    groups = numbers.accuracy_by_size(values, right)
    assert sum(group.count for group in groups) == 100
    assert [group.low for group in groups] == sorted(group.low for group in groups)
    for group in groups:
        mine = (values >= group.low) & (values <= group.high)
        assert group.count == mine.sum()
        assert group.accuracy == right[mine].mean()
        assert group.interval == numbers.wilson(right[mine].sum(), group.count)
    assert len(numbers.accuracy_by_size(np.full(9, 32), np.ones(9, bool))) == 1
