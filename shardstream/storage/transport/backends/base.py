"""What every backend can do: each method is one request, a coroutine on the loop, and is tried once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

__all__ = [
    "DELETED_AT_ONCE", "LARGEST_CREATE", "LARGEST_PUT", "Backend", "Content", "Data", "Entry", "Wrapper",
]  # fmt: skip

LARGEST_PUT = 256 << 20  # bytes that are written by one request
LARGEST_CREATE = (
    4 << 30
)  # the same, if the object must not exist yet: S3 takes 5 GiB, and no condition for more
DELETED_AT_ONCE = 1000  # objects that are deleted by one request, if the store can do it
Data = bytes | memoryview


class Content(NamedTuple):
    """Bytes of an object; the size of the whole object, or None; what names its version, or "".

    whole: Whether the server has sent the whole object, although a range was asked for.
    """

    data: Data
    total: int | None
    version: str
    whole: bool = False


class Entry(NamedTuple):
    """An object as a list shows it.

    Args:
        path: Its path; of a `Store`, its name below the root.
        size: Its bytes.
        version: What names its version, or "" if the list does not tell.
    """

    path: str
    size: int
    version: str


class Backend(Protocol):
    """A way to talk to one kind of store. Its paths have the form that its package wants."""

    name: str
    # Whether to open connections before they are needed. A web server may have as few as 512 for all readers.
    connects: bool
    # Whether of many that create an object only one succeeds.
    conditional: bool

    async def get(self, path: str, most: int | None) -> Content:
        """The whole object, which must have at most `most` bytes."""

    async def get_range(self, path: str, start: int, size: int) -> Content:
        """At most `size` bytes, which is 1 or more, from `start`; fewer at the object's end."""

    async def head(self, path: str) -> tuple[int | None, str]:
        """(size, version) of an object."""

    async def put(self, path: str, parts: Sequence[Data]) -> None:
        """Write an object of these parts as a whole."""

    async def create(self, path: str, parts: Sequence[Data]) -> str:
        """Write an object that must not exist yet, else FileExistsError; returns its version, or ""."""

    async def replace(self, path: str, data: bytes, version: str) -> str:
        """Write an object that must still have this version, else FileExistsError; returns the new version.

        A backend that knows no versions writes it in any case.
        """

    async def delete(self, path: str) -> None:
        """Delete an object; FileNotFoundError is allowed if there is none."""

    async def delete_many(self, paths: Sequence[str]) -> None:
        """Delete at most DELETED_AT_ONCE objects; FileNotFoundError is allowed if one of them is missing."""

    async def list(self, path: str) -> list[str]:
        """The paths directly below a path."""

    async def entries(self, path: str) -> Sequence[Entry]:
        """The objects directly below a path, with their sizes."""


class Wrapper:
    """A backend that passes each request on to another one; subclasses change what they are for."""

    def __init__(self, inner: Backend) -> None:
        self._inner = inner
        self.name, self.connects, self.conditional = inner.name, inner.connects, inner.conditional

    async def get(self, path: str, most: int | None) -> Content:
        return await self._inner.get(path, most)

    async def get_range(self, path: str, start: int, size: int) -> Content:
        return await self._inner.get_range(path, start, size)

    async def head(self, path: str) -> tuple[int | None, str]:
        return await self._inner.head(path)

    async def put(self, path: str, parts: Sequence[Data]) -> None:
        await self._inner.put(path, parts)

    async def create(self, path: str, parts: Sequence[Data]) -> str:
        return await self._inner.create(path, parts)

    async def replace(self, path: str, data: bytes, version: str) -> str:
        return await self._inner.replace(path, data, version)

    async def delete(self, path: str) -> None:
        await self._inner.delete(path)

    async def delete_many(self, paths: Sequence[str]) -> None:
        await self._inner.delete_many(paths)

    async def list(self, path: str) -> list[str]:
        return await self._inner.list(path)

    async def entries(self, path: str) -> Sequence[Entry]:
        return await self._inner.entries(path)
