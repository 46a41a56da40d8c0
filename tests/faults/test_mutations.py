"""Random damage to any file of a dataset: a typed error, or exactly the right bytes."""

from __future__ import annotations

import json
import random
import resource
import subprocess
import sys
from pathlib import Path

import pytest

import shardstream as ss
from shardstream.errors import ShardstreamError
from shardstream.read.reader import DatasetReader

LIMIT = 64 << 20


def damage(data: bytes, rng: random.Random) -> bytes:
    """`data` with one random mutation."""
    out = bytearray(data)
    at = rng.randrange(len(out))
    length = rng.choice((1, 4, 8, 64, 512))
    kind = rng.randrange(8)
    if kind == 0:
        out[at] ^= 1 << rng.randrange(8)
    elif kind == 1:
        out[at : at + length] = rng.randbytes(len(out[at : at + length]))
    elif kind == 2:
        del out[at:]
    elif kind == 3:
        del out[at : at + length]
    elif kind == 4:
        out[at:at] = rng.randbytes(length)
    elif kind == 5:
        out[at : at + length] = bytes(len(out[at : at + length]))
    elif kind == 6:
        out[at : at + length] = b"\xff" * len(out[at : at + length])
    else:
        other = rng.randrange(len(out))
        out[at : at + length], out[other : other + length] = (
            out[other : other + length],
            out[at : at + length],
        )
    return bytes(out)


def attempt(folder: Path, expected: list[object]) -> bool:
    """Whether the dataset was read, and then it must be right; False for a typed error."""
    try:
        found = list(DatasetReader.open(str(folder)).iter_samples())
    except ShardstreamError:
        return False
    assert found == expected
    return True


def run(folder: Path, count: int, seed: int) -> None:
    """Apply `count` mutations in turn; runs in a process of its own, so that memory can be told."""
    rng = random.Random(seed)
    expected = list(DatasetReader.open(str(folder)).iter_samples())
    files = sorted(path for path in folder.iterdir())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused = 0
    for _ in range(count):
        path = rng.choice(files)
        data = path.read_bytes()
        path.write_bytes(damage(data, rng))
        refused += not attempt(folder, expected)
        path.write_bytes(data)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert grown < LIMIT, f"memory grew by {grown} bytes"
    assert refused > count // 2
    assert attempt(folder, expected)
    print(f"{count} mutations, {refused} refused, memory grew by {grown >> 10} KiB")


@pytest.fixture
def packed(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    rows = [{"id": f"k{number}", "text": f"text {number} " * (number % 50 + 1)} for number in range(150)]
    (tmp_path / "c.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    ss.pack(
        tmp_path / "c.jsonl",
        tmp_path / "packed",
        workers=1,
        frame_size="4KiB",
        shard_size="24KiB",
        **request.param,
    )
    return tmp_path / "packed"


KINDS = [{}, {"compression": "none"}, {"tokenizer": "bytes", "eos": 256}]


def in_a_process(packed: Path, count: int) -> None:
    command = [sys.executable, __file__, str(packed), str(count)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    print(done.stdout)


@pytest.mark.parametrize("packed", KINDS, ids=["zstd", "none", "tokens"], indirect=True)
def test_random_damage_is_a_typed_error_or_the_right_bytes(packed: Path, pytestconfig: pytest.Config) -> None:
    in_a_process(packed, 3_400 if pytestconfig.getoption("--long") else 800)


if __name__ == "__main__":
    run(Path(sys.argv[1]), int(sys.argv[2]), seed=1)
