"""The shuffle through the store: the bytes of the shuffle on a local disk, in bounded memory, cleaned up."""

from __future__ import annotations

import functools
import hashlib
import itertools
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import shardstream as ss
from shardstream.errors import StorageError
from shardstream.packing import buckets as buckets_module
from shardstream.packing import disk_shuffle, piles, shuffle_passes, store_shuffle
from shardstream.packing.destination import Destination
from shardstream.packing.engines import Local
from shardstream.packing.job import Job
from shardstream.packing.layout import Layout
from shardstream.packing.shuffle_passes import grouped
from shardstream.packing.sources import Sample, Task, make_source
from shardstream.packing.sources.base import FileSpan
from shardstream.packing.spilled import clear_local
from shardstream.packing.store_shuffle import FOLDER, Objects, all_bounds
from shardstream.storage.store import Store
from tests.corpora import digests, is_clean, lines, sound
from tests.packing.test_disk_shuffle import MEMORY, samples

SHARD = 1 << 20
SMALL: dict[str, Any] = {"shard_size": "4KiB", "frame_size": "1KiB"}


def through_store(
    store: Store, counts: Sequence[int], seed: int, buckets: int, group: int, spans: Sequence[tuple[int, int]]
) -> list[tuple[int, list[Sample]]]:
    """The samples of each shard; the last task is scattered first."""
    ends: dict[int, list[bytes]] = {}
    for task in reversed(range(len(counts))):
        written, ends[task] = store_shuffle.scatter(
            samples(task, counts[task]), store, seed, task, buckets, SHARD, group
        )
        assert written.samples == counts[task]
    objects = Objects([len(ends[task]) for task in range(len(counts))], group)
    bounds = all_bounds((end for task in range(len(counts)) for end in ends[task]), -(-buckets // group))
    found = []
    for first in range(0, len(spans), group):
        some = spans[first : first + group]
        columns = bounds[:, some[0][0] // group : -(-some[-1][1] // group) + 1]
        for number, shard in store_shuffle.gather(store, objects, columns, seed, first, some, None):
            found.append((number, list(shard)))
    return found


@given(
    st.lists(st.integers(0, 60), min_size=1, max_size=4),
    st.integers(0, 2**63 - 1),
    st.integers(1, 12),
    st.integers(1, 12),
    st.sampled_from([1, 700, 1 << 30]),
    st.sampled_from([1, 500, 1 << 30]),
    st.sets(st.integers(1, 11)),
    st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_each_shard_is_that_of_the_shuffle_on_a_local_disk(
    counts, seed, buckets, group, flush, held, cuts, remote
):
    """For any number of tasks, buckets and writes, for buckets that are joined, and in any kind of store."""
    bounds = [0, *sorted(cut for cut in cuts if cut < buckets), buckets]
    spans = list(itertools.pairwise(bounds))
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        patch.setattr(buckets_module, "_FLUSH_LIMIT", flush)
        patch.setattr(piles, "_HELD", held)
        limit = flush if flush > SHARD else 1  # the size of a shard is a limit, too
        patch.setattr(f"{__name__}.SHARD", limit)
        for task, count in enumerate(counts):
            disk_shuffle.scatter(samples(task, count), f"{folder}/disk", seed, task, buckets, limit)
        whole = [
            list(disk_shuffle.gather(f"{folder}/disk", seed, number, len(counts), span))
            for number, span in enumerate(spans)
        ]
        store = Store.open(f"memory://{folder}/store" if remote else f"{folder}/store")
        found = through_store(store, counts, seed, buckets, group, spans)
    assert found == list(enumerate(whole))


@pytest.mark.parametrize(("tasks", "buckets", "shared", "group"), [
    (1, 1, False, 0), (512, 512, False, 0), (513, 512, False, 23), (16_000, 16_000, False, 127),
    (1, 1, True, 1), (64, 64, True, 1), (65, 64, True, 8), (93_000, 93_000, True, 305),
])  # fmt: skip
def test_small_packs_need_no_groups(tasks: int, buckets: int, shared: bool, group: int) -> None:
    assert grouped(tasks, buckets, shared) == group


@pytest.mark.parametrize("options", [{}, {"limit": 37}, {"tokenizer": "bytes", "eos": 256}])
def test_a_pack_through_the_store_has_the_same_bytes(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    before = ss.pack(corpus, tmp_path / "one", shuffle=3, workers=1, **SMALL, **options)
    assert len(before.shards) > 4
    monkeypatch.setattr(shuffle_passes, "MOST_ON_DISK", 0)
    monkeypatch.setattr(shuffle_passes, "MOST_SINGLE", 0)
    dest = tmp_path / "two"
    ss.pack(corpus, dest, shuffle=3, workers=2, **SMALL, **options)
    assert digests(dest) == digests(tmp_path / "one")
    assert is_clean(dest)
    url = f"memory://{tmp_path.name}/out"
    assert ss.pack(corpus, url, shuffle=3, **SMALL, **options).shards == before.shards
    assert sound(url)
    assert not [name for name in Store.open(url).list() if name.startswith(".")]


def test_functions_go_through_the_store_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = [ranged] * 3
    ss.pack(calls, tmp_path / "one", shuffle=3, workers=1, **SMALL)
    monkeypatch.setattr(shuffle_passes, "MOST_ON_DISK", 0)
    ss.pack(calls, tmp_path / "two", shuffle=3, workers=1, **SMALL)
    assert digests(tmp_path / "one") == digests(tmp_path / "two")
    assert is_clean(tmp_path / "two")


def ranged() -> list[dict[str, Any]]:
    return [{"txt": f"sample {n} " * (n % 20)} for n in range(100)]


class SharedEngine(Local):
    """Processes of this machine, as if they were on several machines."""

    @property
    def shared(self) -> bool:
        return True


def test_several_machines_shuffle_through_the_store(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ss.pack(corpus, tmp_path / "one", shuffle=3, workers=1, **SMALL)

    def broken(*_: Any) -> Any:
        raise KeyboardInterrupt

    for resumed in (SharedEngine(), Local()):  # by the same engine, or by one that needs no store
        dest = tmp_path / type(resumed).__name__
        with monkeypatch.context() as patch:
            patch.setattr(Destination, "commit", broken)
            with pytest.raises(KeyboardInterrupt):
                ss.pack(corpus, dest, shuffle=3, engine=SharedEngine(), workers=2, **SMALL)
        assert list(dest.glob(f"{FOLDER}/0*"))
        ss.pack(corpus, dest, shuffle=3, engine=resumed, workers=2, resume=True, **SMALL)
        assert digests(dest) == digests(tmp_path / "one")
        assert is_clean(dest)


@pytest.mark.parametrize("stage", ["scatter", "gather"])
def test_a_pack_that_was_killed_goes_on(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    whole = ss.pack(corpus, tmp_path / "whole", shuffle=3, workers=1, **SMALL)
    monkeypatch.setattr(shuffle_passes, "MOST_ON_DISK", 0)
    monkeypatch.setattr(shuffle_passes, "MOST_SINGLE", 0)
    done, original = 0, getattr(store_shuffle, stage)

    def killed(*arguments: Any) -> Any:
        nonlocal done
        done += 1
        if done == 3:
            raise KeyboardInterrupt
        return original(*arguments)

    for dest in (str(tmp_path / "out"), f"memory://killed-{stage}/out"):
        done = 0
        with monkeypatch.context() as patch:
            patch.setattr(store_shuffle, stage, killed)
            with pytest.raises(KeyboardInterrupt):
                ss.pack(corpus, dest, shuffle=3, workers=1, **SMALL)
        left = Store.open(f"{dest}/{FOLDER}").list()
        assert left
        assert ss.pack(corpus, dest, shuffle=3, workers=1, resume=True, **SMALL).shards == whole.shards
        assert not [name for name in Store.open(dest).list() if name.startswith(".")]


def test_another_pack_clears_what_was_left(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shuffle_passes, "MOST_ON_DISK", 0)

    def broken(*_: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(store_shuffle, "gather", broken)
        with pytest.raises(KeyboardInterrupt):
            ss.pack(corpus, tmp_path / "out", shuffle=3, workers=1, **SMALL)
    assert list(tmp_path.glob(f"out/{FOLDER}/*"))
    ss.pack(corpus, tmp_path / "out", workers=1, **SMALL)
    assert is_clean(tmp_path / "out")


def test_damage_and_loss_are_errors_that_say_what_to_do(tmp_path: Path) -> None:
    store = Store.open(str(tmp_path))
    bounds = all_bounds(store_shuffle.scatter(samples(0, 300), store, 1, 0, 9, SHARD, 3)[1], 3)
    objects, spans = Objects([1], 3), [(bucket, bucket + 1) for bucket in range(9)]

    def gathered() -> list[Sample]:
        found = store_shuffle.gather(store, objects, bounds, 1, 0, spans, None)
        return [each for _, shard in found for each in shard]

    assert len(gathered()) == 300
    (path,) = tmp_path.glob(f"{FOLDER}/*")
    data = path.read_bytes()
    for at in (4, len(data) // 2, len(data) - 2):
        path.write_bytes(data[:at] + bytes([data[at] ^ 0x5A]) + data[at + 1 :])
        with pytest.raises(StorageError, match="the same command with --resume"):
            gathered()
    path.write_bytes(data[:100])
    with pytest.raises(StorageError, match="do not exist"):
        gathered()
    path.unlink()
    with pytest.raises(StorageError, match="missing; the same command with --resume"):
        gathered()


def test_places_that_take_too_much_memory_are_refused(tmp_path: Path) -> None:
    tera = 10**12
    tasks = [Task(0, (FileSpan("a", 0, 64 << 20, 64 << 20, "a"),))] * (100 * tera // (64 << 20))
    job = Job(make_source("jsonl"), str(tmp_path), Layout.of_sizes(None, "64MiB", 3), shuffle=1)
    with pytest.raises(ss.OptionError, match="larger shard_size: 512MiB or more"):
        shuffle_passes.scattering(job, tasks, Destination(job, {}, False), shared=True)


def test_another_plan_to_the_same_place_clears_the_temporary_folder(corpus: Path, tmp_path: Path) -> None:
    dests = "memory://temporary-spill/out", "memory://temporary-spill/other"
    found = []
    for dest, text in (dests[0], "one"), (dests[0], "two"), (dests[1], "one"):
        job = Job(make_source("jsonl"), dest, Layout.of_sizes(None, "64MiB", 3), shuffle=1)
        found.append(Destination(job, {"options": {"text": text}}, False))
        Path(found[-1].spill_dir).mkdir()
    found[1].clear_spill([])
    assert [Path(each.spill_dir).exists() for each in found] == [True, False, True]
    found[1].clear_spill([], of_all=True)
    assert [Path(each.spill_dir).exists() for each in found] == [False, False, True]
    found[2].clear_spill([])
    assert not Path(found[2].spill_dir).exists()


def test_what_another_plan_has_put_into_a_local_store_stays(tmp_path: Path) -> None:
    folder = tmp_path / FOLDER
    folder.mkdir()
    for name in ("000000.12345678", "000000.abcdef01", "000000.bin"):
        (folder / name).write_bytes(b"a")
    clear_local(str(folder), (".abcdef01",))
    assert [each.name for each in folder.iterdir()] == ["000000.12345678"]
    clear_local(str(folder), ("",))
    assert not folder.exists()


def test_a_full_disk_is_a_storage_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(piles, "_HELD", 1)
    store = Store.open(str(tmp_path))
    bounds = all_bounds(store_shuffle.scatter(samples(0, 300), store, 1, 0, 9, SHARD, 3)[1], 3)
    objects, some = Objects([1], 3), [(0, 1), (1, 2)]
    with open("/dev/full", "r+b", buffering=0) as full:  # noqa: SIM117
        with monkeypatch.context() as patch:
            patch.setattr(piles.tempfile, "TemporaryFile", lambda **_: full)
            with pytest.raises(StorageError, match="No space left"):
                list(store_shuffle.gather(store, objects, bounds[:, :2], 1, 0, some, str(tmp_path)))


GOLDEN = {"jsonl": "6ac6b603de523539", "calls": "f9be0f6bd6e01545"}  # of the version before there were groups


@pytest.mark.parametrize("kind", GOLDEN)
@pytest.mark.parametrize("grouped", [False, True])
def test_the_bytes_are_those_of_earlier_versions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, grouped: bool
) -> None:
    if grouped:
        monkeypatch.setattr(shuffle_passes, "MOST_ON_DISK", 0)
        monkeypatch.setattr(shuffle_passes, "MOST_SINGLE", 0)
    options = {**SMALL, "compression": "none", "workers": 1}
    if kind == "jsonl":
        rows = [{"id": f"d{n:04d}", "text": f"document {n} " * (n % 40)} for n in range(600)]
        ss.pack(lines(tmp_path / "c.jsonl", rows), tmp_path / "out", shuffle=3, **options)
    else:
        calls = [functools.partial(numbered, n, n + 100) for n in range(0, 300, 100)]
        ss.pack(calls, tmp_path / "out", shuffle=5, **options)
    whole = hashlib.sha256()
    for name, digest in sorted(digests(tmp_path / "out").items()):
        if name != "manifest.json":
            whole.update(name.encode() + bytes.fromhex(digest))
    assert whole.hexdigest()[:16] == GOLDEN[kind]


def numbered(first: int, end: int) -> list[dict[str, Any]]:
    return [{"__key__": f"{n:04d}", "txt": f"sample {n} " * (n % 20)} for n in range(first, end)]


@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_pack_that_is_killed_again_and_again_has_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So many tasks and buckets that the pack takes groups by itself."""
    rows = [{"id": f"d{n:04d}", "text": f"document {n}"} for n in range(900)]
    source = lines(tmp_path / "c.jsonl", rows)
    size = source.stat().st_size // 900
    with monkeypatch.context() as patch:
        patch.setattr(shuffle_passes, "MOST_ON_DISK", 1 << 40)
        ss.pack(source, tmp_path / "whole", shuffle=3, shard_size=size, frame_size=size, workers=1)
    command = [sys.executable, "-m", "shardstream", "pack", source, tmp_path / "out", "--shuffle", "3"]
    command += ["--shard-size", str(size), "--frame-size", str(size), "--workers", "2", "--resume"]
    deadline, killed_in = time.monotonic() + 500, set()
    while time.monotonic() < deadline:
        before = done_tasks(tmp_path / "out")
        process = subprocess.Popen(list(map(str, command)), stderr=subprocess.DEVNULL)
        while process.poll() is None and time.monotonic() < deadline:
            now = done_tasks(tmp_path / "out")
            if now["scatter"] >= before["scatter"] + 150 or now["gather"] >= before["gather"] + 5:
                killed_in.add("gather" if now["gather"] else "scatter")
                break
            time.sleep(0.01)
        else:
            break
        process.kill()
        process.wait()
    assert process.wait(1) == 0
    assert killed_in == {"scatter", "gather"}
    assert digests(tmp_path / "out") == digests(tmp_path / "whole")
    assert is_clean(tmp_path / "out")


def done_tasks(folder: Path) -> dict[str, int]:
    """How many tasks of each pass have left a receipt. These are too few to be folded."""
    return {stage: len(list(folder.glob(f".pack-{stage}-0*"))) for stage in ("scatter", "gather")}
