"""What pack() promises: the same bytes for any number of workers, and clear answers to odd input."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

import shardstream as ss
from shardstream.errors import CommitError, OptionError, SourceError
from shardstream.packing import build_manifest
from shardstream.packing.build_manifest import tool
from shardstream.packing.destination import Destination, identity
from shardstream.packing.packer import Plan
from shardstream.packing.rejects import REJECTS
from shardstream.progress import Progress
from shardstream.read.reader import DatasetReader
from shardstream.storage.store import Store
from tests.corpora import digests, is_clean, lines, sound, texts

SMALL = {"frame_size": "2KiB", "shard_size": "8KiB"}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"compression": "none", "shuffle": 2},
        {"tokenizer": "bytes", "eos": 256},
        {"tokenizer": "bytes", "eos": 70_000, "shuffle": 1},
        {"limit": 37, "shuffle": 3},
    ],
    ids=lambda options: "-".join(options) or "plain",
)
def test_the_output_is_the_same_for_any_number_of_workers(corpus, tmp_path, options):
    seen = []
    for workers in (1, 2):  # a worker takes a while to start
        dest = tmp_path / f"out{workers}"
        manifest = ss.pack(corpus, dest, workers=workers, **SMALL, **options)
        assert len(manifest.shards) > 2
        seen.append(digests(dest))
        assert is_clean(dest)
    assert seen[0] == seen[1]
    assert sound(dest)


def test_every_document_comes_back(corpus, tmp_path):
    ss.pack(corpus, tmp_path / "out", workers=1, **SMALL)
    rows = [json.loads(line) for line in corpus.read_text("utf-8").splitlines()]
    assert texts(tmp_path / "out") == [(row["id"], row["text"]) for row in rows]
    ss.pack(corpus, tmp_path / "tokens", workers=1, tokenizer="bytes", eos=256, **SMALL)
    found = DatasetReader.open(str(tmp_path / "tokens")).iter_samples()
    for (key, fields), row in zip(found, rows, strict=True):
        tokens = np.frombuffer(fields["tokens"], "<u2")
        assert key == row["id"]
        assert bytes(tokens[:-1].astype(np.uint8)).decode() == row["text"]
        assert tokens[-1] == 256


def test_a_shuffle_is_a_permutation_that_the_seed_decides(corpus, tmp_path):
    def keys(name: str, **options: object) -> list[str]:
        ss.pack(corpus, tmp_path / name, workers=1, **SMALL, **options)
        return [key for key, _ in texts(tmp_path / name)]

    natural, one, again = keys("natural"), keys("one", shuffle=1), keys("again", shuffle=1)
    assert one == again
    assert one != natural
    assert keys("two", shuffle=2) != one
    assert sorted(one) == sorted(natural)


def test_limit_takes_the_first_samples_of_the_input(corpus, tmp_path):
    assert ss.pack(corpus, tmp_path / "out", workers=2, limit=37, **SMALL).samples == 37
    assert [key for key, _ in texts(tmp_path / "out")] == [f"doc-{number:03d}" for number in range(37)]
    ss.pack(corpus, tmp_path / "shuffled", workers=2, limit=37, shuffle=1, **SMALL)
    assert sorted(texts(tmp_path / "shuffled")) == texts(tmp_path / "out")
    assert ss.pack(corpus, tmp_path / "more", workers=1, limit=1_000).samples == 100


def test_append_leaves_the_old_shards_alone(corpus, tmp_path):
    dest = tmp_path / "out"
    first = ss.pack(corpus, dest, workers=1, **SMALL)
    before = digests(dest)
    more = lines(tmp_path / "more.jsonl", [{"id": f"new{n}", "text": "x", "lang": "en"} for n in range(5)])
    both = ss.pack(more, dest, workers=1, append=True, **SMALL)
    assert both.shards[: len(first.shards)] == first.shards
    after = digests(dest)
    assert all(after[name] == digest for name, digest in before.items() if name != "manifest.json")
    assert both.samples == 105
    assert [key for key, _ in texts(dest)][100:] == [f"new{n}" for n in range(5)]
    assert sound(dest)
    assert is_clean(dest)
    with pytest.raises(CommitError, match="already holds a dataset"):
        ss.pack(more, dest, workers=1)
    with pytest.raises(OptionError, match="holds samples"):
        ss.pack(more, dest, workers=1, append=True, tokenizer="bytes")
    with pytest.raises(OptionError, match="nothing to append to"):
        ss.pack(more, tmp_path / "none", workers=1, append=True)


def test_append_unites_the_fields(tmp_path):
    dest = tmp_path / "out"
    ss.pack(lines(tmp_path / "a.jsonl", [{"__key__": "a", "text": "x"}]), dest, workers=1)
    manifest = ss.pack(
        lines(tmp_path / "b.jsonl", [{"id": "b", "text": "y", "n": 1}]), dest, workers=1, append=True
    )
    assert [field.name for field in manifest.fields] == ["txt", "json"]
    rows = dict(DatasetReader.open(str(dest)).iter_samples())
    assert rows["a"] == {"txt": b"x"}
    assert rows["b"]["txt"] == b"y"
    assert json.loads(rows["b"]["json"])["n"] == 1


def test_append_refuses_another_tokenizer(corpus, tmp_path):
    dest = tmp_path / "out"
    ss.pack(corpus, dest, workers=1, tokenizer="bytes")
    ranks = tmp_path / "ranks.tiktoken"
    ranks.write_text("".join(f"{_base64(n)} {n}\n" for n in range(256)))
    before = digests(dest)
    with pytest.raises(OptionError, match="packed with the tokenizer 'bytes'"):
        ss.pack(corpus, dest, workers=1, tokenizer=str(ranks), append=True)
    with pytest.raises(OptionError, match="uint16, these would be uint32"):
        ss.pack(corpus, dest, workers=1, tokenizer="bytes", eos=70_000, append=True)
    with pytest.raises(OptionError, match="holds tokens"):
        ss.pack(corpus, dest, workers=1, append=True)
    assert digests(dest) == before


def _base64(number: int) -> str:
    import base64

    return base64.b64encode(bytes([number])).decode()


BAD = ['{"id": "a", "text": "fine"}', '{"id": "b"}', "not json", '{"id": "c", "text": 3}']


@pytest.mark.parametrize("workers", [1, 2])
def test_bad_samples_are_named_or_listed_with_file_and_line(tmp_path, workers):
    path = tmp_path / "bad.jsonl"
    path.write_text("\n".join([*BAD, '{"id": "a", "text": "again"}', '{"id": "d", "text": "ok"}']) + "\n")
    with pytest.raises(SourceError, match=r"bad\.jsonl:2: no key 'text'"):
        ss.pack(path, tmp_path / "raise", workers=workers)
    assert not (tmp_path / "raise" / "manifest.json").exists()
    dest = tmp_path / "skip"
    manifest = ss.pack(path, dest, workers=workers, on_error="skip", max_rejects=0.7)
    assert manifest.samples == 2
    assert manifest.provenance["rejected"] == 4
    rejects = [json.loads(line) for line in (dest / REJECTS).read_text().splitlines()]
    assert [row["where"].removeprefix(str(path)) for row in rejects[:3]] == [":2", ":3", ":4"]
    assert str(path) in rejects[3]["where"]
    assert "twice" in rejects[3]["reason"]
    assert is_clean(dest)


def test_the_same_key_twice_names_the_key(tmp_path):
    path = lines(tmp_path / "twice.jsonl", [{"id": "k", "text": "1"}, {"id": "k", "text": "2"}])
    for options in ({}, {"tokenizer": "bytes"}, {"shuffle": 1}):
        with pytest.raises(SourceError, match=r"twice\.jsonl.*'k' occurs twice"):
            ss.pack(path, tmp_path / "out", workers=1, **options)


def test_a_dry_run_writes_nothing(corpus, tmp_path):
    plan = ss.pack(corpus, tmp_path / "out", dry_run=True, **SMALL)
    assert isinstance(plan, Plan)
    assert (plan.format, plan.files, plan.input_bytes) == ("jsonl", 1, corpus.stat().st_size)
    assert plan.tasks == -(-corpus.stat().st_size // 8192)
    assert os.listdir(tmp_path) == ["corpus.jsonl"]


@pytest.mark.parametrize("options", [{}, {"shuffle": 1}, {"tokenizer": "bytes"}, {"compression": "none"}])
def test_a_sample_larger_than_a_frame_and_a_shard(tmp_path, options):
    rows = [{"id": f"d{n}", "text": "é" * size} for n, size in enumerate([10, 30_000, 3, 9_000, 0, 5])]
    dest = tmp_path / "out"
    assert ss.pack(lines(tmp_path / "big.jsonl", rows), dest, workers=1, **SMALL, **options).samples == 6
    assert sound(dest)
    if "tokenizer" not in options:
        assert sorted(texts(dest)) == [(row["id"], row["text"]) for row in rows]


def test_odd_inputs(tmp_path):
    empty = tmp_path / "empty.jsonl"
    empty.touch()
    blank = tmp_path / "blank.jsonl"
    blank.write_text("\n\n  \n")
    one = lines(tmp_path / "one.jsonl", [{"id": "ключ/数据.v1", "text": "x"}])
    for sources in ([empty], [blank], [empty, blank]):
        for options in ({}, {"shuffle": 1}, {"limit": 2}):
            dest = tmp_path / "none"
            with pytest.raises(SourceError, match="no samples were found"):
                ss.pack(sources, dest, workers=1, **options)
            assert os.listdir(dest) == []
    with pytest.raises(SourceError, match="nothing there to read"):
        ss.pack(tmp_path / "missing.jsonl", tmp_path / "none")
    for number, options in enumerate(({}, {"shuffle": 1}, {"limit": 1})):
        dest = tmp_path / f"out{number}"
        assert ss.pack([empty, one, blank], dest, workers=2, **options).samples == 1
        assert texts(dest) == [("one/ключ/数据%2Ev1", "x")]
        assert sound(dest)


def test_a_store_in_memory(corpus):
    url = "memory://pack-test/out"
    manifest = ss.pack(corpus, url, workers=2, **SMALL)
    assert manifest.samples == 100
    assert sound(url)
    assert len(texts(url)) == 100
    with pytest.raises(CommitError):
        ss.pack(corpus, url)


def test_a_script_without_a_main_guard_may_pack(corpus, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import sys, shardstream as ss\n"
        "print(ss.pack(sys.argv[1], sys.argv[2], workers=2, frame_size='2KiB', shard_size='8KiB').samples)\n"
    )
    command = [sys.executable, str(script), str(corpus), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=250, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "100\n", "")


def test_a_worker_loads_neither_numpy_nor_what_the_command_line_needs() -> None:
    code = "import sys, shardstream.packing.engines.local, shardstream.packing.worker; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    ).stdout.split()
    assert not {"numpy", "torch", "fsspec", "typer", "rich", "hashlib"} & set(loaded)


def test_the_manifest_names_this_version() -> None:
    assert tool() == f"shardstream {ss.__version__}"


@pytest.mark.parametrize("options", [{}, {"shuffle": 3}], ids=["plain", "shuffle"])
def test_a_pack_that_another_version_began_goes_on(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    whole = ss.pack(corpus, tmp_path / "whole", workers=1, **SMALL, **options)
    with monkeypatch.context() as patch:
        patch.setattr(Destination, "commit", killed)
        with pytest.raises(KeyboardInterrupt):
            ss.pack(corpus, tmp_path / "out", workers=1, **SMALL, **options)
    monkeypatch.setattr(build_manifest, "__version__", "0.2.0")
    seen: list[Progress] = []
    ss.pack(corpus, tmp_path / "out", workers=1, resume=True, progress=seen.append, **SMALL, **options)
    assert seen[0].done_tasks == seen[0].total_tasks > 1
    assert seen[0].found_bytes > 0
    found = ss.pack(corpus, tmp_path / "out", workers=1, resume=True, **SMALL, **options)
    assert found.provenance["tool"] == "shardstream 0.2.0"
    assert found.shards == whole.shards


def test_the_identity_of_a_pack_is_that_of_version_0_1() -> None:
    record = {"tool": "shardstream 0.1.0", "options": {"level": 3}, "sources": {"files": 1}}
    content = msgspec.json.encode([record, False], order="deterministic")
    assert identity(record, append=False) == hashlib.sha256(content).hexdigest()
    assert identity({**record, "tool": "shardstream 9.9"}, append=False) == identity(record, append=False)
    assert identity(record, append=True) != identity(record, append=False)


def test_a_pack_of_another_version_with_other_options_says_so(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build_manifest, "__version__", "0.2.0")
    for name, reservation, told in (
        (
            "old",
            {"plan": "x", "base": ""},
            r"\(it was begun by \w+ 0\.1\.0, this is \w+ 0\.2",
        ),
        (
            "new",
            {"plan": "x", "base": "", "tool": "shardstream 9.9"},
            r"\(it was begun by \w+ 9\.9, ",
        ),
        ("same", {"plan": "x", "base": "", "tool": tool()}, "sources or options; give the same"),
    ):
        Store.open(str(tmp_path / name)).write(".pack-claim.json", msgspec.json.encode(reservation))
        with pytest.raises(OptionError, match=told):
            ss.pack(corpus, tmp_path / name, workers=1, resume=True)
