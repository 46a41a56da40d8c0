"""The names of the formats that `pack` reads. Without imports, so that a command can show them at once."""

from __future__ import annotations

from typing import Literal, get_args

__all__ = ["FORMATS", "Format"]

Format = Literal[
    "webdataset",
    "jsonl",
    "text",
    "images",
    "bin",
    "parquet",
    "csv",
    "json",
    "arrow",
    "hf",
    "mds",
    "litdata",
    "tfrecord",
    "sql",
    "files",
]
FORMATS: tuple[Format, ...] = get_args(Format)
