"""Grain over ArrayRecord files: a MapDataset that shuffles all records, read by Grain's threads."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grain
import torch
from array_record.python.array_record_module import ArrayRecordWriter

from benchmarks.corpora import Corpus
from benchmarks.peers.common import Options, collate, count, expected, payloads
from benchmarks.peers.records import packed, unpacked

__all__ = ["PACKAGES", "count", "expected", "loader", "payloads", "write"]
PACKAGES = ("grain", "array-record")
_FILES = 4


def write(corpus: Corpus, dest: str, options: Options) -> None:
    """Several files, one record in a group, as ArrayRecord asks for reads in random order."""
    os.makedirs(dest)
    writers = [
        ArrayRecordWriter(f"{dest}/{number:05d}-of-{_FILES:05d}.array_record", "group_size:1,uncompressed")
        for number in range(_FILES)
    ]
    for number, record in enumerate(packed(corpus)):
        writers[number % _FILES].write(record)
    for writer in writers:
        writer.close()


class _Loader:
    """Each epoch is the next one of one MapDataset, so that it has a shuffle of its own."""

    def __init__(self, corpus: Corpus, dest: str, options: Options) -> None:
        source = grain.sources.ArrayRecordDataSource(sorted(map(str, Path(dest).glob("*.array_record"))))
        join = torch.stack if corpus.kind == "tokens" else collate(options)
        self._made = (
            grain.MapDataset.source(source)
            .seed(1)
            .shuffle()
            .map(lambda record: unpacked(corpus, record))
            .batch(options["batch"], batch_fn=lambda rows: join(list(rows)))
        )
        # Threads read ahead; Grain's advice for data in memory is to have none, which the other row is.
        self._read = grain.ReadOptions(num_threads=options.get("threads", 16))
        self._epoch = 0

    def __iter__(self) -> Iterator[Any]:
        begin = self._epoch * len(self._made)
        self._epoch += 1
        return iter(self._made.repeat()[begin : begin + len(self._made)].to_iter_dataset(self._read))


def loader(corpus: Corpus, dest: str, options: Options) -> Any:
    """A MapDataset and its threads."""
    return _Loader(corpus, dest, options)
