"""What a rank says of its part of an attempt, in objects beside the files: it is there, or will not come."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from shardstream.checkpoint.layout import FilePlan, Placed
from shardstream.checkpoint.manifest import Chunk, FileInfo, Receipt, TensorInfo
from shardstream.storage.store import Store

__all__ = ["failure_name", "is_failure", "receipt_of", "say_failed"]


def failure_name(rank: int) -> str:
    """The name of the object by which a rank tells the others that its part will not come."""
    return f"failed-{rank:05d}.json"


def is_failure(name: str) -> bool:
    """Whether this is the name of such an object."""
    return name.startswith("failed-")


def say_failed(store: Store, attempt: str, rank: int) -> bool:
    """Tell the other ranks that the part of a rank will not come; whether that was possible."""
    with contextlib.suppress(Exception):  # they wait for this rank only for a time
        store.write(f"{attempt}/{failure_name(rank)}", b"{}")
        return True
    return False


def receipt_of(rank: int, files: Sequence[tuple[FilePlan, FileInfo]]) -> Receipt:
    """What a rank has written.

    Args:
        rank: Which rank.
        files: Its files, in order, with their checksums.
    """
    tensors: dict[str, TensorInfo] = {}
    for number, (plan, _) in enumerate(files):
        for placed in plan.items:
            _add(tensors, number, placed)
    return Receipt(rank, [info for _, info in files], tensors)


def _add(tensors: dict[str, TensorInfo], file: int, placed: Placed) -> None:
    item = placed.item
    chunk = Chunk(file, placed.start, item.shape, item.offsets)
    known = tensors.get(item.tensor)
    if known is None:
        tensors[item.tensor] = TensorInfo(item.dtype, item.whole or item.shape, [chunk])
    else:
        known.chunks.append(chunk)
