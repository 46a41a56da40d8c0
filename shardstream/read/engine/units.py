"""What the read engine works on: units of work, a source of frames, and limits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from shardstream.cores import cores
from shardstream.read.engine.frames import FrameId, Need

__all__ = ["Budget", "Source", "Unit"]


@dataclass(frozen=True)
class Budget:
    """Limits of one iteration.

    Args:
        prefetch: Bytes for units that are not delivered: their frames and their batches; and for memory of
            delivered batches that waits to be used again. One unit is always allowed.
        keep: Bytes for frames of delivered units that further units will read; and for memory of such frames
            that waits to be used again. A shuffle reads from lanes x window frames at the same time, so it
            needs all of them. Frames that a unit uses are always allowed. So is memory for the next frames,
            of at most 32 MiB or half of `prefetch`.
        threads: How many threads fetch, and how many others build.
        deadline: Seconds. If something is waited for, and no task ends for so long, the storage has failed.
    """

    prefetch: int = 256 << 20
    keep: int = 1 << 30
    threads: int = field(default_factory=lambda: min(16, cores()))
    deadline: float = 600.0


class Unit(Protocol):
    """Work for one thread: some consecutive batches."""

    @property
    def needs(self) -> Sequence[Need]:
        """The frames that the unit reads, in the order in which they should be fetched."""

    @property
    def sizes(self) -> Sequence[int]:
        """How many samples each batch has."""

    @property
    def volume(self) -> int:
        """The bytes of its batches, roughly; without the frames that it reads."""

    @property
    def grows(self) -> int:
        """0 if `volume` is right. Else how many copies of a batch are in memory while it is built."""

    @property
    def direct(self) -> bool:
        """Whether the consumer builds the batches, one by one, when the frames are there and prepared."""

    @property
    def unverified(self) -> Sequence[FrameId]:
        """The frames that it reads in mapped files, and that were not verified before."""

    def prepare(self) -> None:
        """Verify these frames, which may take long. A thread does it before the consumer builds."""

    def build(self, frames: Mapping[FrameId, Any]) -> Iterable[Any]:
        """The items of each batch, from the buffers of the frames that it needs."""

    def parts(self, singles: bool) -> Sequence[Unit]:
        """The same work in units of one batch each, which read no other frames. Empty for a single batch.

        Args:
            singles: Whether a single batch is cut into units of one item each.
        """


class Source(Protocol):
    """Where the buffers of frames come from, and where they go when they are not needed any more."""

    def fetch_ahead(self, frames: Sequence[FrameId], /) -> None:
        """Say that frames are going to be fetched, in this order. Returns at once."""

    def counters(self) -> dict[str, Any]:
        """How many bytes came from each tier so far, by name; empty if all files are local."""

    def memory(self) -> dict[str, int]:
        """The bytes of the budget of the cache (`ram`) that are in use now, by name, and its "limit"."""

    def limit_idle(self, frames: int, batches: int, /) -> tuple[int, int]:
        """Limit the memory that waits to be used again.

        Args:
            frames: Bytes for buffers of frames.
            batches: Bytes for buffers of batches.

        Returns:
            The bytes of buffers of frames, and of batches, that wait now.
        """

    def fetch(self, shard: int, frame: int, /) -> Any:
        """The buffer of a frame. Called in threads."""

    def recycle(self, buffer: Any, /) -> None:
        """Take back the buffer of a frame, which is not used any more."""

    def keeps(self, shard: int, /) -> bool:
        """Whether frames of a shard are ever among those of `unchanged`."""

    def unchanged(self, frames: Sequence[FrameId], /) -> Sequence[FrameId]:
        """Those of these frames, which were fetched before, that a fetch would find as they were."""

    def check_again(self) -> None:
        """Look once more at mapped files after the last unit. Raises CorruptionError if one has changed."""

    def name(self, shard: int, frame: int, /) -> str:
        """The name of a frame for messages."""
