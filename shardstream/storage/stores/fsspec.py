"""The backend over fsspec: every URL; http and s3 with their answers' headers, which fsspec itself drops."""

from __future__ import annotations

import asyncio
import functools
import re
import threading
from collections.abc import Callable, Mapping
from typing import Any, cast

from shardstream.errors import OptionError, StorageError
from shardstream.storage.failures import Failure, failure_of, of_status
from shardstream.storage.retry import policy
from shardstream.storage.secrets import redact
from shardstream.storage.stores.base import MOST_IGNORED, Got, ignored, no_ranges, placed, too_large

__all__ = ["Fsspec", "backend_of", "filesystem"]

Options = Mapping[str, Any] | None

SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
EXTRAS = {
    "s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs",
    "az": "azure", "abfs": "azure", "abfss": "azure", "adl": "azure",
}  # fmt: skip
_CONNECTIONS = 256  # more than requests are ever in flight
# Sizes and offsets are of the stored bytes, not of compressed ones on the way.
_PLAIN = {"Accept-Encoding": "identity"}


def filesystem(url: str, options: Options) -> tuple[Any, str]:
    """(fsspec file system, path) of a URL."""
    import fsspec

    match = SCHEME.match(url)
    scheme = match[1].lower() if match else "file"
    if scheme == "pipe":
        raise OptionError("pipe: URLs run commands and are refused")
    failure = None
    try:
        return cast("tuple[Any, str]", fsspec.core.url_to_fs(url, **_with_ours(scheme, dict(options or {}))))
    except ImportError as error:
        extra = EXTRAS.get(scheme)
        hint = f"pip install 'shardstream[{extra}]'" if extra else str(error)
        raise OptionError(f"{redact(url)}: {scheme}:// needs another package: {hint}") from error
    except ValueError as error:
        if scheme in EXTRAS or scheme in ("http", "https"):
            failure = failure_of(error)  # an option or a part of the URL that the store cannot take
        else:
            raise OptionError(f"{redact(url)}: no store for {scheme}://") from error
    except Exception as error:  # noqa: BLE001 - credentials, endpoints: every SDK has its own errors
        failure = failure_of(error)
    raise StorageError(f"{redact(url)}: cannot open the store: {failure}") from failure.kind(failure.reason)


def _with_ours(scheme: str, options: dict[str, Any]) -> dict[str, Any]:
    """The user's options, and ours where they say nothing: retries are made in one place only."""
    rules = policy()
    if scheme in ("s3", "s3a"):
        config = {
            "retries": {"mode": "standard", "total_max_attempts": 1}, "max_pool_connections": _CONNECTIONS,
            "connect_timeout": rules.timeout, "read_timeout": rules.timeout,
        }  # fmt: skip
        options["config_kwargs"] = {**config, **options.get("config_kwargs", {})}
    elif scheme in ("http", "https"):
        # Proxies of the environment.
        options["client_kwargs"] = {"trust_env": True, **options.get("client_kwargs", {})}
    return options


def backend_of(fs: Any) -> Fsspec:
    """The backend of a file system."""
    names = {kind.__name__ for kind in type(fs).__mro__}
    if "HTTPFileSystem" in names:
        return _Http(fs)
    if "S3FileSystem" in names:
        fs.retries = 1
        return _S3(fs)
    return Fsspec(fs)


class Fsspec:
    """Any file system of fsspec. Lengths are checked; versions are not told."""

    connects = False

    def __init__(self, fs: Any) -> None:
        self.fs = fs
        kind = fs.protocol
        self.name = f"fsspec-{kind if isinstance(kind, str) else kind[0]}"

    async def call(self, method: str, *arguments: Any, **options: Any) -> Any:
        """A method of the file system."""
        if getattr(self.fs, "async_impl", False):
            return await getattr(self.fs, f"_{method}")(*arguments, **options)
        run = functools.partial(getattr(self.fs, method), *arguments, **options)
        return run() if self.name == "fsspec-memory" else await _in_thread(run)

    async def get(self, path: str, start: int, size: int | None, most: int | None) -> Got:
        if size is not None:
            return Got(await self.call("cat_file", path, start=start, end=start + size), None, "")
        if most is not None:
            total, _ = await self.head(path)
            if total is not None and total > most:
                raise too_large(total, most)
        data = await self.call("cat_file", path)
        return Got(data, len(data), "")

    async def head(self, path: str) -> tuple[int | None, str]:
        found = await self.call("info", path)
        if found.get("type") == "directory":
            raise IsADirectoryError(path)
        size = found.get("size")
        return None if size is None else int(size), ""

    async def put(self, path: str, data: bytes, create: bool) -> None:
        if not create:
            await self.call("pipe_file", path, data)
            return
        try:
            await self.call("pipe_file", path, data, mode="create")
        except (TypeError, NotImplementedError):
            # A store without put-if-absent takes no mode; then a look first must do.
            if await self.call("exists", path):
                raise FileExistsError(path) from None
            await self.call("pipe_file", path, data)

    async def delete(self, path: str) -> None:
        await self.call("rm_file", path)

    async def list(self, path: str) -> list[str]:
        self.fs.invalidate_cache()
        return [str(name) for name in await self.call("ls", path, detail=False)]


