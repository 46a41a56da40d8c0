"""Answers to GET, whoever gives them: the length and the range are checked before the bytes are believed."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from shardstream.storage.transport.backends.base import Content, Data
from shardstream.storage.transport.failures import Failure

__all__ = ["MOST_IGNORED", "Answer", "complete", "no_ranges", "too_large", "wrong_length"]

D = TypeVar("D", bound=Data)

# A server that ignores ranges sends the whole object each time: above this size it is of no use.
MOST_IGNORED = 256 << 20


def complete(data: D, length: int) -> D:
    """`data`, which must have this length."""
    if len(data) != length:
        raise wrong_length(len(data), length)
    return data


def wrong_length(got: int, asked: int) -> Failure:
    """The failure of an answer that is shorter or longer than it should be."""
    return Failure(f"{got} bytes came back, {asked} were asked for", transient=True)


def too_large(total: int, most: int) -> Failure:
    """The failure of an object that is larger than it may be."""
    return Failure(f"{total} bytes are too many here, at most {most} are read")


def no_ranges(total: int | None) -> Failure:
    """The failure of a server that would have to send too much."""
    return Failure(
        f"the server ignores ranges and sends all {total or 'unknown many'} bytes each time: "
        "copy the dataset to one that supports them"
    )


@dataclass(frozen=True)
class Answer:
    """An answer of HTTP to GET, whose body is not read yet.

    headers: by names in lower case.  length: of the body, or None.  version: what names the version, or "".
    read: (most) -> the body; too_large() above `most` bytes.
    """

    status: int
    headers: Mapping[str, str]
    length: int | None
    version: str
    read: Callable[[int | None], Awaitable[Data]]

    async def whole(self, most: int | None) -> Content:
        """The whole object, to a GET without a range."""
        if most is not None and (self.length or 0) > most:
            raise too_large(self.length or 0, most)
        data = await self.read(most)
        # The length is that of the stored bytes, unless the server has packed them for the way.
        if self.length is not None and "content-encoding" not in self.headers:
            complete(data, self.length)
        return Content(data, len(data), self.version)

    async def ranged(self, start: int, size: int) -> Content:
        """`size` bytes from `start`, to a GET for this range."""
        if self.status == 416:
            return Content(b"", None, self.version)
        if self.status == 206:
            length, total = self._range(start, size)
            return Content(complete(await self.read(None), length), total, self.version)
        # The server ignores ranges: the part is cut out of the whole object.
        if self.length is None or self.length > MOST_IGNORED:
            raise no_ranges(self.length)
        data = complete(await self.read(None), self.length)
        # A copy: a view would have the whole object stay in memory with the part.
        part = data if not start and size >= len(data) else bytes(data[start : start + size])
        return Content(part, len(data), self.version, whole=True)

    def _range(self, start: int, size: int) -> tuple[int, int]:
        """(length, total) of a partial answer, which must be to the question."""
        found = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+)", self.headers.get("content-range", "").strip())
        if found is None:
            raise Failure("a partial answer that does not say which bytes it holds", transient=True)
        first, last, total = (int(number) for number in found.groups())
        if first != start or last + 1 != min(start + size, total):
            raise Failure(f"bytes {first} to {last + 1} of {total} came back", transient=True)
        length = last + 1 - first
        if self.length is not None and self.length != length:
            raise wrong_length(self.length, length)
        return length, total
