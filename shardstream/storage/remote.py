"""The store of a URL."""

from __future__ import annotations

from collections.abc import Sequence

from shardstream.errors import StorageError
from shardstream.storage.local.writes import flat
from shardstream.storage.options import Options
from shardstream.storage.secrets import redact
from shardstream.storage.store import Store
from shardstream.storage.transport.backends import Data, Entry
from shardstream.storage.transport.client import Client

__all__ = ["RemoteStore"]


class RemoteStore(Store):
    """A directory of a remote store. Requests are tried again, and answers are checked."""

    def __init__(self, url: str, options: Options) -> None:
        self.url = redact(url)
        self._client = Client(url, options)
        self.session = self._client.session

    def read(self, path: str, most: int | None = None) -> bytes:
        return self._client.get(path, most)

    def warm_up(self, path: str, connections: int) -> None:
        self._client.warm_up(path, connections)

    def read_range(self, path: str, start: int, size: int) -> Data:
        data = self._client.get_range(path, start, size)
        if len(data) != size:
            raise StorageError(f"{self.where(path)}: {len(data)} bytes came back, {size} were asked for")
        return data

    def size(self, path: str) -> int:
        return self._client.size(path)

    def read_start(self, path: str, most: int) -> tuple[Data, int]:
        data = self._client.get_range(path, 0, most)
        known = self.session.total(self._client.where(path))
        return data, len(data) if len(data) < most else known or self.size(path)

    def sends_whole(self, path: str) -> bool:
        return self.session.came_whole(self._client.where(path))

    def version(self, path: str) -> tuple[str, int]:
        return self._client.version(path)

    def exists(self, path: str) -> bool:
        return self._client.exists(path)

    def list(self, folder: str = "") -> list[str]:
        return self._client.list(folder)

    def write(self, path: str, *parts: Data | bytearray) -> None:
        self._client.put(path, flat(parts))

    def create(self, path: str, *parts: Data | bytearray) -> str:
        return self._client.create(path, flat(parts))

    def replace(self, path: str, data: bytes, version: str) -> str:
        return self._client.replace(path, data, version)

    def delete(self, path: str) -> None:
        self._client.delete(path)

    def delete_many(self, paths: Sequence[str]) -> None:
        self._client.delete_many(paths)

    def entries(self, folder: str = "") -> Sequence[Entry]:
        return self._client.entries(folder)

    @property
    def conditional(self) -> bool:
        return self._client.conditional

    @property
    def concurrency(self) -> int:
        return self._client.concurrency

    @property
    def backend(self) -> str:
        return self._client.backend
