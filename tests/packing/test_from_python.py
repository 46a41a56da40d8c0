"""pack of samples and functions of Python, instead of files."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import shardstream as ss
from shardstream.read.reader import DatasetReader

SMALL: dict[str, Any] = {"shard_size": "4KiB", "frame_size": "1KiB"}
MODULE = """
def part(number, count=60):
    for row in range(count):
        yield {"__key__": f"{number}/{row}", "txt": f"{number} {row} " * (row % 30)}

def listed():
    return [{"txt": "a"}, {"txt": "b"}]

def numpy_loaded():
    import sys
    yield {"txt": str("numpy" in sys.modules)}

def broken():
    yield {"txt": "a"}
    import os
    if "FOUND" not in os.environ:
        raise KeyError("lost")

def nothing():
    return None

def bad():
    yield {"txt": "a"}
    yield {"txt": None}
    yield None

class Part:
    def __init__(self, number):
        self.number = number
    def __call__(self):
        return part(self.number, 3)
"""


@pytest.fixture
def tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A module of functions that workers can import."""
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "tasks_of_the_test.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path / "lib"))
    import tasks_of_the_test  # type: ignore[import-not-found]

    yield tasks_of_the_test
    del sys.modules["tasks_of_the_test"]


def content(url: Path) -> list[tuple[str, dict[str, bytes]]]:
    assert not ss.verify(str(url), deep=True).problems
    return [(key, dict(fields)) for key, fields in DatasetReader.open(str(url)).iter_samples()]


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def rows(count: int) -> Iterator[dict[str, Any]]:
    for row in range(count):
        yield {"__key__": str(row), "txt": f"text {row} " * (row % 30)}


class Rows:
    """Samples by number alone, as map-style datasets give them."""

    def __getitem__(self, row: int) -> dict[str, Any]:
        if row >= 100:
            raise IndexError(row)
        return {"__key__": str(row), "txt": f"text {row} " * (row % 30)}


def test_any_iterable_gives_the_same(tmp_path: Path) -> None:
    given: list[Any] = [rows(100), list(rows(100)), tuple(rows(100)), Rows(), iter(list(rows(100)))]
    for number, samples in enumerate(given):
        manifest = ss.pack(samples, tmp_path / str(number), workers=1 + number, **SMALL)
        assert manifest.samples == 100
        assert files(tmp_path / str(number)) == files(tmp_path / "0")
    assert content(tmp_path / "0") == [(one["__key__"], {"txt": one["txt"].encode()}) for one in rows(100)]


