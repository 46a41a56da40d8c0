"""What the ranks of these tests run: a loader, its state, and what it delivered."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

import shardstream as ss
from tests.distributed import launch

TOKENS = {"seq_len": 32}


def pack(folder: Path, kind: str, documents: int = 240) -> Path:
    """A dataset of distinct samples, or of distinct blocks of tokens, in several shards and frames."""
    rng = np.random.default_rng(1)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "corpus.jsonl").open("w") as file:
        for number in range(documents):
            text = bytes(rng.integers(97, 123, int(rng.integers(60, 200))).astype(np.uint8)).decode()
            file.write(json.dumps({"id": f"{number:05d}", "text": text}) + "\n")
    options: dict[str, Any] = {"tokenizer": "bytes", "eos": 256} if kind == "tokens" else {}
    ss.pack(
        folder / "corpus.jsonl",
        folder / kind,
        workers=1,
        frame_size="2KiB",
        shard_size="8KiB",
        **options,
    )
    return folder / kind


def dataset(url: Path, **options: Any) -> Any:
    """The dataset at a path that `pack` returned, shuffled unless options say otherwise."""
    options = {"shuffle": ss.Shuffle(seed=5), **options}
    if url.name == "tokens":
        return ss.TokenDataset(url, **TOKENS, **options)
    return ss.StreamingDataset(url, **options)


def name(item: dict[str, Any]) -> str:
    """What identifies a sample or a block."""
    if "__key__" in item:
        return str(item["__key__"])
    return hashlib.blake2b(np.asarray(item["tokens"]).tobytes(), digest_size=8).hexdigest()


def names(batch: dict[str, Any]) -> list[str]:
    """What identifies each item of a batch, those that pad left out."""
    size = len(next(iter(batch.values())))
    pads = batch["__pad__"].tolist() if "__pad__" in batch else [False] * size
    if "__key__" in batch:
        rows = list(batch["__key__"])
    else:
        rows = [name({"tokens": row}) for row in batch["tokens"]]
    return [row for row, pad in zip(rows, pads, strict=True) if not pad]


def everything(url: Path) -> list[str]:
    """The names of all items, sorted."""
    found = sorted(name(item) for item in dataset(url, shuffle=False, topology=ss.Topology()))
    assert len(found) == len(set(found))
    return found


def some_batches(url: Path, batch_size: int, state: dict[str, Any] | None, count: int | None) -> Any:
    """Deliver `count` batches, or the rest of the epoch, and tell what they were."""
    with launch.group() as dist:
        loader = ss.StreamingLoader(dataset(url), batch_size, last="short")
        if state is not None:
            loader.load_state_dict(state)
        seen: list[list[str]] = []
        iterator = iter(loader)
        while count is None or len(seen) < count:
            batch = next(iterator, None)
            # Nobody may wait for a rank that has no batch left.
            ready = [None] * dist.get_world_size()
            dist.all_gather_object(ready, batch is not None)
            assert len(set(ready)) == 1, ready
            if batch is None:
                break
            seen.append(names(batch))
        return {
            "place": [loader.ds.topology.dp_rank, loader.ds.topology.dp_size],
            "rank": [dist.get_rank(), dist.get_world_size()],
            "seen": seen,
            "state": loader.state_dict(),
        }
