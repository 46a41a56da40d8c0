"""Keys of samples from the paths of files: no two of them are the same."""

from __future__ import annotations

import itertools
import re
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import xxhash

from shardstream.format.names import escape_key
from shardstream.packing.sources.base import relative
from shardstream.storage import spool
from shardstream.storage.inputs import FileInfo
from shardstream.storage.spool import Blobs

__all__ = ["based", "key_bases", "keyed", "unique_keys"]

_NUMBERED = re.compile(r"~[0-9]+\Z")
_SORTED = 1 << 20  # checksums that are sorted together
_PARTS = 256  # by their first bits: those of a billion keys are 32 MB for each part

T = TypeVar("T")


def unique_keys(names: Iterable[str]) -> list[str]:
    """A key for each name: the escaped name, with a number if the same key came before."""
    last: dict[str, int] = {}
    return [_numbered(escape_key(name), last) for name in names]


def _numbered(stem: str, last: dict[str, int]) -> str:
    """The key, which is new. `last`: the keys so far, and the last number that each was given."""
    key = stem
    while key in last:
        last[stem] += 1
        key = f"{stem}~{last[stem]}"
    last[key] = 1
    return key


def keyed(items: Callable[[], Iterable[T]], name: Callable[[T], str]) -> Iterator[tuple[T, str]]:
    """Each item with its key, as `unique_keys` gives them.

    Of very many items only those keys are in memory that come twice, or that look like a key with a number:
    no other key can be one that was given before. A checksum finds them, so that some others may be among
    them.

    Args:
        items: Gives the items, the same ones each time.
        name: The name of an item.
    """
    some = list(itertools.islice(items(), spool.HELD + 1))
    last: dict[str, int] = {}
    if len(some) <= spool.HELD:
        for item in some:
            yield item, _numbered(escape_key(name(item)), last)
        return
    some.clear()

    def checksum(key: str) -> int:
        return xxhash.xxh3_64_intdigest(key.encode())

    twice = _Repeated(checksum(escape_key(name(item))) for item in items()).found()
    for item in items():
        key = escape_key(name(item))
        if (twice and checksum(key) in twice) or ("~" in key and _NUMBERED.search(key)):
            key = _numbered(key, last)
        yield item, key


class _Repeated:
    """Finds the numbers that come twice, by sorting them on a local disk, in parts.

    Args:
        numbers: The numbers, of 64 bits.
    """

    def __init__(self, numbers: Iterable[int]) -> None:
        self._blobs = Blobs()
        left = iter(numbers)
        while some := array("Q", itertools.islice(left, _SORTED)):
            self._put(some)

    def _put(self, some: array[int]) -> None:
        import numpy as np

        found = np.sort(np.frombuffer(some, np.uint64))
        firsts = np.arange(_PARTS, dtype=np.uint64) << np.uint64(64 - 8)
        bounds = [*np.searchsorted(found, firsts).tolist(), len(found)]
        for start, end in itertools.pairwise(bounds):
            self._blobs.add(found[start:end].tobytes())

    def found(self) -> set[int]:
        """Those that come twice."""
        import numpy as np

        twice: set[int] = set()
        for part in range(_PARTS):
            pieces = (self._blobs.read(number) for number in range(part, len(self._blobs), _PARTS))
            numbers = np.frombuffer(b"".join(pieces), np.uint64)
            numbers = np.sort(numbers)
            twice.update(numbers[1:][numbers[1:] == numbers[:-1]].tolist())
        return twice


def key_bases(files: Sequence[FileInfo], extensions: Sequence[str]) -> list[str]:
    """For each file the begin of the keys of its rows: its path without its extensions, as a key.

    Args:
        files: The files.
        extensions: The extensions in lower case, such as ".jsonl.gz". The longest that fits is left out.
    """
    return [key for _, key in based(files, extensions)]


def based(files: Sequence[FileInfo], extensions: Sequence[str]) -> Iterator[tuple[FileInfo, str]]:
    """Each file with the begin of its keys; see `key_bases`."""
    longest = sorted(extensions, key=len, reverse=True)
    found = re.compile(f"(?:{'|'.join(map(re.escape, longest))})\\Z", re.IGNORECASE)
    return keyed(lambda: files, lambda file: found.sub("", relative(file)))
