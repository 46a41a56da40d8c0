"""Members of a tar for many samples at once: what is the same for many of them is made once."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Iterator, Sequence
from operator import add, itemgetter
from zlib import adler32

from shardstream.format.headers import (
    BLOCK,
    MAX_SIZE,
    header_end,
    header_middle,
    header_parts,
    padding,
)

__all__ = ["MAX_SIZE", "longest_key", "odd_parts", "odd_size", "sample_parts"]

_NAME = 100  # bytes of the name in a header of ustar
_KNOWN = 1 << 14  # sizes whose headers are kept


def longest_key(ends: Sequence[bytes]) -> int:
    """The most bytes of a key of ASCII whose members have usual headers; less than 0: none has.

    Args:
        ends: The end of the name of each member, in UTF-8.
    """
    return _NAME - max(map(len, ends)) if all(map(bytes.isascii, ends)) else -1


def sample_parts(
    keys: Sequence[bytes], ends: Sequence[bytes], data: Sequence[bytes | memoryview], sizes: Sequence[int]
) -> Iterator[bytes | memoryview]:
    """The bytes of samples that have the same fields, in parts.

    Args:
        keys: The key of each sample, in UTF-8.
        ends: The end of the name of each field's member, such as b".txt". All members are usual ones.
        data: The data of the fields, sample by sample.
        sizes: Their sizes in bytes.
    """
    # The low half of an Adler-32 is 1 + the sum of the bytes, modulo 65521.
    sums, lengths = [adler32(key) & 0xFFFF for key in keys], list(map(len, keys))
    width = len(ends)
    columns: list[Iterable[bytes | memoryview]] = []
    for column, end in enumerate(ends):
        names = list(map(_name_ends(end).__getitem__, lengths))
        middles = list(map(_MIDDLES.__getitem__, sizes[column::width]))
        totals = map(add, sums, map(add, map(_second, names), map(_second, middles)))
        columns += (
            keys,
            map(_first, names),
            map(_first, middles),
            map(_ENDS.__getitem__, totals),
            data[column::width],
            map(_third, middles),
        )
    return itertools.chain.from_iterable(zip(*columns, strict=True))


def odd_parts(
    key: bytes, ends: Sequence[bytes], data: Iterable[bytes | memoryview]
) -> Iterator[tuple[bytes, bytes | memoryview, bytes]]:
    """The header, the data and the zeros of each member of a sample, also of one that is not usual."""
    for end, value in zip(ends, data, strict=True):
        yield b"".join(header_parts(key + end, len(value))), value, padding(len(value))


def odd_size(key: bytes, ends: Sequence[bytes], sizes: Iterable[int]) -> int:
    """The bytes of a sample in a tar, also of one that is not usual."""
    return sum(
        sum(map(len, header_parts(key + end, size))) + size + -size % BLOCK
        for end, size in zip(ends, sizes, strict=True)
    )


class _NameEnds(dict[int, tuple[bytes, int]]):
    """By the size of a key what stands behind it in the name of a member, and the sum of these bytes, less 1.

    Args:
        end: The end of the name.
    """

    def __init__(self, end: bytes) -> None:
        super().__init__()
        self._end = end

    def __missing__(self, key: int) -> tuple[bytes, int]:
        self[key] = found = self._end.ljust(_NAME - key, b"\0"), sum(self._end) - 1
        return found


class _Middles(dict[int, tuple[bytes, int, bytes]]):
    """By the size of a member what stands between its name and its checksum, the sum of all bytes of the
    header but the name, and the zeros behind the member.
    """

    def __missing__(self, size: int) -> tuple[bytes, int, bytes]:
        if len(self) >= _KNOWN:
            self.clear()
        self[size] = found = *header_middle(size), padding(size)
        return found


class _Ends(dict[int, bytes]):
    """By the sum of all bytes of a header what stands behind its size."""

    def __missing__(self, total: int) -> bytes:
        self[total] = found = header_end(total, b"0")
        return found


_ENDS, _MIDDLES = _Ends(), _Middles()
_name_ends = functools.lru_cache(1 << 10)(_NameEnds)
_first, _second, _third = map(itemgetter, range(3))
