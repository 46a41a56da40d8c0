"""Parts of a pack: the bytes of one pack, in any order, again, at once, killed; and refusals by name."""

from __future__ import annotations

import errno
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import shardstream as ss
from shardstream.cli.app import run
from shardstream.counters.folders import directories, paths_in
from shardstream.counters.page import read_header
from shardstream.packing import pack_parts, part_claim, receipts, reservation, store_shuffle
from shardstream.packing.job import input_bytes
from shardstream.packing.share import shares
from shardstream.packing.sources import Task
from shardstream.packing.sources.base import FileSpan
from shardstream.storage.local_store import LocalStore
from shardstream.storage.store import Entry, Store
from tests.corpora import lines

SMALL: dict[str, Any] = {"shard_size": "4KiB", "frame_size": "1KiB", "workers": 1}


@pytest.fixture(params=["local", "memory"])
def dest(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "out") if request.param == "local" else f"memory://parts-{os.urandom(4).hex()}/out"


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Three files, of which the last one is by far the largest."""
    folder = tmp_path / "in"
    folder.mkdir()
    for file, count in enumerate((20, 40, 200)):
        rows: list[object] = [{"id": f"{file}-{n}", "text": f"text {n} " * (n % 30)} for n in range(count)]
        lines(folder / f"{file}.jsonl", rows)
    return folder


def everything(dest: str | Path, options: dict[str, Any] | None = None) -> dict[str, bytes]:
    store = Store.open(str(dest), options)
    return {each.path: store.read(each.path) for each in store.entries()}  # some servers list empty folders


def part(source: object, dest: object, number: int, parts: int, **options: Any) -> Any:
    return ss.pack(source, dest, part=(number, parts), **{**SMALL, **options})  # type: ignore[call-overload]


def commit(source: object, dest: object, **options: Any) -> Any:
    return ss.pack(source, dest, commit=True, **{**SMALL, **options})  # type: ignore[call-overload]


def photos(folder: Path) -> Path:
    from PIL import Image

    for number in range(12):
        place = folder / ("cat", "dog")[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        Image.effect_noise((40 + number, 40), 90).convert("RGB").save(place / f"{number}.jpg")
    return folder


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("jsonl", {"on_error": "skip", "keep": ["lang"]}),
        ("tokens", {"tokenizer": "bytes", "eos": 256}),
        ("images", {"resize": 20}),
        ("jsonl", {"shuffle": 5, "on_error": "skip"}),
    ],
)
def test_the_bytes_are_those_of_one_pack(
    kind: str, options: dict[str, Any], corpus: Path, tmp_path: Path, dest: str
) -> None:
    source = photos(tmp_path / "photos") if kind == "images" else corpus
    if kind == "jsonl":
        lines(corpus / "bad.jsonl", [{"id": "x", "text": "x", "lang": "en"}, ["no object"]])
    whole = ss.pack(source, tmp_path / "whole", **{**SMALL, **options})
    for number in (2, 0, 2, 1):
        done = part(source, dest, number, 3, **options)
        assert (done.part, done.parts, done.committed) == (number, 3, False)
        assert done.tasks > 0
        # The last part of a shuffle knows that all samples are there, and puts some in order.
        assert done.waits == ("shuffle" in options and number != 1)
        assert done.shards > 0 or done.waits
    assert commit(source, dest, **options) == whole
    assert everything(dest) == everything(tmp_path / "whole")
    # Whatever is started again says that all is done, and leaves nothing.
    assert commit(source, dest, **options) == whole
    assert part(source, dest, 1, 3, **options) == ss.PackedPart(1, 3, committed=True)
    assert everything(dest) == everything(tmp_path / "whole")


def test_more_parts_than_tasks(tmp_path: Path, dest: str) -> None:
    source = lines(tmp_path / "a.jsonl", [{"id": n, "text": "x" * 1000} for n in range(10)])
    assert ss.pack(source, dest, part=(0, 1), dry_run=True, **SMALL).tasks == 3
    done = [part(source, dest, number, 5) for number in range(5)]
    assert [each.tasks for each in done] == [1, 1, 1, 0, 0]
    assert commit(source, dest).samples == 10


def test_a_commit_names_what_is_missing(corpus: Path, dest: str) -> None:
    with pytest.raises(ss.OptionError, match="no part of this pack was begun"):
        commit(corpus, dest)
    part(corpus, dest, 1, 4)
    with pytest.raises(ss.CommitError, match=r"3 of 4 parts are not done.*array of jobs: 0,2-3") as early:
        commit(corpus, dest)
    assert early.value.parts == (0, 2, 3)
    part(corpus, dest, 0, 4)
    part(corpus, dest, 3, 4)
    store = Store.open(dest)
    store.delete("shard-000000.tar.zst")
    with pytest.raises(ss.CommitError, match=r"lacks 1 of its \d+ tasks \(0\)") as early:
        commit(corpus, dest)
    assert 0 in early.value.tasks
    for number in early.value.parts:
        part(corpus, dest, number, 4)
    # The commit finds a shard that was changed, too, and then the part does it anew. In memory there are no
    # versions, so that only the size tells.
    index = store.read("shard-000001.index")
    store.delete("shard-000001.index")
    store.write("shard-000001.index", index + b"x" if "://" in dest else index[::-1])
    with pytest.raises(ss.CommitError, match=r"1 of 4 .* lacks 1 of its \d+ tasks \(1\)") as early:
        commit(corpus, dest)
    assert not store.exists("manifest.json")
    part(corpus, dest, early.value.parts[0], 4)
    assert commit(corpus, dest).samples == 260
    assert store.read("shard-000001.index") == index


def test_other_parts_are_refused_by_name(corpus: Path, dest: str, monkeypatch: pytest.MonkeyPatch) -> None:
    part(corpus, dest, 0, 3)
    before = everything(dest)
    with pytest.raises(ss.OptionError, match="begun in 3 parts, not 4"):
        part(corpus, dest, 1, 4)
    for options, message in (
        ({"level": 5}, "level is 5, not 3. Give"),
        ({"shard_size": "8KiB"}, "shard_size is 8192, not 4096. Give"),
        ({"key": "none"}, "key is none, not None; keys is number, not path/id. Give"),
        ({"tokenizer": "bytes", "eos": 256}, "tokenizer.name is bytes, not None"),
    ):
        for start in (lambda options=options: part(corpus, dest, 1, 3, **options),
                      lambda options=options: commit(corpus, dest, **options)):  # fmt: skip
            with pytest.raises(ss.OptionError, match=message):
                start()
    versions = part_claim.versions
    with monkeypatch.context() as patch:
        patch.setattr(part_claim, "versions", lambda job: {**versions(job), "zstandard": "0.1", "numpy": "9"})
        with pytest.raises(ss.OptionError, match=r"zstandard is 0.1, not 0[\d.]+; numpy is 9, not"):
            part(corpus, dest, 1, 3)
    changed = corpus / "2.jsonl"
    text = changed.read_text()
    for content, message in (
        (text + "\n", "bytes of the input is .*; the names or sizes of the input files differ"),
        ('{"id":"9' + text[8:], "the content of the input files differs"),
    ):
        changed.write_text(content)
        with pytest.raises(ss.OptionError, match=message):
            part(corpus, dest, 1, 3)
    changed.write_text(text)
    lines(corpus / "new.jsonl", [{"text": "new"}])
    with pytest.raises(ss.OptionError, match="the number of input files is 4, not 3"):
        commit(corpus, dest)
    (corpus / "new.jsonl").unlink()
    assert everything(dest) == before
    for number in (1, 2):
        part(corpus, dest, number, 3)
    assert commit(corpus, dest).samples == 260


def test_what_has_no_parts_is_refused(corpus: Path, dest: str) -> None:
    for options, message in (
        ({"limit": 5}, "limit counts"),
        ({"part": (3, 3)}, "from 0 to 2"),
        ({"part": 3}, "must be"),
        ({"commit": True}, "give one of them"),
        ({"engine": "ray"}, "leave out engine"),
    ):
        with pytest.raises(ss.OptionError, match=message):
            ss.pack(corpus, dest, **{**SMALL, "part": (0, 3), **options})
    with pytest.raises(ss.OptionError, match="an iterable has no parts"):
        ss.pack(iter([{"txt": "a"}]), dest, part=(0, 3))  # type: ignore[call-overload]
    assert not everything(dest)
    with ss.Writer(dest, part=(0, 2)):
        pass
    with pytest.raises(ss.CommitError, match="the parts of writers"):
        part(corpus, dest, 0, 2)
    part(corpus, f"{dest}-2", 0, 2)
    with pytest.raises(ss.OptionError, match="parts of pack, not of writers"):
        ss.commit(f"{dest}-2")
    with pytest.raises(ss.CommitError, match="2 parts are written here"):
        ss.pack(corpus, f"{dest}-2", **SMALL)


@pytest.mark.parametrize("shuffle", [None, 7])
def test_one_process_may_finish_what_parts_began(
    shuffle: int | None, corpus: Path, tmp_path: Path, dest: str
) -> None:
    ss.pack(corpus, tmp_path / "whole", shuffle=shuffle, **SMALL)
    for number in (0, 1, 0):
        part(corpus, dest, number, 2 if shuffle else 3, shuffle=shuffle)
    ss.pack(corpus, dest, resume=True, shuffle=shuffle, **SMALL)
    assert everything(dest) == everything(tmp_path / "whole")


def test_one_process_goes_on_with_the_shuffle_of_parts(
    corpus: Path, tmp_path: Path, dest: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ss.pack(corpus, tmp_path / "whole", shuffle=7, **SMALL)
    for number in range(2):
        part(corpus, dest, number, 2, shuffle=7)
    monkeypatch.setattr(store_shuffle, "scatter", None)  # nothing is read again
    ss.pack(corpus, dest, shuffle=7, resume=True, **SMALL)
    assert everything(dest) == everything(tmp_path / "whole")


def test_append_in_parts(corpus: Path, tmp_path: Path, dest: str) -> None:
    more = lines(tmp_path / "more.jsonl", [{"id": f"m{n}", "text": "more " * n} for n in range(50)])
    for where in (dest, tmp_path / "whole"):
        ss.pack(corpus, where, **SMALL)
    with pytest.raises(ss.CommitError, match="already holds a dataset"):
        part(more, dest, 0, 2)
    whole = ss.pack(more, tmp_path / "whole", append=True, **SMALL)
    for number in (1, 0):
        part(more, dest, number, 2, append=True)
    assert commit(more, dest, append=True) == whole
    # The same append once more is the same pack, which is done.
    assert part(more, dest, 0, 2, append=True).committed
    assert commit(more, dest, append=True) == whole
    assert everything(dest) == everything(tmp_path / "whole")


def test_rejects_are_judged_by_the_commit(tmp_path: Path, dest: str) -> None:
    source = lines(tmp_path / "bad.jsonl", [{"text": "good " * 300} if n % 3 else ["bad"] for n in range(30)])
    options = {"on_error": "skip", "max_rejects": 0.1}
    with pytest.raises(ss.SourceError, match="To leave such samples out"):
        part(source, dest, 0, 2)
    store = Store.open(dest)
    for name in store.list():
        store.delete(name)
    assert sum(part(source, dest, number, 2, **options).rejected for number in range(2)) == 10
    with pytest.raises(ss.SourceError, match=r"10 of 30 .* with --commit and a larger --max-rejects"):
        commit(source, dest, **options)
    assert commit(source, dest, **{**options, "max_rejects": 0.5}).provenance["rejected"] == 10
    ss.pack(source, tmp_path / "whole", on_error="skip", **SMALL)
    assert everything(dest) == everything(tmp_path / "whole")


def test_functions_have_parts(tmp_path: Path, dest: str) -> None:
    calls: list[Callable[[], Any]] = [lambda n=n: [{"txt": f"{n}"}] for n in range(5)]
    for number in range(2):
        assert ss.pack(calls, dest, part=(number, 2), workers=1).tasks == (3, 2)[number]
    assert ss.pack(calls, dest, commit=True, workers=1).samples == 5


def test_parts_of_a_shuffle_run_once_more(corpus: Path, tmp_path: Path, dest: str) -> None:
    ss.pack(corpus, tmp_path / "whole", shuffle=7, **SMALL)
    for number in (1, 0):
        assert part(corpus, dest, number, 3, shuffle=7).waits
    with pytest.raises(ss.CommitError, match="part 2 lacks"):
        commit(corpus, dest, shuffle=7)
    again = [part(corpus, dest, number, 3, shuffle=7) for number in (2, 1, 0)]
    assert not any(done.waits for done in again)
    assert all(done.shards for done in again)
    # The commit has nothing left to do but the manifest.
    written = [name for name in Store.open(dest).list() if name.startswith("shard-")]
    assert written == [name for name in everything(tmp_path / "whole") if name.startswith("shard-")]
    commit(corpus, dest, shuffle=7)
    assert everything(dest) == everything(tmp_path / "whole")
    assert not (tmp_path / "out" / ".spill").exists()


@pytest.mark.parametrize("shuffle", [None, 7])
def test_a_copy_that_comes_late_leaves_nothing(shuffle: int | None, corpus: Path, tmp_path: Path) -> None:
    dest = f"memory://late-{os.urandom(4).hex()}/out"
    ss.pack(corpus, tmp_path / "whole", shuffle=shuffle, **SMALL)
    ended: list[bool] = []

    def overtaken(_: object) -> None:
        if not ended:
            ended.append(True)
            for number in range(2):
                part(corpus, dest, number, 2, shuffle=shuffle)
            commit(corpus, dest, shuffle=shuffle)

    assert part(corpus, dest, 0, 2, progress=overtaken, shuffle=shuffle).committed
    assert everything(dest) == everything(tmp_path / "whole")


def raw(dest: str) -> tuple[Store, str]:
    """The target, and the name of its first shard."""
    store = Store.open(dest)
    return store, next(name for name in store.list() if name.startswith("shard-") and "index" not in name)


def test_a_damaged_shard_is_made_again_by_its_part(corpus: Path, tmp_path: Path, dest: str) -> None:
    ss.pack(corpus, tmp_path / "whole", **SMALL)
    part(corpus, dest, 0, 1)
    store, name = raw(dest)
    # A receipt that is an object of its own, as of a part that was killed.
    (fold,) = (each for each in store.list() if "-fold-" in each)
    for result in receipts.read_all(store, [fold], "task", [reservation.read(store).plan])[0].values():  # type: ignore[union-attr]
        store.write(receipts.receipt_name("task", result.number), msgspec.json.encode(result))
    store.delete(fold)
    store.write(name, bytes(store.read(name))[:-9])
    with pytest.raises(ss.CommitError, match="part 0 lacks"):
        commit(corpus, dest)
    part(corpus, dest, 0, 1)
    commit(corpus, dest)
    assert everything(dest) == everything(tmp_path / "whole")


def test_a_damaged_shard_costs_its_task_alone(corpus: Path, tmp_path: Path) -> None:
    dest = str(tmp_path / "out")
    count = part(corpus, dest, 0, 1).tasks
    store, name = raw(dest)
    data = bytearray(store.read(name))
    data[-9] ^= 1
    store.write(name, bytes(data))
    with pytest.raises(ss.CommitError) as raised:
        commit(corpus, dest)
    assert len(raised.value.tasks) == 1
    with pytest.raises(ss.CommitError, match=f"lacks 1 of its {count} tasks"):
        commit(corpus, dest)
    part(corpus, dest, 0, 1)
    assert commit(corpus, dest).samples == 260
    assert ss.verify(dest, deep=True).sound


@pytest.mark.parametrize("damage", ["lost", "cut", "changed"])
def test_a_damaged_spill_is_made_again_by_its_part(
    damage: str, corpus: Path, tmp_path: Path, dest: str
) -> None:
    if damage == "changed":  # a version tells it, which a memory store has not
        dest = str(tmp_path / "out")
    ss.pack(corpus, tmp_path / "whole", shuffle=7, **SMALL)
    for number in range(2):
        part(corpus, dest, number, 2, shuffle=7)
    store = Store.open(dest)
    name = f".spill/{store.list('.spill')[0]}"
    data = bytearray(store.read(name))
    data[5] ^= 1
    if damage == "lost":
        store.delete(name)
    else:
        store.write(name, bytes(data)[:-3] if damage == "cut" else bytes(data))
    with pytest.raises(ss.CommitError, match="1 of 2 parts are not done") as raised:
        commit(corpus, dest, shuffle=7)
    part(corpus, dest, *raised.value.parts, 2, shuffle=7)
    commit(corpus, dest, shuffle=7)
    assert everything(dest) == everything(tmp_path / "whole")


@pytest.mark.parametrize("shuffle", [None, 7])
@pytest.mark.parametrize("where", ["_finished", "reserve"])
def test_another_commit_may_end_first(
    shuffle: int | None, where: str, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ss.pack(corpus, tmp_path / "whole", shuffle=shuffle, **SMALL)
    dest = f"memory://overtaken-{os.urandom(4).hex()}/out"
    for number in range(2):
        part(corpus, dest, number, 2, shuffle=shuffle)
    module: Any = pack_parts if where == "_finished" else reservation
    original = getattr(module, where)

    def overtaken(*arguments: Any) -> Any:
        monkeypatch.setattr(module, where, original)
        commit(corpus, dest, shuffle=shuffle)
        return original(*arguments)

    monkeypatch.setattr(module, where, overtaken)
    assert commit(corpus, dest, shuffle=shuffle).samples == 260
    assert everything(dest) == everything(tmp_path / "whole")


@pytest.mark.parametrize("where", ["creates_once", "read"])
def test_no_part_brings_the_reservation_back(
    where: str, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ss.pack(corpus, tmp_path / "whole", **SMALL)
    dest = f"memory://back-{os.urandom(4).hex()}/out"
    part(corpus, dest, 0, 1)
    original = getattr(reservation, where)

    def overtaken(*arguments: Any) -> Any:
        monkeypatch.setattr(reservation, where, original)
        commit(corpus, dest)
        return original(*arguments)

    monkeypatch.setattr(reservation, where, overtaken)
    assert part(corpus, dest, 0, 1).committed
    assert everything(dest) == everything(tmp_path / "whole")


def test_receipts_of_an_older_pack_do_not_count(corpus: Path, tmp_path: Path, dest: str) -> None:
    part(corpus, f"{dest}-old", 0, 1)
    store, old = Store.open(dest), everything(f"{dest}-old")
    for name in old:
        if name.startswith(".pack-task"):
            store.write(name, old[name])
    part(corpus, dest, 0, 2)
    with pytest.raises(ss.CommitError, match="1 of 2 parts are not done"):
        commit(corpus, dest)
    part(corpus, dest, 1, 2)
    assert commit(corpus, dest).samples == 260


def test_a_slow_listing_may_lack_the_reservation(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part(corpus, tmp_path / "out", 0, 2)
    listed, entries = [], LocalStore.entries

    def slow(store: LocalStore, *folder: str) -> list[Entry]:
        listed.append(1)
        found = entries(store, *folder)
        return found if len(listed) > 1 else [each for each in found if each.path != reservation.NAME]

    monkeypatch.setattr(LocalStore, "entries", slow)
    assert part(corpus, tmp_path / "out", 1, 2).tasks > 0
    assert commit(corpus, tmp_path / "out").samples == 260


def test_a_commit_waits_for_the_parts_of_this_machine(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shardstream.packing.reservation._LOCK_TIMEOUT", 0.1)
    dest, seen = tmp_path / "out", []

    def meanwhile(_: object) -> None:
        if not seen:
            seen.append(part(corpus, dest, 1, 2).tasks)  # another part is welcome
            with pytest.raises(ss.CommitError, match="at work"):
                commit(corpus, dest)

    part(corpus, dest, 0, 2, progress=meanwhile)
    assert seen
    assert commit(corpus, dest).samples == 260


PART = """
import json, os, sys
import shardstream as ss
source, dest, number, kill, options = sys.argv[1:]
def progress(now):
    if kill == "kill" and now.done_tasks >= 2:
        os.kill(os.getpid(), 9)
