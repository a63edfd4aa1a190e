"""What is computed for a report: functions from arrays to numbers, which read and write nothing.

Samples are the validation set's; classes are numbers from 0. A share is between 0 and 1, and not a
number where there is nothing to take a share of.
"""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.integer]
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

Z_95 = 1.959963984540054
"""The normal distribution's quantile of 97.5 %: two-sided 95 %."""
CALIBRATION_BINS = 15
"""Guo et al. 2017's."""
FAMILY = 0.02
"""Classes of one family are confused, pair by pair, for at least this share of their samples on average."""


def share(part: npt.ArrayLike, whole: npt.ArrayLike) -> Floats:
    """part / whole; not a number where the whole is 0."""
    part, whole = np.asarray(part, np.float64), np.asarray(whole, np.float64)
    return np.divide(
        part, whole, out=np.full(np.broadcast(part, whole).shape, np.nan), where=whole != 0
    )


# --------------------------------------------------------------------------------------- intervals


class Interval(NamedTuple):
    """From the lower to the upper end."""

    low: float
    high: float


def wilson(successes: float, trials: int, z: float = Z_95) -> Interval:
    """The score interval of a share (Wilson 1927), 95 % by default; (nan, nan) without trials."""
    if not trials:
        return Interval(math.nan, math.nan)
    p, weight = successes / trials, z * z / trials
    center = (p + weight / 2) / (1 + weight)
    half = z * math.sqrt(p * (1 - p) / trials + weight / (4 * trials)) / (1 + weight)
    return Interval(max(0.0, center - half), min(1.0, center + half))


class Paired(NamedTuple):
    """Two networks on the same samples."""

    only_a: int
    """Samples that the first alone has right."""
    only_b: int
    p_value: float
    """Of the exact test of McNemar (1947): two-sided, binomial."""


def mcnemar(a: Bools, b: Bools) -> Paired:
    """Whether two networks differ in which samples they have right.

    Args:
        a, b: [samples] whether the first, the second is right.
    """
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    n, few = only_a + only_b, min(only_a, only_b)
    ways, total = 1, 0
    for k in range(few + 1):  # whole numbers: exact, and fast enough for 50,000 samples
        total += ways
        ways = ways * (n - k) // (k + 1)
    return Paired(only_a, only_b, min(1.0, 2 * total / 2**n))


def bootstrap_difference(a: Bools, b: Bools, seed: int = 0, rounds: int = 10_000) -> Interval:
    """The 95 % interval of accuracy(b) - accuracy(a), samples drawn in pairs with replacement (Efron 1979).

    Args:
        a, b: [samples] whether the first, the second is right.
        seed: of the draws.
        rounds: how often so many samples are drawn.
    """
    counts = np.array([(a & ~b).sum(), (b & ~a).sum(), (a == b).sum()])
    # Of a drawn sample only matters which of the three it is, and their numbers are multinomial.
    drawn = np.random.default_rng(seed).multinomial(len(a), counts / len(a), size=rounds)
    low, high = np.percentile((drawn[:, 1] - drawn[:, 0]) / len(a), [2.5, 97.5])
    return Interval(float(low), float(high))


# ----------------------------------------------------------------------------------------- classes


class Classes(NamedTuple):
    """[classes] each; what scikit-learn's ``classification_report`` has."""

    precision: Floats
    """Of the samples taken for the class, the share that is of it; nan where none was."""
    recall: Floats
    """Of the samples of the class, the share taken for it: its top-1; nan where there are none."""
    f1: Floats
    """The harmonic mean of both; nan for a class that no sample is of or was taken for."""
    support: Ints
    """Samples of the class."""
    predicted: Ints
    """Samples taken for it."""


def classes(targets: Ints, predicted: Ints, num_classes: int) -> Classes:
    """How well each class is recognised.

    Args:
        targets, predicted: [samples] what each is, and was taken for.
        num_classes: of the dataset.
    """
    support = np.bincount(targets, minlength=num_classes)
    taken = np.bincount(predicted, minlength=num_classes)
    right = np.bincount(targets[targets == predicted], minlength=num_classes)
    return Classes(
        share(right, taken),
        share(right, support),
        share(2 * right, taken + support),
        support,
        taken,
    )


