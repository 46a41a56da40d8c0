"""WebDataset: ShardWriter; WebDataset with shuffled shards and a buffer, under WebLoader."""

from __future__ import annotations

import glob
import json
import os
from typing import Any

import numpy as np
import torch
import webdataset
import zstandard

from benchmarks.corpora import Corpus
from benchmarks.peers.common import Options, collate, count, expected, payloads, samples

__all__ = ["PACKAGES", "count", "expected", "loader", "payloads", "write"]
PACKAGES = ("webdataset",)
_BUFFER = 1000  # as in its documentation


def write(corpus: Corpus, dest: str, options: Options) -> None:
    """`ShardWriter`; zstd in `post`, since it does not close what an opener gave it."""
    os.makedirs(dest)
    size = max(4096, corpus.bytes // options["shards"]) if "shards" in options else 1 << 26
    post = _compress if options["codec"] == "zstd" else None
    pattern = os.path.join(dest, "%06d.tar")
    with webdataset.ShardWriter(pattern, maxsize=size, maxcount=1 << 30, post=post, verbose=0) as writer:
        if corpus.kind == "tokens":
            for number, row in enumerate(corpus.rows()):
                writer.write({"__key__": f"{number:08d}", "tokens": row.tobytes()})
        elif corpus.kind == "documents":
            for number, row in enumerate(samples(corpus)):
                meta = {"id": row["id"], "bytes": row["bytes"]}
                writer.write({"__key__": f"{number:08d}", "txt": row["text"], "json": meta})
        else:
            for number, row in enumerate(samples(corpus)):
                writer.write({"__key__": f"{number:08d}", "jpg": row["image"], "cls": row["label"]})


def _compress(path: str) -> None:
    with open(path, "rb") as raw, open(f"{path}.zst", "wb") as stored:
        zstandard.ZstdCompressor(level=3, write_checksum=True).copy_stream(raw, stored)
    os.remove(path)


class _Decode:
    """From a sample's bytes to what the model wants."""

    def __init__(self, corpus: Corpus) -> None:
        self.kind, self.dtype = corpus.kind, corpus.dtype

    def __call__(self, sample: dict[str, Any]) -> Any:
        if self.kind == "tokens":
            return torch.from_numpy(np.frombuffer(sample["tokens"], self.dtype).astype(np.int64))
        if self.kind == "documents":
            return {"text": sample["txt"].decode()} | json.loads(sample["json"])
        return {"image": sample["jpg"], "label": int(sample["cls"])}


def loader(corpus: Corpus, dest: str, options: Options) -> Any:
    """A WebLoader over batches made in the workers."""
    urls = sorted(glob.glob(os.path.join(dest, "*.tar*")))
    if "remote" in options:
        # Of S3 it knows nothing: it runs curl. Signed URLs are what curl can fetch.
        urls = [f"pipe:curl -s -f '{url}'" for url in options["remote"]["signed"]]
    if options["codec"] == "zstd":
        urls = [f"pipe:zstd -dcq {url}" for url in urls]
    dataset = webdataset.WebDataset(urls, shardshuffle=100, seed=1, empty_check=False)
    batched = (
        dataset.shuffle(_BUFFER)
        .map(_Decode(corpus))
        .batched(options["batch"], collation_fn=torch.stack if corpus.kind == "tokens" else collate(options))
    )
    return webdataset.WebLoader(batched, batch_size=None, num_workers=options["workers"])
