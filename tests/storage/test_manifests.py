"""A manifest of very many shards is two files, one commit, and read once by all processes of a node."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zstandard

import shardstream as ss
from shardstream.errors import CorruptionError, StorageError
from shardstream.format.manifest import NAME, Manifest
from shardstream.format.manifest_files import BODY, load_body, load_stub, make_body, make_stub
from shardstream.maintain.rebuild import rebuild
from shardstream.read.reader import DatasetReader
from shardstream.storage.local_store import LocalStore
from shardstream.storage.manifests import commit_manifest, read_manifest
from shardstream.storage.store import Store
from tests.corpora import lines, pack_rows, sound, texts

SMALL: dict[str, Any] = {"workers": 1, "frame_size": "1KiB", "shard_size": "2KiB"}


@pytest.fixture(autouse=True)
def _all_are_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shardstream.storage.manifests.LARGE", 0)


def rows(first: int, count: int) -> list[dict[str, str]]:
    return [{"id": f"k{n}", "text": f"row {n} " * 30} for n in range(first, first + count)]


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    return pack_rows(tmp_path, rows(0, 40), frame_size="1KiB", shard_size="2KiB")


def append(packed: Path, first: int) -> Manifest:
    more = lines(packed.parent / f"more-{first}.jsonl", list(rows(first, 5)))
    return ss.pack(more, packed, append=True, **SMALL)


def bodies(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if BODY.match(path.name)}


def body_of(folder: Path) -> Path:
    return folder / json.loads((folder / NAME).read_text())["body"]["url"]


def test_a_stub_and_its_body_are_the_dataset(packed: Path, tmp_path: Path) -> None:
    stub = json.loads((packed / NAME).read_text())
    assert bodies(packed) == {f"manifest-{stub['fingerprint']}.json.zst"} == {body_of(packed).name}
    assert stub["version"] == 2
    assert stub["samples"] == 40
    assert len(stub) == 9
    reader = DatasetReader.open(str(packed))
    assert stub["shards"] == len(reader.manifest.shards) > 3
    assert reader.manifest.version == 1  # that of the content
    assert sound(packed)
    assert [key for key, _ in texts(packed)] == [f"k{n}" for n in range(40)]
    ds = ss.StreamingDataset(packed, shuffle=ss.Shuffle(seed=1))
    assert len({sample["__key__"] for sample in ds}) == 40
    # The identity is that of the manifest in one file, which is what an older dataset has.
    one = tmp_path / "one"
    shutil.copytree(packed, one)
    body_of(one).unlink()
    (one / NAME).write_bytes(reader.manifest.to_bytes())
    state = ds.state_dict()
    other = ss.StreamingDataset(one, shuffle=ss.Shuffle(seed=1))
    other.load_state_dict(state)
    assert other.manifest == ds.manifest
    assert sound(one)


def test_appends_keep_one_body_for_those_who_read_the_stub_before(packed: Path) -> None:
    seen = [body_of(packed).name]
    for first in (40, 45, 50):
        assert append(packed, first).samples == first + 5
        seen.append(body_of(packed).name)
        assert bodies(packed) == set(seen[-2:])
    assert sound(packed)
    assert len(texts(packed)) == 55


def test_an_end_between_the_body_and_the_stub_leaves_the_dataset_of_before(packed: Path) -> None:
    class Ends(LocalStore):
        """The process ends before the stub is there."""

        def write(self, path: str, *parts: Any) -> None:
            assert path != NAME
            super().write(path, *parts)

    before = read_manifest(Store.open(str(packed)))[0]
    larger = Manifest.build("samples", before.fields, (*before.shards, *before.shards[:1]), {})
    with pytest.raises(AssertionError):
        commit_manifest(Ends(str(packed)), larger, before.fingerprint)
    assert len(bodies(packed)) == 2
    assert read_manifest(Store.open(str(packed)))[0] == before
    commit_manifest(Store.open(str(packed)), larger, before.fingerprint)
    assert read_manifest(Store.open(str(packed)))[0] == larger
    append(packed, 40)
    assert len(bodies(packed)) == 2


def test_a_reader_between_the_stub_and_the_body_finds_the_next_one(packed: Path) -> None:
    class Slow(LocalStore):
        """Two appends come after the stub was read."""

        def __init__(self) -> None:
            super().__init__(str(packed))
            self.todo = [40, 45]

        def read(self, path: str, most: int | None = None) -> bytes:
            while BODY.match(path) and self.todo:
                append(packed, self.todo.pop(0))
            return super().read(path, most)

    assert read_manifest(Slow())[0].samples == 50


def test_an_append_that_needs_no_body_any_more_and_back(
    packed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = body_of(packed).name
    monkeypatch.setattr("shardstream.storage.manifests.LARGE", 1 << 20)
    append(packed, 40)
    assert "body" not in json.loads((packed / NAME).read_text())
    assert bodies(packed) == {before}
    append(packed, 45)
    assert bodies(packed) == set()
    assert sound(packed)
    assert len(texts(packed)) == 50


def test_two_packs_of_the_same_shards_agree_on_one_body(packed: Path) -> None:
    store = Store.open(str(packed))
    manifest = DatasetReader.open(str(packed)).manifest
    stub, body = (packed / NAME).read_bytes(), body_of(packed)
    other = zstandard.compress(zstandard.decompress(body.read_bytes()), 19)  # as another version may write it
    body.write_bytes(other)
    (packed / NAME).unlink()
    commit_manifest(store, manifest, None)
    assert body.read_bytes() == other
    assert sound(packed)
    body.write_bytes(b"half a bod")  # of a put that was not atomic
    (packed / NAME).unlink()
    commit_manifest(store, manifest, None)
    assert (packed / NAME).read_bytes() == stub
    assert sound(packed)


@pytest.mark.parametrize("damage", ["missing", "cut", "flipped", "other"])
def test_a_damaged_body_is_named_and_rebuilt(packed: Path, damage: str) -> None:
    body = body_of(packed)
    data = bytearray(body.read_bytes())
    if damage == "missing":
        body.unlink()
    elif damage == "cut":
        body.write_bytes(data[:-1])
    elif damage == "flipped":
        data[len(data) // 2] ^= 1
        body.write_bytes(data)
    else:
        append(packed, 40)
        body_of(packed).write_bytes(data)
        body = body_of(packed)
    for use in (
        lambda: ss.StreamingDataset(packed),
        lambda: append(packed, 50),
    ):
        with pytest.raises(CorruptionError, match=body.name):
            use()
    problems = ss.verify(str(packed)).problems
    assert len(problems) == 1
    assert body.name in str(problems[0])
    rebuild(packed)
    assert sound(packed)
    assert len(bodies(packed)) == 1


@pytest.mark.parametrize("damage", ["missing", "cut"])
def test_rebuild_leaves_the_bodies_of_a_lost_stub(packed: Path, damage: str) -> None:
    append(packed, 40)
    before = bodies(packed)
    if damage == "missing":
        (packed / NAME).unlink()
    else:
        (packed / NAME).write_bytes((packed / NAME).read_bytes()[:-9])
    rebuild(packed)
    assert sound(packed)
    assert before <= bodies(packed)


def test_verify_computes_the_fingerprint_of_a_body_that_was_edited(packed: Path) -> None:
    body = body_of(packed)
    manifest = load_body(load_stub((packed / NAME).read_bytes()), body.read_bytes(), "body")
    edited = msgspec.structs.replace(manifest, provenance={"tool": "mine"})
    body.write_bytes(make_body(edited))
    (packed / NAME).write_bytes(make_stub(edited, body.read_bytes()).to_bytes())
    assert "fingerprint" in str(ss.verify(str(packed)).problems[0])


def test_a_dataset_of_another_time_is_read_and_written_as_it_was(tmp_path: Path) -> None:
    """tests/data/stub was packed, and appended to, by the version that began to write stubs."""
    folder = shutil.copytree(Path(__file__).parents[1] / "data" / "stub", tmp_path / "stub")
    assert sound(folder)
    assert [key for key, _ in texts(folder)] == [f"k{n}" for n in range(14)]
    assert len(ss.StreamingDataset(folder).subset(where=lambda columns: columns["n"] > 11)) == 2
    manifest, stub = read_manifest(Store.open(str(folder)))
    body = body_of(folder).read_bytes()
    assert zstandard.decompress(make_body(manifest)) == zstandard.decompress(body)
    assert make_stub(manifest, body).to_bytes() == stub
    assert len(bodies(folder)) == 2


PROCESS = """
import sys
from shardstream.read.reader import DatasetReader
from shardstream.storage.cache.options import Cache
print(DatasetReader.open(sys.argv[1], cache=Cache(sys.argv[2])).manifest.samples)
"""


def test_processes_of_a_node_read_the_body_once_and_then_never(
    packed: Path, tmp_path: Path, nginx: Any, proxy_to: Callable[..., Any]
) -> None:
    shutil.copytree(packed, nginx.root / "stubs")
    proxy = proxy_to(nginx)
    url, cache, body = f"{proxy.url}/stubs", str(tmp_path / "cache"), body_of(packed).name
    asked = {name: ("GET", f"/stubs/{name}") for name in (NAME, body)}
    try:
        # A slow body, so that all processes ask for it while it is on its way.
        proxy.set(latency=0.3, only=lambda method, path: path.endswith(".zst"))
        command = [sys.executable, "-c", PROCESS, url, cache]
        started = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
        assert [process.communicate()[0] for process in started] == ["40\n"] * 3
        assert proxy.counts.paths == {asked[NAME]: 3, asked[body]: 1}
        # Another process has it from the cache; the stub says which one.
        assert ss.StreamingDataset(url, cache=cache).total == 40
        assert proxy.counts.paths == {asked[NAME]: 4, asked[body]: 1}
    finally:
        shutil.rmtree(nginx.root / "stubs")
        proxy.close()
    # Without the store, and by a state of the time before an append.
    offline = ss.StreamingDataset(url, cache=ss.Cache(cache, offline=True))
    assert offline.total == 40
    assert offline.manifest == DatasetReader.open(str(packed)).manifest
    with pytest.raises(StorageError, match="offline"):
        next(iter(offline))


def test_a_bucket_holds_both_and_an_append_is_seen(tmp_path: Path, weed: Any) -> None:
    url, options = weed.bucket(), weed.options()
    for first in (0, 40):
        source = lines(tmp_path / f"{first}.jsonl", list(rows(first, 40)))
        ss.pack(source, url, append=first > 0, storage_options=options, **SMALL)
    names = Store.open(url, options).list()
    assert len([name for name in names if BODY.match(name)]) == 2
    assert ss.verify(url, storage_options=options).sound
    assert ss.StreamingDataset(url, storage_options=options).total == 80
    source = lines(tmp_path / "80.jsonl", list(rows(80, 40)))
    ss.pack(source, url, append=True, storage_options=options, **SMALL)
    assert len([name for name in Store.open(url, options).list() if BODY.match(name)]) == 2


def test_one_mebibyte_is_where_it_begins(
    packed: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.undo()
    known = DatasetReader.open(str(packed)).manifest
    for count, files in ((100, 1), (4000, 2)):
        names = ({"url": f"{n}.tar", "index_url": f"{n}.index"} for n in range(count))
        shards = tuple(msgspec.structs.replace(known.shards[0], **name) for name in names)
        manifest = Manifest.build("samples", known.fields, shards, {})
        store = Store.open(str(tmp_path / str(count)))
        commit_manifest(store, manifest, None)
        assert len(store.list()) == files
        assert read_manifest(store)[0] == manifest
