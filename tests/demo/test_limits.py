"""How often one address may ask, against a loop that fills and empties a bucket."""

import numpy as np

from ffcv_r50.demo import limits
from ffcv_r50.demo.limits import Rate


def test_it_is_a_leaky_bucket() -> None:
    times = np.cumsum(np.random.default_rng(0).exponential(0.6, 300)).tolist()
    clock = iter(times)
    rate = Rate(3, 1.0, lambda: next(clock))
    level, before = 0.0, 0.0
    refused = 0
    for now in times:
        level, before = max(level - (now - before), 0.0), now
        wait = rate.take("10.0.0.1")
        if level > 2.0:
            refused += 1
            assert abs(wait - (level - 2.0)) < 1e-9
        else:
            assert wait == 0.0
            level += 1.0
    assert 50 < refused < 250


def test_addresses_are_counted_apart_and_forgotten() -> None:
    rate = Rate(1, 1e9, lambda: 0.0)
    assert rate.take("10.0.0.1") == 0
    assert rate.take("10.0.0.1") > 0
    assert rate.take("10.0.0.2") == 0
    assert rate.take("2001:db8::1") == 0
    assert rate.take("2001:db8::ffff:1") > 0, "the same network"
    assert rate.take("2001:db8:0:1::1") == 0
    assert rate.take("no address") == 0
    for number in range(limits.MOST_ADDRESSES):
        rate.take(f"a{number}")
    assert len(rate._empty_at) == limits.MOST_ADDRESSES
    assert rate.take("10.0.0.1") == 0
