"""Restart markers in the scan of a baseline JPEG: its bits written again, its coefficients untouched.

A block's bits are the difference of its mean (DC) to the one before, then its other coefficients
(AC). At a restart the difference is to zero; so the DC bits are coded anew, with the standard tables
(an image's own need not know the differences that come up), and the AC bits are copied as they are.
The names and numbers are those of the standard, ITU-T T.81.

Nothing here trusts the bytes. Positions are checked against their interval after each block, and
:data:`PADDING` bytes may be read behind the last one. What is not exactly as the standard has it is
damaged, also where libjpeg would only warn.
"""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ffcv_r50.data.compiled import njit, njit_cached
from ffcv_r50.data.jpeg import memchr, memcpy

Bytes = npt.NDArray[np.uint8]

TILE_WIDTH = 64
"""Pixels between restart markers, where that divides the row."""

MAX_DC = 11
MAX_AC = 10
"""Most bits of a difference of means, and of another coefficient, with eight bits a pixel."""
PADDING = 512
"""Bytes behind the bits; a block takes at most ``64 * (16 + MAX_DC)`` bits."""
GROWTH = 3
"""Bytes by which a block's bits can grow: its DC code, with its bits, from one bit to 22."""

_SHORT = 11
"""Bits of a code that are looked up at once: as long as most codes, in little memory."""
_END_OF_BLOCK = 128  # coefficients that it advances by, more than there are
_REACH = 15
"""Most coefficients that all but the last of the codes advance by that are looked up together."""

STANDARD_DC = (
    bytes.fromhex("00010501010101010100000000000000000102030405060708090a0b"),
    bytes.fromhex("00030101010101010101010000000000000102030405060708090a0b"),
)
"""Tables K.3 and K.4, as a DHT segment has them: codes of each length 1 to 16, then their symbols."""


