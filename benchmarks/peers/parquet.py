"""torch's DataLoader over Parquet: pyarrow reads row groups in random order, a buffer shuffles their rows."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from benchmarks.corpora import Corpus
from benchmarks.peers.common import Options, collate, count, expected, payloads, samples
from benchmarks.peers.records import stored

__all__ = ["PACKAGES", "count", "expected", "loader", "payloads", "write"]
PACKAGES = ("pyarrow",)
_FILES = 16
_GROUP = 4 << 20  # bytes of a row group, roughly
_BUFFER = 1000  # samples that are shuffled


def _rows(corpus: Corpus) -> Iterator[dict[str, Any]]:
    if corpus.kind == "tokens":
        yield from ({"tokens": row} for row in corpus.rows().astype(stored(corpus)))
    else:
        yield from samples(corpus)


def _schema(corpus: Corpus) -> pa.Schema:
    number = pa.int32() if corpus.dtype == "uint32" else pa.uint16()
    return pa.schema(
        {
            "tokens": {"tokens": pa.list_(number, corpus.block)},
            "documents": {"id": pa.string(), "text": pa.string(), "bytes": pa.int64()},
            "images": {"image": pa.binary(), "label": pa.int64()},
        }[corpus.kind]
    )


def write(corpus: Corpus, dest: str, options: Options) -> None:
    """`ParquetWriter`, a row group at a time into each file in turn."""
    os.makedirs(dest)
    schema, codec = _schema(corpus), options.get("codec", "none")
    writers = [
        pq.ParquetWriter(f"{dest}/{number:05d}.parquet", schema, compression=codec)
        for number in range(_FILES)
    ]
    group, waiting, turn = max(1, _GROUP * corpus.count // max(1, corpus.bytes)), [], 0
    for row in _rows(corpus):
        waiting.append(row)
        if len(waiting) == group:
            writers[turn % _FILES].write_table(pa.Table.from_pylist(waiting, schema))
            waiting, turn = [], turn + 1
    if waiting:
        writers[turn % _FILES].write_table(pa.Table.from_pylist(waiting, schema))
    for writer in writers:
        writer.close()


class _Groups(IterableDataset[Any]):
    """The rows of all row groups, those of each worker apart."""

    def __init__(self, corpus: Corpus, dest: str) -> None:
        self._tokens, self._epoch = corpus.kind == "tokens", 0
        self._files = sorted(Path(dest).glob("*.parquet"))

    def set_epoch(self, epoch: int) -> None:
        """Shuffle in another way."""
        self._epoch = epoch

    def _samples(self) -> Iterator[Any]:
        files = [pq.ParquetFile(path, memory_map=True) for path in self._files]
        groups = [(file, number) for file in files for number in range(file.num_row_groups)]
        self._random.shuffle(groups)
        worker = get_worker_info()
        mine = groups if worker is None else groups[worker.id :: worker.num_workers]
        for file, number in mine:
            table = file.read_row_group(number)
            if self._tokens:
                column = table.column("tokens").combine_chunks()
                flat = column.flatten().to_numpy(zero_copy_only=True)
                yield from torch.from_numpy(np.array(flat)).view(table.num_rows, -1)
            else:
                yield from table.to_pylist()

    def __iter__(self) -> Iterator[Any]:
        self._random = random.Random(self._epoch)
        waiting: list[Any] = []
        for sample in self._samples():
            if len(waiting) < _BUFFER:
                waiting.append(sample)
                continue
            place = self._random.randrange(_BUFFER)
            yield waiting[place]
            waiting[place] = sample
        self._random.shuffle(waiting)
        yield from waiting


class _Epochs:
    """The DataLoader, shuffled anew each time."""

    def __init__(self, dataset: _Groups, made: Any) -> None:
        self._dataset, self._made, self._epoch = dataset, made, 0

    def __iter__(self) -> Iterator[Any]:
        self._epoch += 1
        self._dataset.set_epoch(self._epoch)
        return iter(self._made)


def loader(corpus: Corpus, dest: str, options: Options) -> Any:
    """A DataLoader over row groups."""
    dataset = _Groups(corpus, dest)
    join = torch.stack if corpus.kind == "tokens" else collate(options)
    return _Epochs(
        dataset,
        DataLoader(dataset, options["batch"], num_workers=options["workers"], collate_fn=join),
    )
