"""Samples as single records of bytes, for formats that hold records and nothing else."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

import numpy as np

from benchmarks.corpora import Corpus
from benchmarks.peers.common import samples

__all__ = ["packed", "stored", "unpacked"]

_HEAD = struct.Struct("<qI")  # a number, and the bytes of an id


def stored(corpus: Corpus) -> Any:
    """The dtype of tokens that a peer stores: ids are below 2**31."""
    return np.dtype(np.int32 if corpus.dtype == "uint32" else np.uint16)


def packed(corpus: Corpus) -> Iterator[bytes]:
    """Tokens as they are; of documents and images a head, the id, and the text or the image."""
    if corpus.kind == "tokens":
        kind = stored(corpus)
        yield from (row.astype(kind).tobytes() for row in corpus.rows())
        return
    for sample in samples(corpus):
        if corpus.kind == "documents":
            name = sample["id"].encode()
            yield _HEAD.pack(sample["bytes"], len(name)) + name + sample["text"].encode()
        else:
            yield _HEAD.pack(sample["label"], 0) + sample["image"]


def unpacked(corpus: Corpus, record: bytes) -> Any:
    """The sample of a record; tokens as a tensor of what is stored."""
    if corpus.kind == "tokens":
        import torch

        return torch.from_numpy(np.frombuffer(bytearray(record), stored(corpus)))
    number, length = _HEAD.unpack_from(record)
    if corpus.kind == "documents":
        end = _HEAD.size + length
        return {"id": record[_HEAD.size : end].decode(), "text": record[end:].decode(), "bytes": number}
    return {"image": record[_HEAD.size :], "label": number}
