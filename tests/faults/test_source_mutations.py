"""Random damage to the input of a pack: a typed error, or a dataset that is whole."""

from __future__ import annotations

import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

import shardstream as ss
from shardstream.errors import ShardstreamError
from tests.faults.test_mutations import LIMIT, damage
from tests.packing.inputs import INPUTS

SECONDS = 20.0  # of one pack of a few KiB


def attempt(format: str, folder: Path, dest: Path, on_error: str) -> bool:
    """Whether the input was packed, and then the dataset must be whole; False for a typed error."""
    before = time.monotonic()
    try:
        ss.pack(folder, dest, format=format, workers=1, on_error=on_error, **INPUTS[format].options)  # type: ignore[call-overload]
    except ShardstreamError:
        return False
    finally:
        assert time.monotonic() - before < SECONDS
    report = ss.verify(str(dest), deep=True)
    assert not report.problems, report.problems
    return True


def run(format: str, folder: Path, count: int, seed: int) -> None:
    """Apply `count` mutations in turn; runs in a process of its own, so that memory can be told."""
    rng = random.Random(seed)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    packed = 0
    with tempfile.TemporaryDirectory() as scratch:
        dest = Path(scratch) / "packed"
        assert attempt(format, folder, dest, "raise")
        shutil.rmtree(dest)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for number in range(count):
            path = rng.choice(files)
            data = path.read_bytes()
            if not data:
                continue
            path.write_bytes(damage(data, rng))
            packed += attempt(format, folder, dest, ("raise", "skip")[number % 2])
            path.write_bytes(data)
            shutil.rmtree(dest, ignore_errors=True)
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
        assert grown < LIMIT, f"memory grew by {grown} bytes"
        assert attempt(format, folder, dest, "raise")
    print(f"{count} mutations, {count - packed} refused, memory grew by {grown >> 10} KiB")


@pytest.mark.parametrize("format", sorted(INPUTS))
def test_random_damage_is_a_typed_error_or_a_whole_dataset(format: str, tmp_path: Path) -> None:
    INPUTS[format].make(tmp_path)
    command = [sys.executable, "-m", __name__, format, str(tmp_path), str(INPUTS[format].mutations)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    print(done.stdout)


if __name__ == "__main__":
    run(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), seed=1)
