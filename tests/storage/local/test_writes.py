"""Writing parts: all of them, whatever the system takes at once."""

from __future__ import annotations

import array
import errno
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardstream.storage.local import writes
from shardstream.storage.local.writes import reserve, write_parts


def test_parts_of_all_kinds(tmp_path: Path) -> None:
    parts = [
        b"",
        bytearray(b"ab"),
        memoryview(array.array("d", [0.5, 2])),
        memoryview(np.empty((0, 3))),
        b"z",
    ]
    with (tmp_path / "a").open("wb", buffering=0) as file:
        write_parts(file.fileno(), parts)
    assert (tmp_path / "a").read_bytes() == b"".join(bytes(part) for part in parts)


@given(st.lists(st.binary(max_size=20), max_size=1200), st.integers(1, 30))
def test_short_writes_go_on(parts: list[bytes], most: int) -> None:
    read_end, write_end = os.pipe()
    whole = os.writev

    def short(file: int, views: list[memoryview]) -> int:
        return whole(file, [view[:most] for view in views[:1]])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writes.os, "writev", short)
        write_parts(write_end, parts)
    os.close(write_end)
    with open(read_end, "rb") as file:
        assert file.read() == b"".join(parts)


def test_no_room_is_an_error_before_the_first_byte(tmp_path: Path) -> None:
    with (tmp_path / "a").open("wb", buffering=0) as file:
        with pytest.raises(OSError, match=r"space|large") as caught:
            reserve(file.fileno(), 1 << 60)
        assert caught.value.errno in (errno.ENOSPC, errno.EFBIG)
    assert (tmp_path / "a").stat().st_size == 0
    read_end, write_end = os.pipe()
    reserve(write_end, 1 << 60)  # what has no blocks has nothing to reserve
    os.close(read_end)
    os.close(write_end)
