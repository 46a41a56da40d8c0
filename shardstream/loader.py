"""StreamingLoader: batches of a dataset, with state and statistics."""

from __future__ import annotations

import dataclasses
import logging
import warnings
from collections.abc import Callable, Generator, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardstream.dataset import OrderedDataset, Request
from shardstream.decode.images import DAMAGED
from shardstream.distributed import Topology
from shardstream.errors import OptionError
from shardstream.format.sizes import parse_size
from shardstream.order.cursor import Cursor, Run
from shardstream.order.topology import batches
from shardstream.read.batch import flags
from shardstream.read.broadcast import Broadcast
from shardstream.read.device import check_device, moved, pinned
from shardstream.read.engine import Budget, Stats
from shardstream.read.sidecar import Sidecar

__all__ = ["Batches", "StreamingLoader", "at_least_one"]

_LOG = logging.getLogger("shardstream")


class StreamingLoader:
    """Batches of `batch_size` samples per data-parallel rank, prefetched by background threads.

    Every rank gets the same number of batches. Iterating is one epoch; iterating again the next.

    last: what becomes of the samples that do not fill a global batch. "drop" leaves them out, "pad"
        fills the batch with samples of the epoch's beginning, "short" gives a smaller batch. With
        "pad" and "short", batch["__pad__"] is a bool tensor [B], True at samples that pad; a rank
        that would have none in a short batch gets one.
    collate: from a list of samples to a batch; by default a `Batch`, a dict of tensors and lists.
        `list` leaves the samples a list.
    prefetch: bytes of look-ahead.  threads: for reading, and as many for decoding and collating.
    engine: "thread", or "process" for training loops that hold the GIL for long: the threads then
        run in a process of their own, and batches come through shared memory. `transform` and
        `collate` must be picklable; scripts need `if __name__ == "__main__":`.
    pin, device: pin the batch's tensors; move them to a torch device.
    broadcast: for ranks that share data: the name of a dimension of the mesh that the dataset's topology
        is of, or a ProcessGroup. Its first rank reads, the others get its batches; its errors, too. All
        of them iterate in step, and each has the same state. Without it each rank reads for itself.
    """

    def __init__(
        self,
        ds: OrderedDataset,
        batch_size: int,
        last: str = "drop",
        collate: Callable[[list[Any]], Any] | None = None,
        prefetch: str | int = "256MiB",
        threads: int | None = None,
        engine: str = "thread",
        pin: bool = False,
        device: Any = None,
        broadcast: Any = None,
    ) -> None:
        if not isinstance(ds, OrderedDataset):
            raise OptionError(f"ds is a {type(ds).__name__}, not a StreamingDataset, TokenDataset or Mixture")
        at_least_one("batch_size", batch_size)
        if threads is not None:
            at_least_one("threads", threads)
        if last not in ("drop", "pad", "short"):
            raise OptionError(f"last={last!r} must be 'drop', 'pad' or 'short'")
        if engine not in ("thread", "process"):
            raise OptionError(f"engine={engine!r} must be 'thread' or 'process'")
        self.ds, self.batch_size, self.last = ds, batch_size, last
        self._device = check_device(pin, device) if pin or device is not None else None
        budget = Budget(parse_size(prefetch, "prefetch"), ds.cache.keep)
        budget = budget if threads is None else dataclasses.replace(budget, threads=threads)
        self._broadcast = None if broadcast is None else Broadcast(_group(ds, broadcast))
        # What comes from another process, or goes to others, is pinned here.
        self._pin_here = pin and (engine == "process" or self._broadcast is not None)
        self._batches = Batches(ds, batch_size, last, collate, pin and not self._pin_here, budget)
        self._sidecar = Sidecar(self._batches.stream, budget.deadline) if engine == "process" else None
        self._stats = Stats()
        self._cursor = Cursor()
        self._told = False
        if ds.total and not batches(ds.total, self._batches.samples, last):
            warnings.warn(
                f"{ds.url} has {ds.total} samples and a global batch takes {self._batches.samples}: "
                f"an epoch has no batch; use a smaller batch_size, or last='pad' or 'short'",
                stacklevel=2,
            )

    def __len__(self) -> int:
        """Batches of one epoch, the same on every rank."""
        if self.ds.endless:
            raise TypeError(f"an epoch of {self.ds.url} never ends: it has no length")
        return batches(self.ds.total, self._batches.samples, self.last)

    def __iter__(self) -> Iterator[Any]:
        return self._deliver(self._cursor.begin())

    def _deliver(self, run: Run) -> Iterator[Any]:
        total = self.ds.total
        self._tell_amplification()
        built = self._stream(run)
        placed: Iterator[Any] = built
        if self._pin_here:
            placed = map(pinned, placed)
        if self._device is not None:
            placed = moved(placed, self._device)
        step, marked, whole = self._batches.samples, self.last != "drop", [False] * self.batch_size
        try:
            for batch in placed:
                start, end = run.position, run.position + step
                run.position = min(end, total)
                if marked and isinstance(batch, dict):
                    padding = whole if end <= total else (self._batches.positions(start) >= total).tolist()
                    batch["__pad__"] = flags(padding)
                if isinstance(batch, dict) and DAMAGED in batch:
                    self._stats.damaged += int(batch[DAMAGED].sum())
                yield batch
        finally:
            built.close()
        self._cursor.end(run)

    def _stream(self, run: Run) -> Generator[Any, None, None]:
        def read() -> Generator[Any, None, None]:
            return (self._sidecar or self._batches).stream(run.epoch, run.position, self._stats)

        if self._broadcast is None:
            return read()
        place = self.ds.state_at(run) | {"rank": self.ds.topology.dp_rank, "ranks": self.ds.topology.dp_size}
        place |= {"batch_size": self.batch_size, "last": self.last}
        return self._broadcast.stream(read, place, self._stats)

    def _tell_amplification(self) -> None:
        """Say once that ranks share lanes: not a warning, since nothing is wrong with the batches."""
        lanes, ranks = self.ds.lanes, self.ds.topology.dp_size
        if lanes % ranks and not self._told:
            self._told = True
            _LOG.warning(
                "%s: %d lanes do not divide among %d ranks, so that several ranks read the same frames; "
                "the order is exact. A number of ranks that divides the lanes avoids it.",
                self.ds.url, lanes, ranks,
            )  # fmt: skip

    def set_epoch(self, epoch: int) -> None:
        """Make `epoch` the next one to iterate."""
        self._cursor.set_epoch(epoch)

    def state_dict(self) -> dict[str, Any]:
        """What was delivered: JSON-able, the same on all ranks, batches in the pipe not counted."""
        return self.ds.state_at(self._cursor.now)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state, saved with any number of ranks and any batch size.

        Raises StateError if it belongs to another dataset or another order.
        """
        self._cursor.place(*self.ds.accept(state))
        if self._sidecar is not None:
            self._sidecar.close()  # it has the lanes of before

    def stats(self) -> dict[str, Any]:
        """Counters since construction.

        batches and samples delivered; frames fetched and bytes_read, their raw bytes (token shards
        that are copied from where they are mapped count in neither); wait_seconds that the consumer
        waited; fetch_seconds and build_seconds, the time of all threads in these stages;
        queue_depth: units of work, of one batch or many, that were ready at the last wait.
        damaged: images that were masked (`decode.images`).
        Of datasets that are not local also ram_bytes, disk_bytes and remote_bytes, what came from each
        tier; requests to the store, those that were retries or hedges, the concurrency that is
        worth having, refetches of damaged blocks, and the store's backend.
        """
        counts: dict[str, Any] = dataclasses.asdict(self._stats)
        tiers: dict[str, Any] = counts.pop("tiers")
        return counts | tiers


@dataclasses.dataclass
class Batches:
    """Which samples make which batch of this rank; picklable, for the process that makes them."""

    ds: OrderedDataset
    size: int
    last: str
    collate: Callable[[list[Any]], Any] | None
    pin: bool
    budget: Budget

    @property
    def samples(self) -> int:
        """Samples of one batch over all ranks."""
        return self.size * self.ds.topology.dp_size

    def stream(self, epoch: int, position: int, stats: Stats) -> Generator[Any, None, None]:
        """The batches from `position` of `epoch` on."""
        finish = self.ds.collated(self.collate)
        made = (lambda items: pinned(finish(items))) if self.pin else finish
        direct = self.collate in (None, list) and not self.pin
        return self.ds.stream(epoch, self.requests(position), made, self.budget, stats, direct)

    def requests(self, start: int) -> Iterator[Request]:
        """What this rank needs of each global batch, one batch at first and then more at a time."""
        total, ranks = self.ds.total, self.ds.topology
        count = batches(total, self.samples, self.last, start)
        whole = max(0, total - start) // self.samples
        most = max(1, self.ds.ahead // self.size)
        number, some = 0, 1
        while number < whole:
            some = min(some, whole - number)
            # Global batches are multiples of dp_size: a rank's positions go on in even steps.
            first = ranks.first(start) + number * self.samples
            steps = np.arange(some * self.size, dtype=np.int64)
            yield Request(first + steps * ranks.dp_size, [self.size] * some)
            number, some = number + some, min(4 * some, most)
        for number in range(whole, count):
            positions = self.positions(start + number * self.samples)
            yield Request(positions % total, [len(positions)])

    def positions(self, start: int) -> NDArray[np.int64]:
        """This rank's positions in the global batch from `start` on; those >= total are padding."""
        ranks = self.ds.topology
        first = ranks.first(start)
        mine = np.arange(first, first + self.samples, ranks.dp_size, dtype=np.int64)
        if self.last == "short":
            # The first one stays even if it is padding: no rank may go without a batch.
            mine = mine[: max(1, int(np.searchsorted(mine, self.ds.total)))]
        return mine


def _group(ds: OrderedDataset, broadcast: Any) -> Any:
    """The process group that `broadcast` means."""
    if not isinstance(broadcast, str):
        return broadcast
    topology = ds.topology
    return (topology if isinstance(topology, Topology) else Topology()).group(broadcast)


def at_least_one(name: str, value: object) -> None:
    """Raise OptionError unless `value` is a positive int."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise OptionError(f"{name}={value!r} must be an int, at least 1")
