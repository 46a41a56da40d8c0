"""The backend over s3fs: the client of its session, and requests of our own, whose headers tell versions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from shardstream.storage.options import Timeouts
from shardstream.storage.transport.backends.answers import Answer
from shardstream.storage.transport.backends.base import LARGEST_CREATE, LARGEST_PUT, Content, Data, Entry
from shardstream.storage.transport.backends.fsspec import Found, Fsspec, joined
from shardstream.storage.transport.backends.http import range_header
from shardstream.storage.transport.failures import Failure, failure_of

__all__ = ["S3"]

_CONNECTIONS = 256  # more than there are requests at a time


class S3(Fsspec):
    """Buckets by s3fs; paths are `bucket/key`."""

    connects = conditional = True

    def __init__(self, fs: Any, timeouts: Timeouts) -> None:
        super().__init__(fs, timeouts)
        fs.retries = 1

    @staticmethod
    def with_ours(options: dict[str, Any], timeouts: Timeouts) -> dict[str, Any]:
        """With one try of each request, our timeouts, and connections for all requests."""
        config = {
            "retries": {"mode": "standard", "total_max_attempts": 1}, "max_pool_connections": _CONNECTIONS,
            "connect_timeout": timeouts.connect, "read_timeout": timeouts.read,
        }  # fmt: skip
        return {**options, "config_kwargs": {**config, **options.get("config_kwargs", {})}}

    async def get(self, path: str, most: int | None) -> Content:
        found = await self._request("get_object", path)
        try:
            return await _answer_of(found).whole(most)
        finally:
            found["Body"].close()

    async def get_range(self, path: str, start: int, size: int) -> Content:
        try:
            found = await self._request("get_object", path, **range_header(start, size))
        except Exception as error:
            if failure_of(error).status == 416:
                return Content(b"", None, "")
            raise
        try:
            return await _answer_of(found).ranged(start, size)
        finally:
            found["Body"].close()

    async def head(self, path: str) -> tuple[int | None, str]:
        found = await self._request("head_object", path)
        return int(found["ContentLength"]), str(found.get("ETag", ""))

    async def put(self, path: str, parts: Sequence[Data]) -> None:
        # One request: an upload in several could be left half-way, and is billed.
        await self.call("pipe_file", path, joined(parts), chunksize=LARGEST_PUT // 2 + 1)

    async def create(self, path: str, parts: Sequence[Data]) -> str:
        data = joined(parts)
        # One request, if it is not too large: an upload in several takes no condition.
        size = len(data) if LARGEST_PUT < len(data) <= LARGEST_CREATE else LARGEST_PUT
        try:
            done = await self.call("pipe_file", path, data, mode="create", chunksize=size)
        except Exception as error:
            if failure_of(error).status == 409:  # another one is just being created
                raise FileExistsError(path) from None
            raise
        return str((done or {}).get("ETag", ""))

    async def replace(self, path: str, data: bytes, version: str) -> str:
        try:
            done = await self._request("put_object", path, Body=data, IfMatch=version)
        except Exception as error:
            if failure_of(error).status in (409, 412):
                raise FileExistsError(path) from None
            raise
        return str(done.get("ETag", ""))

    async def delete_many(self, paths: Sequence[str]) -> None:
        # By our own request: that of s3fs does not say which objects could not be deleted.
        bucket = self.fs.split_path(paths[0])[0]
        keys = [{"Key": self.fs.split_path(path)[1]} for path in paths]
        await self.fs.set_session()
        client = await self.fs.get_s3(bucket)
        asked = {"Bucket": bucket, "Delete": {"Objects": keys, "Quiet": True}, **self.fs.req_kw}
        done = await client.delete_objects(**asked)
        for each in done.get("Errors", []):
            raise Failure(f"{each.get('Key')}: {each.get('Code')}: {each.get('Message')}", transient=True)

    async def find(self, path: str, after: str) -> tuple[Sequence[Found], str]:
        # A page at a time, by our own request: s3fs holds all pages, and what it keeps of them, in memory.
        bucket, key, _ = self.fs.split_path(path)
        if self.fs.version_aware:  # which only s3fs knows how to list
            return await super().find(path, after)
        more = {"ContinuationToken": after} if after else {}
        await self.fs.set_session()
        client = await self.fs.get_s3(bucket)
        prefix = f"{key.strip('/')}/" if key.strip("/") else ""
        told = await client.list_objects_v2(Bucket=bucket, Prefix=prefix, **more, **self.fs.req_kw)
        listed = told.get("Contents", [])
        if not listed and not after:
            return await super().find(path, after)
        found: list[Found] = [(f"{bucket}/{each['Key']}", int(each["Size"]), True) for each in listed]
        if not told.get("IsTruncated"):
            return found, ""
        more_at = told.get("NextContinuationToken")
        if not more_at or more_at == after:  # it would be listed without an end
            what = "the same place again" if more_at else "no place"
            raise Failure(f"the store says that its listing goes on, and names {what} from where")
        return found, str(more_at)

    @staticmethod
    def entry(found: Mapping[str, Any]) -> Entry:
        return Entry(str(found["name"]), int(found["size"]), str(found.get("ETag", "")))

    async def _request(self, method: str, path: str, **more: Any) -> Any:
        """A request by the client of s3fs, with what a user's options of s3fs add to it."""
        from s3fs.utils import ParamKwargsHelper

        bucket, key, version = self.fs.split_path(path)
        if version:
            more["VersionId"] = version
        await self.fs.set_session()
        client = await self.fs.get_s3(bucket)
        added = {**self.fs.s3_additional_kwargs, **self.fs.req_kw}
        asked = {**ParamKwargsHelper(client).filter_dict(method, added), "Bucket": bucket, "Key": key, **more}
        return await getattr(client, method)(**asked)


def _answer_of(found: Any) -> Answer:
    meta = found["ResponseMetadata"]

    async def read(most: int | None) -> bytes:
        data: bytes = await found["Body"].read()
        return data

    status, headers = int(meta.get("HTTPStatusCode", 0)), dict(meta.get("HTTPHeaders", {}))
    return Answer(status, headers, int(found["ContentLength"]), str(found.get("ETag", "")), read)
