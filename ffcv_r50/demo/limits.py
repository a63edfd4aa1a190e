"""How many requests one address may make."""

import ipaddress
import time
from collections.abc import Callable

MOST_ADDRESSES = 4096
"""Remembered; the one that was seen longest ago is forgotten first."""


class Rate:
    """Some requests at once from one address, then one every so often.

    A leaky bucket, as the time at which it will be empty (the generic cell rate algorithm, ITU-T I.371).

    Args:
        burst: requests at once.
        seconds: for one more.
        clock: in seconds.
    """

    def __init__(
        self, burst: int, seconds: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._burst, self._seconds, self._clock = burst, seconds, clock
        self._empty_at: dict[str, float] = {}

    def take(self, address: str) -> float:
        """One request more: 0 where it may be made, else the seconds until it may."""
        address, now = _network_of(address), self._clock()
        empty_at = max(self._empty_at.pop(address, now), now)
        wait = empty_at - now - (self._burst - 1) * self._seconds
        self._empty_at[address] = empty_at if wait > 0 else empty_at + self._seconds
        if len(self._empty_at) > MOST_ADDRESSES:
            del self._empty_at[next(iter(self._empty_at))]
        return max(wait, 0.0)


def _network_of(address: str) -> str:
    """IPv6 gives everybody 2 ** 64 addresses, which count as one."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:  # behind a proxy it is what that says
        return address[:100]
    return str(
        found if found.version == 4 else ipaddress.ip_network((int(found), 64), strict=False)
    )
