"""Index files from rows of Python numbers, without numpy: loading it is most of a worker's start."""

from __future__ import annotations

import itertools
import struct
import sys
from array import array
from collections.abc import Iterable, Sequence

import msgspec

_INT32_MAX = 2**31 - 1


def index_bytes(
    frames: Sequence[tuple[int, int, int, int, int, int]],
    cells: Iterable[tuple[int, int, int, int]],
    keys: Sequence[bytes],
    columns: int,
) -> bytes:
    """The index file of a shard, byte for byte what `ShardIndex.to_bytes` gives.

    frames: (offset, size, raw offset, raw size, first sample, checksum); cells: (sample, column,
    offset within the frame, size).
    """
    assert sys.byteorder == "little", "shardstream needs a little-endian machine"
    samples = len(keys)
    offsets = [0] * (samples * columns)
    sizes = [-1] * (samples * columns)
    for row, column, offset, size in cells:
        offsets[row * columns + column] = offset
        sizes[row * columns + column] = size
    small = max(max(offsets, default=0), max(sizes, default=0)) <= _INT32_MAX
    kind = "I32" if small else "I64"
    table = tuple(zip(*frames, strict=True)) if frames else ((),) * 6
    bounds = itertools.accumulate(map(len, keys), initial=0)
    # In the order of the safetensors library: the widest types first, each by name.
    tensors = (
        ("frame_checksum", "U64", (len(frames),), array("Q", table[5])),
        ("frame_first", "U64", (len(frames) + 1,), array("Q", (*table[4], samples))),
        ("frame_offset", "U64", (len(frames),), array("Q", table[0])),
        ("frame_raw_offset", "U64", (len(frames),), array("Q", table[2])),
        ("frame_raw_size", "U64", (len(frames),), array("Q", table[3])),
        ("frame_size", "U64", (len(frames),), array("Q", table[1])),
        ("key_offset", "U64", (samples + 1,), array("Q", bounds)),
        ("field_offset", kind, (samples, columns), array("i" if small else "q", offsets)),
        ("field_size", kind, (samples, columns), array("i" if small else "q", sizes)),
    )
    key_bytes = b"".join(keys)
    header: dict[str, object] = {}
    at = 0
    for name, dtype, shape, data in tensors:
        end = at + len(data) * data.itemsize
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": (at, end)}
        at = end
    header["key_bytes"] = {
        "dtype": "U8", "shape": (len(key_bytes),), "data_offsets": (at, at + len(key_bytes)),
    }  # fmt: skip
    text = msgspec.json.encode(header)
    text += b" " * (-len(text) % 8)
    return b"".join((struct.pack("<Q", len(text)), text, *(tensor[3] for tensor in tensors), key_bytes))
