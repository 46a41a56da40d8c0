"""Runs of tokens gathered from anywhere: far apart, long, and of every type."""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import subprocess
import sys
from itertools import count
from pathlib import Path

import numpy as np
import pytest

import shardstream as ss
from shardstream.read.tokens.gather import Rows, address, gather_runs

_places = count(0x1000_0000_0000, 1 << 30)  # what was mapped before stays


def far_apart(size: int) -> tuple[list[np.ndarray], list[object]]:
    """Buffers in the heap's usual place and 2**44 bytes and more away from it, and what owns them."""
    libc = ctypes.CDLL(None)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_ssize_t]
    buffers, owners = [], []
    for place in (next(_places), 0x4000_0000_0000 + next(_places), None):
        at = libc.mmap(
            place, size, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0
        )
        owners.append((ctypes.c_ubyte * size).from_address(at))
        buffers.append(np.frombuffer(owners[-1], np.uint8))
    return buffers, owners


@pytest.mark.parametrize("length", [33, 32_769, 131_073, 1_048_577])
@pytest.mark.parametrize("stored", ["<u2", "<u4", "<i4"])
def test_rows_and_runs_are_gathered_however_far_apart_they_lie(length: int, stored: str) -> None:
    dtype = np.dtype(stored)
    buffers, owners = far_apart(4 * length * dtype.itemsize)
    spans = [abs(address(one) - address(other)) for one in buffers for other in buffers]
    assert max(spans) > 1 << 44
    rng, rows, wanted = np.random.default_rng(0), [], []
    for buffer in buffers:
        tokens = buffer.view(dtype)
        tokens[:] = rng.integers(0, 60_000, len(tokens))
        for begin in (0, 1, length, 3 * length):
            rows.append(address(buffer) + begin * dtype.itemsize)
            wanted.append(tokens[begin : begin + length])
    order = rng.permutation(len(rows))
    at, expected = np.array(rows, np.int64)[order], np.array(wanted)[order]
    found = Rows(at, length, dtype, owners)
    for out in ("i8", "i4"):
        table = np.empty((len(at), length), out)
        found.fill(table)
        assert (table == expected).all()
        assert (found.copy(2, 9, np.dtype(out)) == expected[2:9]).all()
    lengths = np.array([length, length // 2, 1] * (len(at) // 3), np.int64)
    joined = np.concatenate([row[:size] for row, size in zip(expected, lengths.tolist(), strict=True)])
    assert (gather_runs(at, lengths, dtype) == joined).all()


@pytest.mark.parametrize("compression", [pytest.param("none", marks=pytest.mark.long), "zstd"])
def test_long_blocks_are_the_same_with_one_malloc_arena(tmp_path: Path, compression: str) -> None:
    """Buffers are then in the heap and in maps, about 2**45 bytes apart."""
    rng = np.random.default_rng(0)
    with (tmp_path / "c.jsonl").open("w") as file:
        for number in range(24):
            text = bytes(rng.integers(97, 123, 100_000).astype(np.uint8)).decode()
            file.write(json.dumps({"id": number, "text": text}) + "\n")
    ss.pack(
        tmp_path / "c.jsonl", tmp_path / "d", tokenizer="bytes", eos=256, compression=compression,
        frame_size="100KiB", shard_size="4MiB", workers=1,
    )  # fmt: skip
    # All in one program, since each takes seconds to start.
    code = f"""
import hashlib, itertools, shardstream as ss
for length, pack in itertools.product((32_768, 131_072, 1_048_576), (None, "best-fit")):
    ds = ss.TokenDataset({str(tmp_path / "d")!r}, length, pack=pack, shuffle=True, boundaries=True)
    for threads in (1, 4):
        digest = hashlib.sha256()
        for batch in ss.StreamingLoader(ds, 2, last="short", threads=threads):
            assert (batch["tokens"][:, 1:] >= 0).all()
            digest.update(batch["tokens"].numpy().tobytes())
        print(length, pack, batch["tokens"].shape[1], digest.hexdigest())
"""
    seen = set()
    for arenas in ("1", "8"):
        env = os.environ | {"MALLOC_ARENA_MAX": arenas}
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, env=env, check=False
        )
        assert not done.returncode, done.stderr
        lines = done.stdout.splitlines()
        assert len(lines) == 12
        assert all(int(width) == int(length) + 1 for length, _, width, _ in map(str.split, lines))
        seen.add(done.stdout)
    assert len(seen) == 1
