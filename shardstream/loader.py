"""StreamingLoader: batches of a dataset, with state and statistics."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import warnings
import weakref
from collections.abc import Callable, Generator, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Generic, NoReturn, TypedDict, overload

from shardstream.counters.page import begin
from shardstream.dataset import OrderedDataset, StreamingDataset, contents_of
from shardstream.dataset.argument_errors import unexpected
from shardstream.dataset.arguments import Engine, Last, Sample, at_least_one, check_choice
from shardstream.dataset.collating import PAD
from shardstream.dataset.rank_batches import RankBatches
from shardstream.dataset.states import accept, state_at
from shardstream.dataset.worker_epochs import current_worker
from shardstream.dataset.wrappers import refuse_wrappers
from shardstream.decode.picture_batch import DAMAGED
from shardstream.distributed import Topology
from shardstream.errors import OptionError
from shardstream.format.shown import counted, one_line, table
from shardstream.format.sizes import parse_size
from shardstream.order.cursor import Cursor, Run
from shardstream.read.engine.stats import Stats
from shardstream.read.engine.units import Budget
from shardstream.read.handoff.broadcast import Broadcast
from shardstream.read.handoff.device import check_device, moved, pinned
from shardstream.read.handoff.process import ReadingProcess
from shardstream.read.handoff.process_bound import ProcessBound
from shardstream.read.samples.batch import Batch, flags, unmarked
from shardstream.storage.cancellation import Cancelled, CancelScope, working_for

if TYPE_CHECKING:
    import torch
    from torch.distributed import ProcessGroup
    from typing_extensions import TypeVar, Unpack

    B = TypeVar("B", default=Batch)
    T = TypeVar("T")
    R = TypeVar("R")
else:
    from typing import TypeVar

    B, T, R = TypeVar("B"), TypeVar("T"), TypeVar("R")

__all__ = ["LoaderOptions", "StreamingLoader"]

_OPTIONS = (
    "batch_size", "last", "collate", "prefetch", "threads", "engine", "pin", "device", "broadcast"
)  # fmt: skip
_LOG = logging.getLogger("shardstream")


class LoaderOptions(TypedDict, total=False):
    """The arguments of a StreamingLoader that do not decide what a batch is; see there."""

    prefetch: str | int
    threads: int | None
    engine: Engine
    pin: bool
    device: str | int | torch.device | None
    broadcast: str | ProcessGroup | None


class StreamingLoader(Generic[B]):
    """Batches of `batch_size` samples per data-parallel rank, prefetched by background threads.

    Every rank gets the same number of batches. Iterating is one epoch; iterating again the next. A look does
    not count: after an iterator that gave at most one batch, as `next(iter(loader))`, and was closed or
    dropped, the next iteration starts where that one did.

    Args:
        ds: A StreamingDataset, a TokenDataset, a subset or a Mixture.
        batch_size: B, the samples of a batch of one rank; at least 1.
        last: What becomes of the samples that do not fill a global batch. "drop" leaves them out, "pad"
            fills the batch with samples of the epoch's beginning, "short" gives a smaller batch. With
            "pad" and "short", `batch["__pad__"]` is a bool tensor [B], True at samples that pad; a rank
            that would have none in a short batch gets one. A `collate` of your own gets dict samples with
            `sample["__pad__"]`, True or False, and may give whatever it likes.
        collate: From a list of samples to a batch. By default a `Batch`, a dict of tensors and lists; of a
            TokenDataset a dict of tensors. `list` leaves the samples a list.
        prefetch: Bytes of look-ahead, such as "256MiB".
        threads: For reading, and as many for decoding and collating; by default the cores, 16 at most.
        engine: "thread"; or "process" for training loops that do not release the GIL for long: the threads
            then run in a process of their own, and batches come through shared memory. `transform` and
            `collate` must be picklable; scripts need `if __name__ == "__main__":`.
        pin: Whether the batch's tensors are in pinned memory.
        device: The torch device that the batch's tensors are moved to, such as "cuda".
        broadcast: For ranks that share data: the name of a dimension of the mesh that the dataset's topology
            is of, or a ProcessGroup. Its first rank reads, the others get its batches; its errors, too. All
            of them iterate in step, and each has the same state. Without it each rank reads for itself.

    Raises:
        OptionError: An argument cannot be.
    """

    @overload
    def __init__(
        self: StreamingLoader[Batch],
        ds: StreamingDataset[Sample],
        batch_size: int,
        last: Last = "drop",
        collate: None = None,
        **options: Unpack[LoaderOptions],
    ) -> None: ...
    @overload
    def __init__(
        self: StreamingLoader[dict[str, Any]],
        ds: OrderedDataset[Sample],
        batch_size: int,
        last: Last = "drop",
        collate: None = None,
        **options: Unpack[LoaderOptions],
    ) -> None: ...
    @overload
    def __init__(
        self: StreamingLoader[Any],
        ds: OrderedDataset[Any],
        batch_size: int,
        last: Last = "drop",
        collate: None = None,
        **options: Unpack[LoaderOptions],
    ) -> None: ...
    @overload
    def __init__(
        self: StreamingLoader[R],
        ds: OrderedDataset[T],
        batch_size: int,
        last: Last = "drop",
        *,
        collate: Callable[[list[T]], R],
        **options: Unpack[LoaderOptions],
    ) -> None: ...
    def __init__(
        self,
        ds: OrderedDataset[Any],
        batch_size: int,
        last: Last = "drop",
        collate: Callable[[list[Any]], Any] | None = None,
        prefetch: str | int = "256MiB",
        threads: int | None = None,
        engine: Engine = "thread",
        pin: bool = False,
        device: str | int | torch.device | None = None,
        broadcast: str | ProcessGroup | None = None,
        **unknown: NoReturn,
    ) -> None:
        if unknown:
            raise unexpected("StreamingLoader", unknown, _OPTIONS)
        if not isinstance(ds, OrderedDataset):
            raise OptionError(f"ds is a {type(ds).__name__}, not a StreamingDataset, TokenDataset or Mixture")
        batch_size = at_least_one("batch_size", batch_size)
        if threads is not None:
            threads = at_least_one("threads", threads)
        check_choice("last", last, Last)
        check_choice("engine", engine, Engine)
        self._ds, self._contents, self._engine = ds, contents_of(ds), engine
        self._device = check_device(pin, device) if pin or device is not None else None
        budget = Budget(parse_size(prefetch, "prefetch"), ds.cache.ram_for_frames)
        budget = budget if threads is None else dataclasses.replace(budget, threads=threads)
        if engine == "process":  # half is for batches in the memory that it shares with this one
            budget = dataclasses.replace(budget, prefetch=budget.prefetch // 2)
        if self._contents.maker.views and (engine == "process" or broadcast is not None):
            raise OptionError("decode='view' gives views of this process's memory: use engine='thread' alone")
        self._broadcast = None if broadcast is None else Broadcast(_group(ds, broadcast))
        # What comes from another process, or goes to others, is pinned here.
        self._pin_here = pin and (engine == "process" or self._broadcast is not None)
        pin_there = pin and not self._pin_here
        self._batches = RankBatches(self._contents, batch_size, last, collate, pin_there, budget)
        self._process = ReadingProcess(self._batches.stream, budget.prefetch) if engine == "process" else None
        self._stats = Stats()
        self._cursor = Cursor()
        self._told = False
        self._begun: weakref.WeakKeyDictionary[ProcessBound[B], CancelScope] = weakref.WeakKeyDictionary()
        self._warned = False
        self._warn_if_empty()

    def _warn_if_empty(self) -> None:
        total, samples = self._contents.total, self._batches.samples
        if total and not self._warned and not self._batches.count():
            self._warned = True
            warnings.warn(
                f"{self._ds.url} has {total} samples and a global batch takes {samples}: "
                f"an epoch has no batch; use a smaller batch_size, or last='pad' or 'short'",
                stacklevel=3,
            )

    @property
    def ds(self) -> OrderedDataset[Any]:
        """The dataset."""
        return self._ds

    @property
    def batch_size(self) -> int:
        """Samples of a batch of one data-parallel rank."""
        return self._batches.size

    @property
    def last(self) -> Last:
        """What becomes of the samples that do not fill a global batch."""
        return self._batches.last

    def __len__(self) -> int:
        """Batches of one epoch, the same on every rank."""
        if self._contents.endless:
            raise TypeError(f"an epoch of {self._ds.url} never ends: it has no length")
        self._contents.decide()
        return self._batches.count()

    @property
    def remaining(self) -> int:
        """Batches that the epoch still has after those that were delivered, the same on every rank.

        After `load_state_dict` these are the batches of the next iteration.

        Raises:
            TypeError: The epoch never ends.
        """
        len(self)
        return self._batches.count(self._cursor.now.position)

    def __iter__(self) -> Iterator[B]:
        decided = self._contents.rank.decided
        refuse_wrappers(self._ds.url, self._contents.decide())
        self._contents.start()
        if self._contents.maker.views and current_worker() is not None:
            raise OptionError(
                "decode='view' gives views of this process's memory, and a worker of a DataLoader sends its "
                "batches to another one: use decode=False, whose batches have views() of each field"
            )
        if not decided:
            self._warn_if_empty()
        run, scope = self._cursor.begin(self._batches.samples), CancelScope()
        scope.recorder = self._stats.recorder
        ranks = self._contents.topology
        begin("loader", self._ds.url, ranks.dp_rank, ranks.dp_size)
        iteration = ProcessBound(self._deliver(run, scope))
        self._begun[iteration] = scope
        return self._cursor.follow(iteration, run)

    def close(self) -> None:
        """End the iterations that were begun, and the process of `engine="process"`; also more than once.

        The state stays as it is, and the loader can be iterated again.
        """
        for iteration, scope in list(self._begun.items()):
            scope.end()
            with contextlib.suppress(ValueError):  # another thread is in it, and will see it soon
                iteration.close()
        self._batches.kept.clear()
        if self._process is not None:
            self._process.close()

    def _deliver(self, run: Run, scope: CancelScope) -> Generator[B, None, None]:
        total = self._contents.total
        self._tell_amplification()
        with working_for(scope):
            built = self._stream(run)
        placed: Iterator[Any] = built
        if self._pin_here:
            placed = map(pinned, placed)
        if self._device is not None:
            placed = moved(placed, self._device)
        aliases = self._contents.maker.aliases
        step, marked, whole = self._batches.samples, self.last != "drop", unmarked(self.batch_size)
        try:
            for batch in placed:
                start, end = run.position, run.position + step
                following = min(end, total)
                if marked and isinstance(batch, dict):
                    batch[PAD] = next(whole) if end <= total else self._padding(start)
                if aliases and isinstance(batch, Batch):
                    batch.aliases = aliases
                if isinstance(batch, dict) and DAMAGED in batch:
                    self._stats.add(damaged=int(batch[DAMAGED].sum()))
                # An interrupt is noticed at calls and at loops: there is none between this and the consumer.
                run.position = following
                yield batch
                del batch
            self._cursor.end(run)
        except Cancelled:
            if scope.over:
                return
            raise
        finally:
            built.close()
            self._cursor.leave(run)

    def _padding(self, start: int) -> Any:
        """Which samples pad the batch that begins at a position."""
        return flags((self._batches.positions(start) >= self._contents.total).tolist())

    def _stream(self, run: Run) -> Generator[Any, None, None]:
        def read() -> Generator[Any, None, None]:
            return (self._process or self._batches).stream(run.epoch, run.position, self._stats)

        if self._broadcast is None:
            return read()
        ranks = self._contents.topology
        place = state_at(self._contents, run) | {"rank": ranks.dp_rank, "ranks": ranks.dp_size}
        place |= {"batch_size": self.batch_size, "last": self.last}
        return self._broadcast.stream(read, place, self._stats)

    def _tell_amplification(self) -> None:
        """Say once that ranks share lanes: not a warning, since nothing is wrong with the batches."""
        lanes, ranks = self._contents.lanes, self._contents.topology.dp_size
        if lanes % ranks and not self._told:
            self._told = True
            _LOG.warning(
                "%s: %d lanes do not divide among %d ranks, so that several ranks read the same frames; "
                "the order is exact. A number of ranks that divides the lanes avoids it.",
                self._ds.url, lanes, ranks,
            )  # fmt: skip

    def set_epoch(self, epoch: int) -> None:
        """Make `epoch` the next one to iterate.

        Args:
            epoch: At least 0 and less than 2**64.

        Raises:
            OptionError: It is no such number.
        """
        self._cursor.set_epoch(epoch)

    def state_dict(self) -> dict[str, Any]:
        """What was delivered.

        Returns:
            A small dict that JSON can hold, the same on all ranks. Batches that are ahead do not count.
        """
        return state_at(self._contents, self._cursor.now)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state.

        Args:
            state: What `state_dict` gave, with any number of ranks and any batch size.

        Raises:
            StateError: It belongs to another dataset or another order.
        """
        self._cursor.place(*accept(self._contents, state))
        if self._process is not None:
            self._process.close()  # it has the lanes of before

    def stats(self) -> dict[str, Any]:
        """Counters since construction.

        Returns:
            By name: `batches` and `samples` that were delivered; `frames` that were fetched, and
            `decompressed_bytes`, also as `bytes_read` (token shards that are copied from where they are
            mapped count in neither); `wait_seconds` that the consumer waited; `fetch_seconds` and
            `build_seconds`, the time of all threads in these stages; `frame_wait_seconds` that threads which
            build batches waited for frames; `queue_depth`, the units of work, of
            one batch or many, that were ready at the last wait; `damaged`, the images that were masked
            (`decode.images`); `tolerated`, the JPEGs with harmless errors, which Pillow decoded.

            Of datasets that are not local also `ram_bytes`, `disk_bytes` and `remote_bytes`, the bytes that
            came from each tier; `requests` to the store; `retries` and `hedges` among them; `concurrency`,
            how many requests at a time are worth having; `refetches` of damaged blocks; and `backend`, what
            the store is reached by.

            `stages` has by name how long the stages took: "wait" and "step" of the consumer; "batch", a batch
            is built, of which "decode" and "transform" are parts; "fetch", a frame comes into memory, of
            which "request", "disk" and "decompress" are parts. Each has the `count` of its events, the sum of
            their `seconds`, and their percentiles `p50`, `p95` and `p99` in seconds, which are right within
            5 %. Steps shorter than 50 ms are counted together. What other ranks read for this one is not
            in it.

            `memory` has the bytes that were held when the last unit of work was taken, by name, of each of
            the two budgets: "prefetch" is the loader's; "ram" is the cache's, of a mixture the sum of those
            of its datasets. "limit" is what each of them may hold. What the consumer has is in neither.
        """
        return self._stats.as_dict()

    def _described(self) -> dict[str, str]:
        """What a person wants to know of it, by name; opens nothing and raises nothing."""
        found = {"batch_size": f"batch_size={self.batch_size}", "last": f"last={self.last!r}"}
        if self._engine != "thread":
            found["engine"] = f"engine={self._engine!r}"
        return found

    def __repr__(self) -> str:
        return one_line(type(self).__name__, [repr(self._ds), *self._described().values()])

    def _repr_html_(self) -> str:
        done = self._stats
        given = (
            f"{counted(done.samples, 'sample')} in {done.batches:,} batches, waited {done.wait_seconds:.2f} s"
        )
        return table(
            type(self).__name__, {"dataset": repr(self._ds)} | self._described() | {"delivered": given}
        )


def _group(ds: OrderedDataset[Any], broadcast: str | ProcessGroup) -> ProcessGroup:
    """The process group that `broadcast` means."""
    if not isinstance(broadcast, str):
        return broadcast
    topology = ds.topology
    group: ProcessGroup = (topology if isinstance(topology, Topology) else Topology()).group(broadcast)
    return group