def test_an_iterator_of_paths_is_still_files(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / f"{name}.txt").write_text(f"{name}\n")
    assert ss.pack(sorted(tmp_path.glob("*.txt")), tmp_path / "1", workers=1).samples == 2
    assert ss.pack(iter(sorted(tmp_path.glob("*.txt"))), tmp_path / "2", workers=1).samples == 2


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        (3, "not a int"),
        (rows, "a function: call it"),
        ({"txt": "a"}, "not a dict"),
        (["a.txt", {"txt": "a"}], "paths and samples"),
        ([rows, {"txt": "a"}], "functions and samples"),
    ],
)
def test_other_sources_are_refused(tmp_path: Path, sources: Any, message: str) -> None:
    with pytest.raises(ss.OptionError, match=message):
        ss.pack(sources, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("options", [{"dry_run": True}, {"text_key": "a"}, {"key": "a"}, {"format": "jsonl"}])
def test_options_of_files_are_refused(tmp_path: Path, options: Any, tasks: Any) -> None:
    for sources in (rows(3), [tasks.listed]):
        with pytest.raises(ss.OptionError, match=f"{next(iter(options))} is for files"):
            ss.pack(sources, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_nothing_is_an_error(tmp_path: Path) -> None:
    for sources in ([], iter(()), rows(0)):
        with pytest.raises(ss.SourceError, match="no"):
            ss.pack(sources, tmp_path / "out")


def test_an_error_of_the_samples_is_the_users_own(tmp_path: Path) -> None:
    def broken() -> Iterator[dict[str, Any]]:
        yield from rows(3)
        raise KeyError("lost")

    with pytest.raises(KeyError, match="lost") as caught:
        ss.pack(broken(), tmp_path / "out")
    if sys.version_info >= (3, 11):
        assert "asked for sample 3" in str(caught.value.__notes__)
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_limit_takes_no_more_than_it_needs(tmp_path: Path) -> None:
    samples = rows(100)
    assert ss.pack(samples, tmp_path / "out", limit=7).samples == 7
    assert next(samples)["__key__"] == "7"


def test_skip_and_limit(tmp_path: Path) -> None:
    samples = ({"txt": None if row % 2 else "a"} for row in range(100))
    manifest = ss.pack(samples, tmp_path / "out", limit=7, on_error="skip")
    assert manifest.samples == 7
    assert manifest.provenance["rejected"] == 6


REPEATED = [{"__key__": str(row % 7), "txt": "a"} for row in range(20)]


@pytest.mark.parametrize("options", [{}, {"shuffle": 3}, {"tokenizer": "bytes", "eos": 0}])
def test_what_is_rejected_at_the_end_counts(tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(ss.SourceError, match=r"13 of 20 .* max_rejects=0.5 .*The first: .*twice.*resume"):
        ss.pack(REPEATED, tmp_path / "out", on_error="skip", **options)
    assert not (tmp_path / "out" / "manifest.json").exists()
    assert (tmp_path / "out" / "rejects.jsonl").read_text().count("occurs twice") == 13
    manifest = ss.pack(REPEATED, tmp_path / "out", on_error="skip", max_rejects=0.65, resume=True, **options)
    assert (manifest.samples, manifest.provenance["rejected"]) == (7, 13)
    assert not ss.verify(str(tmp_path / "out"), deep=True).problems


def test_a_limit_counts_what_a_batch_of_texts_has_rejected(tmp_path: Path) -> None:
    more = iter([*REPEATED, *rows(100)])
    options: dict[str, Any] = {"limit": 20, "on_error": "skip", "max_rejects": 1}
    assert ss.pack(more, tmp_path / "out", tokenizer="bytes", eos=0, **options).samples == 20
    assert next(more)["__key__"] == "20"


def test_all_rejected(tmp_path: Path) -> None:
    with pytest.raises(ss.SourceError, match="all 2 samples were rejected"):
        ss.pack([{"txt": None}, {"txt": None}], tmp_path / "out", on_error="skip", max_rejects=1)
    assert len((tmp_path / "out" / "rejects.jsonl").read_text().splitlines()) == 2


@pytest.mark.parametrize("share", [-3, 1.5, "a"])
def test_a_bad_share_of_rejects_is_refused(tmp_path: Path, share: Any) -> None:
    with pytest.raises(ss.OptionError, match="max_rejects="):
        ss.pack(rows(3), tmp_path / "out", max_rejects=share)
    assert not (tmp_path / "out").exists()


def test_a_tokenizer(tmp_path: Path) -> None:
    manifest = ss.pack(rows(100), tmp_path / "out", tokenizer="bytes", eos=0, **SMALL)
    (tmp_path / "in.jsonl").write_text(
        "".join(json.dumps({"id": one["__key__"], "text": one["txt"]}) + "\n" for one in rows(100))
    )
    ss.pack(tmp_path / "in.jsonl", tmp_path / "files", tokenizer="bytes", eos=0, workers=1)
    assert manifest.kind == "tokens"
    assert content(tmp_path / "out") == content(tmp_path / "files")


def test_what_a_generator_gave_is_resumed_and_compared(tmp_path: Path) -> None:
    def broken(count: int) -> Iterator[dict[str, Any]]:
        yield from rows(count)
        raise KeyError("lost")

    with pytest.raises(KeyError):
        ss.pack(broken(150), tmp_path / "out", **SMALL)
    first = (tmp_path / "out" / "shard-000000.tar.zst").stat()
    changed = (one | {"txt": "x"} if one["__key__"] == "3" else one for one in rows(200))
    with pytest.raises(ss.OptionError, match="have changed"):
        ss.pack(changed, tmp_path / "out", resume=True, **SMALL)
    ss.pack(rows(200), tmp_path / "out", resume=True, **SMALL)
    assert (tmp_path / "out" / "shard-000000.tar.zst").stat().st_mtime_ns == first.st_mtime_ns
    ss.pack(rows(200), tmp_path / "whole", **SMALL)
    assert files(tmp_path / "out") == files(tmp_path / "whole")


def test_functions_give_the_same_bytes_for_any_number_of_workers(tmp_path: Path, tasks: Any) -> None:
    parts = [*(functools.partial(tasks.part, number) for number in range(5)), tasks.listed, tasks.Part(9)]
    for workers in (1, 2, 4):
        ss.pack(parts, tmp_path / str(workers), workers=workers, **SMALL)
        assert files(tmp_path / str(workers)) == files(tmp_path / "1")
    expected = [*(one for number in range(5) for one in tasks.part(number))]
    found = content(tmp_path / "1")
    assert [key for key, _ in found[:300]] == [one["__key__"] for one in expected]
    assert [key for key, _ in found[300:]] == [
        "000005-000000000000", "000005-000000000001", "9/0", "9/1", "9/2",
    ]  # fmt: skip


def test_functions_that_cannot_be_sent_run_here(tmp_path: Path, tasks: Any) -> None:
    parts = [lambda: [{"txt": "a"}], lambda: iter([{"txt": "b"}])]
    assert ss.pack(parts, tmp_path / "1", workers=1).samples == 2
    for bad in (parts, [tasks.listed, threading.Lock().locked]):
        with pytest.raises(ss.OptionError, match=r"task \d .* cannot be sent to a worker"):
            ss.pack(bad, tmp_path / "2", workers=2)


def test_a_worker_loads_numpy_only_if_the_function_does(tmp_path: Path, tasks: Any) -> None:
    ss.pack([tasks.numpy_loaded, tasks.numpy_loaded], tmp_path / "out", workers=2)
    assert {fields["txt"] for _, fields in content(tmp_path / "out")} == {b"False"}


@pytest.mark.parametrize("workers", [1, 2])
def test_a_function_that_fails_is_named(tmp_path: Path, tasks: Any, workers: int) -> None:
    for function, message in (
        (
            tasks.broken,
            r"task 1 \(broken\), behind sample 0: KeyError: 'lost' \(.*tasks_of_the_test.py:\d+, in",
        ),
        (tasks.nothing, r"task 1 \(nothing\): it returned a NoneType"),
        (tasks.bad, r"task 1 \(bad\), sample 1: field 'txt': None"),
    ):
        with pytest.raises(ss.SourceError, match=message):
            ss.pack([tasks.listed, function], tmp_path / "out", workers=workers)
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_bad_samples_of_functions_are_listed(tmp_path: Path, tasks: Any) -> None:
    manifest = ss.pack([tasks.bad, tasks.bad], tmp_path / "out", workers=1, on_error="skip", max_rejects=1)
    assert manifest.samples == 2
    lines = (tmp_path / "out" / "rejects.jsonl").read_text().splitlines()
    assert len(lines) == 4
    assert "task 0 (bad), sample 2" in lines[1]


def test_finished_functions_are_not_called_again(
    tmp_path: Path, tasks: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = [functools.partial(tasks.part, number) for number in range(3)]
    with pytest.raises(ss.SourceError, match="lost"):
        ss.pack([*parts, tasks.broken], tmp_path / "out", workers=1)
    first = (tmp_path / "out" / "shard-000001.tar.zst").stat()
    monkeypatch.setenv("FOUND", "yes")
    ss.pack([*parts, tasks.broken], tmp_path / "out", workers=2, resume=True)
    assert (tmp_path / "out" / "shard-000001.tar.zst").stat().st_mtime_ns == first.st_mtime_ns
    with pytest.raises(ss.SourceError, match="returned"):
        ss.pack([*parts, tasks.nothing], tmp_path / "other", workers=1)
    with pytest.raises(ss.OptionError, match="other sources or options"):
        ss.pack([*parts, tasks.listed], tmp_path / "other", workers=1, resume=True)


def test_functions_of_a_script_are_refused_with_advice(tmp_path: Path) -> None:
    script = textwrap.dedent(
        """
        import sys
        import shardstream as ss
        def part():
            yield {"txt": "a"}
        print(ss.pack([part, part], sys.argv[1] + "-1", workers=1).samples)
        try:
            ss.pack([part, part], sys.argv[1], workers=2)
        except ss.OptionError as error:
            print(error)
        """
    )
    (tmp_path / "script.py").write_text(script)
    done = subprocess.run(
        [sys.executable, str(tmp_path / "script.py"), str(tmp_path / "out")],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.splitlines()[0] == "2"
    assert "move the function to a module" in done.stdout
    assert done.stderr == ""


def test_a_bar_is_shown(tmp_path: Path, tasks: Any, capsys: pytest.CaptureFixture[str]) -> None:
    os.environ.pop("FORCE_COLOR", None)
    ss.pack(rows(10), tmp_path / "1", progress=True)
    ss.pack([tasks.listed], tmp_path / "2", progress=True)
    ss.verify(str(tmp_path / "2"), progress=True)
    ss.verify(str(tmp_path / "2"), progress=False)
    assert capsys.readouterr().out == ""
