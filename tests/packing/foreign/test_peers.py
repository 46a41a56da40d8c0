"""Datasets that other tools write now, in an environment of their own: in is out, as their readers see it.

SHARDSTREAM_PEERS names the Python of that environment:

    python -m venv peers && peers/bin/pip install mosaicml-streaming litdata datasets webdataset
    SHARDSTREAM_PEERS=$PWD/peers/bin/python pytest --long tests/packing/foreign/test_peers.py

Without it files that these tools once wrote are read by tests/contracts/test_sources_peers.py.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import shardstream as ss
from shardstream.read.reader import DatasetReader

PEERS = os.environ.get("SHARDSTREAM_PEERS")
pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(not PEERS, reason="SHARDSTREAM_PEERS names no Python that has the other tools"),
]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("peers")
    command = [str(PEERS), str(Path(__file__).with_name("peers.py")), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def found_in(dest: Path) -> list[dict[str, Any]]:
    """What `peers.py` says of a dataset, of ours."""
    samples = []
    for _, fields in DatasetReader.open(str(dest)).iter_samples():
        values = json.loads(fields.pop("json", b"{}"))
        samples.append(
            {"fields": {name: digest(name, data) for name, data in fields.items()}, "json": values}
        )
    return samples


def digest(name: str, data: bytes) -> str:
    if name == "pil":
        with Image.open(io.BytesIO(data)) as image:
            data = f"{image.mode} {image.size} ".encode() + image.tobytes()
    return hashlib.sha256(data).hexdigest()


def test_all_that_they_write_is_packed(written: Path, tmp_path: Path) -> None:
    names = sorted(path.stem for path in written.glob("*.json"))
    assert len(names) == 7 + 2 + 7 + 2
    for name in names:
        told = json.loads((written / f"{name}.json").read_text())
        expected = told["samples"]
        options: dict[str, Any] = {}
        if not name.startswith("webdataset"):
            fields = list(expected[0]["fields"])
            options = {"column": dict(zip(fields, fields, strict=True)), "keep": told["keep"]}
        if name.startswith("litdata"):
            options["format"] = "litdata"
        manifest = ss.pack(written / name, tmp_path / name, workers=1, **options)
        assert manifest.provenance["rejected"] == 0
        assert found_in(tmp_path / name) == expected, name
