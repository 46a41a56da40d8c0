"""Rows of further peers, which the questions of tokens, documents and images take over."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from benchmarks.question import Contender, Question

GRAIN, TFRECORD, PARQUET = "Grain, ArrayRecord", "tf.data, TFRecord", "Parquet, DataLoader"

# Of tokens, documents and images, uncompressed as their peers are.
RECORDS = (
    Contender(GRAIN, "grain_records", "peer", dataset="grain"),
    Contender(f"{GRAIN}, no threads", "grain_records", "peer", {"threads": 0}, dataset="grain"),
    Contender(TFRECORD, "tfrecord", "peer", dataset="tfrecord"),
    Contender(PARQUET, "parquet", "peer", {"codec": "none"}, (0, 2)),
)
# Of tokens and documents.
ZSTD = (Contender(f"{PARQUET}, zstd", "parquet", "peer", {"codec": "zstd"}, (0, 2)),)
# Of images, bytes only.
SPDL = (Contender("SPDL, loose files", "spdl_bytes", "peer", dataset="plain"),)


def reading(options: dict[str, Any], contenders: tuple[Contender, ...]) -> tuple[Contender, ...]:
    """These contenders with further options."""
    return tuple(replace(each, options=options | each.options) for each in contenders)


NOTES = (
    "Grain shuffles all records, each a group of its own; without threads is its advice for data in memory. "
    "tf.data and Parquet shuffle through a buffer of 1,000 samples, behind 16 files or row groups of 4 MB in "
    "random order. tf.data gives texts as bytes, not decoded."
)

QUESTIONS: tuple[Question, ...] = ()
