"""Packers that meet on one target in a store: killed, stopped and woken, or at the same time."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import pytest

import shardstream as ss
from shardstream.errors import CommitError, CorruptionError
from shardstream.packing import receipts, reservation
from shardstream.packing.claim import Claim, claim_of
from shardstream.packing.result import Result
from shardstream.packing.shard_puts import ShardPuts
from shardstream.storage.manifests import read_manifest
from shardstream.storage.store import Store
from tests.watch import ended

SIZES = ("--shard-size", "32KiB", "--frame-size", "16KiB", "--workers", "2")


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two inputs of the same size, of about 40 tasks each."""
    folder = tmp_path_factory.mktemp("corpora")
    paths = folder / "a.jsonl", folder / "b.jsonl"
    for path in paths:
        numbers = random.Random(path.name)
        rows = [{"id": f"k{n}", "text": numbers.randbytes(2000).hex()} for n in range(320)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return paths


class Target:
    """A place in the store, and packs into it as processes."""

    def __init__(self, weed: Any) -> None:
        self.options = weed.options()
        self.url = weed.bucket()
        self.store = Store.open(self.url, self.options)
        self._environment = {
            **os.environ, "AWS_ACCESS_KEY_ID": self.options["key"], "AWS_ENDPOINT_URL": weed.url,
            "AWS_SECRET_ACCESS_KEY": self.options["secret"], "AWS_REGION": "us-east-1",
        }  # fmt: skip
        self._running: list[subprocess.Popen[str]] = []

    def start(self, corpus: Path, *more: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "shardstream", "pack", str(corpus), self.url, *SIZES, *more]
        packer = subprocess.Popen(
            command, env=self._environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            start_new_session=True,
        )  # fmt: skip
        self._running.append(packer)
        return packer

    def stop(self) -> None:
        for packer in self._running:
            if packer.poll() is None:
                os.killpg(packer.pid, signal.SIGKILL)
            packer.communicate(timeout=60)

    def shards(self) -> int:
        return sum(name.endswith(".tar.zst") for name in self.store.list())

    def contents(self) -> dict[str, bytes]:
        return {name: self.store.read(name) for name in self.store.list()}


@pytest.fixture
def target(weed: Any) -> Iterator[Target]:
    target = Target(weed)
    target.store.write("bucket is there", b"")
    target.store.delete("bucket is there")
    yield target
    target.stop()


@pytest.fixture(scope="module")
def whole(corpora: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, bytes]]:
    """What a pack of each corpus on a local disk holds."""
    found = []
    for corpus in corpora:
        dest = tmp_path_factory.mktemp("whole") / "out"
        ss.pack(corpus, dest, workers=1, shard_size="32KiB", frame_size="16KiB")
        found.append({path.name: path.read_bytes() for path in dest.iterdir()})
    assert len(found[0]) > 60
    return found


def test_a_packer_killed_again_and_again_ends_with_the_same_bytes(
    target: Target, corpora: tuple[Path, Path], whole: list[dict[str, bytes]]
) -> None:
    numbers, rounds = random.Random(7), 0
    while not target.store.exists("manifest.json"):
        before = target.shards()
        packer = target.start(corpora[0], *(["--resume"] if rounds else []))
        more = before + numbers.randrange(1, 15)
        assert ended(lambda: packer.poll() is not None or target.shards() >= more)  # noqa: B023 - called here
        packer.kill()  # its workers may go on for a moment
        packer.communicate(timeout=60)
        rounds += 1
        assert rounds < 60
    assert rounds > 2
    assert target.start(corpora[0], "--resume").wait(120) == 0
    assert target.contents() == whole[0]


def test_of_two_that_resume_at_once_one_ends_and_the_other_says_why(
    target: Target, corpora: tuple[Path, Path], whole: list[dict[str, bytes]]
) -> None:
    packer = target.start(corpora[0])
    assert ended(lambda: target.shards() >= 3)
    packer.kill()
    packer.communicate(timeout=60)
    both = [target.start(corpora[0], "--resume") for _ in range(2)]
    said = [packer.communicate(timeout=200)[1] for packer in both]
    codes = [packer.returncode for packer in both]
    assert 0 in codes
    for code, text in zip(codes, said, strict=True):
        assert code == 0 or "another packer" in text or "this pack has ended" in text, text
        assert "Traceback" not in text
    target.start(corpora[0], "--resume").wait(120)
    assert target.contents() == whole[0]


