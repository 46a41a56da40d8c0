"""What every backend can do, once, without retrying: coroutines on fsspec's loop."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

from shardstream.storage.failures import Failure

__all__ = ["Backend", "Data", "Got", "ignored", "placed"]

Data = bytes | memoryview

# A server that ignores ranges sends everything each time: above this it is of no use.
MOST_IGNORED = 256 << 20


class Got(NamedTuple):
    """Bytes of an object; its size, or None; what names its version, or ""."""

    data: Data
    total: int | None
    version: str


class Backend(Protocol):
    """A way to talk to stores, with paths of its own."""

    name: str
    # Whether to open connections before they are needed. A web server may hold as few as 512 of all readers.
    connects: bool

    async def get(self, path: str, start: int, size: int | None, most: int | None) -> Got:
        """At most `size` bytes from `start`, fewer at the end; or all, if they are at most `most`."""

    async def head(self, path: str) -> tuple[int | None, str]:
        """(size, version) of an object."""

    async def put(self, path: str, data: bytes, create: bool) -> None:
        """Write an object as a whole; with `create`, FileExistsError where there is one."""

    async def delete(self, path: str) -> None:
        """Delete an object; FileNotFoundError is welcome."""

    async def list(self, path: str) -> list[str]:
        """The paths directly below a path."""


def placed(headers: Mapping[str, Any], start: int, size: int) -> tuple[int, int]:
    """(length, total) of a partial answer, which must be to the question."""
    found = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+)", str(headers.get("content-range", "")).strip())
    if found is None:
        raise Failure("a partial answer that does not say which bytes it holds", transient=True)
    first, last, total = (int(number) for number in found.groups())
    if first != start or last + 1 != min(start + size, total):
        raise Failure(f"bytes {first} to {last + 1} of {total} came back", transient=True)
    length = last + 1 - first
    announced = headers.get("content-length")
    if announced is not None and int(announced) != length:
        raise Failure(f"a wrong length: {announced} bytes, {length} were asked for", transient=True)
    return length, total


def ignored(total: int | None, data: bytes, start: int, size: int, version: str) -> Got:
    """The asked part of a whole object, as servers send that ignore ranges."""
    if total is not None and len(data) != total:
        raise Failure(f"a wrong length: {len(data)} bytes of {total}", transient=True)
    return Got(data[start : start + size], len(data), version)


def too_large(total: int, most: int) -> Failure:
    """An object that is larger than it may be."""
    return Failure(f"{total} bytes are too many here, at most {most} are read")


def no_ranges(total: int | None) -> Failure:
    """A server that would have to send too much."""
    return Failure(
        f"the server ignores ranges and sends all {total or 'unknown many'} bytes each time: "
        "copy the dataset to one that supports them"
    )
