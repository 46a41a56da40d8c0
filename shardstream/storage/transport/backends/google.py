"""The backend over gcsfs: Google's JSON API, one request for each call, with its answers' headers.

gcsfs itself repeats requests, asks for the kind of each bucket by another protocol first, and drops headers.
Only its session and its credentials are used here.

API: https://cloud.google.com/storage/docs/json_api/v1/objects
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any
from urllib.parse import quote

from shardstream.storage.options import Timeouts
from shardstream.storage.transport.backends.answers import Answer
from shardstream.storage.transport.backends.base import Content, Data, Entry
from shardstream.storage.transport.backends.fsspec import Fsspec, joined
from shardstream.storage.transport.backends.http import PLAIN, answer_of, range_header, timeouts_of
from shardstream.storage.transport.failures import Failure, of_status

__all__ = ["Google"]


class Google(Fsspec):
    """Buckets by gcsfs; paths are `bucket/object`."""

    connects = conditional = True

    @classmethod
    def open(cls, url: str, options: dict[str, Any], timeouts: Timeouts) -> tuple[Any, str]:
        """(file system, path): gcsfs without its extension for other kinds of buckets, unless asked for.

        The extension asks by gRPC for the kind of a bucket before each first use: it waits for a minute if
        only the JSON API can be reached, as with an emulator or a proxy.
        """
        import fsspec
        import gcsfs
        import gcsfs.core

        token = options.get("token")
        if isinstance(token, str) and ("/" in token or token.endswith(".json")) and not os.path.isfile(token):
            raise Failure("there is no such file of credentials as `token` names", kind=PermissionError)
        extended = os.environ.get("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "").lower() in ("true", "1")
        fs = (gcsfs if extended else gcsfs.core).GCSFileSystem(**options)
        return fs, fsspec.core.strip_protocol(url)

    async def get(self, path: str, most: int | None) -> Content:
        async with await self._request("GET", self._object(path), {"alt": "media"}) as response:
            return await _answer_of(response).whole(most)

    async def get_range(self, path: str, start: int, size: int) -> Content:
        asked = range_header(start, size)
        async with await self._request("GET", self._object(path), {"alt": "media"}, asked) as response:
            return await _answer_of(response).ranged(start, size)

    async def head(self, path: str) -> tuple[int | None, str]:
        async with await self._request("GET", self._object(path), {"fields": "size,generation"}) as response:
            found = json.loads(await response.read())
        return int(found["size"]), str(found.get("generation", ""))

    async def put(self, path: str, parts: Sequence[Data]) -> None:
        await self._upload(path, joined(parts), {})

    async def create(self, path: str, parts: Sequence[Data]) -> str:
        return await self._upload(path, joined(parts), {"ifGenerationMatch": "0"})

    async def replace(self, path: str, data: bytes, version: str) -> str:
        return await self._upload(path, data, {"ifGenerationMatch": version})

    async def _upload(self, path: str, data: bytes, condition: Mapping[str, str]) -> str:
        import aiohttp

        bucket, name, _ = self.fs.split_path(path)
        asked = {"uploadType": "multipart", **condition}
        url = f"{self._server}/upload/storage/v1/b/{_quoted(bucket)}/o"
        with aiohttp.MultipartWriter("related") as parts:
            parts.append_json({"name": name})
            # A file, since aiohttp warns of long bodies that are bytes.
            parts.append(io.BytesIO(data), {"Content-Type": "application/octet-stream"})
        async with await self._request("POST", url, asked, parts.headers, parts) as response:
            told = json.loads(await response.read())
        stored = told.get("size")
        if stored is not None and int(stored) != len(data):
            raise Failure(f"{stored} bytes of {len(data)} were stored", transient=True)
        return str(told.get("generation", ""))

    async def delete(self, path: str) -> None:
        async with await self._request("DELETE", self._object(path)):
            pass

    async def list(self, path: str) -> list[str]:
        bucket, found = self.fs.split_path(path)[0], []
        async for page in self._pages(path, "items(name),prefixes,nextPageToken"):
            found += [f"{bucket}/{item['name']}" for item in page.get("items", [])]
            found += [f"{bucket}/{prefix}" for prefix in page.get("prefixes", [])]
        return found

    async def entries(self, path: str) -> Sequence[Entry]:
        bucket = self.fs.split_path(path)[0]
        return [
            Entry(f"{bucket}/{item['name']}", int(item["size"]), str(item.get("generation", "")))
            async for page in self._pages(path, "items(name,size,generation),nextPageToken")
            for item in page.get("items", [])
        ]

    async def _pages(self, path: str, fields: str) -> AsyncIterator[dict[str, Any]]:
        bucket, name, _ = self.fs.split_path(path)
        asked = {"delimiter": "/", "fields": fields}
        if name.strip("/"):
            asked["prefix"] = f"{name.rstrip('/')}/"
        url = f"{self._server}/storage/v1/b/{_quoted(bucket)}/o"
        while True:
            async with await self._request("GET", url, asked) as response:
                page = json.loads(await response.read())
            yield page
            if "nextPageToken" not in page:
                return
            asked["pageToken"] = page["nextPageToken"]

    def _object(self, path: str) -> str:
        bucket, name, _ = self.fs.split_path(path)
        return f"{self._server}/storage/v1/b/{_quoted(bucket)}/o/{_quoted(name)}"

    @property
    def _server(self) -> str:
        base: str = self.fs.base
        return base.removesuffix("/storage/v1/")

    async def _request(
        self,
        method: str,
        url: str,
        params: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        data: Any = None,
    ) -> Any:
        import yarl

        fs = self.fs
        if fs.session is None:
            # gcsfs has no public way to it. A session of ours would lack its client certificates.
            await fs._set_session()  # noqa: SLF001
        told = {**PLAIN, **(headers or {})}
        fs.credentials.apply(told)
        asked = dict(params or {})
        if fs.requester_pays:
            asked["userProject"] = fs.requester_pays if isinstance(fs.requester_pays, str) else fs.project
        response = await fs.session.request(
            method, yarl.URL(url, encoded=True), params=asked, headers=told, data=data,
            timeout=timeouts_of(self.timeouts),
        )  # fmt: skip
        if response.status >= 400 and response.status != 416:
            text = await response.read()
            raise of_status(response.status, _code(response.status, text), response.headers)
        return response


def _answer_of(response: Any) -> Answer:
    return answer_of(response, response.headers.get("x-goog-generation", ""))


def _quoted(name: str) -> str:
    return quote(name, safe="")


def _code(status: int, text: bytes) -> str:
    """The error code that an answer tells, in the words that Google's other API has for it."""
    try:
        told = json.loads(text)["error"]
        message, reason = str(told.get("message", "")), str(told["errors"][0].get("reason", ""))
    except (ValueError, LookupError, TypeError, AttributeError):
        return ""
    if status == 404:
        return "NoSuchBucket" if "bucket" in message.lower() else "NoSuchKey"
    return reason
