"""The arrays of an index, and the checks that they fit a manifest, so that no read goes outside of them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from shardstream.format.sparse import SparseTable, sparse_problem

__all__ = ["IndexArrays", "Unsigned", "index_problem"]

Unsigned = npt.NDArray[np.uint64]


@dataclass(frozen=True, eq=False)
class IndexArrays:
    """The arrays of one shard with F frames, n samples and K fields.

    Attributes:
        frame_offset: uint64 [F], where the stored bytes of each frame begin in the file of the shard.
        frame_size: uint64 [F], how many stored bytes each frame has.
        frame_raw_offset: uint64 [F], where the bytes of each frame begin in the uncompressed tar.
        frame_raw_size: uint64 [F], how many uncompressed bytes each frame has.
        frame_first: uint64 [F + 1], the number of each frame's first sample, then n.
        frame_checksum: uint64 [F], xxh3_64 of the stored bytes of each frame.
        field_offset: int32 or int64 [n, K], where the data of each field begins in the raw bytes of its
            frame. An array, or a SparseTable if most samples lack most fields.
        field_size: int32 or int64 [n, K], the bytes of each field; -1 if the sample lacks the field. Also one
            of the two.
        key_bytes: uint8, the keys in UTF-8, one after another.
        key_offset: uint64 [n + 1], where each key begins in `key_bytes`, then the number of these bytes.
    """

    frame_offset: Unsigned
    frame_size: Unsigned
    frame_raw_offset: Unsigned
    frame_raw_size: Unsigned
    frame_first: Unsigned
    frame_checksum: Unsigned
    field_offset: npt.NDArray[np.int32] | npt.NDArray[np.int64] | SparseTable
    field_size: npt.NDArray[np.int32] | npt.NDArray[np.int64] | SparseTable
    key_bytes: npt.NDArray[np.uint8]
    key_offset: Unsigned

    @property
    def samples(self) -> int:
        """The number of samples."""
        return len(self.key_offset) - 1

    @cached_property
    def key_data(self) -> bytes:
        """The bytes of all keys, one after another."""
        return self.key_bytes.tobytes()


def index_problem(
    index: IndexArrays, fields: int, samples: int, frames: int, shard_bytes: int, raw_bytes: int,
    contiguous: bool,
) -> str | None:  # fmt: skip
    """What is wrong with an index, or None. The other arguments are those of `ShardIndex.from_bytes`."""
    shapes: dict[str, tuple[int, ...]] = {
        "frame_offset": (frames,),
        "frame_size": (frames,),
        "frame_raw_offset": (frames,),
        "frame_raw_size": (frames,),
        "frame_first": (frames + 1,),
        "frame_checksum": (frames,),
        "field_offset": (samples, fields),
        "field_size": (samples, fields),
        "key_offset": (samples + 1,),
    }
    for name, shape in shapes.items():
        if getattr(index, name).shape != shape:
            return f"{name} has the shape {getattr(index, name).shape}, not {shape}"
    if index.key_bytes.ndim != 1 or not _rises(index.key_offset, 0, len(index.key_bytes)):
        return "key_offset does not rise from 0 to the end of key_bytes"
    if not _rises(index.frame_first, 0, samples, strictly=True):
        return "frame_first does not rise from 0 to the number of samples"
    if contiguous and not _apart(index.frame_offset, index.frame_size, shard_bytes):
        return "frames overlap or leave the shard"
    if not contiguous and not ((index.frame_offset == 0).all() and (index.frame_size == shard_bytes).all()):
        return "a frame of a shard that is one unit does not span it"
    if not _apart(index.frame_raw_offset, index.frame_raw_size, raw_bytes):
        return "frames overlap or leave the uncompressed tar"
    bounds = index.frame_first.astype(np.int64)
    counts = bounds[1:] - bounds[:-1]
    room = np.repeat(index.frame_raw_size.astype(np.int64), counts)
    if isinstance(index.field_offset, SparseTable) and isinstance(index.field_size, SparseTable):
        return sparse_problem(index.field_offset, index.field_size, samples, room) or _keys_problem(index)
    assert not isinstance(index.field_offset, SparseTable)
    assert not isinstance(index.field_size, SparseTable)
    present = index.field_size >= 0
    if (index.field_size < -1).any() or (index.field_offset < 0).any():
        return "a field has a negative offset or size"
    if samples:
        offsets = index.field_offset.astype(np.int64)
        if (present & (index.field_size > room[:, None] - offsets)).any():
            return "a field leaves its frame"
    return _keys_problem(index)


def _keys_problem(index: IndexArrays) -> str | None:
    try:
        index.key_data.decode()
    except UnicodeDecodeError:
        return "keys are not UTF-8"
    starts = index.key_offset[:-1]
    if index.samples and len(index.key_bytes) and (_starts(index, starts) & 0xC0 == 0x80).any():
        return "a key begins inside a character"
    return None


def _starts(index: IndexArrays, starts: Unsigned) -> npt.NDArray[np.uint8]:
    inside = starts[starts < len(index.key_bytes)]
    return index.key_bytes[inside.astype(np.int64)]


def _rises(bounds: Unsigned, first: int, last: int, strictly: bool = False) -> bool:
    if not len(bounds) or int(bounds[0]) != first or int(bounds[-1]) != last:
        return False
    before, after = bounds[:-1], bounds[1:]
    return bool((before < after).all() if strictly else (before <= after).all())


def _apart(offset: Unsigned, size: Unsigned, limit: int) -> bool:
    """Whether runs of bytes rise, do not overlap and end within `limit` bytes. No sum can overflow."""
    if not len(offset):
        return True
    if int(offset.max()) > limit or int(size.max()) > limit:
        return False
    ends = offset + size
    return bool((ends[:-1] <= offset[1:]).all()) and int(ends.max()) <= limit
