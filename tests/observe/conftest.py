"""Datasets that probe, bench and advise read."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import shardstream as ss


@pytest.fixture(scope="session")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """400,000 tokens in 8 shards of zstd."""
    folder = tmp_path_factory.mktemp("tokens")
    values = np.random.default_rng(0).integers(1, 5000, 400_000).astype(np.uint16)
    values[::500] = 0
    values.tofile(folder / "tokens.bin")
    common = {"shard_size": "128KiB", "frame_size": "16KiB", "workers": 1}
    ss.pack(folder / "tokens.bin", folder / "packed", format="bin", dtype="uint16", eos=0, **common)  # type: ignore[arg-type]
    return folder / "packed"


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """120 JPEGs with their classes."""
    folder = tmp_path_factory.mktemp("images")
    draw = np.random.default_rng(0)
    file = io.BytesIO()
    Image.fromarray(draw.integers(0, 255, (64, 80, 3), np.uint8)).save(file, "JPEG")
    rows = [{"__key__": f"{number:03d}", "jpg": file.getvalue(), "cls": number % 3} for number in range(120)]
    ss.pack(rows, folder / "packed", shard_size="128KiB", frame_size="16KiB", workers=1)
    return folder / "packed"