def confusions(targets: Ints, predicted: Ints, num_classes: int) -> tuple[Ints, Ints, Ints]:
    """The confusion matrix's cells that are not 0, row by row.

    Returns:
        Their rows (what samples are), columns (what they were taken for), and numbers of samples.
    """
    cells, counts = np.unique(
        targets.astype(np.int64) * num_classes + predicted, return_counts=True
    )
    return cells // num_classes, cells % num_classes, counts


def confusion_matrix(targets: Ints, predicted: Ints, num_classes: int) -> Ints:
    """int64 [classes, classes]: samples by what they are (rows) and were taken for (columns)."""
    rows, columns, counts = confusions(targets, predicted, num_classes)
    matrix = np.zeros((num_classes, num_classes), np.int64)
    matrix[rows, columns] = counts
    return matrix


class Pair(NamedTuple):
    """Two classes that are confused."""

    a: int
    b: int
    """The smaller number comes first."""
    a_as_b: int
    """Samples of a taken for b."""
    b_as_a: int


def confused_pairs(targets: Ints, predicted: Ints, num_classes: int, most: int) -> list[Pair]:
    """The pairs of classes with most samples of one taken for the other, at most ``most``."""
    wrong = targets != predicted
    rows, columns, counts = confusions(targets[wrong], predicted[wrong], num_classes)
    low, high = np.minimum(rows, columns), np.maximum(rows, columns)
    keys, place = np.unique(low * num_classes + high, return_inverse=True)
    upwards = np.bincount(place, np.where(rows < columns, counts, 0), len(keys)).astype(np.int64)
    downwards = np.bincount(place, np.where(rows > columns, counts, 0), len(keys)).astype(np.int64)
    order = np.argsort(-(upwards + downwards), kind="stable")[:most]
    return [
        Pair(*divmod(int(keys[i]), num_classes), int(upwards[i]), int(downwards[i])) for i in order
    ]


class Clusters(NamedTuple):
    """Classes beside those they are confused with."""

    order: Ints
    """[classes] their numbers."""
    families: list[list[int]]
    """Runs of that order, of two classes or more, see :data:`FAMILY`; the largest first."""


def clusters(confusion: Ints) -> Clusters:
    """An order of the classes that puts those beside each other that are confused.

    Average linkage (UPGMA; Sokal and Michener 1958) by nearest-neighbour chains (Murtagh 1983); how
    near two classes are is the share of their samples that is taken for the other. Of the ways to put
    two clusters side by side, the one is taken that brings the nearest classes together.

    Args:
        confusion: [classes, classes] as :func:`confusion_matrix` gives it. Time and memory grow
            with its size.
    """
    count = len(confusion)
    support = confusion.sum(1)
    near = np.nan_to_num(share(confusion + confusion.T, support[:, None] + support))
    np.fill_diagonal(near, -1)
    between = near.copy()
    """Of clusters, at the place of one of their classes; -1 to itself and where a cluster is no more."""
    members: dict[int, list[int]] = {i: [i] for i in range(count)}
    families: dict[int, list[int]] = {}
    chain: list[int] = []
    while len(members) > 1:
        chain = chain or [next(iter(members))]
        while True:
            row = between[chain[-1]]
            nearest = int(row.argmax())
            if len(chain) > 1 and row[chain[-2]] >= row[nearest]:
                break
            chain.append(nearest)
        a, b = sorted((chain.pop(), chain.pop()))
        height, sizes = between[a, b], (len(members[a]), len(members[b]))
        members[a] = _side_by_side(members[a], members.pop(b), near)
        if height >= FAMILY:
            families.pop(b, None)
            families[a] = members[a]
        merged = np.average(between[[a, b]], axis=0, weights=sizes)
        merged[[a, *np.flatnonzero(between[a] < 0), *np.flatnonzero(between[b] < 0)]] = -1
        between[a], between[:, a] = merged, merged
        between[b], between[:, b] = -1, -1
    order = np.array(next(iter(members.values()), []), np.int64)
    place = np.argsort(order)
    found = [sorted(family, key=lambda c: int(place[c])) for family in families.values()]
    return Clusters(order, sorted(found, key=len, reverse=True))