class _Http(Fsspec):
    async def get(self, path: str, start: int, size: int | None, most: int | None) -> Got:
        if size == 0:
            return Got(b"", None, "")
        range_of = {} if size is None else {"Range": f"bytes={start}-{start + size - 1}"}
        async with await self._request("get", path, range_of) as answer:
            headers = {name.lower(): value for name, value in answer.headers.items()}
            version, length = headers.get("etag", ""), answer.content_length
            if size is None:
                if most is not None and (length or 0) > most:
                    raise too_large(length, most)
                data = await _at_most(answer.content, most)
                return Got(data, len(data), version)
            if answer.status == 416:
                return Got(b"", None, version)
            if answer.status == 206:
                length, total = placed(headers, start, size)
                data = await answer.read()
                if len(data) != length:
                    raise Failure(f"{len(data)} bytes came back, {length} were asked for", transient=True)
                return Got(data, total, version)
            if length is None or length > MOST_IGNORED:
                raise no_ranges(length)
            return ignored(length, await answer.read(), start, size, version)

    async def head(self, path: str) -> tuple[int | None, str]:
        try:
            async with await self._request("head", path, {}) as answer:
                if "content-length" in answer.headers:
                    return int(answer.headers["content-length"]), answer.headers.get("etag", "")
        except Failure as failure:
            # Some servers, and signed URLs, are for GET only.
            if failure.status not in (400, 403, 405, 501):
                raise
        return (await self.get(path, 0, 1, None)).total, ""

    async def _request(self, method: str, path: str, headers: dict[str, str]) -> Any:
        import aiohttp

        fs, rules = self.fs, policy()
        more = dict(fs.kwargs)
        more["headers"] = {**_PLAIN, **more.get("headers", {}), **headers}
        more.setdefault(
            "timeout", aiohttp.ClientTimeout(total=None, sock_connect=rules.timeout, sock_read=rules.timeout)
        )
        session = await fs.set_session()
        answer = await getattr(session, method)(fs.encode_url(path), allow_redirects=True, **more)
        if answer.status >= 400 and answer.status != 416:
            answer.release()
            raise of_status(answer.status, headers=answer.headers)
        return answer


class _S3(Fsspec):
    connects = True

    async def get(self, path: str, start: int, size: int | None, most: int | None) -> Got:
        if size == 0:
            return Got(b"", None, "")
        bucket, key, version = self.fs.split_path(path)
        more = {} if size is None else {"Range": f"bytes={start}-{start + size - 1}"}
        if version:
            more["VersionId"] = version
        try:
            answer = await self.fs._call_s3("get_object", Bucket=bucket, Key=key, **more)  # noqa: SLF001
        except Exception as error:
            if failure_of(error).status == 416:
                return Got(b"", None, "")
            raise
        body, meta = answer["Body"], answer["ResponseMetadata"]
        try:
            headers, status = meta.get("HTTPHeaders", {}), meta.get("HTTPStatusCode")
            length, seen = int(answer["ContentLength"]), str(answer.get("ETag", ""))
            if size is None:
                if most is not None and length > most:
                    raise too_large(length, most)
                data = await body.read()
                if len(data) != length:
                    raise Failure(f"{len(data)} bytes of {length} came back", transient=True)
                return Got(data, length, seen)
            if status == 206:
                length, total = placed(headers, start, size)
                data = await body.read()
                if len(data) != length:
                    raise Failure(f"{len(data)} bytes came back, {length} were asked for", transient=True)
                return Got(data, total, seen)
            if length > MOST_IGNORED:
                raise no_ranges(length)
            return ignored(length, await body.read(), start, size, seen)
        finally:
            body.close()

    async def head(self, path: str) -> tuple[int | None, str]:
        bucket, key, version = self.fs.split_path(path)
        more = {"VersionId": version} if version else {}
        answer = await self.fs._call_s3("head_object", Bucket=bucket, Key=key, **more)  # noqa: SLF001
        return int(answer["ContentLength"]), str(answer.get("ETag", ""))


async def _at_most(stream: Any, most: int | None) -> bytes:
    parts, got = [], 0
    async for part in stream.iter_any():
        parts.append(part)
        got += len(part)
        if most is not None and got > most:
            raise too_large(got, most)
    return b"".join(parts)


async def _in_thread(run: Callable[[], Any]) -> Any:
    """The result of a blocking call, in a thread that is left alone when nobody waits any longer."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Any] = loop.create_future()

    def tell(result: Any, error: BaseException | None) -> None:
        if not future.done():
            if error is None:
                future.set_result(result)
            else:
                future.set_exception(error)

    def work() -> None:
        result: Any = None
        failed: BaseException | None = None
        try:
            result = run()
        except StopIteration as error:  # which no future can hold
            failed = RuntimeError(str(error))
        except BaseException as error:  # noqa: BLE001 - raised where it is waited for
            failed = error
        loop.call_soon_threadsafe(tell, result, failed)

    threading.Thread(target=work, name="shardstream-call", daemon=True).start()
    return await future
