"""Writer: samples in, a dataset out; nothing is committed by a writer that does not end well."""

from __future__ import annotations

import gc
import os
import pickle
import signal
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import shardstream as ss
from shardstream.read.reader import DatasetReader
from tests.watch import descriptors, ended, settled, threads

SMALL: dict[str, Any] = {"shard_size": "8KiB", "frame_size": "1KiB"}


def samples(count: int, first: int = 0) -> Iterator[dict[str, Any]]:
    for number in range(first, first + count):
        yield {"__key__": f"a/{number}", "txt": f"text {number} " * (number % 50), "cls": number % 3}


def content(url: Path) -> list[tuple[str, dict[str, bytes]]]:
    assert not ss.verify(str(url), deep=True).problems
    return [(key, dict(fields)) for key, fields in DatasetReader.open(str(url)).iter_samples()]


def expected(count: int, first: int = 0) -> list[tuple[str, dict[str, bytes]]]:
    return [
        (one["__key__"], {"txt": one["txt"].encode(), "cls": str(one["cls"]).encode()})
        for one in samples(count, first)
    ]


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def write(dest: Path, count: int, **options: Any) -> ss.Writer:
    with ss.Writer(dest, **{**SMALL, **options}) as writer:
        for sample in samples(count):
            writer.write(sample)
    return writer


@pytest.mark.parametrize("compression", ["zstd", "none", None])
def test_what_goes_in_comes_out_for_any_number_of_threads(tmp_path: Path, compression: Any) -> None:
    for workers in (1, 2, 7):
        writer = write(tmp_path / str(workers), 400, workers=workers, compression=compression)
        assert writer.samples == writer.manifest.samples == 400
        assert len(writer.manifest.shards) > 5
        assert content(tmp_path / str(workers)) == expected(400)
    assert files(tmp_path / "1") == files(tmp_path / "2") == files(tmp_path / "7")
    assert not [name for name in files(tmp_path / "1") if name.startswith(".")]
    assert settled()


def test_unicode_keys_numbers_and_no_key(tmp_path: Path) -> None:
    huge = os.urandom(100_000)
    with ss.Writer(tmp_path / "out", **SMALL) as writer:
        writer.write({"__key__": "ü/x.y", "txt": "ü"})
        writer.write({"__key__": 7, "bin": huge})
        writer.write({"txt": "", "__url__": "where a loader found it"})
    assert content(tmp_path / "out") == [
        ("ü/x%2Ey", {"txt": "ü".encode()}),
        ("7", {"bin": huge}),
        ("000000000002", {"txt": b""}),
    ]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_exception_commits_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    dest = tmp_path / "out"
    with pytest.raises(error, match="mine"), ss.Writer(dest, **SMALL) as writer:  # noqa: PT012
        for sample in samples(300):
            writer.write(sample)
        raise error("mine")
    assert not (dest / "manifest.json").exists()
    with pytest.raises(ss.CommitError, match="aborted"):
        writer.close()
    with pytest.raises(ss.CommitError, match="aborted"):
        writer.write({"txt": "a"})
    assert settled()
    # The next writer starts anew, and is not disturbed by what was left.
    write(dest, 50)
    assert content(dest) == expected(50)
    assert {name.split(".")[0] for name in files(dest)} == {"manifest", "shard-000000", "shard-000001"}


def test_no_sample_at_all_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ss.SourceError, match="no samples"), ss.Writer(tmp_path / "out"):
        pass
    assert list((tmp_path / "out").iterdir()) == []


