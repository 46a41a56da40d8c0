"""The frame that is being made: samples are collected, and laid out together when their fields change."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Collection, Sequence
from typing import NamedTuple

from shardstream.format.cells import Cells
from shardstream.format.headers import BLOCK
from shardstream.format.members import longest_key, odd_parts, sample_parts
from shardstream.format.names import check_field

__all__ = ["Fields", "OpenFrame", "fields_of"]


class Fields(NamedTuple):
    """What is the same for all samples that have the same fields.

    Args:
        names: The names of the fields.
        ends: The end of the name of each field's member, in UTF-8: a dot and the field.
        longest: The most bytes of a key of ASCII with which all members have headers of one block.
    """

    names: tuple[str, ...]
    ends: tuple[bytes, ...]
    longest: int


@functools.lru_cache(1 << 10)
def fields_of(names: tuple[str, ...]) -> Fields:
    """What samples with these fields have in common. Raises SourceError if a field has no good name."""
    ends = tuple(f".{check_field(name)}".encode() for name in names)
    return Fields(names, ends, longest_key(ends))


class OpenFrame:
    """The samples of one frame of a tar.

    Args:
        cells: The cells of the shard, to which those of the samples are added.
        columns: The columns of the shard by name, to which new names are added.
        first: The number of the first sample in the shard.

    Attributes:
        size: The bytes of the samples so far, as they will lie in the tar.
    """

    def __init__(self, cells: Cells, columns: dict[str, int], first: int) -> None:
        self._cells, self._columns = cells, columns
        self.first = self._next = first
        self.size = 0
        self._parts: list[bytes | memoryview] = []
        self._laid_out = 0  # bytes of the parts
        # The samples that are not laid out yet. All have the same fields, and members of usual headers.
        self._fields: Fields | None = None
        self._keys: list[bytes] = []
        self._data: list[bytes] = []
        self._sizes: list[int] = []

    def add(
        self, key: bytes, fields: Fields, data: Collection[bytes], sizes: Sequence[int], total: int
    ) -> None:
        """Add a sample whose members have usual headers.

        Args:
            key: Its key in UTF-8.
            fields: Its fields.
            data: The bytes of each field.
            sizes: How many these are.
            total: The bytes of the sample in the tar, with headers, and zeros up to whole blocks.
        """
        if fields is not self._fields:
            self._lay_out()
            self._begin(fields)
        self._keys.append(key)
        self._data += data
        self._sizes += sizes
        self.size += total

    def add_usual(
        self, keys: Sequence[bytes], fields: Fields, data: Sequence[bytes], sizes: Sequence[int], total: int
    ) -> None:
        """Add samples that have the same fields, and whose members have usual headers.

        Args:
            keys: Their keys in UTF-8.
            fields: Their fields.
            data: The bytes of each field, sample by sample.
            sizes: How many these are.
            total: The bytes of the samples in the tar.
        """
        if fields is not self._fields:
            self._lay_out()
            self._begin(fields)
        self._keys += keys
        self._data += data
        self._sizes += sizes
        self.size += total

    def add_odd(self, key: bytes, fields: Fields, data: Collection[bytes]) -> None:
        """Add a sample of which a member has a header of several blocks."""
        self._lay_out()
        self._begin(fields)
        self._fields = None
        for header, value, zeros in odd_parts(key, fields.ends, data):
            self._parts += (header, value, zeros)
            self._cells.offsets.append(self._laid_out + len(header))
            self._cells.sizes.append(len(value))
            self._laid_out += len(header) + len(value) + len(zeros)
        self._next += 1
        self.size = self._laid_out

    def add_rows(
        self, fields: Fields, count: int, raw: memoryview, offsets: Sequence[int], sizes: Sequence[int]
    ) -> None:
        """Add samples that are laid out already.

        Args:
            fields: The fields of all samples.
            count: How many samples there are.
            raw: Their bytes in the tar.
            offsets: Where each field begins in `raw`, sample by sample.
            sizes: The bytes of each field.
        """
        self._lay_out()
        self._begin(fields)
        self._fields = None
        self._parts.append(raw)
        at = self._laid_out
        self._cells.offsets.extend(offsets if not at else [at + offset for offset in offsets])
        self._cells.sizes.extend(sizes)
        self._laid_out += len(raw)
        self._next += count
        self.size = self._laid_out

    def end(self) -> bytes | memoryview:
        """Lay out what is left; returns the bytes of the frame."""
        self._lay_out()
        parts, self._parts = self._parts, []
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _begin(self, fields: Fields) -> None:
        known = self._columns
        self._cells.begin(self._next, tuple(known.setdefault(name, len(known)) for name in fields.names))
        self._fields = fields

    def _lay_out(self) -> None:
        if not self._keys or self._fields is None:
            return
        keys, self._keys = self._keys, []
        data, self._data = self._data, []
        sizes, self._sizes = self._sizes, []
        self._parts += sample_parts(keys, self._fields.ends, data, sizes)
        # Of each field the bytes of its header, its data and the zeros behind.
        rooms = [(size + 2 * BLOCK - 1) & -BLOCK for size in sizes]
        begins = itertools.accumulate(rooms, initial=self._laid_out + BLOCK)
        self._cells.offsets.extend(itertools.islice(begins, len(sizes)))
        self._cells.sizes.extend(sizes)
        self._laid_out = self.size
        self._next += len(keys)
