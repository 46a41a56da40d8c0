"""What one stream leaves to the next: at its end, after a look, and never from the midst."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Any

import pytest

from shardstream.read.engine.following import Following, KeptFrames
from shardstream.read.engine.frames import FrameId
from shardstream.read.engine.pipeline import stream
from shardstream.read.engine.units import Budget
from tests.read.engine.test_pipeline import Frames, units

COUNT, BATCHES = 12, 6


class Counted(Frames):
    """Frames of shard 0, of which all can be kept or none; counts what is fetched."""

    def __init__(self, keeps: bool = True) -> None:
        super().__init__()
        self.kept, self.fetched = keeps, 0

    def fetch(self, shard: int, frame: int) -> int:
        self.fetched += 1
        return super().fetch(shard, frame)

    def keeps(self, shard: int) -> bool:
        return self.kept

    def unchanged(self, frames: Sequence[FrameId]) -> Sequence[FrameId]:
        return frames


def begun(source: Any, kept: KeptFrames, direct: bool = True) -> Any:
    after = Following(kept, lambda: iter(units(COUNT, direct)), BATCHES)
    return stream(source, units(COUNT, direct), list, Budget(1 << 20, 1 << 20), following=after)


@pytest.mark.parametrize("direct", [True, False])
def test_a_loop_that_counts_its_batches_leaves_the_frames(direct: bool) -> None:
    source, kept = Counted(), KeptFrames()
    batches = begun(source, kept, direct)
    assert len(list(islice(batches, BATCHES))) == BATCHES
    batches.close()
    assert not kept.empty
    assert list(begun(source, kept, direct)) == [[n, n + 1] for n in range(0, COUNT, 2)]


def test_nothing_is_left_from_the_midst() -> None:
    source, kept = Counted(), KeptFrames()
    batches = begun(source, kept)
    assert len(list(islice(batches, BATCHES - 1))) == BATCHES - 1
    batches.close()
    assert kept.empty
    batches = begun(source, kept)
    assert len(list(islice(batches, BATCHES))) == BATCHES
    with pytest.raises(KeyboardInterrupt):
        batches.throw(KeyboardInterrupt())
    assert kept.empty


def test_a_look_puts_the_frames_back() -> None:
    source, kept = Counted(), KeptFrames()
    list(begun(source, kept))
    fetched = source.fetched
    for _ in range(3):
        look = begun(source, kept)
        assert next(look) == [0, 1]
        assert kept.empty
        look.close()
        assert not kept.empty
    assert source.fetched == fetched
    assert list(begun(source, kept)) == [[n, n + 1] for n in range(0, COUNT, 2)]


def test_a_look_does_not_replace_what_another_stream_gave() -> None:
    source, kept = Counted(), KeptFrames()
    list(begun(source, kept))
    look = begun(source, kept)
    next(look)
    list(begun(source, kept))
    given = kept._kept[0]
    look.close()
    assert kept._kept[0] is given


def test_a_stream_that_began_before_clear_gives_nothing() -> None:
    source, kept = Counted(), KeptFrames()
    batches = begun(source, kept)
    next(batches)
    kept.clear()
    assert len(list(batches)) == BATCHES - 1
    assert kept.empty
    list(begun(source, kept))
    assert not kept.empty


def test_frames_that_cannot_be_kept_are_neither_fetched_nor_held() -> None:
    source, kept = Counted(keeps=False), KeptFrames()
    for epoch in range(1, 3):
        list(begun(source, kept))
        assert source.fetched == epoch * COUNT
        assert kept.empty