def _side_by_side(a: list[int], b: list[int], near: Floats) -> list[int]:
    ways = [(a, b), (a[::-1], b), (a, b[::-1]), (a[::-1], b[::-1])]
    left, right = max(ways, key=lambda way: near[way[0][-1], way[1][0]])
    return left + right


# ------------------------------------------------------------------------------------- confidences


@dataclass(frozen=True)
class Calibration:
    """Whether samples predicted with 80 % are right in 80 % of the cases."""

    ece: float
    """Expected calibration error (Guo et al. 2017): mean distance of confidence and accuracy, by bins."""
    count: Ints
    """[bins] samples whose confidence lies in each of the equally wide bins (low, high]."""
    confidence: Floats
    """[bins] their mean; nan in an empty bin."""
    accuracy: Floats
    """[bins] share of them that is right."""


def calibration(confidence: Floats, right: Bools, bins: int = CALIBRATION_BINS) -> Calibration:
    """How far confidences can be believed.

    Args:
        confidence: [samples] the probability given to the predicted class.
        right: [samples] whether it was the sample's.
        bins: equally wide, from 0 to 1.
    """
    edges = np.linspace(0, 1, bins + 1)
    place = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, bins - 1)
    count = np.bincount(place, minlength=bins)
    mean = share(np.bincount(place, confidence, bins), count)
    accuracy = share(np.bincount(place, right, bins), count)
    ece = float(np.nansum(np.abs(mean - accuracy) * count) / max(len(confidence), 1))
    return Calibration(ece, count, mean, accuracy)


def likely_label_errors(
    targets: Ints,
    predicted: Ints,
    target_probability: Floats,
    predicted_probability: Floats,
    num_classes: int,
) -> Ints:
    """Samples that are probably of another class than their label says, the surest first.

    Confident learning (Northcutt et al. 2021): a sample counts as of a class that it is given at
    least as much probability for as the class's own samples are on average. The margin by which
    the other class wins puts them in order.

    Args:
        targets, predicted: [samples].
        target_probability, predicted_probability: [samples] what each of these classes was given.
        num_classes: of the dataset.

    Returns:
        Positions of samples.
    """
    usual = share(
        np.bincount(targets, target_probability, num_classes),
        np.bincount(targets, minlength=num_classes),
    )
    other = (predicted != targets) & (predicted_probability >= usual[predicted])
    found = np.flatnonzero(other)
    margin = predicted_probability[found] - target_probability[found]
    return found[np.argsort(-margin, kind="stable")]


# ------------------------------------------------------------------------------------------ groups


@dataclass(frozen=True)
class Group:
    """Samples that have something in common."""

    low: float
    """The smallest of their values."""
    high: float
    """The largest."""
    count: int
    accuracy: float
    interval: Interval
    """Of the accuracy, 95 %."""


def accuracy_by_size(values: npt.NDArray[Any], right: Bools, groups: int = 5) -> list[Group]:
    """Accuracy of samples with small to large values, in groups of about the same size.

    Args:
        values: [samples] such as the images' sides. Equal values are in one group.
        right: [samples].
        groups: at most so many.
    """
    cuts = np.unique(np.quantile(values, np.linspace(0, 1, groups + 1)[1:-1], method="higher"))
    place = np.searchsorted(cuts, values, side="right")
    rows = []
    for number in np.unique(place):
        mine = place == number
        count, hits = int(mine.sum()), int(right[mine].sum())
        low, high = float(values[mine].min()), float(values[mine].max())
        rows.append(Group(low, high, count, hits / count, wilson(hits, count)))
    return rows