def test_a_bad_sample_is_named_and_the_writer_goes_on(tmp_path: Path) -> None:
    with ss.Writer(tmp_path / "out") as writer:
        writer.write({"__key__": "a", "txt": "1"})
        for bad, message in (
            ({"__key__": "b", "obj": object()}, r"sample 1 \(b\): field 'obj'"),
            ({"__key__": "", "txt": "1"}, "sample 2: __key__ is ''"),
            ({"__key__": "a", "txt": "2"}, r"sample 3 \(a\): the key 'a' occurs twice"),
            ({"__key__": "c"}, r"sample 4 \(c\): .* has no field"),
            ({"__key__": "d", 3: "x"}, "sample 5 .*: the name of a field is 3"),
            ({"__key__": "e", "a/b": "x"}, "sample 6 .* cannot be a field name"),
            (["a"], "sample 7: a sample is a dict"),
            ({"__key__": "x" * 2000, "txt": "x"}, "sample 8 .* cannot be a key"),
        ):
            with pytest.raises(ss.SourceError, match=message):
                writer.write(bad)  # type: ignore[arg-type]
        writer.write({"__key__": "z", "txt": "3"})
    assert content(tmp_path / "out") == [("a", {"txt": b"1"}), ("z", {"txt": b"3"})]


def test_bad_samples_are_listed_with_skip(tmp_path: Path) -> None:
    with ss.Writer(tmp_path / "out", on_error="skip") as writer:
        writer.write({"__key__": "a", "txt": "1"})
        writer.write({"__key__": "b", "txt": None})
        writer.write({"__key__": "a", "txt": "1"})
    assert writer.manifest.samples == 1
    assert writer.rejected == writer.manifest.provenance["rejected"] == 2
    lines = (tmp_path / "out" / "rejects.jsonl").read_text().splitlines()
    assert "sample 1 (b)" in lines[0]
    assert "twice" in lines[1]


def test_tokens_are_documents(tmp_path: Path) -> None:
    documents = [np.arange(n % 40, dtype=np.uint16) for n in range(300)]
    with ss.Writer(tmp_path / "out", tokens=True, **SMALL) as writer:
        for number, one in enumerate(documents):
            writer.write({"__key__": str(number), "tokens": one} if number % 2 else one)
            one += 1  # the caller may use the array again
            one -= 1
    assert writer.manifest.kind == "tokens"
    assert writer.manifest.fields[0].dtype == "uint16"
    assert writer.manifest.tokens == sum(map(len, documents))
    found = [np.frombuffer(fields["tokens"], "<u2").tolist() for _, fields in content(tmp_path / "out")]
    assert found == [one.tolist() for one in documents]
    blocks = ss.TokenDataset(tmp_path / "out", seq_len=16, shuffle=False)
    assert next(iter(blocks))["tokens"].tolist() == np.concatenate(documents)[:17].tolist()


@pytest.mark.parametrize(
    ("tokens", "first", "dtype"),
    [
        (True, np.arange(3), "uint32"),
        (True, [1, 2], "uint32"),
        (True, np.arange(3, dtype=np.uint16), "uint16"),
        ("uint16", [1, 2], "uint16"),
        ("uint32", np.arange(3, dtype=np.uint16), "uint32"),
    ],
)
def test_the_dtype_of_tokens(tmp_path: Path, tokens: Any, first: Any, dtype: str) -> None:
    with ss.Writer(tmp_path / "out", tokens=tokens) as writer:
        writer.write(first)
        for bad in ([-1], [1 << 32], [1.5], [[1]], ["a"], {"txt": "a"}, {"tokens": [1], "txt": "a"}, 3, None):
            with pytest.raises(ss.SourceError, match="sample"):
                writer.write(bad)  # type: ignore[arg-type]
        writer.write([])
    assert writer.manifest.fields[0].dtype == dtype
    assert writer.manifest.samples == 2


def test_a_tokenizer_makes_documents_and_one_bad_text_loses_no_other(tmp_path: Path) -> None:
    with ss.Writer(tmp_path / "out", tokenizer="bytes", eos=0) as writer:
        for number in range(150):
            key = "twice" if number in (3, 30) else str(number)
            try:
                writer.write({"__key__": key, "txt": f"text {number}"})
            except ss.SourceError as error:
                assert "sample 30 (twice)" in str(error)  # noqa: PT017 - it comes with a later sample
        with pytest.raises(ss.SourceError, match="no text"):
            writer.write({"json": {}})
    keys = [key for key, _ in content(tmp_path / "out")]
    assert keys == ["twice" if n == 3 else str(n) for n in range(150) if n != 30]