def interval(width: int, mcu_width: int) -> int:
    """MCUs between restart markers, for images of this width.

    A loader decodes only the intervals its crop touches, so short ones decode less and long ones
    store less. Intervals have to divide the row for that: the divisor nearest to :data:`TILE_WIDTH`
    by ratio.

    Args:
        width: pixels.
        mcu_width: pixels; 16 for 4:2:0, 8 for 4:4:4 and gray.
    """
    row, best = -(-width // mcu_width), TILE_WIDTH / mcu_width
    divisors = [n for n in range(1, row + 1) if row % n == 0]
    return min(divisors, key=lambda n: (max(n / best, best / n), -n))


class _Tables(NamedTuple):
    """What codes are looked up in, of DC 0 and 1, AC 0 and 1.

    An entry has the bits of a code and of what follows it in its low byte, and above them the size of
    a DC's difference, or the coefficients that an AC's symbol stands for. 0 is no code.
    """

    short: npt.NDArray[np.uint16]
    """[4, 1 << _SHORT] by the next bits; 0 also for a longer code."""
    many: npt.NDArray[np.uint16]
    """[4, 1 << _SHORT] likewise, of AC alone; the sums of an entry and those behind it, as far as they
    are known from so many bits, up to the end of the block and no further than :data:`_REACH`."""
    entries: npt.NDArray[np.uint16]
    """[4, 256] in the order of the codes."""
    limits: npt.NDArray[np.int64]
    """[4, 17] the next 16 bits are below it where the code is at most so long."""
    first: npt.NDArray[np.int64]
    """[4, 17] the codes that are shorter."""


@njit
def _fill(tables: Any, i: int, spec: Any) -> bool:
    """Prepare looking up codes of a Huffman table.

    Args:
        tables: :class:`_Tables`; its row ``i``, all zeros, is filled.
        i: 0 or 1 for DC, 2 or 3 for AC.
        spec: uint8, as a DHT segment has it: codes of each length 1 to 16, then their symbols.

    Returns:
        Whether it is a Huffman table.
    """
    if spec.size < 16:
        return False
    count = limit = 0
    for length in range(1, 17):
        tables.first[i, length] = count
        for _ in range(spec[length - 1]):
            begin = limit
            limit += 1 << (16 - length)
            if count == 256 or 16 + count >= spec.size or limit > 1 << 16:
                return False
            symbol: Any = np.int64(spec[16 + count])
            if i < 2:
                if symbol > 15:  # libjpeg refuses the table, even where nothing has that code
                    return False
                size = advance = symbol
                good = size <= MAX_DC
            else:
                size = symbol & 15
                advance = _END_OF_BLOCK if symbol == 0 else (symbol >> 4) + 1
                good = symbol == 0 or symbol == 0xF0 or 0 < size <= MAX_AC
            entry = length + size | advance << 8 if good else 0
            tables.entries[i, count] = entry
            if length <= _SHORT:
                for bits in range(begin >> 16 - _SHORT, limit >> 16 - _SHORT):
                    tables.short[i, bits] = entry
            count += 1
        tables.limits[i, length] = limit
    return 16 + count == spec.size


@njit
def _fill_many(tables: Any, i: int) -> None:
    """Prepare looking up several codes at once, of AC table ``i`` (2 or 3), which is filled."""
    short = tables.short[i]
    for bits in range(short.size):
        entry: Any = np.int64(short[bits])
        total: Any = entry
        while entry != 0:
            length = total & 255
            if length >= _SHORT or total >> 8 > _REACH:
                break
            entry = np.int64(short[(bits << length) & (short.size - 1)])
            if length + (entry & 255) > _SHORT:
                break
            total += entry
        tables.many[i, bits] = total


@njit
def _find_long(tables: Any, i: Any, word: Any) -> Any:
    """The entry of the code, longer than ``_SHORT``, that ``word`` begins with in table ``i``."""
    bits = np.int64(word >> np.uint64(48))
    for length in range(_SHORT + 1, 17):
        below, limit = tables.limits[i, length - 1], tables.limits[i, length]
        if below <= bits < limit:
            return tables.entries[i, tables.first[i, length] + (bits - below >> 16 - length)]
    return np.uint16(0)


def _codes(spec: bytes) -> list[tuple[int, int]]:
    """Code and its length for each symbol of a table whose symbols are 0, 1, 2, ..."""
    codes, code = [], 0
    for length, count in enumerate(spec[:16], 1):
        codes += [(code + i, length) for i in range(count)]
        code = (code + count) * 2
    return codes


_CODES = np.array([_codes(spec) for spec in STANDARD_DC], np.uint64)
_SIZES = np.array([n.bit_length() for n in range(1 << MAX_DC)], np.uint8)
"""Bits that a difference takes."""


@njit
def _unstuff(data: Any, begin: int, bits: Any, ends: Any) -> tuple[int, int]:
    """Copy a scan without its restart markers and without the zeros that follow each 0xFF.

    Args:
        data: uint8 [size], a JPEG.
        begin: of the scan.
        bits: uint8, at least ``size - begin`` long; filled.
        ends: int64 [intervals], where each restart interval ends in ``bits``; filled.

    Returns:
        Number of intervals (0: damaged), and position of the marker behind them.
    """
    source, target = data.ctypes.data, bits.ctypes.data
    at, to, count = begin, 0, 0
    while True:
        found = memchr(source + at, 0xFF, np.uint64(data.size - at))
        if found == 0:
            return 0, 0
        end = found - source
        if end + 1 >= data.size:
            return 0, 0
        memcpy(target + to, source + at, np.uint64(end - at))
        to += end - at
        at = end + 2
        marker = data[end + 1]
        if marker == 0:
            bits[to] = 0xFF
            to += 1
            continue
        if count == ends.size:
            return 0, 0
        ends[count] = to
        if marker != 0xD0 + (count & 7):
            return count + 1, end
        count += 1


@njit
def _stuff(bits: Any, ends: Any, out: Any) -> int:
    """The reverse of :func:`_unstuff`, with an end marker behind the last interval.

    Args:
        bits: uint8, what lies in the intervals.
        ends: int64 [intervals], where each ends.
        out: uint8; filled.

    Returns:
        Bytes written.
    """
    source, target = bits.ctypes.data, out.ctypes.data
    at = to = 0
    for k in range(ends.size):
        while at < ends[k]:
            found = memchr(source + at, 0xFF, np.uint64(ends[k] - at))
            end = ends[k] if found == 0 else found - source + 1
            memcpy(target + to, source + at, np.uint64(end - at))
            to += end - at
            at = end
            if found != 0:
                out[to] = 0
                to += 1
        out[to] = 0xFF
        out[to + 1] = 0xD0 + (k & 7)
        to += 2
    out[to - 1] = 0xD9
    return to


@njit
def _peek(bits: Any, at: Any) -> Any:
    """The bits from ``at`` on, in the upper 57 of 64."""
    i = at >> np.uint64(3)
    word = np.uint64(0)
    for k in range(8):
        word = word << np.uint64(8) | np.uint64(bits[i + np.uint64(k)])
    return word << (at & np.uint64(7))


@njit
def _put(out: Any, to: Any, rest: Any, value: Any, count: Any) -> tuple[Any, Any]:
    """Write the lower ``count`` bits, at most 56, of ``value``, which has no other.

    Args:
        out: uint8.
        to: bit to write at.
        rest: the bits before it in its byte, in the upper of 64.
        value: the bits.
        count: of them.

    Returns:
        ``to`` and ``rest`` behind.
    """
    used = to & np.uint64(7)
    word = rest | (value << np.uint64(1)) << (np.uint64(63) - used - count)
    i = to >> np.uint64(3)
    for k in range(8):
        out[i + np.uint64(k)] = np.uint8(word >> np.uint64(56 - 8 * k))
    return to + count, word << (used + count & np.uint64(0x38))


@njit
def _align(out: Any, to: Any, rest: Any) -> tuple[Any, Any]:
    """Fill up a byte with ones."""
    count = -to & np.uint64(7)
    return _put(out, to, rest, (np.uint64(1) << count) - np.uint64(1), count)


@njit
def _copy(bits: Any, start: Any, stop: Any, out: Any, to: Any, rest: Any) -> tuple[Any, Any]:
    """Write the bits from ``start`` to ``stop``."""
    while start < stop:
        count = min(stop - start, np.uint64(56))
        to, rest = _put(out, to, rest, _peek(bits, start) >> (np.uint64(64) - count), count)
        start += count
    return to, rest


@njit
def _recode(
    bits: Any, ends: Any, blocks: Any, tables: Any, mcus: int, old: int, new: int, out: Any, out_ends: Any,
) -> bool:  # fmt: skip
    """Code a scan's blocks anew, in other restart intervals.

    Args:
        bits, ends: of :func:`_unstuff`.
        blocks: see :func:`insert`.
        tables: :class:`_Tables`.
        mcus: their number.
        old, new: MCUs in a restart interval.
        out, out_ends: as ``bits`` and ``ends``; filled.

    Returns:
        Whether the scan was not damaged.
    """
    short = tables.short
    before = np.zeros(3, np.int64)  # the last mean of each component
    written = np.zeros(3, np.int64)
    at = to = rest = np.uint64(0)
    end = np.uint64(8 * ends[0])
    old_left, new_left, segment, intervals = old, new, 0, 0
    for _ in range(mcus):
        if old_left == 0:
            if end - at >= 8:
                return False
            at = end
            segment += 1
            end = np.uint64(8 * ends[segment])
            before[:] = 0
            old_left = old
        if new_left == 0:
            to, rest = _align(out, to, rest)
            out_ends[intervals] = to >> np.uint64(3)
            intervals += 1
            written[:] = 0
            new_left = new
        old_left -= 1
        new_left -= 1
        for b in range(blocks.shape[0]):
            component = blocks[b, 0]
            word = _peek(bits, at)
            entry = np.uint64(short[blocks[b, 1], word >> np.uint64(64 - _SHORT)])
            if entry == 0:
                entry = np.uint64(_find_long(tables, blocks[b, 1], word))
                if entry == 0:
                    return False
            length, size = entry & np.uint64(255), entry >> np.uint64(8)
            at += length
            if size > 0:
                value = np.int64((word << (length - size)) >> (np.uint64(64) - size))
                if value < 1 << np.int64(size) >> 1:
                    value -= (1 << np.int64(size)) - 1
                before[component] += value
            difference = before[component] - written[component]
            written[component] = before[component]
            if abs(difference) >= 1 << MAX_DC:
                return False
            size = np.uint64(_SIZES[abs(difference)])
            if difference < 0:
                difference += (1 << np.int64(size)) - 1
            code, length = _CODES[blocks[b, 3], size]
            to, rest = _put(out, to, rest, code << size | np.uint64(difference), length + size)

            ac = blocks[b, 2]
            start, k, left = at, np.uint64(1), np.int64(0)  # bits of the word
            lookup = tables.many[ac]
            while k < 64:
                if k >= 64 - _REACH:  # those behind the next code may belong to another block
                    lookup = short[ac]
                if left < 16 + MAX_AC:
                    word, left = _peek(bits, at), np.int64(57)
                entry = np.uint64(lookup[word >> np.uint64(64 - _SHORT)])
                if entry == 0:
                    entry = np.uint64(_find_long(tables, ac, word))
                    if entry == 0:
                        return False
                length = entry & np.uint64(255)
                word <<= length
                left -= np.int64(length)
                at += length
                k += entry >> np.uint64(8)
            if 64 < k < _END_OF_BLOCK or at > end:
                return False
            to, rest = _copy(bits, start, at, out, to, rest)
    if end - at >= 8 or segment + 1 != ends.size:
        return False
    to, _ = _align(out, to, rest)
    out_ends[intervals] = to >> np.uint64(3)
    return True


@njit_cached
def insert(
    data: Bytes,
    begin: int,
    blocks: npt.NDArray[np.int64],
    specs: tuple[Bytes, Bytes, Bytes, Bytes],
    mcus: int,
    old: int,
    new: int,
) -> Bytes:
    """Code a scan anew, in other restart intervals.

    Args:
        data: [size], a JPEG.
        begin: of its only scan.
        blocks: [blocks of an MCU, 4], of each its component (0 to 2), its tables among ``specs`` of
            DC (0 or 1) and AC (2 or 3), and the standard table (0 or 1) that its DC is written with.
        specs: the tables of DC 0 and 1, AC 0 and 1, as a DHT segment has them: codes of each length 1
            to 16, then their symbols.
        mcus: their number, at least 1.
        old: MCUs between the restart markers that are there, 0 where there are none.
        new: MCUs between those that are written, at least 1.

    Returns:
        The scan and an end marker; empty where the scan or a table is damaged, or something follows
        the scan.
    """
    nothing = np.empty(0, np.uint8)
    tables = _Tables(
        np.zeros((4, 1 << _SHORT), np.uint16),
        np.zeros((4, 1 << _SHORT), np.uint16),
        np.zeros((4, 256), np.uint16),
        np.zeros((4, 17), np.int64),
        np.zeros((4, 17), np.int64),
    )
    for i in range(4):
        if not _fill(tables, i, specs[i]):
            return nothing
    _fill_many(tables, 2)
    _fill_many(tables, 3)
    old = old if old > 0 else mcus
    bits = np.empty(data.size - begin + PADDING, np.uint8)
    ends = np.empty(-(-mcus // old), np.int64)
    found, behind = _unstuff(data, begin, bits, ends)
    if found != ends.size or data[behind + 1] != 0xD9:
        return nothing
    new_ends = np.empty(-(-mcus // new), np.int64)
    room = ends[-1] + GROWTH * mcus * blocks.shape[0] + new_ends.size + 8
    recoded = np.empty(room, np.uint8)
    if not _recode(bits, ends, blocks, tables, mcus, old, new, recoded, new_ends):
        return nothing
    out = np.empty(2 * (new_ends[-1] + new_ends.size), np.uint8)
    return out[: _stuff(recoded, new_ends, out)]
