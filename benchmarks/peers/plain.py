"""np.memmap and loose files under torch's DataLoader, as training scripts do without a library."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from benchmarks.corpora import Corpus
from benchmarks.peers.common import Options, collate, count, expected, payloads

__all__ = ["PACKAGES", "count", "expected", "loader", "payloads", "write"]
PACKAGES = ()


def write(corpus: Corpus, dest: str, options: Options) -> None:
    """Nothing: both read the corpus as it is."""
    os.makedirs(dest)


class _Rows(Dataset[Any]):
    def __init__(self, corpus: Corpus) -> None:
        self._rows = corpus.rows()

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, number: int) -> Any:
        return torch.from_numpy(self._rows[number].astype(np.int64))


class _Images(Dataset[Any]):
    def __init__(self, corpus: Corpus) -> None:
        self._images = corpus.images()

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, number: int) -> Any:
        path, label = self._images[number]
        return {"image": Path(path).read_bytes(), "label": label}


def loader(corpus: Corpus, dest: str, options: Options) -> Any:
    """A DataLoader that shuffles."""
    tokens = corpus.kind == "tokens"
    return DataLoader(
        _Rows(corpus) if tokens else _Images(corpus),
        batch_size=options["batch"],
        shuffle=True,
        num_workers=options["workers"],
        collate_fn=None if tokens else collate(options),
    )
