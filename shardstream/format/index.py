"""ShardIndex: where each frame, sample and field of one shard lies.

A safetensors file (https://github.com/huggingface/safetensors): columnar arrays that load without
parsing and without pickle. docs/format.md describes each array.
"""

from __future__ import annotations

import itertools
import math
import struct
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import safetensors.numpy

from shardstream.errors import CorruptionError

Array = npt.NDArray[np.generic]
Unsigned = npt.NDArray[np.uint64]

_DTYPES = {"U8": "u1", "I32": "<i4", "I64": "<i8", "U64": "<u8"}
_COLUMNS = {
    "frame_offset": "u8",
    "frame_size": "u8",
    "frame_raw_offset": "u8",
    "frame_raw_size": "u8",
    "frame_first": "u8",
    "frame_checksum": "u8",
    "field_offset": "i4 i8",
    "field_size": "i4 i8",
    "key_bytes": "u1",
    "key_offset": "u8",
}


@dataclass(frozen=True, eq=False)
class ShardIndex:
    """The arrays of one shard with F frames, n samples and K fields.

    frame_offset, frame_size: uint64 [F], stored bytes within the shard file.
    frame_raw_offset, frame_raw_size: uint64 [F], the same bytes within the uncompressed tar.
    frame_first: uint64 [F + 1], the number of each frame's first sample, then n.
    frame_checksum: uint64 [F], xxh3_64 of the stored bytes.
    field_offset, field_size: int32 or int64 [n, K], data of a field within its frame's raw bytes;
    the size is -1 where the sample lacks the field.
    key_bytes: uint8, the UTF-8 keys one after another; key_offset: uint64 [n + 1].
    """

    frame_offset: Unsigned
    frame_size: Unsigned
    frame_raw_offset: Unsigned
    frame_raw_size: Unsigned
    frame_first: Unsigned
    frame_checksum: Unsigned
    field_offset: npt.NDArray[np.int32] | npt.NDArray[np.int64]
    field_size: npt.NDArray[np.int32] | npt.NDArray[np.int64]
    key_bytes: npt.NDArray[np.uint8]
    key_offset: Unsigned

    @property
    def samples(self) -> int:
        """The number of samples."""
        return len(self.key_offset) - 1

    @property
    def frames(self) -> int:
        """The number of frames that hold samples."""
        return len(self.frame_offset)

    @property
    def nbytes(self) -> int:
        """The bytes in memory; the keys are there twice once they are asked for."""
        arrays = [getattr(self, name) for name in _COLUMNS]
        return sum(int(array.nbytes) for array in arrays) + self.key_bytes.nbytes

    def key(self, sample: int) -> str:
        """The key of one sample."""
        begin, end = int(self.key_offset[sample]), int(self.key_offset[sample + 1])
        return self.key_data[begin:end].decode()

    def keys_list(self, begin: int, end: int) -> list[str]:
        """The keys of samples [begin, end)."""
        bounds = self.key_offset[begin : end + 1].tolist()
        return [self.key_data[a:b].decode() for a, b in itertools.pairwise(bounds)]

    def find(self, key: str) -> int | None:
        """The first sample with this key, or None."""
        wanted = key.encode("utf-8", "surrogatepass")
        bounds = self.key_offset
        at = self.key_data.find(wanted)
        while at >= 0:
            sample = int(np.searchsorted(bounds, np.uint64(at)))
            if (
                sample < self.samples
                and int(bounds[sample]) == at
                and int(bounds[sample + 1]) == at + len(wanted)
            ):
                return sample
            at = self.key_data.find(wanted, at + 1)
        return None

    def frame_of(self, sample: int) -> int:
        """The frame that holds a sample."""
        return int(np.searchsorted(self.frame_first, np.uint64(sample), side="right")) - 1

    @cached_property
    def key_data(self) -> bytes:
        """The bytes of all keys, one after another."""
        return self.key_bytes.tobytes()

    def with_columns(self, have: tuple[str, ...], want: tuple[str, ...]) -> ShardIndex:
        """The same index with its field columns in another order; columns it lacks are missing."""
        if have == want:
            return self
        shape = (self.samples, len(want))
        offset = np.zeros(shape, self.field_offset.dtype)
        size = np.full(shape, -1, self.field_size.dtype)
        for column, name in enumerate(want):
            if name in have:
                offset[:, column] = self.field_offset[:, have.index(name)]
                size[:, column] = self.field_size[:, have.index(name)]
        return replace(self, field_offset=offset, field_size=size)

    def to_bytes(self) -> bytes:
        """The index file."""
        return safetensors.numpy.save({name: np.ascontiguousarray(getattr(self, name)) for name in _COLUMNS})

    @classmethod
    def from_bytes(
        cls, data: bytes | memoryview, *, where: str, fields: int, samples: int, frames: int,
        shard_bytes: int, raw_bytes: int, contiguous: bool = True,
    ) -> ShardIndex:  # fmt: skip
        """Load and validate an index against what the manifest says of its shard.

        `contiguous` is False for shards whose stored bytes are decompressed as one unit, in which
        every frame has the whole file as its stored bytes.
        """
        try:
            arrays = _views(data)
        except (msgspec.DecodeError, struct.error, ValueError, KeyError) as error:
            raise CorruptionError(f"{where}: not an index file ({error})") from error
        if set(arrays) != set(_COLUMNS):
            raise CorruptionError(f"{where}: the index holds the arrays {sorted(arrays)}")
        for name, kinds in _COLUMNS.items():
            if arrays[name].dtype.str[1:] not in kinds.split():
                raise CorruptionError(f"{where}: array {name} is of dtype {arrays[name].dtype}")
        index = cls(**arrays)
        problem = index._problem(fields, samples, frames, shard_bytes, raw_bytes, contiguous)
        if problem:
            raise CorruptionError(f"{where}: {problem}; the index does not fit its manifest")
        return index

    def _problem(
        self, fields: int, samples: int, frames: int, shard_bytes: int, raw_bytes: int,
        contiguous: bool,
    ) -> str | None:  # fmt: skip
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
            if getattr(self, name).shape != shape:
                return f"{name} has the shape {getattr(self, name).shape}, not {shape}"
        if self.key_bytes.ndim != 1 or not _rises(self.key_offset, 0, len(self.key_bytes)):
            return "key_offset does not rise from 0 to the end of key_bytes"
        if not _rises(self.frame_first, 0, samples, strictly=True):
            return "frame_first does not rise from 0 to the number of samples"
        if contiguous and not _apart(self.frame_offset, self.frame_size, shard_bytes):
            return "frames overlap or leave the shard"
        if not contiguous and not ((self.frame_offset == 0).all() and (self.frame_size == shard_bytes).all()):
            return "a frame of a shard that is one unit does not span it"
        if not _apart(self.frame_raw_offset, self.frame_raw_size, raw_bytes):
            return "frames overlap or leave the uncompressed tar"
        present = self.field_size >= 0
        if (self.field_size < -1).any() or (self.field_offset < 0).any():
            return "a field has a negative offset or size"
        if samples:
            bounds = self.frame_first.astype(np.int64)
            counts = bounds[1:] - bounds[:-1]
            room = np.repeat(self.frame_raw_size.astype(np.int64), counts)[:, None]
            offsets = self.field_offset.astype(np.int64)
            if (present & (self.field_size > room - offsets)).any():
                return "a field leaves its frame"
        try:
            self.key_data.decode()
        except UnicodeDecodeError:
            return "keys are not UTF-8"
        starts = self.key_offset[:-1]
        if samples and len(self.key_bytes) and (self._starts(starts) & 0xC0 == 0x80).any():
            return "a key begins inside a character"
        return None

    def _starts(self, starts: Unsigned) -> npt.NDArray[np.uint8]:
        inside = starts[starts < len(self.key_bytes)]
        return self.key_bytes[inside.astype(np.int64)]


