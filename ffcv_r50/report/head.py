"""The head of a report: what came out, what it cost, and what the run waited for."""

import itertools
import math
from typing import NamedTuple

import numpy as np

from ffcv_r50.logs.console import duration
from ffcv_r50.report.charts import number, percent
from ffcv_r50.report.folder import Run
from ffcv_r50.report.numbers import Bools, Interval, wilson

WAITED_MUCH, WAITED_SOME = 0.10, 0.03
"""Shares of the training's time from which on waiting for data is the finding, or worth a word."""
EVALUATED_MUCH = 0.15
"""Share of all time from which on evaluation is a finding."""


class Tile(NamedTuple):
    """A number to remember."""

    label: str
    value: str
    unit: str
    detail: str


class Finding(NamedTuple):
    """A sentence of the verdict."""

    kind: str
    """``good``, ``bad`` or ``plain``."""
    title: str
    text: str


class Network(NamedTuple):
    """The last evaluation of the network or an average."""

    name: str
    top_1: str
    interval: str
    top_5: str
    loss: str
    against: str
    """Top-1 compared with the first network's, in points."""


class Head(NamedTuple):
    """All of it."""

    title: str
    state: str
    """``finished``, ``running``, ..."""
    about: str
    tiles: list[Tile]
    findings: list[Finding]
    networks: list[Network]
    """Where there are averages."""


def head(run: Run, price: float | None) -> Head:
    """What stands above everything else.

    Args:
        run: to report on.
        price: of an hour of one GPU, in any currency.
    """
    epochs, state = run.config.training.epochs, str(run.status.get("state", "unknown"))
    done = int(run.ends[-1])
    reason = f": {run.status['reason']}" if run.status.get("reason") else ""
    about = [
        run.config.model.arch,
        f"{done} of {epochs} epochs" if done < epochs else f"{epochs} epochs",
        _machine(run),
        f"{run.evaluated:,} validation images" if run.evaluated else "",
        f"{len(run.class_names):,} classes" if run.class_names else "",
    ]
    findings = [_result(run), _limit(run), _evaluation(run), _best(run), _average(run)]
    return Head(
        run.path.resolve().name,
        state + reason,
        " · ".join(part for part in about if part),
        [*_accuracies(run), *_costs(run, price)],
        [finding for finding in findings if finding],
        _networks(run) if len(run.networks) > 1 else [],
    )


def interval_of(run: Run, percent: float) -> Interval | None:
    """95 %, in %; None where nobody knows how many samples were evaluated."""
    if not run.evaluated or not math.isfinite(percent):
        return None
    found = wilson(round(percent / 100 * run.evaluated), run.evaluated)
    return Interval(100 * found.low, 100 * found.high)


def _range(found: Interval | None) -> str:
    return f"{found.low:.2f} – {found.high:.2f}" if found else ""


def _points(difference: float) -> str:
    """With the sign of a typesetter."""
    return f"{difference:+.2f}".replace("-", "−")


def _machine(run: Run) -> str:
    if not run.starts:
        return ""
    start = run.starts[-1]
    return f"{start.get('world_size', '?')} × {start.get('device', '?')}"


def _accuracies(run: Run) -> list[Tile]:
    chosen = run.networks[0]
    of = f" of {chosen}" if len(run.networks) > 1 else ""
    published = run.recipe.published if run.recipe else {}
    tiles = []
    for key, label in (("top_1", "top-1"), ("top_5", "top-5")):
        value = run.final(chosen, key)
        interval = interval_of(run, value)
        detail = [f"95 %: {_range(interval)}"] if interval else []
        if key in published:
            detail.append(f"{_points(value - published[key])} to the published {published[key]:g}")
        tiles.append(Tile(label + of, f"{value:.2f}", "%", "\n".join(detail)))
    return tiles


def _costs(run: Run, price: float | None) -> list[Tile]:
    seconds = float(np.nansum(run.column("epoch_seconds")) + np.nansum(run.column("eval_seconds")))
    train = float(np.nansum(run.column("epoch_seconds")))
    tiles = [Tile("time", duration(seconds), "", f"{duration(train)} of it training")]
    sizes, devices = run.processes, {start.get("device") for start in run.starts}
    if sizes is not None and devices != {"cpu"}:
        each = np.nan_to_num(run.column("epoch_seconds")) + np.nan_to_num(
            run.column("eval_seconds")
        )
        hours = float((each * sizes).sum()) / 3600
        counts = " then ".join(str(size) for size, _ in itertools.groupby(sizes))
        tiles.append(Tile("GPU-hours", number(hours), "", f"on {counts} GPUs"))
        if price is not None:
            tiles.append(Tile("price", f"{hours * price:,.2f}", "", f"at {price:g} a GPU-hour"))
    speed = run.column("images_per_second")
    weights = np.nan_to_num(run.column("epoch_seconds"))
    if np.isfinite(speed).any() and weights.any():
        mean = float(np.average(np.nan_to_num(speed), weights=weights))
        tiles.append(Tile("images per second", number(mean), "", "mean over the training"))
    memory = run.column("peak_memory_bytes")
    if np.nan_to_num(memory).any():
        peak = float(np.nanmax(memory)) / 1e9
        tiles.append(Tile("memory", number(round(peak, 2)), "GB", "most that rank 0 used"))
    return tiles