def test_a_stopped_packer_that_wakes_after_another_pack_does_no_harm(
    target: Target, corpora: tuple[Path, Path], whole: list[dict[str, bytes]]
) -> None:
    zombie = target.start(corpora[0])
    assert ended(lambda: target.shards() >= 3)
    os.killpg(zombie.pid, signal.SIGSTOP)
    target.store.delete(reservation.NAME)  # as the message says, if the packer is taken for dead
    for name in target.store.list():
        target.store.delete(name)
    other = target.start(corpora[1])
    assert ended(lambda: target.shards() >= 3)
    os.killpg(zombie.pid, signal.SIGCONT)
    _, text = zombie.communicate(timeout=200)
    assert zombie.returncode == 1
    # The other one may have ended meanwhile.
    assert "another packer packs something else here" in text or "this pack has ended" in text
    _, text = other.communicate(timeout=200)
    assert other.returncode == 0, text
    assert target.contents() == whole[1]


@pytest.mark.long
@pytest.mark.parametrize("whom", ["all", "workers"])
@pytest.mark.parametrize("first", [0, 1, 4, 9, 17, 30])
def test_wherever_it_was_stopped(
    target: Target, corpora: tuple[Path, Path], whole: list[dict[str, bytes]], first: int, whom: str
) -> None:
    """The other pack has begun, is half done, or has ended when the stopped one wakes."""
    zombie = target.start(corpora[0])
    assert ended(lambda: target.store.exists(reservation.NAME) and target.shards() >= first)
    stopped = [*children(zombie.pid), *([zombie.pid] if whom == "all" else [])]
    for process in stopped:
        os.kill(process, signal.SIGSTOP)
    if whom == "workers":
        zombie.kill()
    time.sleep(0.2)  # what was sent before arrives
    target.store.delete_many(target.store.list())
    other = target.start(corpora[1])
    more = {0: 0, 1: 1, 4: 10, 9: 25, 17: 37, 30: 1000}[first]
    begun = lambda: target.store.exists(reservation.NAME) and target.shards() >= more  # noqa: E731
    assert ended(lambda: other.poll() is not None or begun())
    before = other.poll() is not None
    for process in stopped:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGCONT)
    assert zombie.communicate(timeout=200)
    said = other.communicate(timeout=200)
    assert other.returncode == 0, said
    found = target.contents()
    assert {name: found.get(name) for name in whole[1]} == whole[1]
    # A put that was on its way when the other pack had ended already: nobody reads what it left.
    assert before or found.keys() == whole[1].keys()
    assert ss.verify(target.url, deep=True, storage_options=target.options).sound


