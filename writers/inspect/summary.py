"""The numbers that the metadata tell, and of some JPEGs whether they are tiled."""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ffcv_r50.data import jpeg
from ffcv_r50.data.beton import MODE_JPEG, Beton
from ffcv_r50.errors import one_line
from writers import fields

LOOKED_AT = 1000
"""JPEGs, evenly spaced, whose headers are read."""
MOST_ROWS = 30
"""Of the histogram: more classes are counted together."""
BINS = 10
"""Of sizes of classes."""
BAR = 40
"""Characters of the longest bar."""


_USUAL = fields.described(fields.image_and(fields.LABEL))


class Summary(NamedTuple):
    """What a dataset holds. Sizes are (width, height) in pixels."""

    path: str
    num_bytes: int
    page_size: int
    classes: list[str]
    """Names, or numbers where the dataset has none."""
    class_counts: npt.NDArray[np.int64]
    """[classes] samples of each."""
    jpeg: int
    """Samples stored as JPEG."""
    raw: int
    jpeg_bytes: int
    raw_bytes: int
    fields: str
    """Names and types of a sample's fields."""
    median: tuple[float, float]
    """Of the widths, and of the heights."""
    largest: tuple[int, int]
    """Of the sample with the most pixels."""
    tiled: int
    """JPEGs with restart markers that the loader can use, of those looked at."""
    looked_at: int
    skipped: int
    """Images that the writer left out."""


def summary(dataset: Beton) -> Summary:
    """Of an open dataset."""
    sidecar = dataset.sidecar
    is_jpeg = dataset.modes == MODE_JPEG
    jpegs = np.flatnonzero(is_jpeg)
    looked_at = jpegs[np.linspace(0, len(jpegs) - 1, min(len(jpegs), LOOKED_AT)).astype(int)]
    largest = int(np.argmax(dataset.widths.astype(np.int64) * dataset.heights))
    return Summary(
        path=str(dataset.path),
        num_bytes=dataset.length,
        page_size=dataset.page_size,
        classes=sidecar.names if sidecar else [str(i) for i in range(dataset.num_classes)],
        class_counts=np.bincount(dataset.labels, minlength=dataset.num_classes),
        jpeg=len(jpegs),
        raw=dataset.num_samples - len(jpegs),
        jpeg_bytes=int(dataset.sizes[is_jpeg].sum()),
        raw_bytes=int(dataset.sizes[~is_jpeg].sum()),
        fields=fields.described(fields.of_file(dataset.path)),
        median=(float(np.median(dataset.widths)), float(np.median(dataset.heights))),
        largest=(int(dataset.widths[largest]), int(dataset.heights[largest])),
        tiled=sum(_is_tiled(dataset.read(int(i))) for i in looked_at),
        looked_at=len(looked_at),
        skipped=len(sidecar.skipped) if sidecar else 0,
    )


def _is_tiled(data: bytes) -> bool:
    status, header = jpeg.read_header(np.frombuffer(data, np.uint8))
    return bool(status == jpeg.GOOD and header.interval > 0)


def show(s: Summary) -> None:
    """Print it."""
    counts = s.class_counts
    samples = s.jpeg + s.raw
    skipped = f"; {s.skipped:,} images were left out" if s.skipped else ""
    print(f"{s.path}: {samples:,} samples of {len(counts):,} classes{skipped}")
    rows: list[tuple[str, Any]] = [
        ("bytes", f"{s.num_bytes:,}, in pages of {s.page_size:,}"),
        (
            "pixels",
            f"median {s.median[0]:g} x {s.median[1]:g}, largest {s.largest[0]} x {s.largest[1]}",
        ),
    ]
    if s.fields != _USUAL:
        rows.append(("fields", one_line(s.fields)))
    if s.jpeg:
        tiled = f"{s.tiled / s.looked_at:.1%} of {s.looked_at:,} looked at are tiled"
        rows.append(
            ("JPEG", f"{s.jpeg:,} of {s.jpeg_bytes / s.jpeg:,.0f} bytes on average; {tiled}")
        )
    if s.raw:
        rows.append(("raw", f"{s.raw:,} of {s.raw_bytes / s.raw:,.0f} bytes on average"))
    few, many = int(counts.argmin()), int(counts.argmax())
    rows.append(
        (
            "classes",
            f"{counts[few]:,} ({one_line(s.classes[few])}) to {counts[many]:,} "
            f"({one_line(s.classes[many])}) samples, median {np.median(counts):,.0f}",
        )
    )
    for name, text in rows:
        print(f"  {name:8} {text}")
    bars = histogram(counts, s.classes)
    longest = max(value for _, value, _ in bars)
    for name, value, unit in bars:
        print(f"  {name:>24} {value:>9,}{unit} {'█' * round(BAR * value / max(longest, 1))}")


def histogram(counts: npt.NDArray[np.int64], classes: list[str]) -> list[tuple[str, int, str]]:
    """Rows of name, number and unit: the samples of each class; of many classes, how many have so
    many samples.
    """
    if len(counts) <= MOST_ROWS:
        return [(one_line(classes[i])[:24], int(count), "") for i, count in enumerate(counts)]
    sizes, found = np.unique(counts, return_counts=True)
    if len(sizes) <= BINS:
        names = [f"{size:,} samples" for size in sizes]
    else:
        found, edges = np.histogram(counts, np.linspace(counts.min(), counts.max() + 1, BINS + 1))
        lows = np.ceil(edges).astype(int)
        names = [f"{lows[i]:,} to {lows[i + 1] - 1:,} samples" for i in range(BINS)]
    return [(name, int(n), " classes") for name, n in zip(names, found, strict=True)]
