"""The backend for web servers: fsspec's session, and requests of our own, whose headers tell versions."""

from __future__ import annotations

import functools
from typing import Any

from shardstream.storage.options import Timeouts
from shardstream.storage.transport.backends.answers import MOST_IGNORED, Answer, too_large, wrong_length
from shardstream.storage.transport.backends.base import Content, Data
from shardstream.storage.transport.backends.fsspec import Fsspec
from shardstream.storage.transport.failures import Failure, of_status

__all__ = ["Http", "answer_of", "range_header", "timeouts_of"]

# Sizes and offsets are those of the stored bytes, not of bytes that were packed for the way.
PLAIN = {"Accept-Encoding": "identity"}


class Http(Fsspec):
    """Objects by GET and HEAD; paths are whole URLs."""

    @staticmethod
    def with_ours(options: dict[str, Any], timeouts: Timeouts) -> dict[str, Any]:
        """With the proxies of the environment."""
        return {**options, "client_kwargs": {"trust_env": True, **options.get("client_kwargs", {})}}

    async def get(self, path: str, most: int | None) -> Content:
        async with await self._request("get", path, {}) as response:
            return await answer_of(response).whole(most)

    async def get_range(self, path: str, start: int, size: int) -> Content:
        async with await self._request("get", path, range_header(start, size)) as response:
            return await answer_of(response).ranged(start, size)

    async def head(self, path: str) -> tuple[int | None, str]:
        try:
            async with await self._request("head", path, {}) as response:
                if "content-length" in response.headers:
                    return int(response.headers["content-length"]), response.headers.get("etag", "")
        except Failure as failure:
            # Some servers, and signed URLs, are for GET only.
            if failure.status not in (400, 403, 405, 501):
                raise
        return (await self.get_range(path, 0, 1)).total, ""

    async def _request(self, method: str, path: str, headers: dict[str, str]) -> Any:
        more = dict(self.fs.kwargs)
        more["headers"] = {**PLAIN, **more.get("headers", {}), **headers}
        more.setdefault("timeout", timeouts_of(self.timeouts))
        session = await self.fs.set_session()
        response = await getattr(session, method)(self.fs.encode_url(path), allow_redirects=True, **more)
        if response.status >= 400 and response.status != 416:
            response.release()
            raise of_status(response.status, headers=response.headers)
        return response


def range_header(start: int, size: int) -> dict[str, str]:
    """The header that asks for `size` bytes from `start`."""
    return {"Range": f"bytes={start}-{start + size - 1}"}


def timeouts_of(timeouts: Timeouts) -> Any:
    """The same as aiohttp takes them."""
    import aiohttp

    return aiohttp.ClientTimeout(total=None, sock_connect=timeouts.connect, sock_read=timeouts.read)


def answer_of(response: Any, version: str = "") -> Answer:
    """The answer in a response of aiohttp; its ETag is the version unless another one is given."""
    headers = {name.lower(): value for name, value in response.headers.items()}
    # The length of a packed body is not the length of its bytes.
    length = None if "content-encoding" in headers else response.content_length
    read = functools.partial(_read, response.content, length)
    return Answer(response.status, headers, response.content_length, version or headers.get("etag", ""), read)


async def _read(stream: Any, length: int | None, most: int | None) -> Data:
    """A body of `length` bytes, or of unknown length if that is None."""
    if length is None or length > (MOST_IGNORED if most is None else most):
        return await _joined(stream, most)
    import numpy as np  # here, because packers load no numpy

    # Each part goes to its place when it comes: parts that wait to be joined take the memory once more.
    found, got = np.empty(length, np.uint8).data, 0
    async for part in stream.iter_any():
        if got + len(part) > length:
            raise wrong_length(got + len(part), length)
        found[got : got + len(part)] = part
        got += len(part)
    return found[:got].toreadonly()


async def _joined(stream: Any, most: int | None) -> bytes:
    parts, got = [], 0
    async for part in stream.iter_any():
        parts.append(part)
        got += len(part)
        if most is not None and got > most:
            raise too_large(got, most)
    return b"".join(parts)