def children(process: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def claimed(store: Store, plan: str) -> Claim:
    granted, _ = reservation.reserve(store, reservation.Reservation(plan), resume=False, locked=True)
    return Claim(granted.plan, granted.epoch, granted.owner)


@pytest.fixture(params=["local", "weed"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "local":
        return Store.open(str(tmp_path / "out"))
    weed = request.getfixturevalue("weed")
    return Store.open(weed.bucket(), weed.options())


@pytest.mark.parametrize("tests", [1, 3])
def test_a_packer_that_was_stopped_while_it_tried_the_store_leaves_the_next_one_its_turn(
    weed: Any, tests: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = weed.bucket()
    late, other = (Store.open(url, weed.options()) for _ in range(2))
    monkeypatch.setattr(reservation, "_TESTS", tests)
    create, tried = late.create, []
    granted: list[reservation.Reservation] = []

    def stopped(path: str, *parts: Any) -> str:
        tried.append(path)
        if sum(name.startswith(reservation.TEST) for name in tried) == 2 and not granted:
            other.delete_many(other.list())  # as the message says, if the packer is taken for dead
            granted.append(reservation.reserve(other, reservation.Reservation("new"), False, False)[0])
        return create(path, *parts)

    monkeypatch.setattr(late, "create", stopped)
    if tests == 1:  # it takes the store for one that does not refuse to create an object again
        with pytest.raises(CommitError, match="was changed meanwhile"):
            reservation.reserve(late, reservation.Reservation("old"), False, locked=False)
    else:
        mine, _ = reservation.reserve(late, reservation.Reservation("old"), False, locked=False)
        assert not mine.tagged
        with pytest.raises(CommitError, match="packs something else here"):
            claim_of(mine).check(late)
    assert reservation.read(other) == granted[0]


def test_equal_bytes_are_accepted_and_those_of_another_plan_replaced(store: Store) -> None:
    late = claimed(store, "old plan")
    late.check(store)
    mine = claimed(store, "new plan")
    store.create("shard-000000.tar", b"by a worker that was stopped within its put")
    puts = ShardPuts(store, mine, 0)
    puts.write("shard-000000.tar", b"my ", b"bytes")
    puts.write("shard-000000.tar", b"my bytes")
    assert store.read("shard-000000.tar") == b"my bytes"
    assert puts.versions["shard-000000.tar"] == store.entries()[-1].version
    # It looked at its claim a moment ago. What is there stays, and it looks again.
    with pytest.raises(CommitError, match="packs something else here"):
        ShardPuts(store, late, 0).write("shard-000000.tar", b"late bytes")
    assert store.read("shard-000000.tar") == b"my bytes"


def test_attempts_that_made_different_bytes_are_named(store: Store) -> None:
    claim = claimed(store, "plan")
    puts = ShardPuts(store, claim, 3)
    puts.write("shard-000003.tar", b"first")
    receipts.write_receipt(store, claim, "task", Result(3, versions=puts.versions))
    receipts.write_receipt(store, claim, "task", Result(3))  # equal but for the versions
    with pytest.raises(CorruptionError, match=r"shard-000003\.tar: two attempts"):
        ShardPuts(store, claim, 3).write("shard-000003.tar", b"second")
    assert store.read("shard-000003.tar") == b"first"


def test_receipts_of_another_plan_do_not_count(store: Store) -> None:
    late, mine = claimed(store, "old plan"), claimed(store, "new plan")
    name = receipts.receipt_name("task", 0)
    store.create(name, msgspec.json.encode(Result(0, samples=9, plan="old plan")))
    assert receipts.read_all(store, store.list(), "task", [mine.plan]) == ({}, set())
    receipts.write_receipt(store, mine, "task", Result(0, samples=1))
    found, alone = receipts.read_all(store, store.list(), "task", [mine.plan])
    assert (found[0].samples, alone) == (1, {0})
    with pytest.raises(CommitError, match="packs something else here"):
        receipts.write_receipt(store, late, "task", Result(1))


def test_receipts_are_folded_by_thousands_and_read_back(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(receipts, "FOLDED", 4)
    claim = claimed(store, "plan")
    results = [Result(number, samples=number) for number in range(10)]
    for result in results:
        receipts.write_receipt(store, claim, "task", result)
    folds = receipts.Folds(store, claim, "task")
    folds.add(results)
    names = store.list()
    assert sum(receipts.is_receipt(name, "task") for name in names) == 2 + 2
    assert not any(receipts.is_receipt(name, "spill") for name in names)
    found, alone = receipts.read_all(store, names, "task", ["plan"])
    assert [found[number].samples for number in range(10)] == list(range(10))
    assert alone == {8, 9}


def test_of_two_that_take_the_turn_of_a_dead_packer_one_has_it(store: Store) -> None:
    claimed(store, "plan")
    mine = reservation.Reservation("plan")

    def take(_: int) -> int | None:
        try:
            return reservation.reserve(store, mine, resume=True, locked=False)[0].epoch
        except CommitError:
            return None

    if store.local_path("x") is None:  # a directory has its lock instead
        with ThreadPoolExecutor(8) as pool:
            epochs = [epoch for epoch in pool.map(take, range(8)) if epoch is not None]
        assert epochs
        assert len(set(epochs)) == len(epochs)
        found = reservation.read(store)
        assert found is not None
        assert found.epoch == max(epochs)


def test_a_writer_that_was_taken_for_dead_writes_nothing_more(store: Store, weed: Any) -> None:
    if store.local_path("x") is not None:  # a directory has its lock instead
        return
    options: dict[str, Any] = {"storage_options": weed.options(), "shard_size": "1KiB"}
    rows = [{"__key__": f"{number}", "txt": f"{number}" * 600} for number in range(5)]
    slow = ss.Writer(store.url, level=1, **options)
    slow.write(rows[0])
    store.delete(reservation.NAME)

    def go_on() -> None:
        for row in reversed(rows):
            slow.write(row)
        slow.close()

    with ss.Writer(store.url, level=2, **options) as other:
        for row in rows:
            other.write(row)
        with pytest.raises(CommitError, match="packs something else here"):
            go_on()
    assert ss.verify(store.url, deep=True, storage_options=weed.options()).sound
    listed = {name for shard in read_manifest(store)[0].shards for name in (shard.url, shard.index_url)}
    assert set(store.list()) == {"manifest.json", *listed}
