"""The two datasets of `python -m benchmarks.advise`."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["make"]


def make(folder: Path) -> None:
    """The two datasets: 384 M tokens in zstd, and 4,000 JPEGs of about 90 KB; each is made once."""
    import shardstream as ss

    folder.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(0)
    common: dict[str, Any] = {"shard_size": "8MiB", "frame_size": "256KiB", "workers": 2}
    if not (folder / "tokens").exists():
        tokens = np.minimum(draw.zipf(1.3, 384_000_000), 50_000).astype(np.uint16)
        tokens[::1000] = 0
        tokens.tofile(folder / "tokens.bin")
        ss.pack(folder / "tokens.bin", folder / "tokens", format="bin", dtype="uint16", eos=0, **common)
        (folder / "tokens.bin").unlink()
    if not (folder / "jpeg").exists():
        ss.pack(_images(draw), folder / "jpeg", **common)


def _images(draw: Any) -> Iterator[dict[str, Any]]:
    from PIL import Image

    y, x = np.mgrid[0:400, 0:500]
    files = []
    for _ in range(40):
        waves = [np.sin(x / draw.uniform(10, 60) + y / draw.uniform(10, 60)) for _ in range(3)]
        pixels = 127 + 100 * np.stack(waves, -1) + draw.normal(0, 18, (400, 500, 1))
        file = io.BytesIO()
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=85)
        files.append(file.getvalue())
    for number in range(4000):
        yield {"__key__": f"{number:06d}", "jpg": files[number % len(files)], "cls": number % 10}
