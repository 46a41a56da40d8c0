"""Members of a tar for many samples at once: what is the same for many of them is made once."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Iterator, Sequence
from zlib import adler32

from shardstream.format.headers import (
    BLOCK,
    MAX_SIZE,
    header_end,
    header_middle,
    header_parts,
    padding,
)

__all__ = ["MAX_SIZE", "longest_key", "member_bytes", "odd_parts", "odd_size", "sample_parts"]

_NAME = 100  # bytes of the name in a header of ustar
_KNOWN = 1 << 14  # sizes whose headers are kept


def longest_key(ends: Sequence[bytes]) -> int:
    """The most bytes of a key of ASCII whose members have usual headers; less than 0: none has.

    Args:
        ends: The end of the name of each member, in UTF-8.
    """
    return _NAME - max(map(len, ends)) if all(map(bytes.isascii, ends)) else -1


def member_bytes(size: int) -> int:
    """The bytes of a usual member in a tar: of its header, its data and the zeros behind."""
    return (size + 2 * BLOCK - 1) & -BLOCK


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
    sums = [(adler32(key) & 0xFFFF) - 1 for key in keys]
    length = len(keys[0])
    same = all(len(key) == length for key in keys)
    width = len(ends)
    columns: list[Sequence[bytes | memoryview]] = []
    for column, end in enumerate(ends):
        some = sizes[column::width]
        if same:
            known = _middles(length, end)
            middles = [known[size] for size in some]
        else:
            middles = [_middles(len(key), end)[size] for key, size in zip(keys, some, strict=True)]
        columns += (
            keys,
            [middle for middle, _ in middles],
            [_ENDS[total + more] for total, (_, more) in zip(sums, middles, strict=True)],
            data[column::width],
            [padding(size) for size in some],
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


class _Middles(dict[int, tuple[bytes, int]]):
    """By the size of a member what stands between its key and its checksum, and the sum of all but the key.

    Args:
        key: The bytes of the key.
        end: The end of the name.
    """

    def __init__(self, key: int, end: bytes) -> None:
        super().__init__()
        self._name = end.ljust(_NAME - key, b"\0")

    def __missing__(self, size: int) -> tuple[bytes, int]:
        if len(self) >= _KNOWN:
            self.clear()
        middle, total = header_middle(size)
        self[size] = found = self._name + middle, total + sum(self._name)
        return found


class _Ends(dict[int, bytes]):
    """By the sum of all bytes of a header what stands behind its size."""

    def __missing__(self, total: int) -> bytes:
        self[total] = found = header_end(total, b"0")
        return found


_ENDS = _Ends()
_middles = functools.lru_cache(1 << 10)(_Middles)
