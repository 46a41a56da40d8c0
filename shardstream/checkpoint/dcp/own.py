"""Reads the checkpoints of `Writer` for a planner of torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex

from shardstream.checkpoint.dcp.manifest import OBJECT, metadata_of, objects_of
from shardstream.checkpoint.dcp.objects import pickled
from shardstream.checkpoint.dcp.requests import Request
from shardstream.checkpoint.layout import MANIFEST
from shardstream.checkpoint.manifest import Manifest
from shardstream.checkpoint.reading import Files, read, requests_of
from shardstream.checkpoint.tensors import bytes_of
from shardstream.storage.store import Store

__all__ = ["OwnFolder"]

_HELD = 256 << 20  # bytes at a time that do not go straight into their targets
_PART = 64 << 20  # bytes of one of them


class OwnFolder:
    """A checkpoint that is committed by its manifest.

    Args:
        store: Its folder.
        manifest: Its manifest.
        local: Its folder on a local disk, or None.

    Raises:
        CorruptionError, SourceError: The manifest does not say what a planner needs.
    """

    def __init__(self, store: Store, manifest: Manifest, local: Store | None) -> None:
        self._store, self._manifest, self._local = store, manifest, local
        self.metadata: Metadata = metadata_of(manifest, store.where(MANIFEST))
        self.bytes_read = 0

    def objects(self, indexes: Sequence[MetadataIndex]) -> Iterator[tuple[bool, bytes]]:
        """For each object: whether its bytes are made here, and the bytes of torch.save."""
        values = objects_of(self._manifest)
        names = [index.fqn for index in indexes if index.fqn not in values]
        stored = {name: bytearray(self._manifest.tensors[OBJECT + name].shape[0]) for name in names}
        self._read(
            [
                request
                for name, data in stored.items()
                for request in requests_of(
                    name, self._manifest.tensors[OBJECT + name], (0,), (len(data),), memoryview(data)
                )
            ]
        )
        for index in indexes:
            if index.fqn in stored:
                yield False, bytes(stored[index.fqn])
            else:
                yield True, pickled(values[index.fqn]).getvalue()

    def fill(self, requests: Sequence[Request]) -> None:
        """Read boxes of tensors into their targets.

        Raises:
            CorruptionError: Bytes are damaged; it names the file and the tensors.
            StorageError: The store has failed.
        """
        reads: list[Any] = []
        later: list[Request] = []
        for request in requests:
            view = bytes_of(request.target) if request.is_direct else None
            if view is None:
                later += _parts(request)
            else:
                reads += self._requests(request, view)
        self._read(reads)
        batch: list[tuple[Request, bytearray]] = []
        held = 0
        for request in later:
            batch.append((request, bytearray(request.nbytes)))
            held += request.nbytes
            if held >= _HELD:
                self._bounce(batch)
                batch, held = [], 0
        self._bounce(batch)

    def _bounce(self, batch: list[tuple[Request, bytearray]]) -> None:
        self._read([each for request, data in batch for each in self._requests(request, memoryview(data))])
        for request, data in batch:
            if data:
                held = torch.frombuffer(data, dtype=request.dtype).reshape(request.lengths)
                request.target.copy_(held)

    def _requests(self, request: Request, view: memoryview) -> list[Any]:
        name = request.index.fqn
        offsets, lengths = tuple(request.offsets), tuple(request.lengths)
        return requests_of(name, self._manifest.tensors[name], offsets, lengths, view)

    def _read(self, requests: list[Any]) -> None:
        files = Files(self._store, self._manifest, self._local)
        try:
            read(files, requests)
        finally:
            self.bytes_read += files.bytes_read


def _parts(request: Request) -> Iterator[Request]:
    """The same box in parts, cut along the first dimension."""
    rows = request.lengths[0] if request.lengths else 1
    step = rows if request.nbytes <= _PART else max(1, rows * _PART // request.nbytes)
    if step >= rows:
        yield request
        return
    for row in range(0, rows, step):
        count = min(step, rows - row)
        yield Request(
            request.index, request.shape, request.dtype,
            torch.Size((request.offsets[0] + row, *request.offsets[1:])),
            torch.Size((count, *request.lengths[1:])),
            request.target[row : row + count],
        )  # fmt: skip
