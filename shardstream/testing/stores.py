"""The contract of stores: reads are exact or errors, writes are atomic, errors name the object."""

from __future__ import annotations

import array
import pickle
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from shardstream.errors import CommitError, StorageError
from shardstream.storage.store import Store

__all__ = ["Put", "ReadOnlyStoreContract", "StoreContract"]

Put = Callable[..., None]  # Store.write: a name, and the parts of the object

NAMES = ["a.bin", "sub/deep/b.bin", "a b ключ ✓.bin", "100%.bin"]


class ReadOnlyStoreContract:
    """What holds for every store that can be read. A subclass gives two fixtures.

    store: a Store whose root is empty and that no other test uses.
    put: a function of a name and the parts of an object that puts it there, by whatever way.
    """

    @pytest.fixture
    def store(self) -> Store:
        raise NotImplementedError("a subclass of the contract gives the fixture `store`")

    @pytest.fixture
    def put(self) -> Put:
        raise NotImplementedError("a subclass of the contract gives the fixture `put`")

    @pytest.mark.parametrize("name", NAMES)
    def test_what_was_written_comes_back(self, store: Store, put: Put, name: str) -> None:
        several: list[bytes | bytearray | memoryview] = [b"a", bytearray(b"b"), memoryview(b"cd"), b""]
        for parts in ([], [b""], [b"one"], several, [bytes(3 << 20)]):
            put(name, *parts)
            assert store.read(name) == b"".join(parts)
            assert store.size(name) == sum(map(len, parts))
            assert store.exists(name)

    def test_a_range_is_exact_or_an_error(self, store: Store, put: Put) -> None:
        data = bytes(range(10))
        put("a", data)
        for start in range(13):
            for size in [*range(1, 13), 1 << 62]:
                if start + size <= len(data):
                    assert store.read_range("a", start, size) == data[start : start + size]
                else:
                    with pytest.raises(StorageError, match="a: "):
                        store.read_range("a", start, size)
        assert store.read_range("a", 5, 0) == b""

    def test_parts_go_to_the_memory_that_was_given(self, store: Store, put: Put) -> None:
        data = bytes(range(256)) * (40 << 10)  # 10 MiB: more than one range
        put("sub/a", data)
        memory = bytearray(len(data))
        whole = memoryview(memory)
        store.read_into("sub/a", [(0, whole)])
        assert memory == data
        places = [(7, 5), (0, 3), (12, 0), (12, 1 << 20), (len(data) - 1, 1), (5 << 20, 4 << 20), (2, 9)]
        room = bytearray(sum(size for _, size in places) + len(places))  # a byte between two of them
        parts, at = [], 0
        for start, size in places:
            parts.append((start, memoryview(room)[at : at + size]))
            at += size + 1
        store.read_into("sub/a", parts)
        assert [bytes(view) for _, view in parts] == [data[start : start + size] for start, size in places]
        at = -1
        for _, size in places:
            at += size + 1
            assert room[at] == 0  # nothing is written beside the views
        store.read_into("sub/a", [])

    def test_the_start_of_an_object_and_its_size(self, store: Store, put: Put) -> None:
        put("a", bytes(range(100)))
        put("empty")
        assert store.read_start("a", 10) == (bytes(range(10)), 100)
        assert store.read_start("a", 100) == store.read_start("a", 1000) == (bytes(range(100)), 100)
        assert store.read_start("empty", 10) == (b"", 0)
        assert store.version("a")[1] == 100
        assert store.version("a") == store.version("a")

    def test_parts_that_do_not_exist_are_errors(self, store: Store, put: Put) -> None:
        put("a", bytes(100))
        room = memoryview(bytearray(50))
        for start in (51, 100, 1 << 40, -1):
            with pytest.raises(StorageError):
                store.read_into("a", [(0, room[:1]), (start, room)])
        with pytest.raises(StorageError, match=r"no/such"):
            store.read_into("no/such", [(0, room)])

    def test_an_object_that_gets_shorter_is_an_error(self, store: Store, put: Put) -> None:
        put("a", bytes(100))
        room = memoryview(bytearray(50))
        store.read_into("a", [(50, room)])
        put("a", bytes(90))
        with pytest.raises(StorageError, match=r"a: "):
            store.read_into("a", [(50, room)])

    def test_a_missing_object_is_an_error_that_names_it(self, store: Store, put: Put) -> None:
        put("other", b"x")
        tries: list[Callable[[], object]] = [
            lambda: store.read("no/such"), lambda: store.size("no/such"),
            lambda: store.read_range("no/such", 0, 1),
        ]  # fmt: skip
        for attempt in tries:
            with pytest.raises(StorageError, match=r"no/such") as caught:
                attempt()
            assert caught.value.__cause__ is not None
        assert not store.exists("no/such")

    def test_it_can_be_sent_to_another_process(self, store: Store, put: Put) -> None:
        put("a", b"data")
        store.read("a")
        assert pickle.loads(pickle.dumps(store)).read("a") == b"data"  # noqa: S301 - made here

    def test_messages_name_the_root(self, store: Store) -> None:
        assert store.where("x/y") == f"{store.url.rstrip('/')}/x/y"
        with pytest.raises(StorageError) as caught:
            store.read("x/y")
        assert store.where("x/y") in str(caught.value)

    def test_what_is_larger_than_allowed_is_not_read(self, store: Store, put: Put) -> None:
        put("a", bytes(100))
        assert store.read("a", 100) == bytes(100)
        with pytest.raises(StorageError, match=r"a: .*100"):
            store.read("a", 99)

    def test_an_object_with_a_local_path_lies_there(self, store: Store, put: Put) -> None:
        put("sub/a", b"data")
        path = store.local_path("sub/a")
        assert path is None or Path(path).read_bytes() == b"data"

    def test_it_says_what_it_can_do(self, store: Store) -> None:
        assert store.concurrency >= 1
        assert store.backend


