"""Random damage to the input of a pack: a typed error, or the samples that another reader finds, too."""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import pytest

import shardstream as ss
from shardstream.errors import ShardstreamError
from shardstream.read.reader import DatasetReader
from tests.faults.input_damage import damaged
from tests.packing.inputs import INPUTS
from tests.packing.oracles import ORACLES, UnsureError, canonical

HANG = 60.0  # seconds of one pack of a few KiB, after which its process ends with the stacks of its threads
ROOM = 2 << 30  # bytes that a process may ask for beyond what it has: no size in a header is believed
FEW = 40  # mutations of each input in the default run
MANY = 400


def attempt(name: str, folder: Path, dest: Path, on_error: str) -> bool:
    """Whether the input was packed, and then the samples must be right; False for a typed error."""
    case = INPUTS[name]
    faulthandler.dump_traceback_later(HANG, exit=True)
    try:
        ss.pack(
            case.url.format(folder=folder),
            dest,
            format=case.format,
            workers=1,
            on_error=on_error,
            **case.options,
        )  # type: ignore[call-overload]
    except ShardstreamError:
        return False
    finally:
        faulthandler.cancel_dump_traceback_later()
    report = ss.verify(str(dest), deep=True)
    assert not report.problems, report.problems
    if name in ORACLES:
        check(name, folder, dest, on_error)
    return True


def check(name: str, folder: Path, dest: Path, on_error: str) -> None:
    """Compare the samples with those that another reader finds."""
    packed = Counter(canonical(fields) for _, fields in DatasetReader.open(str(dest)).iter_samples())
    rejects = dest / "rejects.jsonl"
    refused = len(rejects.read_bytes().splitlines()) if rejects.exists() else 0
    try:
        found = list(ORACLES[name](folder))
    except UnsureError:
        return
    except Exception as error:
        if on_error == "skip" and refused:
            return  # what was packed lies before the damage
        raise AssertionError(f"another reader refuses it: {error!r}") from error
    expected = Counter(canonical(fields) for fields in found if fields is not None)
    if on_error == "raise":
        assert None not in found, "a bad row was accepted"
        assert packed == expected, f"{packed - expected} for {expected - packed}"
    else:
        assert not packed - expected, f"{packed - expected} for {expected - packed}"
        # A reject may be the rest of a file.
        assert refused or packed == expected, f"lost: {expected - packed}"


def run(name: str, folder: Path, count: int, seed: int) -> None:
    """Apply `count` mutations in turn; runs in a process of its own, so that memory and crashes are told."""
    rng = random.Random(seed)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    packed = 0
    with tempfile.TemporaryDirectory() as scratch:
        dest = Path(scratch) / "packed"
        assert attempt(name, folder, dest, "raise")
        shutil.rmtree(dest)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        held = int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_DATA, (held + ROOM, resource.RLIM_INFINITY))
        for number in range(count):
            path = rng.choice(files)
            data = path.read_bytes()
            bad = damaged(path, data, rng) if data else rng.randbytes(16)
            path.write_bytes(bad)
            (folder.parent / "last").write_bytes(f"{number} {path}\n".encode())
            try:
                packed += attempt(name, folder, dest, ("raise", "skip")[number % 2])
            except BaseException:
                keep(folder, Path(tempfile.gettempdir()) / f"mutation-{name}-{seed}-{number}")
                raise
            path.write_bytes(data)
            shutil.rmtree(dest, ignore_errors=True)
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
        assert grown < INPUTS[name].memory, f"memory grew by {grown} bytes"
        assert attempt(name, folder, dest, "raise")
    print(json.dumps({"mutations": count, "refused": count - packed, "KiB": grown >> 10}))


def keep(folder: Path, where: Path) -> None:
    with contextlib.suppress(OSError):
        shutil.copytree(folder, where)


@pytest.mark.parametrize("name", sorted(INPUTS))
def test_random_damage_is_a_typed_error_or_right_samples(
    name: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    (tmp_path / "in").mkdir()
    INPUTS[name].make(tmp_path / "in")
    long = request.config.getoption("--long")
    count, seed = (MANY, random.SystemRandom().randrange(1 << 32)) if long else (FEW, 1)
    command = [sys.executable, "-m", __name__, name, str(tmp_path / "in"), str(count), str(seed)]
    # Arrow's own allocator takes a GiB of addresses at once.
    env = {**os.environ, "ARROW_DEFAULT_MEMORY_POOL": "system"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, env=env)
    last = tmp_path / "last"
    where = last.read_text() if last.exists() else "no mutation"
    assert done.returncode == 0, f"seed {seed}, exit {done.returncode} at {where}{done.stdout}{done.stderr}"
    print(done.stdout)


if __name__ == "__main__":
    run(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
