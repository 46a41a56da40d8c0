"""Local files to a GPU by safetensors itself, where it can: it has one pinned ring for a process."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from shardstream.counters.layout import slot
from shardstream.counters.page import begin
from shardstream.counters.recorder import add
from shardstream.errors import CorruptionError
from shardstream.weights.catalog import Catalog
from shardstream.weights.header import TensorInfo

if TYPE_CHECKING:
    import torch

__all__ = ["can_prefetch", "prefetched"]

_BYTES, _TENSORS = slot("weight_bytes"), slot("weight_tensors")


def can_prefetch(catalog: Catalog, device: torch.device) -> bool:
    """Whether safetensors 0.9 or later may load these files. It checks nothing: not those with checksums."""
    if device.type != "cuda" or catalog.digests or catalog.place.store.backend != "local":
        return False
    try:
        from safetensors import safe_open
    except ImportError:
        return False
    return hasattr(safe_open, "prefetch")


def prefetched(
    catalog: Catalog, wanted: Sequence[TensorInfo], device: torch.device
) -> Iterator[tuple[TensorInfo, torch.Tensor]]:
    """The tensors, file by file, as they land on the GPU."""
    from safetensors import safe_open

    begin("weights", catalog.place.store.url)
    by_file: dict[str, dict[str, TensorInfo]] = {}
    for info in wanted:
        by_file.setdefault(info.file, {})[info.name] = info
    for file, names in by_file.items():
        path = catalog.place.store.local_path(file)
        assert path is not None
        try:
            opened: Any = safe_open(os.path.normpath(path), framework="pt", device=str(device))
            with opened as handle, handle.prefetch(dict.fromkeys(names)) as loader:
                for name, tensor in loader:
                    add(_TENSORS)
                    add(_BYTES, tensor.nbytes)
                    yield names[name], tensor
        except OSError as error:
            raise CorruptionError(f"{catalog.where(file)}: cannot be loaded to {device}: {error}") from error
