"""Small datasets made from rows."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import shardstream as ss


def pack_rows(folder: Path, rows: Iterable[dict[str, Any]], **options: Any) -> Path:
    """The dataset of these rows of JSONL, packed by one worker below `folder`."""
    with (folder / "corpus.jsonl").open("w") as file:
        for row in rows:
            file.write(json.dumps(row) + "\n")
    ss.pack(folder / "corpus.jsonl", folder / "packed", workers=1, **options)
    return folder / "packed"
