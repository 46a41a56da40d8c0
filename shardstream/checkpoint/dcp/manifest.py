"""What a manifest keeps for torch.distributed.checkpoint: objects, and how a state was flattened."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    TensorProperties,
    TensorStorageMetadata,
)

from shardstream.checkpoint.dcp.objects import load_object, pickled
from shardstream.checkpoint.manifest import Manifest
from shardstream.checkpoint.tensors import dtype_named
from shardstream.errors import CorruptionError

__all__ = ["OBJECT", "extra_of", "metadata_of", "objects_of", "url_of"]

# Objects that are no JSON lie in the files as tensors of bytes, whose names begin with this.
OBJECT = "__object__/"
_KEY = "dcp"


def extra_of(url: str, metadata: Metadata, values: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a manifest that is ours.

    Args:
        url: Where the checkpoint is committed.
        metadata: What the planner of the save says.
        values: The objects that are JSON, by name.
    """
    return {_KEY: {"url": url, "values": dict(values), "planner": _encoded(metadata.planner_data)}}


def url_of(manifest: Manifest) -> str | None:
    """Where the checkpoint is committed; None if `Writer` did not write it."""
    found = manifest.extra.get(_KEY, {}).get("url")
    return found if isinstance(found, str) else None


def objects_of(manifest: Manifest) -> Mapping[str, Any]:
    """The objects that are JSON, by name."""
    found = manifest.extra.get(_KEY, {}).get("values", {})
    assert isinstance(found, dict)
    return found


def metadata_of(manifest: Manifest, where: str) -> Metadata:
    """The manifest as torch describes checkpoints.

    Each tensor is one part, whatever the number of ranks that saved it: which files it lies in is known here.
    """
    items: dict[str, TensorStorageMetadata | BytesStorageMetadata] = {}
    for name in objects_of(manifest):
        items[name] = BytesStorageMetadata()
    for name, tensor in manifest.tensors.items():
        if name.startswith(OBJECT):
            items[name.removeprefix(OBJECT)] = BytesStorageMetadata()
            continue
        size = torch.Size(tensor.shape)
        whole = ChunkStorageMetadata(torch.Size([0] * len(size)), size)
        items[name] = TensorStorageMetadata(TensorProperties(dtype=dtype_named(tensor.dtype)), size, [whole])
    planner = manifest.extra.get(_KEY, {}).get("planner")
    try:
        return Metadata(items, planner_data=_decoded(planner, where))
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptionError(f"{where}: it does not say how the state was flattened") from error


def _encoded(data: Any) -> Any:
    """What a planner keeps: torch's own keeps the path of each name in the state, of texts and numbers."""
    if data is None:
        return None
    if type(data) is dict and all(
        type(name) is str and type(path) is tuple and all(type(step) in (str, int) for step in path)
        for name, path in data.items()
    ):
        return {"paths": {name: list(path) for name, path in data.items()}}
    return {"torch": base64.b64encode(pickled(data).getvalue()).decode()}


def _decoded(data: Any, where: str) -> Any:
    if data is None:
        return None
    if "paths" in data:
        return {name: tuple(path) for name, path in data["paths"].items()}
    return load_object(base64.b64decode(data["torch"]), f"{where}: what the planner keeps")
