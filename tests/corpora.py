"""Small datasets made from rows, and what is in the folder of a dataset."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import shardstream as ss
from shardstream.packing.rejects import REJECTS
from shardstream.read.reader import DatasetReader


def pack_rows(folder: Path, rows: Iterable[dict[str, Any]], **options: Any) -> Path:
    """The dataset of these rows of JSONL, packed by one worker below `folder`."""
    with (folder / "corpus.jsonl").open("w") as file:
        for row in rows:
            file.write(json.dumps(row) + "\n")
    ss.pack(folder / "corpus.jsonl", folder / "packed", workers=1, **options)
    return folder / "packed"


def digests(folder: Path) -> dict[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def lines(path: Path, rows: list[object]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    return path


def texts(dest: object) -> list[tuple[str, str]]:
    return [(key, fields["txt"].decode()) for key, fields in DatasetReader.open(str(dest)).iter_samples()]


def sound(dest: object) -> bool:
    return ss.verify(str(dest), deep=True).sound


def is_clean(folder: Path) -> bool:
    """Whether a dataset's folder holds nothing but what the manifest names."""
    manifest = json.loads((folder / "manifest.json").read_bytes())
    named = {url for shard in manifest["shards"] for url in (shard["url"], shard["index_url"])}
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    hidden = {name for name in os.listdir(folder) if name.startswith(".")}
    return (files | hidden) - {REJECTS} == named | {"manifest.json"}
