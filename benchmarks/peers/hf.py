"""HF datasets: Arrow on disk, map-style under DataLoader; or with options["streaming"], iterable."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import datasets
import numpy as np
from torch.utils.data import DataLoader

from benchmarks.corpora import Corpus
from benchmarks.peers.common import Options, collate, expected, samples
from benchmarks.peers.common import payloads as common_payloads

__all__ = ["PACKAGES", "count", "expected", "loader", "payloads", "write"]
PACKAGES = ("datasets", "pyarrow")


def _rows(corpus: Corpus) -> Iterator[dict[str, Any]]:
    if corpus.kind == "tokens":
        kind = np.int32 if corpus.dtype == "uint32" else np.uint16
        yield from ({"tokens": row.astype(kind)} for row in corpus.rows())
    else:
        yield from samples(corpus)


def write(corpus: Corpus, dest: str, options: Options) -> None:
    """`Dataset.from_generator` and `save_to_disk`."""
    value = datasets.Value
    kind = "int32" if corpus.dtype == "uint32" else "uint16"
    columns = {
        "tokens": {"tokens": datasets.Sequence(value(kind), length=corpus.block)},
        "documents": {"id": value("string"), "text": value("string"), "bytes": value("int64")},
        "images": {"image": value("binary"), "label": value("int64")},
    }[corpus.kind]
    made = datasets.Dataset.from_generator(
        _rows, features=datasets.Features(columns), gen_kwargs={"corpus": corpus}, cache_dir=f"{dest}.cache"
    )
    shards = {"num_shards": options["shards"]} if "shards" in options else {"max_shard_size": "64MB"}
    if options.get("parquet"):
        os.makedirs(dest)
        for number in range(count := options["shards"]):
            made.shard(count, number, contiguous=True).to_parquet(f"{dest}/{number:06d}.parquet")
        return
    made.save_to_disk(dest, **shards)


def loader(corpus: Corpus, dest: str, options: Options) -> Any:
    """A DataLoader; streaming shuffles with a buffer."""
    remote = options.get("remote")
    dataset = None if remote is not None else datasets.load_from_disk(dest)
    tokens = corpus.kind == "tokens"
    streaming = options.get("streaming", False)
    if remote is not None:
        # s3fs asks for another botocore than boto3, which LitData and MDS need, does: so over HTTP.
        dataset = datasets.load_dataset(
            "parquet", data_files=remote["signed"], streaming=True, split="train", cache_dir=remote["cache"]
        ).shuffle(seed=1, buffer_size=1000)
    elif streaming:
        # As many pieces as the workers can share.
        dataset = dataset.to_iterable_dataset(num_shards=64).shuffle(seed=1, buffer_size=1000)
    if tokens:
        dataset = dataset.with_format("torch")
    return DataLoader(
        dataset,
        batch_size=options["batch"],
        shuffle=None if streaming else True,
        num_workers=options["workers"],
        collate_fn=None if tokens else collate(options),
    )


def payloads(corpus: Corpus, batch: Any) -> Any:
    """A batch of tokens is a dict."""
    return common_payloads(corpus, batch["tokens"] if corpus.kind == "tokens" else batch)


def count(batch: Any) -> int:
    """The samples of a list, or of a dict of tensors."""
    return len(next(iter(batch.values()))) if type(batch) is dict else len(batch)