ss.pack(source, dest, part=(int(number), 3), progress=progress, **json.loads(options))
"""


@pytest.mark.parametrize("where", ["local", pytest.param("s3", marks=pytest.mark.long)])
def test_parts_are_processes_that_run_at_once_twice_and_are_killed(
    where: str, corpus: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    weed = request.getfixturevalue("weed") if where == "s3" else None
    dest = weed.bucket() if weed else str(tmp_path / "out")
    options = {**SMALL, "storage_options": weed.options() if weed else None}

    def start(number: int, kill: str = "") -> subprocess.Popen[bytes]:
        words = [sys.executable, "-c", PART, str(corpus), dest, str(number), kill, json.dumps(options)]
        return subprocess.Popen(words)

    running = [start(0), start(0), start(1, "kill"), start(2)]
    assert [each.wait(120) for each in running] == [0, 0, -9, 0]
    with pytest.raises(ss.CommitError, match="part 1 lacks") as early:
        commit(corpus, dest, **options)
    assert early.value.parts == (1,)
    assert start(1).wait(120) == 0
    commit(corpus, dest, **options)
    ss.pack(corpus, tmp_path / "whole", **SMALL)
    assert everything(dest, options["storage_options"]) == everything(tmp_path / "whole")
    assert not list(tmp_path.rglob(".tmp-*"))


@pytest.mark.long
@pytest.mark.parametrize("shuffle", [None, 3])
@pytest.mark.parametrize("where", ["local", "s3"])
def test_parts_and_commits_are_killed_again_and_again(
    where: str, shuffle: int | None, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    weed = request.getfixturevalue("weed") if where == "s3" else None
    dest = weed.bucket() if weed else str(tmp_path / "out")
    source = lines(tmp_path / "a.jsonl", [{"id": n, "text": f"text {n} " * 30} for n in range(4000)])
    options = {"shard_size": "16KiB", "workers": 2, "shuffle": shuffle}
    options["storage_options"] = weed.options() if weed else None
    command = """