class _Entry(msgspec.Struct):
    """An array in a safetensors header."""

    dtype: str
    shape: list[int]
    data_offsets: tuple[int, int]


def _views(data: bytes | memoryview) -> dict[str, npt.NDArray[Any]]:
    """The arrays of a safetensors file where they lie: its own reader copies each of them twice."""
    (length,) = struct.unpack_from("<Q", data)
    begin = 8 + length
    arrays: dict[str, npt.NDArray[Any]] = {}
    for name, entry in msgspec.json.decode(data[8:begin], type=dict[str, _Entry]).items():
        dtype, (first, last) = np.dtype(_DTYPES[entry.dtype]), entry.data_offsets
        count = math.prod(entry.shape)
        if min(first, *entry.shape) < 0 or last - first != count * dtype.itemsize or begin + last > len(data):
            raise ValueError(f"the array {name} of shape {entry.shape} is not at {first} to {last}")
        found = np.frombuffer(data, dtype, count, begin + first) if count else np.empty(0, dtype)
        arrays[name] = found.reshape(entry.shape)
    return arrays


def _rises(bounds: Unsigned, first: int, last: int, strictly: bool = False) -> bool:
    if not len(bounds) or int(bounds[0]) != first or int(bounds[-1]) != last:
        return False
    before, after = bounds[:-1], bounds[1:]
    return bool((before < after).all() if strictly else (before <= after).all())


def _apart(offset: Unsigned, size: Unsigned, limit: int) -> bool:
    """Whether the runs rise without overlap within `limit` bytes (no sum can wrap around)."""
    if not len(offset):
        return True
    if int(offset.max()) > limit or int(size.max()) > limit:
        return False
    ends = offset + size
    return bool((ends[:-1] <= offset[1:]).all()) and int(ends.max()) <= limit