def test_two_writers_of_one_target_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shardstream.packing.reservation._LOCK_TIMEOUT", 0.2)
    (tmp_path / "in.txt").write_text("line\n")
    with ss.Writer(tmp_path / "out") as writer:
        writer.write({"txt": "a"})
        for other in (
            lambda: ss.Writer(tmp_path / "out"),
            lambda: ss.Writer(tmp_path / "out", part=(0, 2)),
            lambda: ss.commit(tmp_path / "out"),
            lambda: ss.pack(tmp_path / "in.txt", tmp_path / "out", workers=1),
        ):
            with pytest.raises(ss.CommitError, match="at work"):
                other()
    assert writer.manifest.samples == 1
    with pytest.raises(ss.CommitError, match="already holds a dataset"):
        ss.Writer(tmp_path / "out")


def test_two_writers_of_one_remote_target_are_refused() -> None:
    url = f"memory://writer-{os.urandom(4).hex()}/out"
    with ss.Writer(url) as writer:
        writer.write({"txt": "a"})
        with pytest.raises(ss.CommitError, match="claimed"):
            ss.Writer(url)
    assert writer.manifest.samples == 1


def test_threads_may_share_a_writer(tmp_path: Path) -> None:
    with ss.Writer(tmp_path / "out", **SMALL) as writer, ThreadPoolExecutor(8) as pool:
        list(pool.map(writer.write, samples(500)))
    assert sorted(content(tmp_path / "out")) == sorted(expected(500))


def test_a_fork_cannot_use_or_disturb_the_writer(tmp_path: Path) -> None:
    writer = ss.Writer(tmp_path / "out", **SMALL)
    for sample in samples(100):
        writer.write(sample)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            for call in (lambda: writer.write({"txt": "a"}), writer.close, writer.__enter__):
                with pytest.raises(ss.CommitError, match="fork"):
                    call()
            writer.abort()
            del writer, call
            gc.collect()
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    with pytest.raises(ss.CommitError, match="at work"):
        ss.Writer(tmp_path / "out")  # the lock is still held
    writer.close()
    assert content(tmp_path / "out") == expected(100)


def test_a_fork_that_lives_on_does_not_hold_the_lock(tmp_path: Path) -> None:
    writer = ss.Writer(tmp_path / "out", part=(0, 1))
    writer.write({"txt": "a"})
    child = os.fork()
    if child == 0:
        signal.pause()
        os._exit(0)
    try:
        writer.close()
        assert ss.commit(tmp_path / "out").samples == 1
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_a_writer_stays_in_its_process(tmp_path: Path) -> None:
    writer = ss.Writer(tmp_path / "out")
    with pytest.raises(ss.OptionError, match="part="):
        pickle.dumps(writer)
    writer.abort()
    writer.abort()


def test_a_dropped_writer_commits_nothing_and_warns(tmp_path: Path) -> None:
    before = descriptors()
    writer = ss.Writer(tmp_path / "out", **SMALL)
    for sample in samples(300):
        writer.write(sample)
    with pytest.warns(ResourceWarning, match="dropped"):  # noqa: PT031
        del writer
        gc.collect()
    assert settled()
    assert not (tmp_path / "out" / "manifest.json").exists()
    write(tmp_path / "out", 10)
    assert descriptors() == before


def test_closing_twice_is_closing_once(tmp_path: Path) -> None:
    writer = write(tmp_path / "out", 10)
    writer.close()
    with pytest.raises(ss.CommitError, match="closed"):
        writer.write({"txt": "a"})
    with pytest.raises(ss.CommitError, match="closed"), writer:
        pass


