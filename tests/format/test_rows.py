"""Index files from rows are those that the arrays would make."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from shardstream.format.index import ShardIndex
from shardstream.format.rows import index_bytes

_U64 = st.integers(0, 2**64 - 1)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_same_bytes_as_the_safetensors_library(data: st.DataObject) -> None:
    frames = data.draw(st.lists(st.tuples(*[_U64] * 6), max_size=5))
    keys = data.draw(st.lists(st.binary(min_size=1, max_size=9), max_size=7))
    columns = data.draw(st.integers(0, 3)) if not keys else data.draw(st.integers(1, 3))
    value = st.integers(0, data.draw(st.sampled_from([100, 2**31 - 1, 2**31, 2**40])))
    places = [(row, column) for row in range(len(keys)) for column in range(columns)]
    taken = data.draw(st.lists(st.sampled_from(places), unique=True)) if places else []
    cells = [(row, column, data.draw(value), data.draw(value)) for row, column in taken]

    made = index_bytes(frames, cells, keys, columns)

    widest = max((max(cell[2:]) for cell in cells), default=0)
    dtype = np.int32 if widest <= 2**31 - 1 else np.int64
    offset = np.zeros((len(keys), columns), dtype)
    size = np.full((len(keys), columns), -1, dtype)
    for row, column, cell_offset, cell_size in cells:
        offset[row, column], size[row, column] = cell_offset, cell_size
    table = np.array(frames, np.uint64).reshape(-1, 6)
    index = ShardIndex(
        frame_offset=table[:, 0],
        frame_size=table[:, 1],
        frame_raw_offset=table[:, 2],
        frame_raw_size=table[:, 3],
        frame_first=np.append(table[:, 4], np.uint64(len(keys))),
        frame_checksum=table[:, 5],
        field_offset=offset,
        field_size=size,
        key_bytes=np.frombuffer(b"".join(keys), np.uint8),
        key_offset=np.append(np.uint64(0), np.cumsum([len(key) for key in keys]).astype(np.uint64)),
    )
    arrays = {field.name: np.ascontiguousarray(getattr(index, field.name)) for field in fields(index)}
    assert made == safetensors.numpy.save(arrays)
    assert set(safetensors.numpy.load(made)) == set(arrays)


def test_a_number_beyond_64_bits_is_an_error() -> None:
    with pytest.raises(OverflowError):
        index_bytes([(2**64, 0, 0, 0, 0, 0)], [], [], 0)
