"""An executor that fails as Dask does: its scheduler dies, and its batches are cancelled."""

from __future__ import annotations

import asyncio
from concurrent.futures import CancelledError, Future
from typing import Any

import pytest

import shardstream as ss
from shardstream.packing.engines import Needs, Submit
from tests.packing.engines import calls

TASKS = list(range(8))


class Dask:
    """Does what it is told to with each call."""

    def __init__(self, *errors: BaseException | None) -> None:
        self.errors, self.asked, self.dead = list(errors), 0, False

    def nthreads(self) -> dict[str, int]:
        self.asked += 1
        if self.dead:
            raise OSError("Timed out trying to connect")
        return {"tcp://a": 1}

    def submit(self, function: Any, *arguments: Any) -> Any:
        future: Any = Future()
        if error := self.errors.pop(0) if self.errors else None:
            future.set_exception(error)
        else:
            future.set_result(function(*arguments))
        return future


def test_a_scheduler_is_asked_seldom_and_its_death_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    dask = Dask()
    with Submit(dask).started(Needs()) as workers:
        assert len(list(workers.run(calls.doubled, 0, TASKS))) == len(TASKS)
        assert dask.asked == 1
        monkeypatch.setattr("shardstream.packing.engines.submit._LOOK", -1.0)
        dask.dead = True
        with pytest.raises(ss.StorageError, match="resume continues"):
            list(workers.run(calls.doubled, 0, TASKS))


def test_a_future_that_cannot_be_cancelled_hides_no_error() -> None:
    class Dead:
        def cancel(self) -> None:
            raise OSError("no scheduler")

    with Submit(Dask()).started(Needs()) as workers:
        workers.cancel([Dead()])


def test_a_worker_that_exits_is_lost_and_a_cancelled_batch_is_not() -> None:
    for error, lost in ((SystemExit(0), 1), (CancelledError(), 0), (asyncio.CancelledError(), 0)):
        with Submit(Dask(error)).started(Needs()) as workers:
            assert len(list(workers.run(calls.doubled, 0, TASKS))) == len(TASKS)
            assert (workers.counts.lost, workers.counts.retried) == (lost, 1)
