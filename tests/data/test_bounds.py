"""The compiled reader looks once more: numbers that no open dataset has read nothing that is not theirs."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ffcv_r50.data import jpeg
from ffcv_r50.data.decode import UNREAD, Sampling, Scratch, Stored, decode_samples
from tests.data.conftest import encode, make_image, write_beton

RESOLUTION = 16
JPEG, RAW = 0, 1


@pytest.mark.parametrize(
    ("sample", "numbers", "expected"),
    [
        (JPEG, {"offsets": -1}, UNREAD),
        (JPEG, {"offsets": 2**62}, UNREAD),
        (JPEG, {"sizes": -1}, UNREAD),
        (JPEG, {"sizes": 2**62}, UNREAD),
        (JPEG, {"sizes": 6001}, UNREAD),  # a byte more than there is room for
        (RAW, {"heights": 41}, jpeg.WRONG_SIZE),  # its last rows would be the next sample's
        (RAW, {"widths": 65535, "heights": 65535}, jpeg.WRONG_SIZE),
        (RAW, {"widths": 65535, "heights": 144, "sizes": 65535 * 144 * 3}, UNREAD),
    ],
)
@pytest.mark.parametrize("random", [False, True])
def test_numbers_that_lead_elsewhere(
    tmp_path: Path, sample: int, numbers: dict[str, int], expected: int, random: bool
) -> None:
    dataset = write_beton(
        tmp_path / "x.beton", [encode(make_image(40, 40)), make_image(40, 40), make_image(50, 40)]
    )
    stored = Stored.of(dataset)
    scratch = Scratch.allocate(stored, RESOLUTION)
    assert scratch.stored.size == 6000
    memory = np.full(8000, 0xA5, np.uint8)
    scratch = scratch._replace(stored=memory[:6000])
    changed: dict[str, Any] = {name: getattr(stored, name).copy() for name in numbers}
    for name, number in numbers.items():
        changed[name][sample] = number
    sampling = Sampling.center(1.0)._replace(random=random)
    out = np.zeros((1, RESOLUTION, RESOLUTION, 3), np.uint8)
    decoder = jpeg.Decompressor()
    views = np.array([sample])
    assert decode_samples(decoder.handle, stored, sampling, views, 0, scratch, out) == (
        1,
        jpeg.GOOD,
    )
    out[:] = 0
    bad = stored._replace(**changed)
    assert decode_samples(decoder.handle, bad, sampling, views, 0, scratch, out) == (0, expected)
    decoder.close()
    assert not out.any()
    assert (memory[6000:] == 0xA5).all()
