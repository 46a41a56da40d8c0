"""Plans that are not in memory: the tasks and the bytes of those that are, and what a broken one says."""

from __future__ import annotations

import errno
import os
import random
import threading
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import shardstream as ss
from shardstream.errors import CommitError, CorruptionError, ShardstreamError, StorageError
from shardstream.packing import destination, planned, planning
from shardstream.packing.claim import Claim
from shardstream.packing.engines.attempts import _named
from shardstream.packing.job import Job, input_bytes
from shardstream.packing.layout import Layout
from shardstream.packing.planned import PlannedTask, StoredPlan, whole
from shardstream.packing.sources import SourceOptions, make_source, windows
from shardstream.packing.sources.base import FileSpan, Task, tasks_of
from shardstream.packing.work import work_of
from shardstream.storage import spool
from shardstream.storage.inputs import FileInfo
from shardstream.storage.local_store import LocalStore
from shardstream.storage.store import Store
from tests.corpora import lines

SMALL: dict[str, Any] = {"shard_size": "2KiB", "frame_size": "1KiB", "workers": 1}


@pytest.fixture
def low(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hold next to nothing in memory."""
    monkeypatch.setattr(spool, "HELD", 3)
    monkeypatch.setattr(planned, "HELD", 4)
    monkeypatch.setattr(planned, "SPANS", 7)
    monkeypatch.setattr(windows, "_TOGETHER", 2)
    monkeypatch.setattr(planned, "_kept", {})


def content(dest: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(dest)): path.read_bytes() for path in sorted(dest.rglob("*")) if path.is_file()
    }


def texts(folder: Path, count: int = 60) -> Path:
    for number in range(count):
        path = folder / ("β", "b b", "c", "empty/deep")[number % 4] / f"{number * 7 % count:03d}-é.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"text {number} " * (number % 20))
    (folder / "nothing" / "here").mkdir(parents=True)
    (folder / ".hidden").write_text("no")
    return folder


def photos(folder: Path) -> Path:
    from PIL import Image

    for number in range(24):
        path = folder / "train" / ("cat", "dog")[number % 2] / f"{number:02d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.effect_noise((20, 20), 90).convert("RGB").save(path)
    return folder


def pairs(folder: Path) -> Path:
    folder.mkdir()
    for number in range(20):
        for end in (".wav", ".wav.json", ".mask.png", ".txt"):
            (folder / f"x{number % 7}-{number}{end}").write_text(f'{{"a": "{number}{end}"}}')
    return folder


def rows(folder: Path) -> list[Path]:
    """Two folders with the same names, so that keys have to be told apart."""
    for side in ("one", "two"):
        (folder / side).mkdir(parents=True)
        for number in range(9):
            lines(folder / side / f"{number}.jsonl", [{"id": n, "text": f"{side} {n}"} for n in range(12)])
    return [folder / "one", folder / "two"]


KINDS: dict[str, Any] = {"texts": texts, "photos": photos, "pairs": pairs, "rows": rows}


def both(kind: str, tmp_path: Path, request: pytest.FixtureRequest, **options: Any) -> Any:
    """Pack as usual, and then with a plan that is not in memory; the input, and the bytes of both."""
    source = KINDS[kind](tmp_path / "in")
    options = {**SMALL, **({"format": "files"} if kind == "pairs" else {}), **options}
    ss.pack(source, tmp_path / "usual", **options)
    request.getfixturevalue("low")
    manifest = ss.pack(source, tmp_path / "low", **options)
    return source, options, content(tmp_path / "usual"), content(tmp_path / "low"), manifest


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", [{}, {"shuffle": 3}], ids=["plain", "shuffled"])
def test_a_plan_on_disk_packs_the_same_bytes(kind, options, tmp_path, request):
    _, _, usual, low, manifest = both(kind, tmp_path, request, **options)
    assert low == usual
    assert manifest.samples >= 20
    assert not (tmp_path / "low" / planned.FOLDER).exists()


def test_worker_processes_read_their_tasks_from_the_target(tmp_path, request, monkeypatch):
    put: list[int] = []
    keep = StoredPlan.put

    def noted(self: StoredPlan, store: Store, *arguments: Any) -> None:
        keep(self, store, *arguments)
        put.append(len(store.list(planned.FOLDER)))

    monkeypatch.setattr(StoredPlan, "put", noted)
    _, _, usual, low, _ = both("texts", tmp_path, request, workers=2)
    assert low == usual
    assert put == [9]  # of 60 files, 7 in each


def test_workers_of_an_executor_read_their_tasks_from_the_target(tmp_path, request):
    with ThreadPoolExecutor(2) as pool:
        _, options, _, low, _ = both("texts", tmp_path, request, engine=pool, workers=2)
    ss.pack(tmp_path / "in", tmp_path / "local", **{**options, "engine": "local"})
    assert low == content(tmp_path / "local")


def test_a_plan_in_a_store_is_read_by_parts_and_deleted(tmp_path, request, weed):
    source, url = texts(tmp_path / "in"), f"{weed.bucket()}/out"
    options = {**SMALL, "workers": 2, "storage_options": weed.options()}
    ss.pack(source, tmp_path / "usual", **SMALL)
    request.getfixturevalue("low")
    store = Store.open(url, weed.options())
    ss.pack(source, url, part=(1, 2), **options)  # type: ignore[call-overload]
    store.delete(name_of(store, 2))
    ss.pack(source, url, part=(0, 2), **options)  # type: ignore[call-overload]
    assert len(store.entries(planned.FOLDER)) == 9
    ss.pack(source, url, commit=True, **options)
    assert {entry.path: store.read(entry.path) for entry in store.entries()} == content(tmp_path / "usual")
    assert not store.entries(planned.FOLDER)


@pytest.mark.parametrize("made", ["both", "usual", "low", "first"])
def test_an_unfinished_pack_is_continued(made, tmp_path, request, monkeypatch):
    """Whether the first process had the plan in memory, or the second one, or none."""
    if made in ("low", "first"):
        request.getfixturevalue("low")
    source = texts(tmp_path / "in")
    ss.pack(source, tmp_path / "usual", **SMALL)
    if made == "both":
        request.getfixturevalue("low")
    with monkeypatch.context() as patch:
        patch.setattr(destination.Destination, "commit", _killed)
        with pytest.raises(KeyboardInterrupt):
            ss.pack(source, tmp_path / "out", **SMALL)
    assert (tmp_path / "out" / planned.FOLDER).exists() == (made != "usual")
    if made == "usual":
        request.getfixturevalue("low")
    if made == "first":
        monkeypatch.setattr(planned, "HELD", 10_000)
    ss.pack(source, tmp_path / "out", resume=True, **SMALL)
    assert content(tmp_path / "out") == content(tmp_path / "usual")
    assert not (tmp_path / "out" / planned.FOLDER).exists()


def _killed(*_: object) -> None:
    raise KeyboardInterrupt


def test_another_pack_removes_the_plan_of_a_killed_one(tmp_path, low, monkeypatch):
    source = texts(tmp_path / "in")
    with monkeypatch.context() as patch:
        patch.setattr(destination.Destination, "commit", _killed)
        with pytest.raises(KeyboardInterrupt):
            ss.pack(source, tmp_path / "out", **SMALL)
    assert (tmp_path / "out" / planned.FOLDER).exists()
    few = texts(tmp_path / "few", 3)  # which has no objects of its own
    ss.pack(few, tmp_path / "out", **SMALL)
    ss.pack(few, tmp_path / "other", **SMALL)
    assert content(tmp_path / "out") == content(tmp_path / "other")


def name_of(store: Store, number: int) -> str:
    (found,) = (name for name in store.list(planned.FOLDER) if f"-{number:05d}." in name)
    return f"{planned.FOLDER}/{found}"


DAMAGE = ("cut", "bits", "empty", "missing", "of another plan", "another number")


def harm(store: Store, damage: str) -> None:
    """Damage the object of number 3."""
    path, other = (Path(str(store.local_path(name_of(store, number)))) for number in (3, 2))
    data = path.read_bytes()
    if damage == "missing":
        path.unlink()
    elif damage == "another number":
        path.write_bytes(other.read_bytes())
    elif damage != "of another plan":
        flipped = data[:-20] + bytes([data[-20] ^ 4]) + data[-19:]
        path.write_bytes({"cut": data[:-9], "bits": flipped, "empty": b""}[damage])


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_broken_object_is_named(damage, tmp_path, low, monkeypatch):
    monkeypatch.setattr(Claim, "check", lambda *_, **__: None)
    store = Store.open(str(tmp_path))
    plan = plan_of(50)
    claim = Claim("01234567a")
    plan.put(store, Claim("01234567b") if damage == "of another plan" else claim)
    harm(store, damage)
    tasks = [PlannedTask(*task.__reduce__()[1]) for task in plan]  # type: ignore[misc]
    bad = next(task for task in tasks if task.first < 28 and task.end > 21)
    if damage != "of another plan":
        assert whole(tasks[3], store.url, None, claim).files == plan[3].files
    kind = StorageError if damage == "missing" else CorruptionError
    with pytest.raises(kind, match=r"\.pack-plan/\S+-00003\.msgpack\.zst .*--resume"):
        whole(bad, store.url, None, claim)
    plan.put(store, claim, (1, 2))  # a part makes it anew, whatever size the damaged one had
    assert whole(bad, store.url, None, claim).files == plan[bad.number].files


@pytest.mark.parametrize("damage", ["bits", "missing"])
def test_a_pack_with_a_broken_object_ends_and_is_continued(damage, tmp_path, request, monkeypatch):
    source = texts(tmp_path / "in")
    ss.pack(source, tmp_path / "usual", **SMALL)
    request.getfixturevalue("low")
    options = {**SMALL, "workers": 2}
    put = StoredPlan.put

    def broken(self: StoredPlan, store: Store, *arguments: Any) -> None:
        put(self, store, *arguments)
        harm(store, damage)

    with monkeypatch.context() as patch:
        patch.setattr(StoredPlan, "put", broken)
        with pytest.raises((StorageError, CorruptionError), match=r"\.pack-plan/\S+-00003\.msgpack\.zst"):
            ss.pack(source, tmp_path / "out", **options)
    ss.pack(source, tmp_path / "out", resume=True, **options)
    assert content(tmp_path / "out") == content(tmp_path / "usual")


def test_a_part_makes_a_broken_object_anew(tmp_path, request):
    source = texts(tmp_path / "in")
    ss.pack(source, tmp_path / "usual", **SMALL)
    request.getfixturevalue("low")
    options = {**SMALL, "workers": 2}
    ss.pack(source, tmp_path / "out", part=(0, 2), **options)  # type: ignore[call-overload]
    harm(Store.open(str(tmp_path / "out")), "bits")  # of the same size, so that only the worker sees it
    with pytest.raises(CorruptionError, match=r"-00003\.msgpack\.zst .*the part of a pack again"):
        ss.pack(source, tmp_path / "out", part=(1, 2), **options)  # type: ignore[call-overload]
    ss.pack(source, tmp_path / "out", part=(1, 2), **options)  # type: ignore[call-overload]
    ss.pack(source, tmp_path / "out", commit=True, **options)
    assert content(tmp_path / "out") == content(tmp_path / "usual")


def test_an_object_of_another_listing_is_never_taken(tmp_path, low, monkeypatch):
    """Of a pack of the same identity that was killed before its input changed; the sizes are equal."""
    monkeypatch.setattr(Claim, "check", lambda *_, **__: None)
    store, claim = Store.open(str(tmp_path)), Claim("01234567a")
    plans = [
        planned.planned(Task(n, (FileSpan(f"{n:02d}{side}", 0, 1, 1, "k"),)) for n in range(20))
        for side in "ab"
    ]
    for plan in plans:
        assert isinstance(plan, StoredPlan)
        plan.put(store, claim, (1, 2))
    for plan in plans:
        far = PlannedTask(*plan[3].__reduce__()[1])  # type: ignore[misc]
        assert whole(far, store.url, None, claim).files == plan[3].files
    assert len(store.list(planned.FOLDER)) == 6
    planned.clear_plan(store, ["another"])
    assert len(store.list(planned.FOLDER)) == 6
    (tmp_path / planned.FOLDER / ".tmp-killed").touch()
    planned.clear_plan(store, [claim.plan])
    assert not (tmp_path / planned.FOLDER).exists()


@pytest.mark.parametrize("compression", ["zstd", None])
def test_bad_files_are_skipped(compression, tmp_path, request):
    source = texts(tmp_path / "in")
    bad = sorted(source.rglob("*.txt"))[7]
    bad.write_bytes(b"\xff\xfe\xfa")
    options = {**SMALL, "on_error": "skip", "max_rejects": 0.5, "compression": compression}
    ss.pack(source, tmp_path / "usual", **options)
    request.getfixturevalue("low")
    ss.pack(source, tmp_path / "low", **options)
    assert content(tmp_path / "low") == content(tmp_path / "usual")
    assert bad.name in (tmp_path / "low" / "rejects.jsonl").read_text()


def test_urls_with_secrets_are_not_written_into_the_target(low):
    def tasks(url: str) -> list[Task]:
        return [Task(number, (FileSpan(url % number, 0, 1, 1, "k"),)) for number in range(9)]

    for url in ("https://host/%d.txt?X-Amz-Signature=SECRET", "ftp://me:SECRET@host/%d.txt"):
        found = planned.planned(iter(tasks(url)))
        assert found == tasks(url)
        assert isinstance(found, list)
        late = [*tasks("s3://bucket/%d#.txt")[:8], tasks(url)[8]]
        assert planned.planned(iter(late)) == late
    assert isinstance(planned.planned(iter(tasks("s3://bucket/%d@#?.txt"))), StoredPlan)


def test_a_full_temporary_disk_is_not_the_fault_of_the_input(tmp_path, low, monkeypatch):
    source = texts(tmp_path / "in")

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    looked: list[Any] = []
    monkeypatch.setattr(planning, "_problem", lambda _, file: looked.append(file) or "bad")
    monkeypatch.setattr(os, "write", full)
    with pytest.raises(spool.SpoolError, match=r"temporary file in .*No space left"):
        ss.pack(source, tmp_path / "out", on_error="skip", **SMALL)
    assert not looked


def test_parts_share_a_plan_in_memory_or_not(tmp_path, request, monkeypatch):
    source = texts(tmp_path / "in")
    ss.pack(source, tmp_path / "usual", **SMALL)
    part: Any = {**SMALL, "part": (0, 3)}
    ss.pack(source, tmp_path / "out", **part)
    request.getfixturevalue("low")  # the other parts compare with one whose plan was in memory
    written: list[str] = []
    write = LocalStore.write

    def noted(self: LocalStore, path: str, *data: Any) -> None:
        written.append(path)
        write(self, path, *data)

    monkeypatch.setattr(LocalStore, "write", noted)
    for number, count in ((1, 9), (2, 0), (1, 0)):
        written.clear()
        ss.pack(source, tmp_path / "out", **{**part, "part": (number, 3), "workers": 2})
        assert sum(path.startswith(planned.FOLDER) for path in written) == count
    ss.pack(source, tmp_path / "out", commit=True, **SMALL)
    assert content(tmp_path / "out") == content(tmp_path / "usual")
    done: Any = ss.pack(source, tmp_path / "out", **part)
    assert done.committed
    assert content(tmp_path / "out") == content(tmp_path / "usual")


def test_a_changed_input_is_no_part_of_the_same_pack(tmp_path, low):
    source = texts(tmp_path / "in")
    ss.pack(source, tmp_path / "out", part=(0, 2), **SMALL)  # type: ignore[call-overload]
    (source / "c" / "new.txt").write_text("more")
    with pytest.raises((ss.OptionError, CommitError)):
        ss.pack(source, tmp_path / "out", part=(1, 2), **SMALL)  # type: ignore[call-overload]


def plan_of(count: int) -> StoredPlan:
    def spans(number: int) -> tuple[FileSpan, ...]:
        url = f"{number}/%d\udcff"
        return tuple(FileSpan(url % n, 0, n, n, f"é{n}", "l", "p/", (n, n + 1)) for n in range(number % 5))

    found = planned.planned(Task(number, spans(number)) for number in range(count))
    assert isinstance(found, StoredPlan)
    return found


def test_two_planners_at_once_write_the_same_objects(tmp_path, low, monkeypatch):
    monkeypatch.setattr(Claim, "check", lambda *_, **__: None)
    store, claim = Store.open(str(tmp_path / "out")), Claim("01234567a")
    plans = [plan_of(50), plan_of(50)]
    threads = [
        threading.Thread(target=plan.put, args=(store, claim, part))
        for plan in plans
        for part in (None, (0, 2), (1, 2))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(store.list(planned.FOLDER)) == -(-100 // 7)
    for task in plans[0]:
        assert isinstance(task, PlannedTask)
        far = PlannedTask(*task.__reduce__()[1])  # as a worker gets it
        assert far == task
        assert not far.files
        read = whole(far, store.url, None, claim)
        assert type(read) is Task
        assert read == Task(task.number, task.files)


def test_tasks_of_a_kind_of_their_own_stay_a_list(low):
    class Own(Task):
        pass

    tasks = [Task(number, (FileSpan("x", 0, 1, 1, "k"),) * 3) for number in range(9)]
    assert planned.planned(iter([*tasks, Own(9, ())])) == [*tasks, Own(9, ())]
    assert planned.planned(iter(tasks[::-1])) == tasks[::-1]
    assert planned.planned(iter(())) == []
    assert isinstance(planned.planned(iter(tasks)), StoredPlan)


def test_a_message_of_a_lost_worker_names_the_first_file_of_its_task(low):
    assert "3/0" in _named(plan_of(50)[3])


NAMES = ("a", "a-", "a b", "é", "a~2", "img.1", "ab")
ENDS = (".jpg", ".txt", ".png", ".mask", ".7", ".JPG")


def tree(draw: random.Random, root: str) -> list[FileInfo]:
    found = set()
    for _ in range(draw.randrange(2, 30)):
        steps = [draw.choice(("a", "a.d", "-s", "train", "é")) for _ in range(draw.randrange(3))]
        name = draw.choice(NAMES) + "".join(draw.choice(ENDS) for _ in range(draw.choice((0, 1, 1, 2, 3))))
        found.add("/".join([*steps, name]))
    files = [FileInfo(f"{root}/{path}", draw.randrange(50), root) for path in sorted(found)]
    order = draw.choice(("paths", "folders", "none"))
    if order == "folders":
        files.sort(key=lambda info: (*os.path.dirname(info.url).split("/"), "", os.path.basename(info.url)))
    elif order == "none":
        draw.shuffle(files)
    return files


@pytest.mark.parametrize("format", ["images", "files", "text", "json"])
def test_any_listing_gives_the_same_tasks_in_memory_and_on_disk(format, monkeypatch):
    """In the order of a disk or of a store, in none, with several roots, and with files that come twice."""
    monkeypatch.setattr(windows, "_TOGETHER", 1)
    for seed in range(60):
        draw = random.Random(seed)
        files = [info for number in range(draw.choice((1, 1, 2))) for info in tree(draw, f"/r{number}")]
        files += files[:3] if draw.random() < 0.1 else []
        labels = draw.choice((None, "none", "leaf", "top")) if format == "images" else None
        source = make_source(format, SourceOptions(labels=labels))  # type: ignore[arg-type]
        target, found = draw.choice((25, 60, 10**6)), []
        for held in (10**6, 1):
            monkeypatch.setattr(spool, "HELD", held)
            monkeypatch.setattr(planned, "HELD", held)
            monkeypatch.setattr(planned, "SPANS", 1 + seed % 7)
            listing = spool.gathered(files, tuple, FileInfo._make)
            try:
                tasks = planned.planned(tasks_of(source, listing, target))
                found.append([(task.number, task.files) for task in tasks])
            except ShardstreamError as error:
                found.append(str(error))  # type: ignore[arg-type]
        assert found[0] == found[1], seed


def test_the_memory_of_planning_does_not_grow_with_the_files(monkeypatch):
    monkeypatch.setattr(spool, "HELD", 300)
    monkeypatch.setattr(planned, "HELD", 300)
    monkeypatch.setattr(planned, "SPANS", 300)
    source = make_source("images", SourceOptions(labels="none"))
    job = Job(source=source, dest="memory://none", layout=Layout.of_sizes(1000, 40_000, 3))

    def peak(count: int) -> tuple[int, int]:
        files = (FileInfo(f"/r/{n // 100:05d}/{n:07d}.jpg", 1000, "/r") for n in range(count))
        tracemalloc.start()
        try:
            listing = spool.gathered(files, tuple, FileInfo._make)
            tasks = planning.plan_tasks(job, listing, [], None)
            read = sum(len(task.files) for task in tasks)
            return tracemalloc.get_traced_memory()[1], read
        finally:
            tracemalloc.stop()

    peak(2500)  # what is imported is no part of it
    (small, some), (large, many) = peak(2500), peak(10_000)
    assert (some, many) == (2500, 10_000)
    assert large < 1.4 * small, (small, large)


def test_compressed_files_weigh_the_same_in_memory_and_on_disk(low: None) -> None:
    tasks = [
        Task(number, (FileSpan(name, 0, 100, 100, ""), FileSpan("a", 0, 10, 10, "")))
        for number, name in enumerate(("b.jsonl", "c.jsonl.gz", "d.jsonl", "e.jsonl.ZST"))
    ]
    stored = planned.planned(tasks)
    assert isinstance(stored, StoredPlan)
    assert list(map(work_of, stored)) == list(map(work_of, tasks)) == [110, 410, 110, 410]
    assert [input_bytes(task) for task in stored] == [110] * 4
