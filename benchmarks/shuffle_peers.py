"""The orders in which peers read sorted samples, by their own shuffling code, in the peers' environment.

    python -m benchmarks.shuffle_peers NAME SHARDS SIZE STREAMS OUT.npy

STREAMS workers read shards that are dealt out to them; MDS has one global order for all.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
SEED = 1


def webdataset(shards: int, size: int, streams: int) -> list[Ints]:
    """Shards shuffled, dealt to the workers, and in each a buffer of 1,000 as in its documentation."""
    from webdataset.filters import _shuffle

    order = list(range(shards))
    random.Random(SEED).shuffle(order)
    found = []
    for worker in range(streams):
        samples = (shard * size + at for shard in order[worker::streams] for at in range(size))
        found.append(np.array(list(_shuffle(samples, bufsize=1000, initial=1000, seed=SEED + worker))))
    return found


def litdata(shards: int, size: int, streams: int) -> list[Ints]:
    """FullShuffle, the default: chunks permuted over the workers, samples within each chunk."""
    from litdata.streaming.shuffle import FullShuffle
    from litdata.utilities.env import _DistributedEnv

    class Chunks:
        """What FullShuffle asks of a cache."""

        _reader = None

        def get_chunk_intervals(self) -> list[Any]:
            from litdata.streaming.item_loader import Interval

            return [Interval(n * size, n * size, (n + 1) * size, (n + 1) * size) for n in range(shards)]

    class Sized(FullShuffle):
        """Without sizes in bytes, which only decide about caches."""

        def _chunk_byte_sizes(self) -> list[int]:
            return [0] * shards

        def _max_cache_size(self) -> int:
            return 0

    shuffle = Sized(Chunks(), SEED, drop_last=False)
    workers = _DistributedEnv(world_size=1, global_rank=0, num_nodes=1)
    chunks, intervals = shuffle.get_chunks_and_intervals_per_workers(workers, streams, 1, 1)
    found = []
    for mine, parts in zip(chunks, intervals, strict=True):
        pieces = []
        for number, part in zip(mine, parts, strict=True):
            inside = np.arange(part[1], part[2])
            pieces.append(np.array(shuffle(inside, shards, 1, int(number)), np.int64))
        found.append(np.concatenate(pieces))
    return found


def _mds(name: str, blocks: int = 0) -> Callable[[int, int, int], list[Ints]]:
    def order(shards: int, size: int, streams: int) -> list[Ints]:
        """One canonical node, with its default block size or `blocks` of them in the corpus."""
        from benchmarks.peers import mosaic  # noqa: F401, the stand-ins for torchvision

        import streaming.base.shuffle as shuffles  # isort: skip

        function = getattr(shuffles, f"get_shuffle_{name}")
        block = shards * size // blocks if blocks else 4_000_000
        return [np.asarray(function(np.full(shards, size, np.int64), 1, SEED, 0, block), np.int64)]

    return order


ORDERS = {
    "webdataset": webdataset,
    "litdata": litdata,
    "py1e": _mds("py1e"),
    "py1br": _mds("py1br"),
    "py1e-small": _mds("py1e", 16),
    "py1br-small": _mds("py1br", 16),
}


def main(name: str, shards: str, size: str, streams: str, out: str) -> None:
    """Write the orders of all streams, int64 [streams, samples of the shortest]."""
    found = ORDERS[name](int(shards), int(size), int(streams))
    least = min(map(len, found))
    np.save(out, np.stack([stream[:least] for stream in found]))


if __name__ == "__main__":
    main(*sys.argv[1:])
