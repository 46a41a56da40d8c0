"""SPDL's pipeline of threads over loose files, read as they are."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from spdl.pipeline import PipelineBuilder

from benchmarks.corpora import Corpus
from benchmarks.peers.common import Options, count, expected, payloads

__all__ = ["PACKAGES", "count", "expected", "loader", "payloads", "write"]
PACKAGES = ("spdl-core",)


def write(corpus: Corpus, dest: str, options: Options) -> None:
    """Nothing: it reads the corpus as it is."""
    os.makedirs(dest)


def _read(item: tuple[str, int]) -> dict[str, Any]:
    path, label = item
    return {"image": Path(path).read_bytes(), "label": label}


class _Loader:
    def __init__(self, corpus: Corpus, options: Options) -> None:
        self._images, self._batch = corpus.images(), options["batch"]
        self._threads, self._random = os.cpu_count() or 1, np.random.default_rng(1)

    def _batches(self) -> Iterator[list[tuple[str, int]]]:
        order = self._random.permutation(len(self._images)).tolist()
        for begin in range(0, len(order), self._batch):
            yield [self._images[number] for number in order[begin : begin + self._batch]]

    def __iter__(self) -> Iterator[Any]:
        # A batch in one call: with a call for each file, handing over is most of the work.
        pipeline = (
            PipelineBuilder()
            .add_source(self._batches())
            .pipe(lambda batch: [_read(item) for item in batch], concurrency=self._threads)
            .add_sink(4)
            .build(num_threads=self._threads)
        )
        with pipeline.auto_stop():
            yield from pipeline


def loader(corpus: Corpus, dest: str, options: Options) -> Any:
    """A pipeline for each epoch."""
    return _Loader(corpus, options)
