"""Datasets of many files under a low limit of descriptors: maps hold none."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import shardstream as ss
from shardstream.storage.local.maps import map_descriptor


def run(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=250, check=False
    )
    assert not done.returncode, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """About 170 shards."""
    folder = tmp_path_factory.mktemp("many")
    with (folder / "c.jsonl").open("w") as file:
        for number in range(400):
            file.write(json.dumps({"id": number, "text": f"{number} " * 500}) + "\n")
    ss.pack(
        folder / "c.jsonl", folder / "d", compression="none", shard_size="4KiB", frame_size="2KiB", workers=1
    )
    return folder / "d"


@pytest.mark.parametrize("engine", ["thread", "process"])
def test_many_datasets_of_many_shards_need_few_descriptors(url: Path, engine: str) -> None:
    code = f"""
import os, resource, shardstream as ss
resource.setrlimit(resource.RLIMIT_NOFILE, (128, 128))
many = [ss.StreamingDataset({str(url)!r}, shuffle=ss.Shuffle(seed=number)) for number in range(3)]
assert len(many[0].manifest.shards) > 128
kept = [[batch for batch in ss.StreamingLoader(ds, 16, engine={engine!r})] for ds in many[:2]]
for ds in many:
    assert sum(1 for batch in ss.StreamingLoader(ds, 16)) == 25
mixture = ss.Mixture([(ds, 1) for ds in many], stop="all")
assert sum(1 for batch in ss.StreamingLoader(mixture, 16)) >= 75
print(len(os.listdir("/proc/self/fd")))
"""
    if engine == "thread":
        code = code.replace(", engine='thread'", "")
    assert int(run(code)) < 40


def test_a_map_outlives_its_descriptor_and_ends_with_its_last_view(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(range(256)) * 64)
    descriptor = os.open(path, os.O_RDWR)
    view, other = map_descriptor(descriptor, 1 << 14), map_descriptor(descriptor, 1 << 14, writable=True)
    os.close(descriptor)
    assert view.readonly
    other[3:5] = b"xy"
    assert bytes(view[2:6]) == b"\x02xy\x05"

    def mapped() -> int:
        return Path("/proc/self/maps").read_text().count(str(path))

    part = view[4:9]
    del view, other
    assert mapped() == 1
    del part
    assert mapped() == 0
    assert bytes(map_descriptor(-1, 0)) == b""
    with pytest.raises(OSError, match="Bad file descriptor"):
        map_descriptor(-1, 10)
