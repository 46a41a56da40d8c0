"""Each of our stores keeps the contract: local files, memory, and real servers."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from shardstream.errors import CommitError, StorageError
from shardstream.storage.remote import RemoteStore
from shardstream.storage.store import Store
from shardstream.storage.transport.backends import obstore
from shardstream.testing import ReadOnlyStoreContract, StoreContract
from shardstream.testing.stores import Put


class Worded:
    """The words of the errors that users meet, the same for each of our stores."""

    def test_the_words_of_its_errors(self, store: Store, put: Put) -> None:
        put("a", bytes(100))
        with pytest.raises(StorageError, match="a: 100 bytes are too many"):
            store.read("a", 99)

    def test_the_words_of_a_second_creation(self, store: Store, put: Put) -> None:
        put("m", b"first")
        if put == store.write:
            with pytest.raises(CommitError, match=r"m exists already"):
                store.create("m", b"second")


class TestLocal(Worded, StoreContract):
    @pytest.fixture
    def store(self, tmp_path: Path) -> Store:
        return Store.open(str(tmp_path / "a root ✓" / "new"))

    def test_objects_are_plain_files(self, store: Store) -> None:
        store.write("sub/a", b"x")
        path = store.local_path("sub/a")
        assert path is not None
        assert Path(path).read_bytes() == b"x"

    def test_a_failed_write_leaves_nothing_behind(self, tmp_path: Path) -> None:
        (tmp_path / "taken" / "inside").mkdir(parents=True)
        (tmp_path / "file").write_bytes(b"old")
        store = Store.open(str(tmp_path))
        before = sorted(tmp_path.rglob("*"))
        for name in ("taken", "file/below", "n" * 300):
            for put in (store.write, store.create):
                with pytest.raises(StorageError):
                    put(name, b"new")
        assert sorted(tmp_path.rglob("*")) == before
        assert (tmp_path / "file").read_bytes() == b"old"

    def test_temporary_files_are_not_listed(self, store: Store) -> None:
        store.write("a", b"x")
        store.write(".tmp-killed", b"x")
        assert store.list() == ["a"]

    def test_of_many_creators_one_wins(self, store: Store) -> None:
        def attempt(number: int) -> bytes | None:
            try:
                store.create("m", b"%d" % number)
            except CommitError:
                return None
            return b"%d" % number

        with ThreadPoolExecutor(8) as pool:
            won = [data for data in pool.map(attempt, range(32)) if data is not None]
        assert won == [store.read("m")]

    def test_a_root_or_an_object_behind_a_symlink(self, tmp_path: Path) -> None:
        (tmp_path / "real").mkdir()
        (tmp_path / "link").symlink_to("real")
        store = Store.open(str(tmp_path / "link"))
        store.write("a", b"x")
        assert (tmp_path / "real" / "a").read_bytes() == b"x"
        (tmp_path / "real" / "b").symlink_to("a")
        assert (store.read("b"), store.size("b"), store.list()) == (b"x", 1, ["a", "b"])
        store.write("b", b"new")  # the name gets the new object, not what it pointed to
        assert (store.read("a"), store.read("b")) == (b"x", b"new")

    def test_names_that_no_object_can_have_are_storage_errors(self, store: Store) -> None:
        store.write("folder/a", b"x")
        long = "n" * 300
        tries: list[Callable[[], object]] = [
            lambda: store.read("folder"), lambda: store.delete("folder"), lambda: store.exists(long),
            lambda: store.read(long), lambda: store.delete(long), lambda: store.size("a\0b"),
            lambda: store.read_range("folder/a", -1, 1), lambda: store.read_range("folder/a", 0, -1),
        ]  # fmt: skip
        for attempt in tries:
            with pytest.raises(StorageError):
                attempt()


class TestMemory(Worded, StoreContract):
    @pytest.fixture
    def store(self) -> Store:
        return Store.open(f"memory://{uuid.uuid4().hex}/root")

    def test_nothing_of_it_is_local(self, store: Store) -> None:
        assert store.local_path("a") is None

    def test_credentials_in_the_url_stay_out_of_messages(self) -> None:
        store = Store.open(f"memory://me:SECRET@{uuid.uuid4().hex}/root?token=SECRET")
        with pytest.raises(StorageError) as caught:
            store.read("a")
        assert "SECRET" not in f"{caught.value} {store.url} {store.where('a')}"


class TestHttp(Worded, ReadOnlyStoreContract):
    @pytest.fixture
    def folder(self, nginx: Any) -> Path:
        folder: Path = nginx.root / uuid.uuid4().hex
        folder.mkdir()
        return folder

    @pytest.fixture
    def put(self, folder: Path) -> Put:
        return Store.open(str(folder)).write

    @pytest.fixture
    def store(self, nginx: Any, folder: Path) -> Store:
        return Store.open(f"{nginx.url}/{folder.name}")

    def test_its_backend(self, store: Store) -> None:
        assert store.backend == "fsspec-http"

    def test_an_object_that_is_replaced_is_an_error_that_names_it(self, store: Store, put: Put) -> None:
        put("a", bytes(100))
        store.read_range("a", 0, 10)
        put("a", bytes(101))
        with pytest.raises(StorageError, match=r"/a: it was replaced while it was read"):
            store.read_range("a", 10, 10)


class TestS3(Worded, StoreContract):
    @pytest.fixture
    def store(self, weed: Any) -> Store:
        store = Store.open(weed.bucket(), weed.options() | {"config_kwargs": {}})
        store.write("new bucket", b"x")  # a place that is empty, in a bucket that is there
        store.delete("new bucket")
        return store

    def test_its_backend(self, store: Store) -> None:
        assert store.backend == "fsspec-s3"

    def test_an_object_that_is_replaced_is_an_error_that_names_it(self, store: Store, weed: Any) -> None:
        assert isinstance(store, RemoteStore)
        store.write("a", bytes(100))
        store.read_range("a", 0, 10)
        Store.open(store.url, weed.options()).write("a", b"x" * 100)
        with pytest.raises(StorageError, match=r"/a: it was replaced while it was read"):
            store.read_range("a", 10, 10)
        store.write("a", b"y" * 100)  # by itself it may
        assert store.read_range("a", 10, 10) == b"y" * 10


class TestS3ByObstore(TestS3):
    @pytest.fixture
    def store(self, weed: Any) -> Store:
        store = Store.open(weed.bucket(), weed.options())
        Store.open(store.url, weed.options() | {"config_kwargs": {}}).write("x", b"")  # makes the bucket
        store.delete("x")
        return store

    def test_what_is_too_large_for_one_request_is_created_once_too(
        self, store: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(obstore, "LARGEST_CREATE", 1 << 20)
        monkeypatch.setattr(obstore, "LARGEST_PUT", 1 << 20)
        data = bytes(range(256)) * (12 << 12)
        store.create("large", data)
        assert store.read("large") == data
        with pytest.raises(CommitError, match="large exists already"):
            store.create("large", data)

    def test_its_backend(self, store: Store) -> None:
        assert store.backend == "obstore-s3"


class TestAzure(Worded, StoreContract):
    @pytest.fixture
    def store(self, azurite: Any) -> Store:
        return Store.open(azurite.bucket(), azurite.options() | {"max_concurrency": 8})

    def test_its_backend(self, store: Store) -> None:
        assert store.backend == "fsspec-abfs"


class TestAzureByObstore(Worded, StoreContract):
    @pytest.fixture
    def store(self, azurite: Any) -> Store:
        return Store.open(azurite.bucket(), azurite.options())

    def test_its_backend(self, store: Store) -> None:
        assert store.backend == "obstore-azure"

    def test_an_object_that_is_replaced_is_an_error_that_names_it(self, store: Store, azurite: Any) -> None:
        store.write("a", bytes(100))
        store.read_range("a", 0, 10)
        Store.open(store.url, azurite.options()).write("a", b"x" * 100)
        with pytest.raises(StorageError, match=r"/a: it was replaced while it was read"):
            store.read_range("a", 10, 10)


class TestGoogle(Worded, StoreContract):
    @pytest.fixture
    def store(self, gcs: Any) -> Store:
        return Store.open(gcs.bucket(), gcs.options())

    def test_its_backend(self, store: Store) -> None:
        assert store.backend == "fsspec-gs"


class TestGoogleByObstore(Worded, ReadOnlyStoreContract):
    """To read: the server does not know the uploads that obstore makes."""

    @pytest.fixture
    def store(self, gcs: Any, tmp_path: Path) -> Store:
        return Store.open(gcs.bucket(), gcs.account(tmp_path))

    @pytest.fixture
    def put(self, store: Store, gcs: Any) -> Put:
        return Store.open(store.url, gcs.options()).write

    def test_its_backend(self, store: Store) -> None:
        assert store.backend == "obstore-gcs"
