"""One rank of a bench, a process of its own: reads phases from stdin, and answers with pickles on stdout."""

from __future__ import annotations

import os
import pickle
import resource
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, BinaryIO

from shardstream.dataset import contents_of
from shardstream.errors import OptionError, ShardstreamError, StorageError
from shardstream.observe.bench import CACHED, COLD, REPLAYED
from shardstream.observe.bench_work import Work
from shardstream.observe.probe_ranges import drop_pages
from shardstream.observe.replay import Replay
from shardstream.storage.cache.options import Cache
from shardstream.storage.store import local_path_of

_NO_STEP = 0.5  # seconds


class Rank:
    """What one rank does.

    Args:
        work: What is read.
        cache: The folder of the cache.
        rank, world: The place among all ranks.
        step: Seconds after each batch.
        seconds: Of a phase at most, after the first batch.
        replayed: How many batches are replayed.
    """

    def __init__(
        self, work: Work, cache: str, rank: int, world: int, step: float, seconds: float, replayed: int
    ) -> None:
        self._work, self._cache, self._place = work, cache, (rank, world)
        self._step, self._seconds, self._replayed = step, seconds, replayed
        self._batches: int | None = None  # of the cold phase: the others have no more
        self._warm: Any = None

    def prepare(self, phase: str) -> Callable[[], Iterable[Any]]:
        """What makes the loader of a phase; the dataset is opened only then, except for replayed batches."""
        if phase == COLD:
            local = local_path_of(self._work.url)
            if local is not None:
                for folder, _, names in os.walk(local):
                    for name in names:
                        drop_pages(os.path.join(folder, name))
        elif phase == CACHED and contents_of(self._warm).remote:
            contents_of(self._warm).reader.blocks.tiers.disk.flush(60)  # type: ignore[attr-defined]
        if phase != REPLAYED:
            return self._loader
        replay = Replay(self._loader(), self._replayed)
        next(iter(replay))
        return lambda: replay

    def _loader(self) -> Iterable[Any]:
        # Another dataset object has nothing in memory: what it reads comes from the disk of the cache.
        self._warm = self._work.dataset(Cache(self._cache), *self._place)
        loader = self._work.loader(self._warm)
        loader.set_epoch(0)
        return loader

    def run(self, phase: str, make: Callable[[], Iterable[Any]]) -> dict[str, Any]:
        """Take the batches of a phase."""
        most = self._batches if phase == CACHED else None
        # Without a step the replayed batches only tell how fast a loop turns.
        limit = self._seconds if self._step or phase != REPLAYED else min(self._seconds, _NO_STEP)
        began, cpu = time.monotonic(), _processor()
        loader = make()
        first = waited = 0.0
        batches = samples = after = 0
        iterator: Iterator[Any] = iter(loader)
        asked = began
        for batch in iterator:
            came = time.monotonic()
            count = _samples(batch, self._work.batch)
            if not batches:
                first = came - began
            else:
                waited += came - asked
                after += count
            batches += 1
            samples += count
            del batch
            if batches == most or came - began - first > limit:
                break
            if self._step:
                time.sleep(self._step)
            asked = time.monotonic()
        ended = time.monotonic()
        iterator.close()  # type: ignore[attr-defined]
        if not batches:
            raise OptionError(f"{self._work.url}: rank {self._place[0]} of {self._place[1]} gets no batch")
        if phase == COLD:
            self._batches = batches
        seconds = ended - began
        later = max(seconds - first, 1e-9)
        counters = {} if phase == REPLAYED else loader.stats()  # type: ignore[attr-defined]
        return {
            "samples": samples,
            "seconds": seconds,
            "first": first,
            # One batch has nothing after it.
            "per_second": after / later if after else samples / seconds,
            "wait": waited / later if after else 1.0,
            "cpu": _processor() - cpu,
            "store_bytes": int(counters.get("remote_bytes", 0)),
        }


def _samples(batch: Any, size: int) -> int:
    padding = batch.get("__pad__") if isinstance(batch, dict) else None
    if padding is not None:
        return int(len(padding) - int(padding.sum()))
    return size


def _processor() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def serve(commands: BinaryIO, answers: BinaryIO) -> None:
    """Carry out phases until the other end closes."""

    def answer(value: object) -> None:
        pickle.dump(value, answers)
        answers.flush()

    try:
        told = pickle.load(commands)  # noqa: S301 - of the process that has started this one
        rank = Rank(**told)
        answer({"url": told["work"].opened().url})
        while word := commands.readline().decode().strip():
            make = rank.prepare(word)
            answer({})
            if commands.readline():
                answer(rank.run(word, make))
            del make
    except ShardstreamError as error:
        answer(error)
    except Exception as error:  # noqa: BLE001 - the other process raises it
        answer(StorageError(f"bench: {type(error).__name__}: {error}"))


def _commands() -> BinaryIO:
    """What comes on stdin. When its other end is gone, this process ends, whatever it does.

    Nobody else would end it if the process that has started it was killed.
    """
    reading, writing = os.pipe()

    def pass_on() -> None:
        while data := os.read(0, 1 << 16):
            view = memoryview(data)
            while view:
                view = view[os.write(writing, view) :]
        os._exit(1)

    threading.Thread(target=pass_on, name="shardstream-bench", daemon=True).start()
    return os.fdopen(reading, "rb")


if __name__ == "__main__":
    # Ctrl-C is for the process that has started this one, which then ends it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print must not come between the answers
    serve(_commands(), out)