def test_a_shard_that_cannot_be_written_ends_the_writer(tmp_path: Path) -> None:
    dest = tmp_path / "out"
    writer = ss.Writer(dest, **SMALL)
    written = iter(samples(100_000))
    writer.write(next(written))
    (dest / "shard-000003.index").mkdir(parents=True)
    with pytest.raises(ss.StorageError, match=r"shard-000003"):  # noqa: PT012
        for sample in written:
            writer.write(sample)
    with pytest.raises(ss.StorageError, match=r"shard-000003"):
        writer.close()
    assert not (dest / "manifest.json").exists()
    assert settled()


def test_append(tmp_path: Path) -> None:
    with pytest.raises(ss.OptionError, match="nothing to append"):
        ss.Writer(tmp_path / "out", append=True)
    write(tmp_path / "out", 200)
    before = files(tmp_path / "out")
    with ss.Writer(tmp_path / "out", append=True, **SMALL) as writer:
        for sample in samples(100, 200):
            writer.write(sample)
    assert content(tmp_path / "out") == expected(300)
    after = files(tmp_path / "out")
    assert all(after[name] == data for name, data in before.items() if name != "manifest.json")
    with pytest.raises(ss.OptionError, match="holds samples"):
        ss.Writer(tmp_path / "out", append=True, tokens=True)


def test_append_tokens_of_the_same_dtype(tmp_path: Path) -> None:
    with ss.Writer(tmp_path / "out", tokens="uint16") as writer:
        writer.write([1, 2])
    with pytest.raises(ss.OptionError, match="uint16, these would be uint32"):
        ss.Writer(tmp_path / "out", tokens="uint32", append=True)
    with ss.Writer(tmp_path / "out", tokens=True, append=True) as writer:
        writer.write([3])
    assert writer.manifest.tokens == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tokens": "int8"}, "tokens="),
        ({"tokens": True, "tokenizer": "bytes"}, "the one or the other"),
        ({"eos": 3}, "tokenizer"),
        ({"workers": 0}, "workers=0"),
        ({"compression": "gzip"}, "gzip"),
        ({"level": 40}, "level=40"),
        ({"shard_size": "x"}, "shard_size"),
        ({"on_error": "no"}, "on_error"),
        ({"part": 3}, "part=3"),
        ({"part": (3, 3)}, "the part=3"),
        ({"part": (0, 0)}, "number of parts"),
        ({"part": (True, 2)}, "the part=True"),
    ],
)
def test_options_are_checked_before_anything_is_written(tmp_path: Path, options: Any, message: str) -> None:
    with pytest.raises(ss.OptionError, match=message):
        ss.Writer(tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_a_small_shard_size_needs_no_frame_size(tmp_path: Path) -> None:
    with ss.Writer(tmp_path / "out", shard_size=1000) as writer:
        for sample in samples(100):
            writer.write(sample)
    assert content(tmp_path / "out") == expected(100)


def test_progress_is_told_to_a_function(tmp_path: Path) -> None:
    told: list[Any] = []
    write(tmp_path / "out", 600, progress=told.append)
    assert [one.samples for one in told] == [256, 512, 600]
    assert told[-1].done_bytes > told[0].done_bytes > 0


def test_a_bar_is_shown_and_goes_away(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "out", 300, progress=True)
    assert settled()
    with pytest.raises(ValueError, match="mine"), ss.Writer(tmp_path / "b", progress=True):
        raise ValueError("mine")
    assert not [one for one in threading.enumerate() if "rich" in type(one).__module__]
    assert capsys.readouterr().out == ""


def test_the_memory_does_not_grow_with_the_samples(tmp_path: Path) -> None:
    data = os.urandom(1 << 16)
    peaks = []
    for count in (64, 1024):
        tracemalloc.start()
        with ss.Writer(
            tmp_path / str(count), shard_size="1MiB", frame_size="64KiB", compression="none", workers=2
        ) as writer:
            for number in range(count):
                writer.write({"__key__": str(number), "bin": data})
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + (2 << 20), peaks


KILLED = """
import os, sys
import shardstream as ss
with ss.Writer(sys.argv[1], shard_size="8KiB", frame_size="1KiB", resume=len(sys.argv) > 2) as writer:
    for number in range(400):
        writer.write({"__key__": f"a/{number}", "txt": f"text {number} " * (number % 50), "cls": number % 3})
        if number == 250 and len(sys.argv) == 2:
            while sum(name.endswith(".zst") for name in os.listdir(sys.argv[1])) < 3:
                pass
            os.kill(os.getpid(), 9)
"""


def test_a_killed_writer_is_resumed_with_the_same_bytes(tmp_path: Path) -> None:
    dest = tmp_path / "out"
    killed = subprocess.run([sys.executable, "-c", KILLED, str(dest)], check=False)
    assert killed.returncode == -9
    assert not (dest / "manifest.json").exists()
    first = (dest / "shard-000000.tar.zst").stat()
    subprocess.run([sys.executable, "-c", KILLED, str(dest), "resume"], check=True)
    again = (dest / "shard-000000.tar.zst").stat()
    assert (first.st_ino, first.st_mtime_ns) == (again.st_ino, again.st_mtime_ns)
    write(tmp_path / "whole", 400)
    assert files(dest) == files(tmp_path / "whole")


def unfinished(dest: Path, count: int) -> None:
    writer = ss.Writer(dest, **SMALL)
    for sample in samples(count):
        writer.write(sample)
    # The writing threads may be at any later shard, but the first ones have to be there.
    assert ended(lambda: len(list(dest.glob(".pack-shard-*"))) > 3)
    writer.abort()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda one: one | {"__key__": "other"} if one["__key__"] == "a/17" else one, "sample 17 was 'a/17'"),
        (
            lambda one: one | {"txt": "other"} if one["__key__"] == "a/17" else one,
            "another content|had .* samples|was 'a/",
        ),
        (
            lambda one: one if one["__key__"] != "a/3" else one | {"json": {}},
            "another content|had .* samples|was 'a/",
        ),
    ],
)
def test_samples_that_changed_are_refused_when_resumed(tmp_path: Path, change: Any, message: str) -> None:
    unfinished(tmp_path / "out", 300)
    with pytest.raises(ss.OptionError, match=message):
        ss.pack(map(change, samples(300)), tmp_path / "out", resume=True, **SMALL)
    assert not (tmp_path / "out" / "manifest.json").exists()
    # The same samples still resume it.
    write(tmp_path / "out", 300, resume=True)
    assert content(tmp_path / "out") == expected(300)


