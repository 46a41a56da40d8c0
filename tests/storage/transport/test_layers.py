"""Retries, second requests and measurements, each around a backend that misbehaves."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import pytest

from shardstream.storage.options import RequestOptions, Retry
from shardstream.storage.transport.backends import Content, Data, Entry
from shardstream.storage.transport.concurrency import AdaptiveLimit, Measured
from shardstream.storage.transport.failures import Failure, of_status
from shardstream.storage.transport.hedging import Hedged, HedgePolicy
from shardstream.storage.transport.retry import Retrying
from shardstream.storage.transport.session import ReadSession

OPTIONS = RequestOptions(Retry(pause=0.001, span=0.0))


class Objects:
    """A backend over a dict. `before` and `after` are called with the number of each request, from 1."""

    name, connects, conditional = "objects", False, True

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.requests = 0
        self.before: Callable[[int], object] = lambda number: None
        self.after: Callable[[int], object] = lambda number: None
        self.seconds: Callable[[int], float] = lambda number: 0.0

    async def _request(self) -> int:
        self.requests += 1
        number = self.requests
        self.before(number)
        await asyncio.sleep(self.seconds(number))
        return number

    async def get(self, path: str, most: int | None) -> Content:
        return await self.get_range(path, 0, 1 << 40)

    async def get_range(self, path: str, start: int, size: int) -> Content:
        number = await self._request()
        data = self.objects[path]
        self.after(number)
        return Content(data[start : start + size], len(data), "")

    async def head(self, path: str) -> tuple[int | None, str]:
        await self._request()
        return len(self.objects[path]), ""

    async def put(self, path: str, parts: Sequence[Data]) -> None:
        number = await self._request()
        self.objects[path] = b"".join(parts)
        self.after(number)

    async def create(self, path: str, parts: Sequence[Data]) -> str:
        number = await self._request()
        if path in self.objects:
            raise FileExistsError(path)
        self.objects[path] = b"".join(parts)
        self.after(number)
        return f"version of {path}"

    async def replace(self, path: str, data: bytes, version: str) -> str:
        number = await self._request()
        if self.objects[path] != version.encode():
            raise FileExistsError(path)
        self.objects[path] = data
        self.after(number)
        return data.decode()

    async def delete_many(self, paths: Sequence[str]) -> None:
        await self._request()
        for path in paths:
            del self.objects[path]

    async def entries(self, path: str) -> Sequence[Entry]:
        await self._request()
        return [Entry(name, len(data), "") for name, data in self.objects.items()]

    async def delete(self, path: str) -> None:
        await self._request()
        del self.objects[path]

    async def list(self, path: str) -> list[str]:
        await self._request()
        return list(self.objects)


def fail(*numbers: int) -> Callable[[int], None]:
    """Lose the connection in these requests."""

    def check(number: int) -> None:
        if number in numbers:
            raise ConnectionResetError

    return check


def test_every_request_is_tried_again() -> None:
    objects, session = Objects(), ReadSession()
    store = Retrying(objects, OPTIONS, session)

    async def use() -> None:
        await store.put("a", [b"da", b"ta"])
        assert (await store.get("a", None)).data == b"data"
        assert (await store.get_range("a", 1, 2)).data == b"at"
        assert await store.head("a") == (4, "")
        assert await store.create("b", [b"mo", b"re"]) == "version of b"
        assert await store.replace("b", b"less", "more") == "less"
        assert await store.list("") == ["a", "b"]
        assert await store.entries("") == [Entry("a", 4, ""), Entry("b", 4, "")]
        await store.delete("b")
        await store.create("c", [])
        await store.delete_many(["c"])

    objects.before = fail(*range(1, 22, 2))
    asyncio.run(use())
    assert (objects.requests, session.retries) == (22, 11)
    assert objects.objects == {"a": b"data"}


def test_an_object_whose_creation_was_not_answered_is_our_own() -> None:
    objects = Objects()
    store = Retrying(objects, OPTIONS, ReadSession())
    objects.after = fail(1)
    asyncio.run(store.create("a", [b"ours"]))
    assert objects.objects == {"a": b"ours"}


def test_a_replacement_that_was_not_answered_is_our_own() -> None:
    objects = Objects()
    store = Retrying(objects, OPTIONS, ReadSession())
    objects.objects["a"] = b"old"
    objects.after = fail(1)
    asyncio.run(store.replace("a", b"ours", "old"))
    assert objects.objects == {"a": b"ours"}
    with pytest.raises(Failure):
        asyncio.run(store.replace("a", b"again", "old"))
    assert objects.objects == {"a": b"ours"}


def test_an_object_that_others_created_meanwhile_is_not() -> None:
    objects = Objects()
    store = Retrying(objects, OPTIONS, ReadSession())

    def lose(number: int) -> None:
        if number == 1:
            objects.objects["a"] = b"theirs"
            raise ConnectionResetError

    objects.before = lose
    with pytest.raises(Failure) as caught:
        asyncio.run(store.create("a", [b"ours"]))
    assert caught.value.kind is FileExistsError
    objects.objects["b"] = b"ours"
    with pytest.raises(Failure):  # at the first try nothing can be our own
        asyncio.run(store.create("b", [b"ours"]))


def known(size: int) -> HedgePolicy:
    """A policy that has seen many quick requests."""
    policy = HedgePolicy()
    for _ in range(100):
        policy.delay(size)
        policy.took(size, 0.001)
    return policy


def test_a_slow_read_is_sent_twice_and_the_first_answer_is_taken() -> None:
    objects, session, policy = Objects(), ReadSession(), known(4)
    objects.objects["a"] = b"data"
    objects.seconds = lambda number: 60.0 if number == 1 else 0.0
    store = Hedged(objects, policy, session)
    assert asyncio.run(store.get_range("a", 0, 4)).data == b"data"
    assert (objects.requests, session.hedges, policy.sent) == (2, 1, 1)


def test_a_second_request_that_fails_is_not_the_answer() -> None:
    objects, session, policy = Objects(), ReadSession(), known(4)
    objects.objects["a"] = b"data"
    objects.before, objects.seconds = fail(2), lambda number: 0.1 if number == 1 else 0.0
    store = Hedged(objects, policy, session)
    assert asyncio.run(store.get_range("a", 0, 4)).data == b"data"
    assert (objects.requests, session.hedges) == (2, 1)


def test_an_overloaded_store_halves_the_limit() -> None:
    clock = [0.0]
    objects, limit = Objects(), AdaptiveLimit(lambda: clock[0])
    store = Measured(objects, limit)
    objects.objects["a"] = b"data"

    def overloaded(number: int) -> None:
        raise of_status(503)

    async def use() -> None:
        for _ in range(3):
            assert (await store.get_range("a", 0, 4)).data == b"data"
        clock[0] = 10.0
        objects.before = overloaded
        with pytest.raises(Failure):
            await store.get("a", None)

    before = limit.now
    asyncio.run(use())
    assert limit.now == before // 2
