"""Samples that are parted by shard on their way through a task: in memory, or on a disk if they are many."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from typing import IO

import numpy as np
import numpy.typing as npt

from shardstream.errors import StorageError
from shardstream.packing.buckets import write_grouped
from shardstream.storage.local.reads import read_exactly

__all__ = ["Piles"]

_HELD = 128 << 20  # bytes in memory before they are written


class Piles:
    """Blocks of samples by the shard that they are for: in memory, and in a file if they are many.

    The file has no name, so that it is gone with its process, however that ends.
    """

    def __init__(self, count: int, folder: str | None) -> None:
        self._count, self._folder = count, folder
        self._held: dict[int, list[bytes]] = {}
        self._size = 0
        self._file: IO[bytes] | None = None
        self._bounds: list[npt.NDArray[np.int64]] = []

    def close(self) -> None:
        """Give the file back."""
        if self._file is not None:
            self._file.close()

    def add(self, pile: int, block: bytes) -> None:
        """Put a block behind those of its pile."""
        self._held.setdefault(pile, []).append(block)
        self._size += len(block)
        # One pile is needed as a whole in memory anyway.
        if self._size >= _HELD and self._count > 1:
            self._flush()

    def blocks(self, pile: int) -> Iterator[bytes]:
        """The blocks of a pile, for once."""
        if self._file is not None:
            for bounds in self._bounds:
                start, size = int(bounds[pile]), int(bounds[pile + 1] - bounds[pile])
                if size:
                    with self._explained("reading"):
                        block = read_exactly(self._file.fileno(), start, size, self._where)
                    yield bytes(block)
        held = self._held.pop(pile, [])
        held.reverse()
        while held:
            yield held.pop()  # it is given up as it is taken: a shard may be large

    @property
    def _where(self) -> str:
        return f"a file in {self._folder or 'the folder for temporary files (TMPDIR)'}"

    @contextlib.contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StorageError(f"{what} {self._where} for the shuffle: {error.strerror or error}") from error

    def _flush(self) -> None:
        with self._explained("writing"):
            if self._file is None:
                if self._folder is not None:
                    os.makedirs(self._folder, mode=0o700, exist_ok=True)
                self._file = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115 - until `close`
            self._bounds.append(write_grouped(self._file, self._held, self._count))
            self._file.flush()
        self._held.clear()
        self._size = 0
