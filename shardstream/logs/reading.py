"""Reading a log: the rows of all ranks, one after another."""

from __future__ import annotations

import heapq
import io
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from functools import partial
from typing import Any

import zstandard

from shardstream.errors import CorruptionError, SourceError
from shardstream.format.numbers import whole_number
from shardstream.logs.objects import expanded, fetched, folder_of, numbered, rank_of
from shardstream.logs.rows import decode
from shardstream.storage.fetch.pool import ElasticPool
from shardstream.storage.options import Options
from shardstream.storage.store import Store

__all__ = ["read"]

_THREADS = 16
_AHEAD = 2  # objects of a rank that are fetched ahead
_BUFFER = 64 << 10  # bytes of rows of each rank that are decompressed at a time


def read(url: str, *, rank: int | None = None, storage_options: Options = None) -> Iterator[dict[str, Any]]:
    """The rows of a log that are uploaded.

    The rows of a rank come in the order of its objects, which is the order in which they were written. Rows
    of several ranks are merged by their field "time". Numbers that JSON does not have are floats again. A
    process holds a few objects of each rank, as they are stored, at a time.

    Args:
        url: Where the log is.
        rank: The rank whose rows are read; None for all ranks.
        storage_options: As for a dataset.

    Returns:
        An iterator of dicts with "time" (seconds since 1970), "rank", and what was written. Rows with a field
        "shardstream" say what is missing from the log.

    Raises:
        SourceError: There is no log, or no such rank in it.
        CorruptionError: While rows are read: an object is damaged. The message names it.
        StorageError: The store does not answer.
    """
    root = str(url).rstrip("/") or str(url)
    ranks = sorted(
        found for name in Store.open(root, storage_options).list() if (found := rank_of(name)) is not None
    )
    if rank is not None:
        whole_number("rank", rank, 0)
        ranks = [each for each in ranks if each == rank]
    if not ranks:
        which = "" if rank is None else f" of rank {rank}"
        raise SourceError(f"{Store.open(root, storage_options).url}: no log{which} is here")
    pool = ElasticPool(_THREADS)
    stores = [Store.open(f"{root}/{folder_of(each)}", storage_options) for each in ranks]
    streams = [_timed(number, store, pool) for number, store in enumerate(stores)]
    return (row for *_, row in heapq.merge(*streams))


def _timed(stream: int, store: Store, pool: ElasticPool) -> Iterator[tuple[float, int, int, dict[str, Any]]]:
    """The rows of a rank with what they are merged by, which never decreases."""
    latest = -float("inf")
    for number, row in enumerate(_rows(store, pool)):
        time = row.get("time")
        if isinstance(time, (int, float)) and time > latest:
            latest = time
        yield latest, stream, number, row


def _rows(store: Store, pool: ElasticPool) -> Iterator[dict[str, Any]]:
    waiting: deque[tuple[str, Future[bytes]]] = deque()
    names = iter(numbered(store).values())
    for name in names:
        waiting.append((name, _begun(store, name, pool)))
        if len(waiting) > _AHEAD:
            yield from _of_object(store, *waiting.popleft())
    while waiting:
        yield from _of_object(store, *waiting.popleft())


def _begun(store: Store, name: str, pool: ElasticPool) -> Future[bytes]:
    future: Future[bytes] = Future()
    pool.submit(partial(_fetch, store, name, future))
    return future


def _fetch(store: Store, name: str, future: Future[bytes]) -> None:
    try:
        future.set_result(fetched(store, name))
    except BaseException as error:  # noqa: BLE001 - it is raised where the result is asked for
        future.set_exception(error)


def _of_object(store: Store, name: str, future: Future[bytes]) -> Iterator[dict[str, Any]]:
    packed = future.result()
    try:
        expanded(packed)  # no row of a damaged object is given out
        # Rows are decompressed again, a few at a time: a job may have thousands of ranks.
        reader = io.BufferedReader(zstandard.ZstdDecompressor().stream_reader(packed), _BUFFER)
        for line in reader:
            yield decode(line)
    except ValueError as error:
        raise CorruptionError(f"{store.where(name)} is damaged: {error}") from error
