"""StreamingLoader: batches of a dataset, with state and statistics."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardstream.dataset import OrderedDataset, Request
from shardstream.errors import OptionError, require
from shardstream.format.sizes import parse_size
from shardstream.order.cursor import Cursor, Run
from shardstream.order.topology import batches
from shardstream.read.batch import flags
from shardstream.read.engine import Budget, Stats

__all__ = ["StreamingLoader"]


class StreamingLoader:
    """Batches of `batch_size` samples per data-parallel rank, prefetched by background threads.

    Every rank gets the same number of batches. Iterating is one epoch; iterating again the next.

    last: what becomes of the samples that do not fill a global batch. "drop" leaves them out, "pad"
        fills the batch with samples of the epoch's beginning, "short" gives a smaller batch. With
        "pad" and "short", batch["__pad__"] is a bool tensor [B], True at samples that pad; a rank
        that would have none in a short batch gets one.
    collate: from a list of samples to a batch; by default a dict of tensors and lists.
    prefetch: bytes of look-ahead.  threads: for reading, and as many for decoding and collating.
    pin, device: pin the batch's tensors; move them to a torch device.
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
    ) -> None:
        if not isinstance(ds, OrderedDataset):
            raise OptionError(f"ds is a {type(ds).__name__}, not a StreamingDataset or TokenDataset")
        _at_least_one("batch_size", batch_size)
        if threads is not None:
            _at_least_one("threads", threads)
        if last not in ("drop", "pad", "short"):
            raise OptionError(f"last={last!r} must be 'drop', 'pad' or 'short'")
        if engine == "process":
            raise OptionError("engine='process' is not supported yet; use engine='thread'")
        if engine != "thread":
            raise OptionError(f"engine={engine!r} must be 'thread' or 'process'")
        self.ds, self.batch_size, self.last = ds, batch_size, last
        self._collate = ds.collated(collate)
        self._torch: Any = require("torch", "torch") if pin or device is not None else None
        self._pin, self._device = pin, device
        self._direct = collate is None and self._torch is None
        budget = Budget(parse_size(prefetch, "prefetch"), ds.cache.keep)
        self._budget = budget if threads is None else dataclasses.replace(budget, threads=threads)
        self._stats = Stats()
        self._cursor = Cursor()
        if ds.total and not len(self):
            warnings.warn(
                f"{ds.url} has {ds.total} samples and a global batch takes {self._global}: "
                f"an epoch has no batch; use a smaller batch_size, or last='pad' or 'short'",
                stacklevel=2,
            )

    @property
    def _global(self) -> int:
        """Samples of one batch over all ranks."""
        return self.batch_size * self.ds.topology.dp_size

    def __len__(self) -> int:
        """Batches of one epoch, the same on every rank."""
        return batches(self.ds.total, self._global, self.last)

    def __iter__(self) -> Iterator[Any]:
        return self._deliver(self._cursor.begin())

    def _deliver(self, run: Run) -> Iterator[Any]:
        total = self.ds.total
        built = self.ds.stream(
            run.epoch, self._requests(run.position), self._finish, self._budget, self._stats, self._direct
        )
        try:
            for batch in built:
                start = run.position
                run.position = min(start + self._global, total)
                if self.last != "drop" and isinstance(batch, dict):
                    batch["__pad__"] = flags((self._positions(start) >= total).tolist())
                yield batch
        finally:
            built.close()
        self._cursor.end(run)

    def _requests(self, start: int) -> Iterator[Request]:
        """What this rank needs of each global batch, one batch at first and then more at a time."""
        total, ranks = self.ds.total, self.ds.topology
        count = batches(total, self._global, self.last, start)
        whole = max(0, total - start) // self._global
        most = max(1, self.ds.ahead // self.batch_size)
        number, some = 0, 1
        while number < whole:
            some = min(some, whole - number)
            # Global batches are multiples of dp_size: a rank's positions go on in even steps.
            first = ranks.first(start) + number * self._global
            steps = np.arange(some * self.batch_size, dtype=np.int64)
            yield Request(first + steps * ranks.dp_size, [self.batch_size] * some)
            number, some = number + some, min(2 * some, most)
        for number in range(whole, count):
            positions = self._positions(start + number * self._global)
            yield Request(positions % total, [len(positions)])

    def _positions(self, start: int) -> NDArray[np.int64]:
        """This rank's positions in the global batch from `start` on; those >= total are padding."""
        ranks = self.ds.topology
        first = ranks.first(start)
        mine = np.arange(first, first + self._global, ranks.dp_size, dtype=np.int64)
        if self.last == "short":
            # The first one stays even if it is padding: no rank may go without a batch.
            mine = mine[: max(1, int(np.searchsorted(mine, self.ds.total)))]
        return mine

    def _finish(self, items: Any) -> Any:
        batch = self._collate(items)
        return batch if self._torch is None else self._place(batch)

    def _place(self, value: Any) -> Any:
        """The batch with its tensors pinned and moved."""
        if isinstance(value, self._torch.Tensor):
            value = value.pin_memory() if self._pin else value
            return value if self._device is None else value.to(self._device, non_blocking=True)
        if isinstance(value, dict):
            return {name: self._place(item) for name, item in value.items()}
        if type(value) in (list, tuple):
            return type(value)(self._place(item) for item in value)
        return value

    def set_epoch(self, epoch: int) -> None:
        """Make `epoch` the next one to iterate."""
        self._cursor.set_epoch(epoch)

    def state_dict(self) -> dict[str, Any]:
        """What was delivered: JSON-able, the same on all ranks, batches in the pipe not counted."""
        return self.ds.state_at(self._cursor.epoch, self._cursor.position)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state, saved with any number of ranks and any batch size.

        Raises StateError if it belongs to another dataset or another order.
        """
        self._cursor.place(*self.ds.accept(state))

    def stats(self) -> dict[str, float]:
        """Counters since construction.

        batches and samples delivered; frames fetched and bytes_read, their raw bytes (token shards
        that are copied from where they are mapped count in neither); wait_seconds that the consumer
        waited; fetch_seconds and build_seconds, the time of all threads in these stages;
        queue_depth: units of work, of one batch or many, that were ready at the last wait.
        """
        return dataclasses.asdict(self._stats)


def _at_least_one(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise OptionError(f"{name}={value!r} must be an int, at least 1")
