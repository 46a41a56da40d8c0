"""The backend over fsspec: every URL for which there is a file system, without the headers of answers."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from shardstream.errors import OptionError, StorageError
from shardstream.storage.options import Timeouts
from shardstream.storage.secrets import redact
from shardstream.storage.transport.backends.answers import too_large, wrong_length
from shardstream.storage.transport.backends.base import Content, Data, Entry
from shardstream.storage.transport.failures import failure_of

__all__ = ["SCHEME", "Found", "Fsspec", "found_of", "joined", "opened"]

_DELETES = 32  # requests at a time
SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_EXTRAS = {
    "s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs",
    "az": "azure", "abfs": "azure", "abfss": "azure", "adl": "azure",
}  # fmt: skip


Found = tuple[str, int | None, bool]  # the path of an object, its size if it is known, whether it is a file


def found_of(name: str, told: Mapping[str, Any]) -> Found:
    """An object of what `find` and `glob` tell of it."""
    return name, told.get("size"), told["type"] == "file"


def joined(parts: Sequence[Data]) -> bytes:
    """The parts as one object, for packages that take nothing else."""
    return bytes(parts[0]) if len(parts) == 1 else b"".join(parts)


def opened(url: str, scheme: str, open_it: Callable[[], tuple[Any, str]]) -> tuple[Any, str]:
    """(file system, path) that `open_it` gives for a URL; its errors become ours, without its words."""
    try:
        return open_it()
    except ImportError as error:
        extra = _EXTRAS.get(scheme)
        hint = f"pip install 'shardstream[{extra}]'" if extra else str(error)
        raise OptionError(f"{redact(url)}: {scheme}:// needs another package: {hint}") from error
    except ValueError as error:
        if scheme not in _EXTRAS and scheme not in ("http", "https"):
            raise OptionError(f"{redact(url)}: no store for {scheme}://") from error
        failure = failure_of(error)  # an option or a part of the URL that the store cannot take
    except Exception as error:  # noqa: BLE001 - credentials, endpoints: every SDK has its own errors
        failure = failure_of(error)
    raise StorageError(f"{redact(url)}: cannot open the store: {failure}") from failure.kind(failure.reason)


class Fsspec:
    """Any file system of fsspec. Lengths are checked; versions are not known."""

    connects = False
    conditional = False

    def __init__(self, fs: Any, timeouts: Timeouts) -> None:
        self.fs, self.timeouts = fs, timeouts
        kind = fs.protocol
        self.name = f"fsspec-{kind if isinstance(kind, str) else kind[0]}"
        self.conditional |= self.name == "fsspec-memory"

    @classmethod
    def open(cls, url: str, options: dict[str, Any], timeouts: Timeouts) -> tuple[Any, str]:
        """(file system, path) of a URL."""
        import fsspec

        return cast("tuple[Any, str]", fsspec.core.url_to_fs(url, **cls.with_ours(options, timeouts)))

    @staticmethod
    def with_ours(options: dict[str, Any], timeouts: Timeouts) -> dict[str, Any]:
        """The user's options, and ours if the user says nothing of them."""
        return options

    async def call(self, method: str, *arguments: Any, **options: Any) -> Any:
        """The result of a method of the file system."""
        if getattr(self.fs, "async_impl", False):
            # The underscore does not make it private: fsspec documents these names for asynchronous callers.
            return await getattr(self.fs, f"_{method}")(*arguments, **options)
        run = functools.partial(getattr(self.fs, method), *arguments, **options)
        return run() if self.name == "fsspec-memory" else await _in_thread(run)

    async def get(self, path: str, most: int | None) -> Content:
        if most is not None:
            total, _ = await self.head(path)
            if total is not None and total > most:
                raise too_large(total, most)
        data = await self.call("cat_file", path)
        return Content(data, len(data), "")

    async def get_range(self, path: str, start: int, size: int) -> Content:
        data = await self.call("cat_file", path, start=start, end=start + size)
        if len(data) > size:  # as by a server that ignores ranges
            raise wrong_length(len(data), size)
        return Content(data, None, "")

    async def head(self, path: str) -> tuple[int | None, str]:
        found = await self.call("info", path)
        if found.get("type") == "directory":
            raise IsADirectoryError(path)
        size = found.get("size")
        return None if size is None else int(size), ""

    async def put(self, path: str, parts: Sequence[Data]) -> None:
        await self._pipe(path, joined(parts))

    async def create(self, path: str, parts: Sequence[Data]) -> str:
        data = joined(parts)
        try:
            await self._pipe(path, data, mode="create")
        except (TypeError, NotImplementedError):
            # A store without put-if-absent takes no mode: the best that can be done is to look first.
            if await self.call("exists", path):
                raise FileExistsError(path) from None
            await self._pipe(path, data)
        return ""

    async def _pipe(self, path: str, data: bytes, **options: Any) -> None:
        """Write an object, with the folder that it lies in. SFTP and others make none by themselves."""
        try:
            await self.call("pipe_file", path, data, **options)
        except FileNotFoundError:
            parent = path.rpartition("/")[0]
            if not parent:
                raise
            try:
                await self.call("makedirs", parent, exist_ok=True)
            except OSError:
                if not await self.call("exists", parent):  # else another writer was first
                    raise
            await self.call("pipe_file", path, data, **options)

    async def replace(self, path: str, data: bytes, version: str) -> str:
        await self.put(path, [data])
        return ""

    async def delete(self, path: str) -> None:
        await self.call("rm_file", path)

    async def delete_many(self, paths: Sequence[str]) -> None:
        """One request for each object, some at a time: few stores can do better."""
        for first in range(0, len(paths), _DELETES):
            some = paths[first : first + _DELETES]
            for ended in await asyncio.gather(*map(self.delete, some), return_exceptions=True):
                if isinstance(ended, BaseException) and failure_of(ended).kind is not FileNotFoundError:
                    raise ended

    async def list(self, path: str) -> list[str]:
        self.fs.invalidate_cache()
        return [str(name) for name in await self.call("ls", path, detail=False)]

    async def entries(self, path: str) -> Sequence[Entry]:
        self.fs.invalidate_cache()
        found = await self.call("ls", path, detail=True)
        return [self.entry(each) for each in found if each.get("type") != "directory"]

    async def find(self, path: str, after: str) -> tuple[Sequence[Found], str]:
        """Some of the objects below a path, in any depth, and what to ask for next: "" if there are no more.

        Args:
            path: The path.
            after: What came back with those before. "": from the beginning. A store that cannot go on from
                there gives all at once.
        """
        found = await self.call("find", path, detail=True)
        return [found_of(str(name), each) for name, each in found.items()], ""

    @staticmethod
    def entry(found: Mapping[str, Any]) -> Entry:
        """An object of what `ls` tells of it."""
        return Entry(str(found["name"]), int(found.get("size") or 0), "")


async def _in_thread(run: Callable[[], Any]) -> Any:
    """The result of a blocking call, in a thread that ends by itself if nobody needs the result."""
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
        except StopIteration as error:  # which no future can have
            failed = RuntimeError(str(error))
        except BaseException as error:  # noqa: BLE001 - it is raised in the task that waits
            failed = error
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any longer
            loop.call_soon_threadsafe(tell, result, failed)

    threading.Thread(target=work, name="shardstream-call", daemon=True).start()
    return await future
