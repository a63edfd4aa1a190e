"""What the predictions tell: classes, confusions, single images, calibration."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from markupsafe import Markup

from ffcv_r50.report import charts, numbers, thumbnails
from ffcv_r50.report.course import Chart, both
from ffcv_r50.report.folder import Predictions, Run
from ffcv_r50.report.numbers import Ints

PAIRS = 50
SHOWN_IMAGES = 24
"""Of each kind."""
SHOWN_FAMILIES = 12
SHOWN_CLASSES = 8
"""Best and worst ones."""
LARGEST_MATRIX = 2500
"""Classes; of more no matrix is drawn."""


class ClassRow(NamedTuple):
    """A class in the table."""

    number: int
    name: str
    precision: float
    recall: float
    f1: float
    support: int
    taken_for: str
    """The class that most of its samples are wrongly taken for, and how many."""


class ClassTable(NamedTuple):
    """All classes, the least recognised first."""

    rows: list[ClassRow]
    worst: list[ClassRow]
    best: list[ClassRow]


class PairCard(NamedTuple):
    """Two classes that are confused, with an image of each."""

    a: str
    b: str
    a_as_b: int
    b_as_a: int
    of_a: int
    """Samples of a."""
    of_b: int
    image_a: str
    image_b: str


class Family(NamedTuple):
    """Classes that are confused with each other."""

    names: list[str]
    inside: int
    """Confusions among them."""


class Confusions(NamedTuple):
    """Which classes are taken for which."""

    pairs: list[PairCard]
    heatmap: Markup | None
    """Of few classes."""
    picture: str
    """Of many."""
    families: list[Family]
    in_families: float
    """Share of all errors that stay in a family."""


@dataclass(frozen=True)
class ImageCard:
    """An image and what the network took it for."""

    image: str
    index: int
    target: str
    predicted: str
    confidence: float
    target_probability: float | None
    """None where the target is not among the likeliest classes that were kept."""
    loss: float


class Gallery(NamedTuple):
    """Images of one kind."""

    title: str
    note: str
    cards: list[ImageCard]


class CalibrationSection(NamedTuple):
    """How far confidences can be believed."""

    ece: float
    verdict: str
    charts: list[Chart]


def classes(found: Predictions, names: Sequence[str]) -> ClassTable:
    """The table of classes."""
    table = numbers.classes(found.target, found.predicted, len(names))
    wrong = ~found.right
    rows, columns, counts = numbers.confusions(
        found.target[wrong], found.predicted[wrong], len(names)
    )
    order = np.argsort(counts, kind="stable")
    mistaken = {
        int(rows[i]): (int(columns[i]), int(counts[i])) for i in order
    }  # the last one stays
    every = []
    for i, name in enumerate(names):
        taken_for = f"{names[mistaken[i][0]]} ({mistaken[i][1]})" if i in mistaken else ""
        precision, recall, f1 = (float(c[i]) for c in (table.precision, table.recall, table.f1))
        every.append(ClassRow(i, name, precision, recall, f1, int(table.support[i]), taken_for))
    every.sort(key=lambda row: (np.isnan(row.recall), row.recall, row.f1))
    seen = [row for row in every if row.support]
    few = min(SHOWN_CLASSES, len(seen) // 2)
    return ClassTable(every, [row for row in seen[:few] if row.recall < 1], seen[::-1][:few])


def confusions(run: Run, found: Predictions, names: Sequence[str]) -> Confusions | None:
    """The most confused pairs, and the matrix; None where nothing is confused."""
    if found.right.all():
        return None
    support = np.bincount(found.target, minlength=len(names))
    pairs = numbers.confused_pairs(found.target, found.predicted, len(names), PAIRS)
    cards = [
        PairCard(
            names[pair.a],
            names[pair.b],
            pair.a_as_b,
            pair.b_as_a,
            int(support[pair.a]),
            int(support[pair.b]),
            _example(run, found, pair.a, pair.b),
            _example(run, found, pair.b, pair.a),
        )
        for pair in pairs
    ]
    heatmap, picture, families, inside = None, "", [], 0.0
    if len(names) <= LARGEST_MATRIX:
        matrix = numbers.confusion_matrix(found.target, found.predicted, len(names))
        clusters = numbers.clusters(matrix)
        ordered = matrix[np.ix_(clusters.order, clusters.order)]
        if len(names) <= charts.LABELLED:
            heatmap = charts.heatmap(ordered, [names[i] for i in clusters.order])
        else:
            picture = thumbnails.of_matrix(ordered)
        families = [_family(matrix, family, names) for family in clusters.families]
        inside = sum(family.inside for family in families) / int((~found.right).sum())
        families.sort(key=lambda family: -family.inside)
    return Confusions(cards, heatmap, picture, families[:SHOWN_FAMILIES], inside)


def _family(matrix: Ints, family: list[int], names: Sequence[str]) -> Family:
    inside = matrix[np.ix_(family, family)]
    return Family([names[i] for i in family], int(inside.sum() - np.trace(inside)))


def _example(run: Run, found: Predictions, target: int, taken_for: int) -> str:
    """The clearest image of a class that was taken for another one; else one of the class."""
    mine = found.target == target
    chosen = np.flatnonzero(mine & (found.predicted == taken_for))
    chosen = chosen if chosen.size else np.flatnonzero(mine)
    if not chosen.size or run.val_set is None:
        return ""
    clearest = chosen[found.confidence[chosen].argmax()]
    return thumbnails.of_sample(run.val_set, int(found.index[clearest]))


def target_probability(found: Predictions) -> numbers.Floats:
    """[samples] of the target; nan where it is not among the classes that were kept."""
    hit = found.classes == found.target[:, None]
    return np.where(hit.any(1), (found.probabilities * hit).sum(1), np.nan)


def galleries(run: Run, found: Predictions, names: Sequence[str]) -> list[Gallery]:
    """Images to look at, where the validation set is still there."""
    if run.val_set is None:
        return []
    own = target_probability(found)
    wrong = np.flatnonzero(~found.right)
    suspects = numbers.likely_label_errors(
        found.target, found.predicted, np.nan_to_num(own), found.confidence, len(names)
    )
    losses = np.argsort(-found.loss, kind="stable")
    shown = np.union1d(suspects[:SHOWN_IMAGES], losses[:SHOWN_IMAGES])
    others = np.setdiff1d(wrong, shown)
    sure = others[np.argsort(-found.confidence[others], kind="stable")]
    kinds = [
        (
            "Likely label errors",
            "Given as much probability for another class as that class's own images usually get "
            f"(confident learning). Look here first: some labels are wrong.{_first_of(suspects)}",
            suspects,
        ),
        ("Highest losses", "What the network found least likely.", losses),
        (
            "Confident errors",
            f"Wrong, with the highest probabilities, and not shown above.{_first_of(sure)}",
            sure,
        ),
    ]
    return [
        Gallery(title, note, _cards(run, found, own, chosen, names))
        for title, note, chosen in kinds
        if len(chosen)
    ]


def _first_of(chosen: Ints) -> str:
    more = len(chosen) > SHOWN_IMAGES
    return f" The first {SHOWN_IMAGES} of {len(chosen):,}." if more else ""


def _cards(
    run: Run, found: Predictions, own: numbers.Floats, chosen: Ints, names: Sequence[str]
) -> list[ImageCard]:
    assert run.val_set is not None
    return [
        ImageCard(
            thumbnails.of_sample(run.val_set, int(found.index[i])),
            int(found.index[i]),
            names[found.target[i]],
            names[found.predicted[i]],
            float(found.confidence[i]),
            None if np.isnan(own[i]) else float(own[i]),
            float(found.loss[i]),
        )
        for i in chosen[:SHOWN_IMAGES]
    ]


def calibration(run: Run, found: Predictions) -> CalibrationSection:
    """ECE, reliability, and accuracy by image size where sizes differ."""
    result = numbers.calibration(found.confidence, found.right)
    excess = float(found.confidence.mean() - found.right.mean())
    verdict = (
        f"On average the network says {charts.percent(float(found.confidence.mean()), 1)} and is right "
        f"in {charts.percent(float(found.right.mean()), 1)}: "
    )
    if abs(excess) < 0.01:
        verdict += "its confidences can be taken as they are."
    else:
        verdict += f"it is {'over' if excess > 0 else 'under'}-confident."
    drawn = [
        Chart(
            "Reliability",
            [],
            *both(lambda width: charts.reliability(result, min(width, 440))),
            "How often the network is right, by how sure it is; orange is the distance between both.",
        )
    ]
    if run.val_set is not None:
        index = found.index
        sides = np.minimum(run.val_set.heights, run.val_set.widths)[index]
        groups = numbers.accuracy_by_size(sides, found.right)
        if len(groups) > 1:
            drawn.append(
                Chart(
                    "Top-1 by the image's shorter side",
                    [],
                    *both(lambda width: charts.by_size(groups, min(width, 440))),
                )
            )
    return CalibrationSection(result.ece, verdict, drawn)
