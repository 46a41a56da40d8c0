"""The contract of datasets: one order for any number of ranks, and exact resume from any place."""

from __future__ import annotations

import hashlib
import itertools
import json
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from shardstream.dataset import OrderedDataset
from shardstream.errors import StateError
from shardstream.loader import StreamingLoader
from shardstream.order.topology import Topology

__all__ = ["DatasetContract", "Opened", "item_name", "item_names"]

Opened = Callable[[Topology], OrderedDataset[Any]]
State = dict[str, Any]
GLOBAL_BATCH = 12  # items: it divides among 1, 2, 3 and 4 ranks


def item_name(item: dict[str, Any]) -> str:
    """The name of a sample or a block: its key, or a digest of its tokens."""
    if "__key__" in item:
        return str(item["__key__"])
    return hashlib.blake2b(np.asarray(item["tokens"]).tobytes(), digest_size=8).hexdigest()


def item_names(batch: dict[str, Any]) -> list[str]:
    """The names of the items of a batch, without those that pad it."""
    size = len(next(iter(batch.values())))
    pads = batch["__pad__"].tolist() if "__pad__" in batch else [False] * size
    if "__key__" in batch:
        rows = list(batch["__key__"])
    else:
        rows = [item_name({"tokens": row}) for row in batch["tokens"]]
    return [row for row, pad in zip(rows, pads, strict=True) if not pad]


