"""The objects of a log: each segment becomes one, `rank-0/000123.jsonl.zst`, which is never written again."""

from __future__ import annotations

import re

import zstandard

from shardstream.errors import CommitError
from shardstream.logs.segments import Segment
from shardstream.storage.options import Options
from shardstream.storage.store import Store

__all__ = ["Objects", "expanded", "fetched", "folder_of", "numbered", "rank_of"]

_OBJECT = re.compile(r"(\d+)\.jsonl\.zst\Z")
_FOLDER = re.compile(r"rank-(\d+)\Z")
_LARGEST = 1 << 30  # bytes of an object, and of its rows; ours have half of it at most
_LEVEL = 3


def folder_of(rank: int) -> str:
    """The name of the folder of a rank."""
    return f"rank-{rank}"


def rank_of(name: str) -> int | None:
    """The rank whose folder has this name; None if it is another kind of name."""
    match = _FOLDER.match(name)
    return None if match is None else int(match[1])


def numbered(store: Store) -> dict[int, str]:
    """The names of the objects of a rank by their numbers, in order."""
    found = {int(match[1]): name for name in store.list() if (match := _OBJECT.match(name))}
    return dict(sorted(found.items()))


def expanded(packed: bytes) -> bytes:
    """The rows of an object.

    Raises:
        ValueError: It is damaged, or too large.
    """
    try:
        size = zstandard.frame_content_size(packed)
        if not 0 <= size <= _LARGEST:
            raise ValueError(f"its rows have {size} bytes, at most {_LARGEST} are allowed")
        data = zstandard.ZstdDecompressor().decompress(packed)
    except zstandard.ZstdError as error:
        raise ValueError(str(error)) from error
    if len(data) != size:
        raise ValueError(f"its rows have {len(data)} bytes, not {size}")
    return data


def fetched(store: Store, name: str) -> bytes:
    """An object as it is stored.

    Raises:
        StorageError: It cannot be read.
    """
    return store.read(name, _LARGEST)


class Objects:
    """Writes segments as new objects; for one thread.

    Args:
        url: Where the log is.
        options: The `storage_options` of the user.

    Raises:
        OptionError: The options cannot work.
        MissingExtraError: The store needs a package that is not installed.
    """

    def __init__(self, url: str, options: Options) -> None:
        self._url, self._options = url.rstrip("/") or url, options
        self._store = Store.open(url, options)
        self._next: dict[int, int] = {}  # the number that a rank's next object gets

    def write(self, segment: Segment) -> None:
        """Write the rows of a segment as a new object, unless an earlier try has done so.

        Raises:
            StorageError: The store does not take it.
        """
        data = segment.read()
        if not data:
            return
        packed = zstandard.ZstdCompressor(level=_LEVEL, write_checksum=True).compress(data)
        number = segment.target
        if number is None:
            number = self._next.get(segment.rank) or self._free(segment.rank, 0)
        while True:
            segment.aim(number)
            path = f"{folder_of(segment.rank)}/{number:06d}.jsonl.zst"
            try:
                self._store.create(path, packed)
                break
            except CommitError:
                # Another process of this rank has taken the number; or an earlier try, of this process or of
                # one that was killed, has written these rows.
                if self._holds(path, data):
                    break
                number = self._free(segment.rank, number + 1)
        self._next[segment.rank] = max(number + 1, self._next.get(segment.rank, 0))

    def _free(self, rank: int, least: int) -> int:
        """The number after all that are there."""
        store = Store.open(f"{self._url}/{folder_of(rank)}", self._options)
        return max([least, *(number + 1 for number in numbered(store))])

    def _holds(self, path: str, data: bytes) -> bool:
        found = fetched(self._store, path)
        try:
            # The rows, not the object: another version of zstd makes other bytes of them.
            return expanded(found) == data
        except ValueError:
            return False

    def check(self) -> None:
        """Ask the store for what is there, so that a wrong name is told before there are rows.

        Raises:
            StorageError: It does not answer as it should.
        """
        self._store.list()