import json, sys
import shardstream as ss
source, dest, share, options = sys.argv[1:]
what = {"commit": True} if share == "commit" else {"part": (int(share), 3)}
ss.pack(source, dest, **what, **json.loads(options))
"""

    def start(share: str) -> subprocess.Popen[bytes]:
        words = [sys.executable, "-c", command, str(source), dest, share, json.dumps(options)]
        return subprocess.Popen(words, stderr=subprocess.DEVNULL)

    chance = random.Random(5)
    ended, kills, longest, deadline = False, 0, 2.0, time.monotonic() + 240
    while not ended and time.monotonic() < deadline:
        # Each part, one of them twice, and a commit that mostly comes too early.
        running = [start(share) for share in ("0", "1", "2", str(chance.randrange(3)), "commit")]
        longest += 1.0  # so that a slow machine ends, too
        time.sleep(chance.uniform(0.5, longest))
        for each in running:
            kills += each.poll() is None
            each.kill()
        ended = running[-1].wait(60) == 0
        for each in running:
            each.wait(60)
    assert ended
    assert kills > 2
    ss.pack(source, dest, commit=True, **options)  # type: ignore[call-overload]  # which clears what a killed one has left
    ss.pack(source, tmp_path / "whole", **{**options, "storage_options": None})
    assert everything(dest, options["storage_options"]) == everything(tmp_path / "whole")
    assert not list(tmp_path.rglob(".tmp-*"))


def test_a_file_system_without_locks(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr("fcntl.flock", refused)
    for number in range(2):
        part(corpus, tmp_path / "out", number, 2)
    commit(corpus, tmp_path / "out")
    ss.pack(corpus, tmp_path / "whole", **SMALL)
    assert everything(tmp_path / "out") == everything(tmp_path / "whole")


def test_top_shows_each_part(corpus: Path, tmp_path: Path) -> None:
    seen: list[str] = []

    def look(_: object) -> None:
        for place in directories():
            for path in paths_in(place):
                header = read_header(Path(path).read_bytes())
                seen.extend([header.what] if header is not None and header.pid == os.getpid() else [])

    part(corpus, tmp_path / "out", 0, 2, progress=look)
    assert f"part 0/2 of {tmp_path / 'out'}" in seen


def test_the_command(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["pack", str(corpus), str(tmp_path / "out"), "--workers", "1"]
    assert run([*words, "--part", "0/2", "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["tasks"] == 1
    assert run([*words, "--part", "0/2"]) == 0
    assert "part 0/2 is done: 1 task," in capsys.readouterr().out
    assert run([*words, "--commit"]) == 0  # all files are one task, so that the other part is empty
    for wrong in ("2", "2/2", "a/b", "-1/2", "1/2/3"):
        assert run([*words, f"--part={wrong}"]) == 2
    assert run(["pack", "-", str(tmp_path / "in"), "--format", "jsonl", "--part", "0/2"]) == 2
    capsys.readouterr()
    assert run([*words, "--part", "1/2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["committed"]


@given(
    st.lists(st.integers(0, 200 << 20), max_size=60),
    st.integers(1, 80),
)
@settings(max_examples=100, deadline=None)
def test_shares_hold_each_task_once_and_are_balanced(sizes: list[int], parts: int) -> None:
    tasks = [Task(n, (FileSpan("a", 0, size, size, ""),)) for n, size in enumerate(sizes)]
    found = shares(tasks, parts)
    assert len(found) == parts
    assert sorted(task.number for share in found for task in share) == list(range(len(sizes)))
    loads = [sum(input_bytes(task) + (1 << 20) for task in share) for share in found]
    best = max(sum(loads) / parts, max((input_bytes(task) + (1 << 20) for task in tasks), default=0))
    assert max(loads) <= 2 * best  # 4/3 of the best division, which is at most 1.5 times this bound
    assert max(loads) - min(loads) <= max((input_bytes(task) + (1 << 20) for task in tasks), default=0)
