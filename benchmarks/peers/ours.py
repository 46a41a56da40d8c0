"""shardstream itself."""

from __future__ import annotations

import contextlib
import importlib
import os
from collections.abc import Iterator
from typing import Any

import numpy as np

import shardstream as ss
from benchmarks.corpora import Corpus, Digest, document_payload, image_payload
from benchmarks.peers.common import Options, label_payloads, token_payloads
from benchmarks.peers.common import expected as as_it_is
from shardstream.decode import images
from shardstream.read.reader import DatasetReader

# Public names are imported when they are first used, and torch with them: not while time is taken.
# So are the clients of stores.
for _client in ("s3fs", "obstore"):
    with contextlib.suppress(ImportError):
        importlib.import_module(_client)
_LOADED = (ss.StreamingDataset, ss.StreamingLoader, ss.TokenDataset, ss.pack)
PACKAGES = ("shardstream", "zstandard", "msgspec")


def write(corpus: Corpus, dest: str, options: Options) -> None:
    """`shardstream.pack`."""
    settings: dict[str, Any] = {"compression": options["codec"], "workers": os.cpu_count()}
    if "shards" in options:
        size = max(1 << 15, _raw_bytes(corpus) // options["shards"])
        settings |= {"shard_size": size, "frame_size": min(size, 1 << 20)}
    if corpus.kind == "images":
        ss.pack(corpus.file, dest, format="images", **settings)
        return
    if corpus.kind == "tokens":
        settings |= {"tokenizer": corpus.tokenizer, "eos": 256}
    ss.pack(os.path.join(corpus.folder, "documents.jsonl"), dest, format="jsonl", **settings)


def _raw_bytes(corpus: Corpus) -> int:
    """Roughly what the tars hold: two members, each with a header and padding, per document."""
    return corpus.bytes + (2560 * corpus.count if corpus.kind == "documents" else 0)


def loader(corpus: Corpus, dest: str, options: Options) -> Any:
    """A StreamingLoader; or with options["iterate"], the dataset sample by sample."""
    shuffle, remote = ss.Shuffle(seed=1), options.get("remote")
    if remote is not None:
        access = {"key": remote["key"], "secret": remote["secret"], "endpoint_url": remote["endpoint"]}
        cache = remote["cache"] if "ram" not in options else _cache(options, remote["cache"])
        dataset = ss.StreamingDataset(
            remote["url"], shuffle=shuffle, decode=False, cache=cache, storage_options=access
        )
        return ss.StreamingLoader(dataset, batch_size=options["batch"], last="short")
    if corpus.kind == "tokens":
        dtype = options.get("dtype", "int64")
        tokens = ss.TokenDataset(dest, seq_len=corpus.block - 1, dtype=dtype, shuffle=shuffle)
        return ss.StreamingLoader(tokens, batch_size=options["batch"], last="short")
    if "decode" in options:
        decoded = ss.StreamingDataset(dest, shuffle=shuffle, decode=images.Train(options["decode"]))
        return ss.StreamingLoader(decoded, batch_size=options["batch"], last="short")
    # Images: bytes only, or with options["views"] no copy of them. The class is one more field of bytes.
    decode: Any = corpus.kind != "images"
    dataset = ss.StreamingDataset(dest, shuffle=shuffle, decode="view" if options.get("views") else decode)
    if options.get("iterate"):
        return _Single(dataset)
    # What is not decoded comes as one buffer per field and batch; documents are left dict samples. So are
    # images with options["bytes"], in which each is an object of its own.
    collate = list if corpus.kind == "documents" or options.get("bytes") else None
    return ss.StreamingLoader(dataset, batch_size=options["batch"], last="short", collate=collate)


def _cache(options: Options, folder: str) -> ss.Cache:
    """A cache in memory, with options["ssd"] on the disk, too."""
    return ss.Cache(folder if options["ssd"] else None, ram=options["ram"])


def fill(loader: Any) -> None:
    """Wait until the SSD tier has written all that it has taken."""
    tiers = loader._contents.reader.blocks.tiers  # noqa: SLF001
    if tiers.disk is not None and not tiers.disk.flush(300):
        raise TimeoutError("the cache is not written after 300 s")


def between(loader: Any) -> None:
    """Let go of the frames that a loader keeps for its next epoch. Their memory is used again.

    The corpora are so small that all their frames would stay in memory, decompressed: no large one has
    such a rate. In a large one, each new frame takes the buffer of one that has left the window. So buffers
    are given back by hand here: new memory for most frames of each epoch would cost page faults that only
    small corpora have.
    """
    if isinstance(loader, ss.StreamingLoader):
        for source, frames in list(loader._batches.kept._kept):  # noqa: SLF001 - nobody else needs it
            for held in frames.values():
                if held.task.done and held.task.error is None:  # else a thread may still write to it
                    source.recycle(held.task.result())
        loader.close()


class _Single:
    """Each sample as a batch of its own."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __iter__(self) -> Iterator[Any]:
        return ([sample] for sample in self.dataset)


def state(corpus: Corpus, dest: str, options: Options, fraction: float) -> Any:
    """The state after that part of an epoch."""
    return loader(corpus, dest, options).state_dict() | {"position": int(corpus.count * fraction)}


def resume(corpus: Corpus, dest: str, options: Options, state: Any) -> Any:
    """A loader with a state loaded."""
    made = loader(corpus, dest, options)
    made.load_state_dict(state)
    return made


def count(batch: Any) -> int:
    """The samples of a batch."""
    if isinstance(batch, dict):
        return len(batch["tokens"] if "tokens" in batch else batch["__key__"])
    return len(batch)


def views(batch: Any) -> Any:
    """The JPEGs of a batch, in its one buffer or in samples of their own."""
    if isinstance(batch, list):
        return [row["jpg"] for row in batch]
    images = batch["jpg"]
    return images if isinstance(images, list) else images.views()


def payloads(corpus: Corpus, batch: Any) -> Iterator[bytes]:
    """What arrived, of all rows that are not padding."""
    if corpus.kind == "tokens":
        yield from token_payloads(corpus, batch["tokens"])
    elif corpus.kind == "documents":
        for row in batch:
            yield document_payload(row.get("json", {}).get("id", row["__key__"]), row["txt"])
    elif isinstance(batch, dict) and "image" in batch:
        yield from label_payloads(batch["image"], batch["cls"].tolist())
    elif isinstance(batch, dict):
        padding = batch["__pad__"].tolist()
        for image, label, pad in zip(batch["jpg"], batch["cls"], padding, strict=True):
            if not pad:
                yield image_payload(bytes(image), int(label))
    else:
        for row in batch:
            yield image_payload(row["jpg"], int(row["cls"]))


def expected(corpus: Corpus, dest: str, options: Options) -> dict[str, Any]:
    """For tokens: blocks share a token with the next, and none goes across shards."""
    if corpus.kind != "tokens":
        return as_it_is(corpus, dest, options)
    if (dest, corpus.block) not in _BLOCKS:
        _BLOCKS[dest, corpus.block] = _blocks(corpus, dest)
    return _BLOCKS[dest, corpus.block]


_BLOCKS: dict[tuple[str, int], dict[str, Any]] = {}


def _blocks(corpus: Corpus, dest: str) -> dict[str, Any]:
    flat, digest, start = np.memmap(corpus.file, corpus.dtype, mode="r"), Digest(), 0
    for shard in DatasetReader.open(dest).manifest.shards:
        part = flat[start : start + shard.tokens]
        step = corpus.block - 1
        digest.add(part[at : at + step + 1].tobytes() for at in range(0, len(part) - step, step))
        start += shard.tokens
    return digest.facts()
