"""Bodies of answers over aiohttp: each part goes to its place, and what is too long is refused."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from shardstream.storage.transport.backends.http import answer_of
from shardstream.storage.transport.failures import Failure


class Stream:
    """The body of a response, as it comes."""

    def __init__(self, parts: list[bytes]) -> None:
        self._parts = parts

    async def iter_any(self) -> AsyncIterator[bytes]:
        for part in self._parts:
            yield part


class Response:
    """What `answer_of` asks of a response of aiohttp."""

    def __init__(self, parts: list[bytes], length: int | None, status: int = 200, **headers: str) -> None:
        self.status, self.content_length = status, length
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}
        self.content = Stream(parts)


def whole(response: Any, most: int | None = None) -> bytes:
    return bytes(asyncio.run(answer_of(response).whole(most)).data)


def ranged(response: Any, start: int, size: int) -> Any:
    return asyncio.run(answer_of(response).ranged(start, size)).data


@pytest.mark.parametrize("length", [6, None])
@pytest.mark.parametrize("most", [6, None])
def test_parts_are_put_together(length: int | None, most: int | None) -> None:
    assert whole(Response([b"ab", b"", b"cdef"], length), most) == b"abcdef"


def test_a_packed_body_is_longer_than_it_says() -> None:
    assert whole(Response([b"abc", b"def"], 2, Content_Encoding="gzip")) == b"abcdef"


@pytest.mark.parametrize(("parts", "said"), [([b"abc", b"defg"], 7), ([b"abc"], 3)])
def test_a_body_of_another_length_is_refused(parts: list[bytes], said: int) -> None:
    with pytest.raises(Failure, match=f"{said} bytes came back, 6 were asked for"):
        whole(Response(parts, 6))


def test_a_body_of_unknown_length_that_is_too_large_is_refused() -> None:
    with pytest.raises(Failure, match="7 bytes are too many here, at most 6"):
        whole(Response([b"abc", b"defg"], None), 6)


def test_a_range_cannot_be_changed_by_one_of_its_readers() -> None:
    data = ranged(Response([b"cd", b"e"], 3, 206, Content_Range="bytes 2-4/9"), 2, 3)
    assert data == b"cde"
    assert memoryview(data).readonly


def test_of_a_server_that_ignores_ranges_only_the_part_stays_in_memory() -> None:
    data = ranged(Response([b"abcdef"], 6), 2, 3)
    assert data == b"cde"
    assert isinstance(data, bytes)
