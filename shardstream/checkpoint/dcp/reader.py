"""`Reader`: a StorageReader for torch.distributed.checkpoint."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from typing import Any

import torch
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex, StorageMeta, TensorStorageMetadata
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlan, LoadPlanner, ReadItem
from torch.distributed.checkpoint.storage import StorageReader
from torch.futures import Future

from shardstream.checkpoint.commit import read_manifest
from shardstream.checkpoint.dcp.folders import METADATA, TorchFolder
from shardstream.checkpoint.dcp.manifest import url_of
from shardstream.checkpoint.dcp.objects import load_object, pickled
from shardstream.checkpoint.dcp.own import OwnFolder
from shardstream.checkpoint.dcp.places import local_folder
from shardstream.checkpoint.dcp.requests import Request
from shardstream.checkpoint.layout import MANIFEST
from shardstream.errors import StateError, StorageError
from shardstream.storage.store import Options, Store, absolute

__all__ = ["Reader"]

_WINDOW = 256 << 20  # bytes of tensors that a planner of the user's makes at a time


class Reader(StorageReader):
    """Reads checkpoints of `Writer`, and those of torch's FileSystemWriter and FsspecWriter.

    `dcp.load(state, storage_reader=ss.dcp.Reader("s3://bucket/run/step-500", local="/nvme/ckpt"))`. A rank
    reads the bytes that it needs: a slice of a tensor is read by ranges, whatever the number of ranks that
    saved it.

    Args:
        url: the checkpoint's folder: a path, or any URL of a store.
        local: the folder that `Writer(local=)` was given, or None. What is whole and sound there is read from
            there, and the rest from `url`.
        storage_options: for the store of `url`.
        weights_only: whether items that are no tensors are loaded as torch.load(weights_only=True) does. With
            False, whoever can write to the checkpoint can run programs here.
        convert: whether a tensor may be loaded into one of another dtype, as torch's readers do. Else it is
            an error.
        verify: whether tensors of torch's folders are compared with their CRC-32. What `Writer` has written
            is always verified.

    Raises:
        OptionError: a URL or an option that cannot be.
    """

    def __init__(
        self,
        url: str | os.PathLike[str],
        local: str | os.PathLike[str] | None = None,
        *,
        storage_options: Options = None,
        weights_only: bool = True,
        convert: bool = False,
        verify: bool = True,
    ) -> None:
        super().__init__()
        self.url = absolute(os.fspath(url))
        self.local = None if local is None else absolute(os.fspath(local))
        self._options = storage_options
        self._weights_only, self._convert, self._verify = weights_only, convert, verify
        self._metadata: Metadata | None = None
        self._folder: TorchFolder | OwnFolder

    @property
    def checkpoint_id(self) -> str:
        """The checkpoint's folder."""
        return self.url

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Read another checkpoint next, if `checkpoint_id` is the URL of one."""
        if checkpoint_id is not None:
            self.url = absolute(os.fspath(checkpoint_id))
        self._metadata = None

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """What the checkpoint holds.

        Raises:
            StorageError: there is no checkpoint.
            CorruptionError, SourceError: its description is damaged.
        """
        store = Store.open(self.url, self._options)
        rank = kwargs.get("rank")
        folder = self._own(store) if rank is None else None
        name = METADATA if rank is None else f"__{rank}{METADATA}"
        if folder is None and not store.exists(name):
            raise StorageError(f"{store.url}: there is no checkpoint: neither {MANIFEST} nor {name} is there")
        self._folder = folder or TorchFolder(store, self._verify, name)
        self._metadata = self._folder.metadata
        if self._metadata.storage_meta is None:
            self._metadata.storage_meta = StorageMeta(checkpoint_id=self.url)
        return self._metadata

    def set_up_storage_reader(
        self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any
    ) -> None:
        """Part of the protocol of torch."""
        self._metadata = metadata

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        """Part of the protocol of torch."""
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        """Part of the protocol of torch."""
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Read what a plan says into the tensors of its planner.

        Raises:
            StateError: a tensor has another shape or dtype than the saved one.
            CorruptionError: bytes are damaged; the message says of which file and tensor.
            SourceError: an item is an object that is not loaded without the user's consent.
            StorageError: the store has failed.
        """
        objects = [item for item in plan.items if item.type == LoadItemType.BYTE_IO]
        for item, data in zip(objects, self._objects(objects), strict=True):
            planner.load_bytes(item, data)
        tensors = [item for item in plan.items if item.type != LoadItemType.BYTE_IO]
        for window in _windows(tensors, planner):
            requests = [self._request(item, planner) for item in window]
            self._folder.fill(requests)
            for item, request in zip(window, requests, strict=True):
                planner.commit_tensor(item, request.target)
        done: Future[None] = Future()
        done.set_result(None)
        return done

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """Part of the protocol of torch: any path or URL will do."""
        return bool(os.fspath(checkpoint_id))

    @property
    def bytes_read(self) -> int:
        """Bytes of files that were read since `read_metadata`."""
        return self._folder.bytes_read

    def _own(self, store: Store) -> OwnFolder | None:
        """The checkpoint if `Writer` has written it: at the URL, or so far on this machine alone."""
        local = None if self.local is None else Store.open(local_folder(self.local, self.url))
        manifest = read_manifest(store)
        if manifest is None and local is not None:
            manifest = read_manifest(local)
            if manifest is not None and url_of(manifest) != store.url:
                manifest = None
        return None if manifest is None else OwnFolder(store, manifest, local)

    def _objects(self, items: list[ReadItem]) -> Iterator[io.BytesIO]:
        found = self._folder.objects([item.storage_index for item in items])
        for item, (ours, data) in zip(items, found, strict=True):
            # A planner loads these bytes with weights_only=False, so they must be ours.
            what = f"{self.url}: {item.storage_index.fqn}"
            trusted = ours or not self._weights_only
            yield io.BytesIO(data) if trusted else pickled(load_object(data, what))

    def _request(self, item: ReadItem, planner: LoadPlanner) -> Request:
        assert self._metadata is not None
        saved = self._metadata.state_dict_metadata[item.storage_index.fqn]
        assert isinstance(saved, TensorStorageMetadata)
        target = planner.resolve_tensor(item).detach()
        what = f"{self.url}: {item.storage_index.fqn}"
        if target.size() != item.lengths:
            raise StateError(
                f"{what} has size {tuple(item.lengths)}, and the tensor it goes to {tuple(target.size())}"
            )
        if target.dtype != saved.properties.dtype and not self._convert:
            raise StateError(
                f"{what} is saved as {saved.properties.dtype}, and the tensor it goes to is {target.dtype}: "
                "make it the same, or let it be converted with Reader(..., convert=True)"
            )
        return Request(
            item.storage_index, _chunk(saved, item.storage_index), saved.properties.dtype,
            item.storage_offsets, item.lengths, target,
        )  # fmt: skip


def _chunk(saved: TensorStorageMetadata, index: MetadataIndex) -> torch.Size:
    """The size of the part of a saved tensor that an index names."""
    if index.index is not None and index.index < len(saved.chunks):
        chunk = saved.chunks[index.index]
        if index.offset is None or chunk.offsets == index.offset:
            return chunk.sizes
    for chunk in saved.chunks:
        if chunk.offsets == index.offset:
            return chunk.sizes
    raise StorageError(f"{index.fqn}: no part of it begins at {index.offset}")


def _windows(items: list[ReadItem], planner: LoadPlanner) -> Iterator[list[ReadItem]]:
    """All at once if the targets are the user's own tensors, else so many that they do not fill memory."""
    if (
        isinstance(planner, DefaultLoadPlanner)
        and type(planner).resolve_tensor is DefaultLoadPlanner.resolve_tensor
        and type(planner).transform_tensor is DefaultLoadPlanner.transform_tensor
    ):
        yield items
        return
    window: list[ReadItem] = []
    size = 0
    for item in items:
        window.append(item)
        size += item.lengths.numel() * 4
        if size > _WINDOW:
            yield window
            window, size = [], 0
    if window:
        yield window
