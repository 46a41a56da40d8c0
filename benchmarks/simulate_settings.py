"""What a simulated rank is told, and what its work costs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from shardstream.decode.modes import Decode
from shardstream.order.shuffle import Shuffle
from shardstream.storage.cache.options import Cache

__all__ = ["PLAN", "UNIT", "Costs", "Settings"]

# Seconds of a core for each request that is planned and each sample of it, and for each unit: measured.
PLAN, UNIT = (3e-4, 8e-7), 5e-5


@dataclass(frozen=True)
class Costs:
    """Seconds of a core.

    Args:
        opening: Until a process has its first batch, apart from the frames.
        per_shard: To decode the manifest, for each shard.
        fetch: For each sample, when its frame comes: requests, checks, decompression.
        build: For each sample, in a thread that builds batches: decoding.
        consume: For each sample, in the thread of the training loop.
        plan: For each request for batches that is planned, and for each sample of it.
        unit: For each unit of work.
    """

    opening: float = 0.0
    per_shard: float = 0.0
    fetch: float = 0.0
    build: float = 0.0
    consume: float = 0.0
    plan: tuple[float, float] = (0.0, 0.0)
    unit: float = 0.0


@dataclass(frozen=True)
class Settings:
    """What the user of the loader chooses.

    Args:
        batch: Samples of a batch of a rank.
        shuffle: Of the dataset.
        prefetch: Bytes.
        threads: Of the loader.
        decode: Of the dataset.
        batch_bytes: Of a batch after decoding; 0 if nothing is decoded.
        cache: Of the dataset.
        transform: Of the dataset; it is never called, and takes `Costs.build`.
        shared_manifest: Whether the processes of a node share a cache folder, so that one of them reads the
            body of the manifest.
    """

    batch: int = 32
    shuffle: Shuffle = field(default_factory=Shuffle)
    prefetch: int = 256 << 20
    threads: int = 8
    decode: Decode = False
    batch_bytes: int = 0
    cache: Cache = field(default_factory=Cache)
    transform: Callable[..., Any] | None = None
    shared_manifest: bool = False
