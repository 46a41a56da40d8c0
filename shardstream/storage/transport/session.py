"""What the requests of one reader have in common."""

from __future__ import annotations

from dataclasses import dataclass, field

from shardstream.errors import StorageError

__all__ = ["ReadSession"]


@dataclass
class ReadSession:
    """The versions of objects that one reader has seen, and counts. Many threads may use it.

    retries: tries after the first one of a request.  hedges: reads that were sent a second time.
    """

    retries: int = 0
    hedges: int = 0
    _versions: dict[str, tuple[str, int | None]] = field(default_factory=dict)
    _whole: set[str] = field(default_factory=set)

    def check(self, path: str, version: str, total: int | None) -> None:
        """Refuse an answer from another version of an object than the one read before, as StorageError."""
        # One step: it needs no lock, and a fork could leave a lock locked.
        was, size = self._versions.setdefault(path, (version, total))
        if (version and was and version != was) or (None not in (total, size) and total != size):
            raise StorageError(
                f"{path}: it was replaced while it was read: open the dataset again, "
                "and write new versions to new places"
            )

    def total(self, path: str) -> int | None:
        """The size of an object that was read, if its store told it."""
        return self._versions.get(path, ("", None))[1]

    def note_whole(self, path: str) -> None:
        """Remember that an object came as a whole, although a part of it was asked for."""
        self._whole.add(path)

    def came_whole(self, path: str) -> bool:
        """Whether an object came as a whole, although a part of it was asked for."""
        return path in self._whole

    def forget(self, path: str) -> None:
        """Allow another version of an object, since this process writes one."""
        self._versions.pop(path, None)