class DatasetContract:
    """What holds for every dataset. A subclass gives the fixture `opened`.

    opened: a function of a Topology that opens the dataset for one rank, each time anew. An epoch has at
        least 40 items, and an end. Items have names that differ, or `distinct` is False.
    loader_options: options of StreamingLoader to test with, such as `collate`. A subclass may give it.
    """

    distinct = True  # whether an epoch has each item once

    @pytest.fixture
    def opened(self) -> Opened:
        raise NotImplementedError("a subclass of the contract gives the fixture `opened`")

    @pytest.fixture
    def loader_options(self) -> dict[str, Any]:
        return {}

    def name(self, item: Any) -> str:
        """What tells an item from others; a subclass may have other items."""
        return item_name(item)

    def names(self, batch: Any) -> list[str]:
        """The names of a batch's items, without those that pad it."""
        return item_names(batch)

    def test_an_epoch_has_its_length_and_each_item_once(self, opened: Opened) -> None:
        ds = opened(Topology())
        found = [self.name(item) for item in ds]
        assert len(found) == len(ds) == ds.total >= 40
        assert len(set(found)) == len(found) or not self.distinct

    def test_the_order_is_the_same_for_any_number_of_ranks(self, opened: Opened) -> None:
        whole = [self.name(item) for item in opened(Topology())]
        # Not 3: the default number of lanes would be another, and so the order.
        for size in (2, 4):
            ranks = [[self.name(item) for item in opened(Topology(rank, size))] for rank in range(size)]
            for rank, found in enumerate(ranks):
                assert found == whole[rank::size]

    def test_an_epoch_is_the_same_each_time(self, opened: Opened) -> None:
        epochs = []
        for _ in range(2):
            ds = opened(Topology())
            ds.set_epoch(3)
            epochs.append([self.name(item) for item in itertools.islice(ds, 20)])
        assert epochs[0] == epochs[1]

    def test_a_look_does_not_count(self, opened: Opened) -> None:
        ds = opened(Topology())
        first = self.name(next(iter(ds)))
        assert self.name(next(iter(ds))) == first
        assert [self.name(item) for item in itertools.islice(ds, 1)] == [first]

    def test_it_goes_on_in_another_process(self, opened: Opened) -> None:
        ds = opened(Topology())
        whole = [self.name(item) for item in opened(Topology())]
        began = [self.name(item) for item in itertools.islice(ds, 7)]
        there = pickle.loads(pickle.dumps(ds))  # noqa: S301 - made here
        there.load_state_dict(ds.state_dict())
        assert began + [self.name(item) for item in there] == whole

    def test_it_saves_and_resumes_without_a_loader(self, opened: Opened) -> None:
        whole = [self.name(item) for item in opened(Topology())]
        for saved_by, stop in itertools.product((1, 4), (0, 1, 7)):
            before = _ranks(opened, saved_by)
            done = [[self.name(item) for item in itertools.islice(one, stop)] for one in before]
            state = _state(before)
            in_order = list(itertools.chain(*zip(*done, strict=True)))
            assert in_order == whole[: stop * saved_by]
            for size in (1, 2):
                after = _ranks(opened, size)
                for one in after:
                    one.load_state_dict(state)
                rest = [self.name(item) for one in after for item in one]
                assert sorted(in_order + rest) == sorted(whole)
            loader = StreamingLoader(opened(Topology()), 7, last="short")
            loader.load_state_dict(state)
            assert [found for batch in loader for found in self.names(batch)] == whole[stop * saved_by :]

    @pytest.mark.parametrize("last", ["drop", "pad", "short"])
    def test_a_loader_saves_and_resumes(
        self, opened: Opened, loader_options: dict[str, Any], last: Any
    ) -> None:
        """Saved before the first batch, amid the epoch and after the last, by some ranks for others."""

        def ranks(size: int, batch_size: int) -> list[StreamingLoader[Any]]:
            options: dict[str, Any] = {"threads": 1, **loader_options}
            return [StreamingLoader(ds, batch_size, last=last, **options) for ds in _ranks(opened, size)]

        def steps(loaders: list[StreamingLoader[Any]], count: int | None = None) -> list[list[str]]:
            return list(self._steps(loaders, count))

        everything = sorted(self.name(item) for item in opened(Topology()))
        whole = ranks(1, GLOBAL_BATCH)
        first, second = steps(whole), steps(whole)
        if last == "drop":
            assert len(first) == len(everything) // GLOBAL_BATCH
        else:
            assert sorted(itertools.chain(*first)) == everything
        # The default number of lanes is the same for 1, 2 and 4 that start; who resumes takes the state's.
        for saved_by, stop, size in [(1, 0, 2), (4, 1, 2), (2, 3, 1), (1, 3, 3), (4, len(first), 2)]:
            before = ranks(saved_by, GLOBAL_BATCH // saved_by)
            done = steps(before, stop)
            assert done == first[:stop]
            state = _state(before)
            after = ranks(size, GLOBAL_BATCH // size)
            for one in after:
                one.load_state_dict(state)
            assert _state(after) == state
            # After the last batch of an epoch, nothing is left of it.
            assert steps(after) == first[stop:]
            if stop in (1, len(first)):
                assert steps(after) == second
            # Other sizes of batches give other batches of the same items.
            after = ranks(2, 5)
            for one in after:
                one.load_state_dict(state)
            found = [*itertools.chain(*done), *itertools.chain(*steps(after))]
            assert len(set(found)) == len(found) or not self.distinct
            if last != "drop":
                assert sorted(found) == everything

    def _steps(self, loaders: list[StreamingLoader[Any]], count: int | None) -> Iterator[list[str]]:
        """The global batches of the next epoch, or the first `count` of them: the names in each, sorted."""
        iterators = [itertools.islice(one, count) for one in loaders]
        for batches in zip(*iterators, strict=True):  # strict: equally many on every rank
            yield sorted(itertools.chain(*map(self.names, batches)))

    def test_a_state_that_does_not_fit_is_refused_and_changes_nothing(self, opened: Opened) -> None:
        ds = opened(Topology())
        whole = [self.name(item) for item in opened(Topology())]
        began = [self.name(item) for item in itertools.islice(ds, 5)]
        state = ds.state_dict()
        for wrong in ({}, {**state, "version": 99}, {**state, "position": -1}, {**state, "epoch": "1"}):
            with pytest.raises(StateError):
                ds.load_state_dict(wrong)
        assert ds.state_dict() == state
        ds.load_state_dict(state)
        assert began + [self.name(item) for item in ds] == whole


def _ranks(opened: Opened, size: int) -> list[OrderedDataset[Any]]:
    return [opened(Topology(rank, size)) for rank in range(size)]


def _state(ranks: list[OrderedDataset[Any]] | list[StreamingLoader[Any]]) -> State:
    """The state of a job: JSON, and the same on every rank."""
    states = [one.state_dict() for one in ranks]
    assert all(state == states[0] for state in states)
    found: State = json.loads(json.dumps(states[0]))
    return found