def _networks(run: Run) -> list[Network]:
    first = run.final(run.networks[0], "top_1")
    rows = []
    for name in run.networks:
        top_1, top_5, loss = (run.final(name, k) for k in ("top_1", "top_5", "val_loss"))
        against = "weights.pt" if name == run.networks[0] else _points(top_1 - first)
        interval = _range(interval_of(run, top_1))
        rows.append(Network(name, f"{top_1:.2f}", interval, f"{top_5:.2f}", f"{loss:.4f}", against))
    return rows


# ----------------------------------------------------------------------------------- the verdict


def _result(run: Run) -> Finding | None:
    """How it compares with what was published."""
    published = run.recipe.published.get("top_1") if run.recipe else None
    if not run.recipe or published is None or run.ends[-1] < run.config.training.epochs:
        return None
    value = run.final(run.networks[0], "top_1")
    interval = interval_of(run, value)
    name = run.recipe.path.name
    if interval and interval.low <= published <= interval.high:
        return Finding(
            "good",
            "As published",
            f"{name} was published with {published:g} % top-1, which lies inside this run's interval.",
        )
    kind, word = ("good", "above") if value > published else ("bad", "below")
    return Finding(
        kind,
        f"{abs(value - published):.2f} points {word} the published result",
        f"{name} was published with {published:g} % top-1. What differs from the recipe is under "
        "Provenance.",
    )


def _limit(run: Run) -> Finding | None:
    """What the training waited for. The first epoch is told apart: it compiles, and reads cold files."""
    seconds, waits = run.column("epoch_seconds"), run.column("data_wait_fraction")
    known = np.isfinite(seconds) & np.isfinite(waits) & (seconds > 0)
    if not known.any():
        return None
    first = known & (run.ends == 1)
    counted = known & ~first if (known & ~first).any() else known

    def waited(rows: Bools) -> float:
        return float((seconds * waits)[rows].sum() / seconds[rows].sum())

    wait, sizes = waited(counted), run.column("resolution")
    by_size = {int(n): waited(counted & (sizes == n)) for n in np.unique(sizes[counted])}
    worst = max(by_size, key=lambda size: by_size[size])
    where = f", most at {worst} px ({percent(by_size[worst])})" if len(by_size) > 1 else ""
    before = ""
    if (first & ~counted).any() and waited(first) >= wait + WAITED_MUCH:
        before = f" The first epoch, not counted here, waited {percent(waited(first))} of its time."
    if wait >= WAITED_MUCH:
        lost, all_ = float((seconds * waits)[counted].sum()), float(seconds[counted].sum())
        return Finding(
            "bad",
            f"The loader was the limit: {percent(wait)} of the training waited for data{where}",
            f"That is {duration(lost)} of {duration(all_)}. More CPU cores for each process "
            "(data.num_workers), more raw images in the file (--cfg.write_mode=proportion "
            "--cfg.compress_probability=0.25), or a lower resolution would help; a faster GPU would "
            f"not.{before}",
        )
    faster = []
    if not run.config.training.compile:
        faster.append("training.compile")
    if run.config.training.precision == "fp32":
        faster.append("training.precision=auto")
    faster += ["lower resolutions early in schedule.resolution", "more processes"]
    return Finding(
        "plain" if wait >= WAITED_SOME else "good",
        f"Computation was the limit: {percent(wait, 1)} of the training waited for data{where}",
        f"What may make it faster: {', '.join(faster[:-1])} or {faster[-1]}.{before}",
    )


def _evaluation(run: Run) -> Finding | None:
    evaluated, trained = (float(np.nansum(run.column(f"{k}_seconds"))) for k in ("eval", "epoch"))
    part = evaluated / max(evaluated + trained, 1e-9)
    if part < EVALUATED_MUCH:
        return None
    flips = " validation.tta=flip doubles it." if run.config.validation.tta == "flip" else ""
    return Finding(
        "plain",
        f"Evaluation took {percent(part)} of the time",
        f"{duration(evaluated)} in {len(run.rows)} epochs.{flips} A larger validation.batch_size may "
        "help.",
    )


def _best(run: Run) -> Finding | None:
    """Whether an earlier epoch was better by more than chance."""
    values = run.column("top_1")
    best, last = int(np.nanargmax(values)), float(values[-1])
    interval = interval_of(run, last)
    if interval is None or values[best] <= interval.high:
        return None
    return Finding(
        "bad",
        f"Epoch {int(run.ends[best])} was better by {values[best] - last:.2f} points",
        f"{values[best]:.2f} % top-1, kept as checkpoints/best.pt. A shorter schedule, or more "
        "regularisation, may end higher.",
    )


def _average(run: Run) -> Finding | None:
    """Whether another network than the one in ``weights.pt`` is better by more than chance."""
    tops = {name: run.final(name, "top_1") for name in run.networks}
    chosen, best = run.networks[0], max(tops, key=lambda name: tops[name])
    interval = interval_of(run, tops[chosen])
    if interval is None or tops[best] <= interval.high:
        return None
    return Finding(
        "plain",
        f"{best} is better by {tops[best] - tops[chosen]:.2f} points",
        f"checkpoint.weights={best} would write it as weights.pt; it lies beside as "
        f"weights_{best}.pt.",
    )
