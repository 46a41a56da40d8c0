"""Datasets of samples that are given as bytes."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping
from pathlib import Path

import shardstream as ss

__all__ = ["tar"]


def tar(folder: Path, samples: Mapping[str, Mapping[str, bytes]]) -> str:
    """A dataset of these samples, in their order, at the path that is returned."""
    with tarfile.open(folder / "a.tar", "w") as out:
        for key, fields in samples.items():
            for name, data in fields.items():
                info = tarfile.TarInfo(f"{key}.{name}")
                info.size = len(data)
                out.addfile(info, io.BytesIO(data))
    ss.pack(str(folder / "a.tar"), str(folder / "packed"), format="webdataset")
    return str(folder / "packed")
