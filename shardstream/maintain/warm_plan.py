"""Which frames are wanted in the cache, in which order: all of them, or those that some ranks will read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardstream.dataset.access_plan import AccessPlan
from shardstream.dataset.contents import Contents
from shardstream.dataset.interfaces import Part
from shardstream.order.cursor import Run

__all__ = ["IndexesDoNotFit", "all_frames", "frames_of_ranks"]

Ints = NDArray[np.int64]
Frames = tuple[Part, int, Ints]  # a dataset, a shard of it, and frames of the shard
Expect = Callable[[Part, Iterable[int]], bool]
_FIRST, _POSITIONS = 256, 1 << 16  # positions that are planned at a time, at first and at most
_SHARDS = 64  # shards whose indexes are fetched at a time if everything is wanted


class IndexesDoNotFit(Exception):  # noqa: N818 - no error: the plan ends here
    """The next indexes do not fit into the cache or the limit, so that nothing more can be planned."""


def all_frames(parts: Sequence[Part], expect: Expect) -> Iterator[Frames]:
    """All frames of all shards, shard by shard.

    Args:
        parts: the datasets.
        expect: called with shards whose frames come soon, to fetch their indexes; False if they do not fit.

    Raises:
        IndexesDoNotFit: after the frames whose indexes fit.
    """
    for part in parts:
        count, begin, some = len(part.manifest.shards), 0, 1
        if not expect(part, range(min(some, count))):
            raise IndexesDoNotFit
        while begin < count:
            end, some = min(begin + some, count), min(2 * some, _SHARDS)
            fits = expect(part, range(end, min(end + some, count)))
            for shard in range(begin, end):
                yield part, shard, np.arange(part.manifest.shards[shard].frames, dtype=np.int64)
            if not fits:
                raise IndexesDoNotFit
            begin = end


def frames_of_ranks(
    contents: Contents[Any], now: Run, ranks: Sequence[int], epochs: int, expect: Expect
) -> Iterator[Frames]:
    """The frames that ranks of a dataset or a mixture read, about in the order in which they come to them.

    Args:
        contents: of the dataset, with the topology of the job.
        now: the place in it.
        ranks: some of its data-parallel ranks.
        epochs: how many epochs, from `now` on.
        expect: as for `all_frames`.

    Raises:
        IndexesDoNotFit: after the frames whose indexes fit.
    """
    mine = np.isin(np.arange(contents.topology.dp_size), ranks)
    for epoch, begin, end in contents.passes(now, epochs):
        plan: AccessPlan[Any] = AccessPlan(contents, epoch)

        def fits(positions: Ints, plan: AccessPlan[Any] = plan) -> bool:
            found = [expect(part, shards) for part, shards in plan.shards(positions)]
            return all(found)

        chunks = _chunks(begin, end, mine)
        ahead = next(chunks, None)
        if ahead is not None and not fits(ahead):
            raise IndexesDoNotFit
        while ahead is not None:
            positions, ahead = ahead, next(chunks, None)
            more = ahead is None or fits(ahead)
            yield from plan.frames(positions)
            if not more:
                raise IndexesDoNotFit


def _chunks(begin: int, end: int, mine: NDArray[np.bool_]) -> Iterator[Ints]:
    """The positions of some ranks, few at first and then more and more at a time.

    mine: bool [ranks], True at the ranks that are meant.
    """
    size, count = len(mine), _FIRST
    while begin < end:
        positions = np.arange(begin, min(begin + count, end), dtype=np.int64)
        begin, count = begin + count, min(4 * count, _POSITIONS)
        found = positions[mine[positions % size]]
        if len(found):
            yield found
