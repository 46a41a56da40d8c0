"""A store in memory that writes down what it is asked for: counted://..., the objects of memory://..."""

from __future__ import annotations

from typing import Any

import fsspec
from fsspec.implementations.memory import MemoryFileSystem

__all__ = ["asked", "forget"]

_asked: list[str] = []


class Counted(MemoryFileSystem):
    """The same objects as those of memory://."""

    protocol = "counted"

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        return super()._strip_protocol(str(path).replace("counted://", "memory://"))

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **options: Any) -> Any:
        _asked.append(path)
        return super().cat_file(path, start, end, **options)

    def _open(self, path: str, *args: Any, **options: Any) -> Any:
        _asked.append(path)
        return super()._open(path, *args, **options)


fsspec.register_implementation("counted", Counted, clobber=True)


def forget() -> None:
    """Begin anew."""
    _asked.clear()


def asked() -> list[str]:
    """The objects that were asked for since then, but for manifests: one name for each request."""
    return [path for path in _asked if not path.endswith("manifest.json")]
