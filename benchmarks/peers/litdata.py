"""LitData: optimize() to write; StreamingDataset and StreamingDataLoader, TokensLoader for tokens."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from typing import Any

import litdata
import numpy as np
import torch
from litdata.streaming import downloader

from benchmarks.corpora import Corpus
from benchmarks.peers.common import Options, collate, count, expected, payloads, samples

__all__ = ["PACKAGES", "count", "expected", "loader", "payloads", "resume", "state", "write"]
PACKAGES = ("litdata",)
_STEP = 512  # blocks


def _tokens(corpus: Corpus, start: int) -> Iterator[Any]:
    rows = corpus.rows()[start : start + _STEP]
    # Ids are below 2**31: int32 is what LitData's examples store.
    yield torch.from_numpy(rows.reshape(-1).astype(np.int32 if corpus.dtype == "uint32" else np.uint16))


def _all(corpus: Corpus, _part: int) -> Iterator[dict[str, Any]]:
    yield from samples(corpus)


def write(corpus: Corpus, dest: str, options: Options) -> None:
    """`litdata.optimize`."""
    common: dict[str, Any] = {"output_dir": dest, "num_workers": 1, "verbose": False}
    if options.get("codec", "none") != "none":
        common["compression"] = options["codec"]
    if corpus.kind == "tokens":
        litdata.optimize(
            functools.partial(_tokens, corpus),
            list(range(0, corpus.count, _STEP)),
            chunk_size=corpus.block * 8012,
            item_loader=litdata.TokensLoader(),
            **common,
        )
        return
    size = max(4096, corpus.bytes // options["shards"]) if "shards" in options else "64MB"
    litdata.optimize(functools.partial(_all, corpus), [0], chunk_bytes=size, **common)


def loader(corpus: Corpus, dest: str, options: Options) -> Any:
    """A StreamingDataLoader."""
    tokens, remote, more = corpus.kind == "tokens", options.get("remote"), {}
    if remote is not None:
        # It gives obstore no leave to go without TLS: without obstore it takes boto3, which goes.
        downloader._OBSTORE_AVAILABLE = False  # noqa: SLF001
        more = {
            "cache_dir": remote["cache"],
            "storage_options": {
                "endpoint_url": remote["endpoint"],
                "aws_access_key_id": remote["key"],
                "aws_secret_access_key": remote["secret"],
            },
        }
    dataset = litdata.StreamingDataset(
        input_dir=os.path.abspath(dest) if remote is None else remote["url"],
        **more,
        item_loader=litdata.TokensLoader(block_size=corpus.block) if tokens else None,
        shuffle=True,
        drop_last=False,
        seed=1,
    )
    return litdata.StreamingDataLoader(
        dataset,
        batch_size=options["batch"],
        num_workers=options["workers"],
        drop_last=False,
        collate_fn=None if tokens else collate(options),
    )


def state(corpus: Corpus, dest: str, options: Options, fraction: float) -> Any:
    """What a loader's state is after that part of an epoch: a real one, with other numbers in it."""
    made = loader(corpus, dest, options)
    next(iter(made))
    number = int(corpus.count * fraction) // options["batch"] * options["batch"]
    dataset = made.dataset.state_dict(number, made.num_workers, options["batch"])
    return made.state_dict() | {"dataset": dataset, "num_samples_yielded": number}


def resume(corpus: Corpus, dest: str, options: Options, state: Any) -> Any:
    """A loader with a state loaded."""
    made = loader(corpus, dest, options)
    made.load_state_dict(state)
    return made
