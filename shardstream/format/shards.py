"""The shards of a manifest: an object for each; or, if there are very many, columns of what they are."""

from __future__ import annotations

import itertools
import operator
import re
from array import array
from collections.abc import Iterator, Sequence
from typing import Any, overload

import msgspec

from shardstream.errors import CorruptionError
from shardstream.format.columns import ColumnInfo
from shardstream.format.names import shorten
from shardstream.format.shard_info import Codec, ShardInfo, index_of

__all__ = ["DIGITS", "NO_HEAD", "Layout", "Shards", "shard_checksums", "shard_values"]

DIGITS = 32  # of an xxh3_128
NO_HEAD = "0" * DIGITS  # stands for the checksum of a head that is not there
_HEX = re.compile(r"[0-9a-f]*\Z")
_NUMBERS = ("bytes", "raw_bytes", "samples", "tokens", "frames", "index_bytes", "index_head")
_CHECKSUMS = ("checksum", "index_checksum", "index_head_checksum")
_MADE = 4096  # objects of shards that stay
_MEMBERS = ShardInfo.__struct_fields__
_members = operator.attrgetter(*_MEMBERS)


class Layout(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What many shards have in common. The members are those of ShardInfo."""

    codec: Codec
    fields: tuple[str, ...]
    grouped: bool = False
    columns: tuple[ColumnInfo, ...] = ()
    sparse: bool = False


class _Columns(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Shards as JSON has them: a list of numbers is one number if all are equal."""

    count: int
    url: list[str]
    layouts: list[Layout]
    layout: list[int] | int
    bytes: list[int] | int
    raw_bytes: list[int] | int
    samples: list[int] | int
    tokens: list[int] | int
    frames: list[int] | int
    index_bytes: list[int] | int
    checksum: str
    index_checksum: str
    index_url: list[str] | None = None
    index_head: list[int] | int = 0
    index_head_checksum: str = ""


class Shards(Sequence[ShardInfo]):
    """Very many shards, as columns: about 150 bytes for each, where objects take 900.

    The object of a shard is made when it is asked for.

    Args:
        urls: Of the shards.
        index_urls: Of their indexes; None if each has the name of its shard and ends in `.index`.
        numbers: The columns of numbers, by the names of ShardInfo.
        checksums: The checksums, one behind another, by the names of ShardInfo; "" for no heads at all.
        layouts: What shards have in common.
        layout: The number of the layout of each shard.

    Attributes: as the arguments; nobody may change them.
    """

    def __init__(
        self,
        urls: list[str],
        index_urls: list[str] | None,
        numbers: dict[str, Sequence[int]],
        checksums: dict[str, str],
        layouts: Sequence[Layout],
        layout: Sequence[int],
    ) -> None:
        self.urls, self.index_urls = urls, index_urls
        self.numbers, self.checksums = numbers, checksums
        self.layouts, self.layout = tuple(layouts), layout
        self._made: dict[int, ShardInfo] = {}

    @classmethod
    def of(cls, shards: Sequence[ShardInfo]) -> Shards:
        """The same shards as columns.

        Raises:
            CorruptionError: A checksum is none.
        """
        if isinstance(shards, Shards):
            return shards
        # A list for each member: a call of Python for each shard and member would take most of the time.
        members = list(zip(*map(_members, shards), strict=True)) or [()] * len(_MEMBERS)
        found: dict[str, Any] = dict(zip(_MEMBERS, members, strict=True))
        if any(found["index_head_checksum"]):
            found["index_head_checksum"] = [head or NO_HEAD for head in found["index_head_checksum"]]
        checksums = {name: "".join(found[name]) for name in _CHECKSUMS}
        wrong: list[int] = []  # the first shard that each checksum is wrong of
        for name, digits in checksums.items():
            absent = name == "index_head_checksum" and not digits
            if not absent and not (set(map(len, found[name])) <= {DIGITS} and _HEX.match(digits)):
                bad = (len(one) != DIGITS or not _HEX.match(one) for one in found[name])
                wrong.append(next(itertools.compress(itertools.count(), bad)))
        if wrong:
            url = found["url"][min(wrong)]
            raise CorruptionError(f"shard {shorten(url)!r} has a checksum that is not 32 hex digits")
        layouts: dict[tuple[Any, ...], int] = {}
        kinds = zip(*(found[name] for name in Layout.__struct_fields__), strict=True)
        layout = [layouts.setdefault(kind, len(layouts)) for kind in kinds]
        same = list(map(index_of, found["url"])) == list(found["index_url"])
        return cls(
            list(found["url"]),
            None if same else list(found["index_url"]),
            {name: _packed(found[name]) for name in _NUMBERS},
            checksums,
            [Layout(*kind) for kind in layouts],
            _packed(layout),
        )

    @classmethod
    def from_json(cls, data: msgspec.Raw) -> Shards:
        """Load what `to_json` made.

        Raises:
            CorruptionError: It is not whole.
            msgspec.DecodeError: It is something else.
        """
        found = msgspec.json.decode(data, type=_Columns)
        count = found.count
        # First what has a length of its own: a count without it would take all memory.
        for urls in (found.url, found.index_url):
            if urls is not None and len(urls) != count:
                raise CorruptionError(f"{len(urls)} names for {count} shards")
        checksums = {name: getattr(found, name) for name in _CHECKSUMS}
        for name, digits in checksums.items():
            absent = name == "index_head_checksum" and not digits
            if not absent and (len(digits) != DIGITS * count or not _HEX.match(digits)):
                raise CorruptionError(f"{name}: not 32 hex digits for each of {count} shards")
        numbers = {name: _column(getattr(found, name), count, name) for name in _NUMBERS}
        layout = _column(found.layout, count, "layout")
        if count and not 0 <= min(layout) <= max(layout) < len(found.layouts):
            raise CorruptionError("a shard has a layout that is not listed")
        return cls(found.url, found.index_url, numbers, checksums, found.layouts, layout)

    def to_json(self) -> bytes:
        """The shards as JSON, column by column. It compresses better than objects, and loads in less time."""
        numbers: dict[str, Any] = {name: _or_one(self.numbers[name]) for name in _NUMBERS}
        checksums: dict[str, Any] = self.checksums
        return msgspec.json.encode(
            _Columns(
                count=len(self),
                url=self.urls,
                index_url=self.index_urls,
                layouts=list(self.layouts),
                layout=_or_one(self.layout),
                **numbers,
                **checksums,
            ),
            order="deterministic",
        )

    def values(self, name: str) -> Sequence[int]:
        """A column of numbers by its name, such as "samples", [shards]. Nobody may change it."""
        return self.numbers[name]

    def __len__(self) -> int:
        return len(self.urls)

    @overload
    def __getitem__(self, number: int) -> ShardInfo: ...
    @overload
    def __getitem__(self, number: slice) -> tuple[ShardInfo, ...]: ...
    def __getitem__(self, number: int | slice) -> ShardInfo | tuple[ShardInfo, ...]:
        if isinstance(number, slice):
            return tuple(map(self._make, range(*number.indices(len(self)))))
        found = self._made.get(number)
        if found is None:
            at = operator.index(number)
            at += len(self) if at < 0 else 0
            if not 0 <= at < len(self):
                raise IndexError(f"shard {number}: there are {len(self)}")
            found = self._make(at)
            if len(self._made) >= _MADE:
                self._made = {}  # a new one: other threads may be looking into this one
            self._made[number] = found
        return found

    def __iter__(self) -> Iterator[ShardInfo]:
        return map(self._make, range(len(self)))

    def _make(self, number: int) -> ShardInfo:
        layout, digits = self.layouts[self.layout[number]], slice(DIGITS * number, DIGITS * (number + 1))
        url, checksums = self.urls[number], self.checksums
        head = checksums["index_head_checksum"][digits]
        return ShardInfo(
            url=url,
            codec=layout.codec,
            fields=layout.fields,
            checksum=checksums["checksum"][digits],
            index_url=index_of(url) if self.index_urls is None else self.index_urls[number],
            index_checksum=checksums["index_checksum"][digits],
            grouped=layout.grouped,
            columns=layout.columns,
            index_head_checksum="" if head == NO_HEAD else head,
            sparse=layout.sparse,
            **{name: self.numbers[name][number] for name in _NUMBERS},
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and tuple(self) == tuple(other)

    def __hash__(self) -> int:
        return hash(tuple(self))

    def __repr__(self) -> str:
        return f"<{len(self)} shards>"

    def __reduce__(self) -> tuple[Any, ...]:
        parts = self.urls, self.index_urls, self.numbers, self.checksums, self.layouts, self.layout
        return Shards, parts

    def merged(self) -> Iterator[tuple[int, Sequence[ColumnInfo]]]:
        """The number of samples and the columns of each shard, for `columns.merge`."""
        return zip(self.numbers["samples"], (self.layouts[at].columns for at in self.layout), strict=True)


def shard_values(shards: Sequence[ShardInfo], name: str) -> Sequence[int]:
    """A number of each shard, such as "samples", [shards]. Nobody may change it."""
    return shards.values(name) if isinstance(shards, Shards) else [getattr(info, name) for info in shards]


def shard_checksums(shards: Sequence[ShardInfo], name: str) -> list[str]:
    """A checksum of each shard, such as "index_checksum"."""
    if not isinstance(shards, Shards):
        return [getattr(info, name) for info in shards]
    digits = shards.checksums[name]
    return [digits[at : at + DIGITS] for at in range(0, len(digits), DIGITS)]


def _packed(values: Sequence[int]) -> Sequence[int]:
    """Numbers in 8 bytes each; as they are if one needs more, which `problem` then names."""
    try:
        return array("q", values)
    except OverflowError:
        return values


def _column(values: list[int] | int, count: int, name: str) -> Sequence[int]:
    if isinstance(values, int):
        return _packed([values] * count)
    if len(values) != count:
        raise CorruptionError(f"{name}: {len(values)} numbers for {count} shards")
    return _packed(values)


def _or_one(values: Sequence[int]) -> list[int] | int:
    """The numbers as a list, or the one that all are."""
    first = values[0] if len(values) else 0
    return first if values.count(first) == len(values) else list(values)