class StoreContract(ReadOnlyStoreContract):
    """What holds for stores that can be written, too. A subclass gives the fixture `store`."""

    @pytest.fixture
    def put(self, store: Store) -> Put:
        return store.write

    def test_the_list_has_the_names_below_the_root_in_order(self, store: Store) -> None:
        assert store.list() == []
        for name in ("b", "a", "ё", "B", "a b"):
            store.write(name, b"x")
        assert store.list() == sorted(["b", "a", "ё", "B", "a b"])

    def test_a_write_replaces_the_object_as_a_whole(self, store: Store) -> None:
        versions = [bytes([number]) * (1 << 18) for number in range(2)]
        store.write("a", versions[0])
        stop, seen = threading.Event(), set[bytes]()

        def look() -> None:
            while not stop.is_set():
                seen.add(store.read("a"))

        reader = threading.Thread(target=look)
        reader.start()
        for number in range(60):
            store.write("a", versions[number % 2])
        stop.set()
        reader.join(30)
        assert seen
        assert seen <= set(versions)
        assert store.list() == ["a"]

    def test_parts_are_written_as_they_are(self, store: Store) -> None:
        numbers = memoryview(array.array("B", [1, 2]))
        big = bytes(9 << 20)
        parts: list[bytes | bytearray | memoryview] = [numbers, bytearray(b"xy"), b"", memoryview(big)]
        store.write("a", *parts)
        assert store.read("a") == b"".join(bytes(part) for part in parts)
        many = [b"%d," % each for each in range(3000)]
        store.write("a", *many)
        assert store.read("a") == b"".join(many)

    def test_create_succeeds_once(self, store: Store) -> None:
        store.create("m", b"first")
        with pytest.raises(CommitError) as caught:
            store.create("m", b"second")
        assert store.where("m") in str(caught.value)
        assert store.read("m") == b"first"
        store.delete("m")
        store.create("m", b"third")
        assert store.read("m") == b"third"
        assert store.list() == ["m"]

    def test_one_listing_tells_names_sizes_and_versions(self, store: Store) -> None:
        assert store.entries() == []
        made = {"b": store.create("b", b"xy", bytearray(b"z")), "a": store.create("a", bytes(5))}
        store.write("sub/c", b"not directly below the root")
        found = store.entries()
        assert [(each.path, each.size) for each in found] == [("a", 5), ("b", 3)]
        for each in found:  # a version may be unknown, but it is never a wrong one
            for told in (made[each.path], store.version(each.path)[0]):
                assert not (told and each.version) or told.strip('"') == each.version.strip('"')

    def test_a_folder_is_listed_with_the_names_in_it(self, store: Store) -> None:
        for name, size in (("000/b", 2), ("000/a", 1), ("c", 3)):
            store.write(name, bytes(size))
        assert store.list() == ["000", "c"]
        assert store.list("000") == ["a", "b"]
        assert [(each.path, each.size) for each in store.entries("000")] == [("a", 1), ("b", 2)]
        assert (store.list("001"), list(store.entries("001"))) == ([], [])

    def test_of_two_that_replace_a_version_one_succeeds(self, store: Store) -> None:
        store.write("a", b"first")
        before, _ = store.version("a")
        after = store.replace("a", b"second", before)
        assert store.read("a") == b"second"
        if before:
            with pytest.raises(CommitError, match=r"/a was changed"):
                store.replace("a", b"third", before)
            assert store.read("a") == b"second"
        store.replace("a", b"fourth", after)
        assert store.read("a") == b"fourth"

    def test_many_are_deleted_together(self, store: Store) -> None:
        for number in range(5):
            store.write(f"{number}", b"x")
        store.delete_many([])
        store.delete_many(["1", "never was", "3", "4"])
        assert store.list() == ["0", "2"]

    def test_deleting_is_idempotent(self, store: Store) -> None:
        store.write("a", b"x")
        store.write("b", b"y")
        store.delete("a")
        store.delete("a")
        store.delete("never/was")
        assert not store.exists("a")
        assert store.read("b") == b"y"
