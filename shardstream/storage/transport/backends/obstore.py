"""The backend over obstore: s3, gs and az, if it is installed and the options can be translated."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import weakref
from collections.abc import Mapping, Sequence
from datetime import timedelta
from functools import lru_cache, partial
from types import ModuleType
from typing import Any

from shardstream.storage.options import Timeouts
from shardstream.storage.transport.backends.answers import MOST_IGNORED, complete, no_ranges, too_large
from shardstream.storage.transport.backends.base import LARGEST_CREATE, LARGEST_PUT, Content, Data, Entry
from shardstream.storage.transport.backends.obstore_config import translated
from shardstream.storage.transport.credentials import AwsCredentials
from shardstream.storage.transport.failures import Failure, failure_of

__all__ = ["Obstore", "forked", "obstore_requests", "open_obstore"]

_SCHEMES = {"s3": "S3Store", "s3a": "S3Store", "gs": "GCSStore", "gcs": "GCSStore", "az": "AzureStore"}
_LONGEST = timedelta(minutes=20)  # for one request; the timeouts of a try end it sooner


_forked: list[bool] = []
# Futures that obstore's threads may still set. A thread drops its future as the last thing that it does in
# Python; if the interpreter ends before, the process dies of SIGABRT.
_in_flight: weakref.WeakSet[asyncio.Future[Any]] = weakref.WeakSet()


def obstore_requests() -> int:
    """How many requests are on their way, or not quite over."""
    if _in_flight and all(future.done() for future in list(_in_flight)):
        # A thread that has dropped its future without the lock of the interpreter leaves the count of its
        # references to the next call of obstore, whichever that is.
        obstore = _module()
        if obstore is not None:
            obstore.store.MemoryStore()
    return len(_in_flight)


def _sent(future: Any) -> Any:
    _in_flight.add(future)
    return future


def forked() -> bool:
    """Whether this process is the fork of one that had obstore loaded: without its threads it would hang."""
    return bool(_forked)


def _after_fork() -> None:
    global _in_flight
    _in_flight = weakref.WeakSet()
    if "obstore" in sys.modules:
        _forked.append(True)


def open_obstore(url: str, options: Mapping[str, Any], timeouts: Timeouts) -> tuple[Obstore, str] | None:
    """(backend, path) of a URL, or None if fsspec has to do it."""
    scheme, _, rest = url.partition("://")
    kind = _SCHEMES.get(scheme.lower())
    bucket, _, path = rest.partition("/")
    if kind is None or forked() or not bucket or set(bucket + path) & set("@?#*[]") or _module() is None:
        return None
    found = translated(kind, options)
    if found is None:
        return None
    config, credentials = found
    try:
        return Obstore(kind, bucket, json.dumps(config, sort_keys=True), credentials, timeouts), path
    except Exception:  # noqa: BLE001 - credentials of a kind that it does not know; fsspec says what is wrong
        return None


def _module() -> ModuleType | None:
    try:
        import obstore
        import obstore.store
    except ImportError:
        return None
    return obstore


@lru_cache(64)
def _made(
    kind: str, bucket: str, config: str, credentials: AwsCredentials | None, silence: float, connect: float
) -> Any:
    """A client; `silence`: seconds without a byte of the answer after which it gives up."""
    values = json.loads(config)
    client = {
        "timeout": _LONGEST, "read_timeout": timedelta(seconds=silence),
        "connect_timeout": timedelta(seconds=connect),
        "allow_http": str(values.get("endpoint", values.get("base_url", ""))).startswith("http://"),
    }  # fmt: skip
    obstore = _module()
    assert obstore is not None
    return getattr(obstore.store, kind)(
        bucket, config=values, client_options=client, retry_config={"max_retries": 0},
        **({} if credentials is None else {"credential_provider": credentials}),
    )  # fmt: skip


class Obstore:
    """Buckets and containers by obstore; paths are keys."""

    connects = conditional = True

    def __init__(
        self, kind: str, bucket: str, config: str, credentials: AwsCredentials | None, timeouts: Timeouts
    ) -> None:
        self.name = f"obstore-{kind.removesuffix('Store').lower()}"
        self._made = partial(_made, kind, bucket, config, credentials)
        self._connect = timeouts.connect
        self._store = self._made(timeouts.read, timeouts.connect)

    async def get(self, path: str, most: int | None) -> Content:
        import obstore

        answer = await _sent(obstore.get_async(self._store, path))
        total = int(answer.meta["size"])
        if most is not None and total > most:
            raise too_large(total, most)
        return Content(complete(await self._body(answer), total), total, _version(answer.meta))

    async def get_range(self, path: str, start: int, size: int) -> Content:
        import obstore

        try:
            answer = await _sent(
                obstore.get_async(self._store, path, options={"range": (start, start + size)})
            )
        except obstore.exceptions.BaseError as error:
            if failure_of(error).status == 416:
                return Content(b"", None, "")
            raise
        total = int(answer.meta["size"])
        first, last = answer.range
        length = min(start + size, total) - start
        if first != start and last - first > MOST_IGNORED:
            raise no_ranges(total)
        if (first, last) != (start, start + length):
            raise Failure(f"bytes {first} to {last} of {total} came back", transient=True)
        return Content(complete(await self._body(answer), length), total, _version(answer.meta))

    async def _body(self, answer: Any) -> memoryview:
        """The bytes of an answer: a view of what the client holds, not a copy."""
        return memoryview(await _sent(answer.bytes_async()))

    async def head(self, path: str) -> tuple[int | None, str]:
        import obstore

        meta = await _sent(obstore.head_async(self._store, path))
        return int(meta["size"]), _version(meta)

    async def put(self, path: str, parts: Sequence[Data]) -> None:
        await self._put(path, parts, "overwrite")

    async def create(self, path: str, parts: Sequence[Data]) -> str:
        if sum(map(len, parts)) <= LARGEST_CREATE:
            return await self._put_if(path, parts, "create")
        # It takes several requests, without a condition. The best that can be done is to look first.
        try:
            await self.head(path)
        except FileNotFoundError:
            return await self._put(path, parts, "overwrite")
        raise FileExistsError(path)

    async def replace(self, path: str, data: bytes, version: str) -> str:
        # Google knows generations, the others ETags; each ignores what it does not know.
        return await self._put_if(path, [data], {"e_tag": version, "version": version})

    async def _put_if(self, path: str, parts: Sequence[Data], mode: Any) -> str:
        import obstore

        try:
            return await self._put(path, parts, mode)
        except (obstore.exceptions.AlreadyExistsError, obstore.exceptions.PreconditionError):
            raise FileExistsError(path) from None

    async def _put(self, path: str, parts: Sequence[Data], mode: Any) -> str:
        import obstore

        # A server says nothing while it is sent something: the timeout of a try must be enough.
        # The client is made only now, for that takes as long as a small request: it reads certificates.
        writing = self._made(_LONGEST.total_seconds(), self._connect)
        # The parts are sent as they are. An upload in several requests could be left half-way, and is billed.
        # An upload in several requests takes no condition, either.
        one = False if mode != "overwrite" or sum(map(len, parts)) <= LARGEST_PUT else None
        return _version(
            await _sent(obstore.put_async(writing, path, list(parts), mode=mode, use_multipart=one))
        )

    async def delete(self, path: str) -> None:
        import obstore

        await _sent(obstore.delete_async(self._store, path))

    async def delete_many(self, paths: Sequence[str]) -> None:
        import obstore

        await _sent(obstore.delete_async(self._store, list(paths)))

    async def list(self, path: str) -> list[str]:
        import obstore

        found = await _sent(obstore.list_with_delimiter_async(self._store, path))
        return [*(entry["path"] for entry in found["objects"]), *found["common_prefixes"]]

    async def entries(self, path: str) -> Sequence[Entry]:
        import obstore

        found = await _sent(obstore.list_with_delimiter_async(self._store, path))
        return [Entry(each["path"], int(each["size"]), _version(each)) for each in found["objects"]]


def _version(meta: Any) -> str:
    return str(meta.get("e_tag") or meta.get("version") or "")


os.register_at_fork(after_in_child=_after_fork)
