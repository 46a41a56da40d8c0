"""The ranges of a box hold its elements, each once, and not much more."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from shardstream.checkpoint.dcp.boxes import pieces


@st.composite
def boxes(draw: st.DrawFn) -> tuple[list[int], list[int], list[int]]:
    shape = draw(st.lists(st.integers(0, 6), max_size=4))
    offsets = [draw(st.integers(0, size)) for size in shape]
    lengths = [draw(st.integers(0, size - start)) for size, start in zip(shape, offsets, strict=True)]
    return shape, offsets, lengths


@given(boxes(), st.integers(1, 200), st.booleans())
def test_pieces_are_the_box(box: tuple[list[int], list[int], list[int]], most: int, bounced: bool) -> None:
    shape, offsets, lengths = box
    tensor = np.arange(math.prod(shape), dtype=np.int16).reshape(shape)
    data = tensor.tobytes()
    expected = tensor[tuple(slice(start, start + size) for start, size in zip(offsets, lengths, strict=True))]
    found = np.full(lengths, -1, np.int16)
    read = 0
    for piece in pieces(shape, offsets, lengths, 2, most, bounced):
        assert piece.start >= 0
        assert piece.start + piece.size <= len(data)
        held = np.frombuffer(data, np.int16, piece.size // 2, piece.start).reshape(piece.shape)
        inside = tuple(slice(start, start + n) for start, n in zip(piece.offsets, piece.lengths, strict=True))
        target = tuple(slice(start, start + n) for start, n in zip(piece.target, piece.lengths, strict=True))
        assert (found[target] == -1).all()
        found[target] = held[inside]
        assert not piece.whole or held[inside].tobytes() == data[piece.start : piece.start + piece.size]
        read += piece.size
    assert (found == expected).all()
    assert read <= 2 * expected.nbytes


def test_rows_are_one_range() -> None:
    (piece,) = pieces((8, 16), (2, 0), (3, 16), 4)
    assert (piece.start, piece.size, piece.whole) == (128, 192, True)


def test_large_rows_come_in_parts() -> None:
    found = list(pieces((8, 16), (0, 0), (8, 12), 4, most=128))
    assert [piece.size for piece in found] == [128] * 4
