"""A store that is never asked: bytes that the cache lacks are an error."""

from __future__ import annotations

from shardstream.errors import StorageError
from shardstream.storage.secrets import redact
from shardstream.storage.store import Store
from shardstream.storage.transport.backends import Data
from shardstream.storage.transport.session import ReadSession

__all__ = ["OfflineStore", "not_cached"]


class OfflineStore(Store):
    """Stands for the store at `url`. No connection is made, and every read is a StorageError."""

    def __init__(self, url: str) -> None:
        self.url, self.session = redact(url), ReadSession()

    def read(self, path: str, most: int | None = None) -> bytes:
        raise not_cached(self.where(path))

    def read_range(self, path: str, start: int, size: int) -> Data:
        raise not_cached(self.where(path))

    def size(self, path: str) -> int:
        raise not_cached(self.where(path))

    @property
    def backend(self) -> str:
        return "offline"


def not_cached(where: str) -> StorageError:
    """The error for a file of which a part is not in the cache."""
    return StorageError(
        f"{where}: offline=True, and the cache lacks a part of it: warm it while the store can be reached"
    )