def test_other_options_are_refused_when_resumed(tmp_path: Path) -> None:
    unfinished(tmp_path / "out", 300)
    with pytest.raises(ss.OptionError, match="other sources or options"):
        ss.Writer(tmp_path / "out", resume=True, shard_size="9KiB", frame_size="1KiB")


def test_fewer_samples_are_refused_when_resumed(tmp_path: Path) -> None:
    unfinished(tmp_path / "out", 300)
    with pytest.raises(ss.OptionError, match="samples have changed"):
        write(tmp_path / "out", 20, resume=True)


def test_a_shard_that_a_killed_writer_put_last_does_not_stay(tmp_path: Path) -> None:
    dest = tmp_path / "out"
    unfinished(dest, 300)
    for suffix in ("tar.zst", "index"):  # it was killed before it wrote the receipt
        (dest / f"shard-000700.{suffix}").write_bytes((dest / f"shard-000000.{suffix}").read_bytes())
    write(dest, 300, resume=True)
    assert not list(dest.glob("shard-000700*"))
    assert ss.pack(samples(5, 300), dest, append=True, **SMALL).samples == 305


def test_resume_with_nothing_to_resume_begins(tmp_path: Path) -> None:
    write(tmp_path / "out", 30, resume=True)
    assert content(tmp_path / "out") == expected(30)


def test_the_threads_end(tmp_path: Path) -> None:
    writer = ss.Writer(tmp_path / "out", **SMALL)
    for sample in samples(100):
        writer.write(sample)
    assert threads()
    writer.close()
    assert not threads()
