"""Receipts: what the tasks of an unfinished pack did, kept in its target.

The worker that did a task puts its receipt. The packer folds a thousand of them into one object. So a pack
that is continued, or committed by another process, reads few objects.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import msgspec
import xxhash
import zstandard

from shardstream.errors import CommitError, CorruptionError, StorageError
from shardstream.packing.claim import Claim
from shardstream.packing.result import Result
from shardstream.storage.store import Store

__all__ = [
    "FOLDED",
    "Folds",
    "Some",
    "discard",
    "is_receipt",
    "read_all",
    "read_one",
    "receipt_name",
    "write_receipt",
]

FOLDED = 1000  # receipts in one object
_AT_ONCE = 64  # requests
_MOST = 1 << 30  # bytes of a fold that is read
_ONE = re.compile(r"\.pack-([a-z]+)-(\d{6,})\.json\Z")
_FOLD = re.compile(r"\.pack-([a-z]+)-fold(?:-(\d{6,}))?-[0-9a-f]{16}\.msgpack\.zst\Z")
_TRIES = 3


class Some(NamedTuple):
    """The tasks of one part of a pack.

    Args:
        part: The number of the part.
        tasks: The numbers of its tasks.
    """

    part: int
    tasks: Collection[int]

    def asks(self, name: str) -> bool:
        """Whether an object may be a receipt of these tasks. What several parts did at once may be."""
        if (match := _ONE.match(name)) is not None:
            return int(match[2]) in self.tasks
        match = _FOLD.match(name)
        return match is not None and (match[2] is None or int(match[2]) == self.part)


def receipt_name(stage: str, number: int) -> str:
    """The name of the receipt of a task."""
    return f".pack-{stage}-{number:06d}.json"


def is_receipt(name: str, stage: str) -> bool:
    """Whether an object is a receipt of a task of a pass, or several of them in one."""
    match = _ONE.match(name) or _FOLD.match(name)
    return match is not None and match[1] == stage


def write_receipt(store: Store, claim: Claim, stage: str, result: Result) -> None:
    """Put the receipt of a task, after its shards.

    Args:
        store: The target.
        claim: By which the worker may write there.
        stage: The pass of the task.
        result: What it did.

    Raises:
        CommitError: It is another packer's turn at the target.
        CorruptionError: Another attempt at the task has made other shards.
        StorageError: It cannot be written.
    """
    result.plan = claim.plan
    name, data = receipt_name(stage, result.number), msgspec.json.encode(result)
    claim.check(store)
    for _ in range(_TRIES):
        try:
            store.create(name, data)
            return
        except CommitError:
            version = _version(store, name)  # never a newer one than the content
            found = read_one(store, name)
        if found is not None and found.plan == claim.plan:
            same = found.shards == result.shards and found.spilled == result.spilled
            if same and result.versions in ({}, found.versions):
                return
            if same or _is_gone(store, found):
                claim.check(store, now=True)
                with contextlib.suppress(CommitError):  # another attempt was faster
                    store.replace(name, data, version)
                    return
                continue
            where = store.where(found.shards[0].url if found.shards else name)
            raise CorruptionError(
                f"{where}: two attempts at one task made different shards of the same input; the "
                "machines may have different packages, or the source is not the same each time"
            )
        claim.check(store, now=True)
        store.delete(name)  # of another plan, or damaged
    raise StorageError(f"{store.where(name)}: it comes back each time that it is deleted")


def _version(store: Store, name: str) -> str:
    """The version of an object; "" if it is missing, or if the store does not tell."""
    try:
        return store.version(name)[0]
    except StorageError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return ""
        raise


def _is_gone(store: Store, found: Result) -> bool:
    """Whether nothing is left of what a receipt names, so that no attempt can be right by it."""
    known = {name: version for name, version in found.versions.items() if version}
    return bool(known) and all(_version(store, name) != version for name, version in known.items())


def read_one(store: Store, name: str) -> Result | None:
    """A receipt; None if it is missing or damaged."""
    try:
        return msgspec.json.decode(store.read(name), type=Result)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    except StorageError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return None
        raise


def read_all(
    store: Store,
    names: Iterable[str],
    stage: str,
    plans: Iterable[str],
    some: Some | None = None,
    holds: Callable[[Result], bool] = lambda _: True,
) -> tuple[dict[int, Result], set[int]]:
    """The receipts of a pass, read many at a time.

    Args:
        store: The target.
        names: The names of the objects there.
        stage: The pass.
        plans: The identities of the pack. The receipts of other plans are passed over. Those of version 0.1
            name no plan.
        some: Which tasks are asked for. None: all.
        holds: Whether what a receipt names is there. There may be several receipts of a task that was done
            again, and those that do not hold are passed over.

    Returns:
        (the results by the numbers of their tasks, the tasks whose receipts are objects of their own).
    """
    mine = {"", *plans}
    asked = [name for name in names if is_receipt(name, stage) and (some is None or some.asks(name))]
    singles = [name for name in asked if _ONE.match(name)]
    folds = [name for name in asked if _FOLD.match(name)]
    with ThreadPoolExecutor(_AT_ONCE, "shardstream-receipts") as pool:
        several = [result for each in pool.map(lambda name: _unfolded(store, name), folds) for result in each]
        alone = [result for result in pool.map(lambda name: read_one(store, name), singles) if result]
    several = [result for result in several if result.plan in mine and holds(result)]
    alone = [result for result in alone if result.plan in mine and holds(result)]
    return {result.number: result for result in (*several, *alone)}, {result.number for result in alone}


def discard(
    store: Store, names: Iterable[str], plan: str, parts: Collection[int], tasks: Collection[int]
) -> None:
    """Delete the receipts of some tasks, but not those of another plan.

    Args:
        store: The target.
        names: The names of the objects there.
        plan: The identity of the pack.
        parts: The numbers of the parts whose tasks they are.
        tasks: The numbers of the tasks.
    """
    for name in names:
        if (match := _ONE.match(name)) is not None and int(match[2]) in tasks:
            one = read_one(store, name)
            if one is not None and one.plan == plan:
                store.delete(name)
        elif (match := _FOLD.match(name)) is not None and (match[2] is None or int(match[2]) in parts):
            results = _unfolded(store, name)
            kept = [result for result in results if result.plan != plan or result.number not in tasks]
            if len(kept) == len(results):
                continue
            if kept:
                _put_fold(store, name.rsplit("-", 1)[0], kept)
            store.delete(name)


def _put_fold(store: Store, name: str, results: list[Result]) -> None:
    data = zstandard.ZstdCompressor().compress(msgspec.msgpack.encode(results))
    store.write(f"{name}-{xxhash.xxh3_64_hexdigest(data)}.msgpack.zst", data)


def _unfolded(store: Store, name: str) -> list[Result]:
    try:
        data = zstandard.ZstdDecompressor().decompress(store.read(name), max_output_size=_MOST)
        return msgspec.msgpack.decode(data, type=list[Result])
    except (zstandard.ZstdError, msgspec.DecodeError):
        return []
    except StorageError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return []
        raise


class Folds:
    """Folds receipts of one pass, a thousand at a time.

    Args:
        store: The target.
        claim: By which the packer may write there.
        stage: The pass.
        part: The part of the pack whose tasks they are, or None.
    """

    def __init__(self, store: Store, claim: Claim, stage: str, part: int | None = None) -> None:
        self._store, self._claim = store, claim
        self._stage, self._name = stage, f".pack-{stage}-fold" + ("" if part is None else f"-{part:06d}")
        self._open: list[Result] = []

    def add(self, results: Sequence[Result]) -> None:
        """Take results whose receipts are objects of their own."""
        for result in results:
            self._open.append(result)
            if len(self._open) >= FOLDED:
                self._fold()

    def close(self) -> None:
        """Fold those that are left, since a part ends, and another process reads them."""
        if len(self._open) > 1:
            self._fold()

    def _fold(self) -> None:
        some, self._open = self._open, []
        self._claim.check(self._store)
        _put_fold(self._store, self._name, some)
        self._store.delete_many([receipt_name(self._stage, result.number) for result in some])
