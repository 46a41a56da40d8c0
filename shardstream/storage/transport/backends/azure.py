"""The backend over adlfs: Azure's blobs with their ETags and sizes, by single requests of its SDK."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from shardstream.storage.options import Timeouts
from shardstream.storage.transport.backends.answers import complete, too_large
from shardstream.storage.transport.backends.base import Content, Data, Entry
from shardstream.storage.transport.backends.fsspec import Fsspec, joined
from shardstream.storage.transport.failures import Failure, failure_of

__all__ = ["Azure"]


class Azure(Fsspec):
    """Containers by adlfs; paths are `container/blob`."""

    connects = conditional = True

    def __init__(self, fs: Any, timeouts: Timeouts) -> None:
        super().__init__(fs, timeouts)
        # Private to Azure's SDK, but adlfs takes no option for it: its own requests, such as those for
        # patterns, are to be made once, too.
        retries = getattr(getattr(fs.service_client, "_config", None), "retry_policy", None)
        if retries is not None:
            retries.total_retries = 0

    @classmethod
    def open(cls, url: str, options: dict[str, Any], timeouts: Timeouts) -> tuple[Any, str]:
        """(file system, path) of a URL; a failure says what is missing."""
        try:
            return super().open(url, options, timeouts)
        except ValueError as error:
            raise Failure(_hint(options), kind=PermissionError) from error

    async def get(self, path: str, most: int | None) -> Content:
        async with self._blob(path) as blob:
            answer = await blob.download_blob(max_concurrency=1, **self._limits())
            total = _total(answer)
            if most is not None and total > most:
                raise too_large(total, most)
            return Content(complete(await answer.readall(), total), total, _version(answer))

    async def get_range(self, path: str, start: int, size: int) -> Content:
        async with self._blob(path) as blob:
            try:
                answer = await blob.download_blob(start, size, max_concurrency=1, **self._limits())
            except Exception as error:
                if failure_of(error).status == 416:
                    return Content(b"", None, "")
                raise
            total = _total(answer)
            length = max(0, min(start + size, total) - start)
            return Content(complete(await answer.readall(), length), total, _version(answer))

    async def head(self, path: str) -> tuple[int | None, str]:
        async with self._blob(path) as blob:
            found = await blob.get_blob_properties(**self._limits())
        return int(found.size), str(found.etag or "")

    async def put(self, path: str, parts: Sequence[Data]) -> None:
        async with self._blob(path) as blob:
            await blob.upload_blob(joined(parts), overwrite=True, max_concurrency=1, **self._limits())

    async def create(self, path: str, parts: Sequence[Data]) -> str:
        return await self._upload_if(path, joined(parts), overwrite=False)

    async def replace(self, path: str, data: bytes, version: str) -> str:
        from azure.core import MatchConditions

        same = {"etag": version, "match_condition": MatchConditions.IfNotModified}
        return await self._upload_if(path, data, overwrite=True, **same)

    async def _upload_if(self, path: str, data: bytes, **condition: Any) -> str:
        async with self._blob(path) as blob:
            try:
                done = await blob.upload_blob(data, max_concurrency=1, **condition, **self._limits())
            except Exception as error:
                if failure_of(error).status in (409, 412):
                    raise FileExistsError(path) from None
                raise
        return str(done.get("etag") or "")

    async def delete(self, path: str) -> None:
        async with self._blob(path) as blob:
            await blob.delete_blob(**self._limits())

    async def list(self, path: str) -> list[str]:
        container, name, _ = self.fs.split_path(path)
        prefix = f"{name.rstrip('/')}/" if name.strip("/") else ""
        async with self.fs.service_client.get_container_client(container) as client:
            found = client.walk_blobs(name_starts_with=prefix, delimiter="/", **self._limits())
            return [f"{container}/{entry.name}" async for entry in found]

    async def entries(self, path: str) -> Sequence[Entry]:
        container, name, _ = self.fs.split_path(path)
        prefix = f"{name.rstrip('/')}/" if name.strip("/") else ""
        async with self.fs.service_client.get_container_client(container) as client:
            found = client.walk_blobs(name_starts_with=prefix, delimiter="/", **self._limits())
            return [
                Entry(f"{container}/{each.name}", int(each.size), str(each.etag or ""))
                async for each in found
                if hasattr(each, "size")  # else it is a folder
            ]

    def _blob(self, path: str) -> Any:
        container, name, version = self.fs.split_path(path)
        return self.fs.service_client.get_blob_client(container, name, version_id=version)

    def _limits(self) -> dict[str, Any]:
        """Options of a request: it is given up if nothing comes."""
        return {"connection_timeout": self.timeouts.connect, "read_timeout": self.timeouts.read}


def _version(answer: Any) -> str:
    return str(answer.properties.etag or "")


def _total(answer: Any) -> int:
    """The size of the whole blob. The SDK's `size` is that of the range, if one was asked for."""
    told = getattr(answer.properties, "content_range", None)
    found = str(told or "").rpartition("/")[2]
    return int(found) if found.isdigit() else int(answer.properties.size)


def _hint(options: Mapping[str, Any]) -> str:
    """What is missing or wrong if no client for Azure can be made."""
    if options.get("connection_string") or os.environ.get("AZURE_STORAGE_CONNECTION_STRING"):
        return "the connection string is not one: it looks like AccountName=...;AccountKey=...;..."
    if options.get("account_name") or os.environ.get("AZURE_STORAGE_ACCOUNT_NAME"):
        return "the account, or the credentials for it, are not valid: check account_name and account_key"
    return (
        "no account was given: set AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY, or give "
        "account_name with account_key, sas_token or anon, or a connection_string, in storage_options"
    )
