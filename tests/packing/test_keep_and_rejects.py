"""Nothing is lost without a word: names in `keep`, rejects and their limit, and an end of documents."""

from __future__ import annotations

import functools
import gzip
import json
import lzma
import os
import random
import shutil
import socket
import warnings
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zstandard

import shardstream as ss
from shardstream.errors import OptionError, SourceError
from shardstream.packing.destination import Destination
from shardstream.packing.outcome import Outcome
from shardstream.packing.rejects import REJECTS
from shardstream.packing.result import Result
from shardstream.packing.sources.base import FileSpan
from shardstream.packing.sources.rows import Rows, kept
from shardstream.packing.sources.text import TextSource
from shardstream.read.reader import DatasetReader
from tests.corpora import is_clean, lines, sound, texts

META = [{"id": "a", "text": "1", "lang": "en", "meta": {"doi": "x", "deep": {"er": 1}}},
        {"id": "b", "text": "2", "meta": {"doi": None}}, {"id": "c", "text": "3"}]  # fmt: skip


def stored(dest: Path) -> list[Any]:
    samples = DatasetReader.open(str(dest)).iter_samples()
    return [msgspec.json.decode(fields["json"]) if "json" in fields else None for _, fields in samples]


@pytest.mark.parametrize("shuffle", [None, 1])
@pytest.mark.parametrize("workers", [1, 2])
def test_a_name_that_no_row_has_is_an_error_before_the_commit(
    tmp_path: Path, shuffle: int | None, workers: int
) -> None:
    files = [lines(tmp_path / f"{n}.jsonl", META) for n in "xy"]
    for keep in (["lang", "lamg"], ["meta.d"], ["text.a"], ["meta.doi.x"]):
        with pytest.raises(OptionError, match=f"no row has {keep[-1]!r}; nothing was committed"):
            ss.pack(files, tmp_path / "out", keep=keep, shuffle=shuffle, workers=workers)
        assert not (tmp_path / "out" / "manifest.json").exists()
    # A name counts if one row of one file has it.
    one = lines(tmp_path / "z.jsonl", [*META, {"text": "4", "rare": None}])
    ss.pack([*files, one], tmp_path / "out", keep=["rare"], shuffle=shuffle, workers=workers)
    assert sorted(map(str, stored(tmp_path / "out"))) == ["None"] * 9 + ["{'rare': None}"]


def test_nested_names_are_kept(tmp_path: Path) -> None:
    path = lines(tmp_path / "a.jsonl", META)
    ss.pack(path, tmp_path / "out", keep=["meta.doi", "meta.deep.er", "id"], workers=1)
    assert stored(tmp_path / "out") == [
        {"meta.doi": "x", "meta.deep.er": 1, "id": "a"}, {"meta.doi": None, "id": "b"}, {"id": "c"}
    ]  # fmt: skip


def test_the_text_and_the_key_may_be_named_and_one_name_may_be_a_str(tmp_path: Path) -> None:
    path = lines(tmp_path / "a.jsonl", [{"__key__": "k", "text": "t", "lang": "en"}])
    ss.pack(path, tmp_path / "out", keep=["text", "__key__"], workers=1)
    assert stored(tmp_path / "out") == [None]
    ss.pack(path, tmp_path / "one", keep="lang", workers=1)
    assert stored(tmp_path / "one") == [{"lang": "en"}]


def test_names_are_looked_for_in_tokens_and_in_what_an_unfinished_pack_has_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = lines(tmp_path / "a.jsonl", META)
    options: dict[str, Any] = {"tokenizer": "bytes", "eos": 256, "workers": 1, "shard_size": 64}
    for keep, resume in (("nope", False), ("nope", True)):
        with pytest.raises(OptionError, match="no row has 'nope'"):
            ss.pack(path, tmp_path / "out", keep=[keep], resume=resume, **options)
    with monkeypatch.context() as patch:
        patch.setattr(Destination, "commit", _killed)
        with pytest.raises(KeyboardInterrupt):
            ss.pack(path, tmp_path / "out", keep=["lang"], **options)
    assert ss.pack(path, tmp_path / "out", keep=["lang"], resume=True, **options).samples == 3


def _killed(*_: object) -> None:
    raise KeyboardInterrupt


def test_receipts_of_version_0_1_say_nothing_of_names() -> None:
    seen, unseen = Result(0, samples=2, unknown=["x"]), Result(1, samples=3)
    Outcome([seen, unseen], [], []).check_keep()
    with pytest.raises(OptionError, match="no row has 'x'"):
        Outcome([seen, Result(1)], [], []).check_keep()


def test_rows_of_tables_say_what_they_lack() -> None:
    rows = Rows(keep=("lang", "meta.doi"))
    span = FileSpan("t.csv", 0, 9, 9, "t")
    sample = rows.sample({"text": "x", "lang": "en"}, span, 0, "t.csv:1")
    assert isinstance(sample, ss.packing.sources.Sample)
    assert (sample.missing, sample.fields["json"]) == (("meta.doi",), b'{"lang":"en"}')
    assert kept({"a.b": 1, "a": {"b": 2}}, ["a.b", "a.b"]) == ({"a.b": 1}, ())


BAD = ["{", '{"id": 1}', "7", '{"text": "fine"}']


@pytest.mark.parametrize("append", [False, True])
def test_more_rejects_than_allowed_commit_nothing(tmp_path: Path, append: bool) -> None:
    dest = tmp_path / "out"
    if append:
        ss.pack(lines(tmp_path / "first.jsonl", META), dest, workers=1)
    before = (dest / "manifest.json").read_bytes() if append else None
    bad = tmp_path / "bad.jsonl"
    bad.write_text("\n".join(BAD) + "\n")
    with pytest.raises(SourceError) as caught:
        ss.pack(bad, dest, workers=1, on_error="skip", append=append)
    told = str(caught.value)
    for part in (
        "3 of 4 samples were rejected",
        f"{bad}:1: not a JSON object",
        f"{dest}/{REJECTS}",
        "--resume",
    ):
        assert part in told
    assert len((dest / REJECTS).read_text().splitlines()) == 3
    assert (dest / "manifest.json").exists() == append
    assert before is None or (dest / "manifest.json").read_bytes() == before
    made = ss.pack(bad, dest, workers=1, on_error="skip", append=append, resume=True, max_rejects=0.75)
    assert made.samples == 1 + 3 * append
    assert is_clean(dest)
    assert sound(dest)


@pytest.mark.parametrize("shuffle", [None, 1])
def test_where_all_is_rejected_the_reasons_are_told(tmp_path: Path, shuffle: int | None) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text("\n".join(BAD[:3]) + "\n")
    for most in (0.5, 1):
        with pytest.raises(SourceError, match=r"no samples were found.* 3 were rejected.*bad\.jsonl:1: not"):
            ss.pack(bad, tmp_path / "out", workers=1, on_error="skip", max_rejects=most, shuffle=shuffle)
        assert os.listdir(tmp_path / "out") == [REJECTS]


@pytest.mark.parametrize("share", [-0.1, 1.1, "half", None, float("nan")])
def test_what_is_no_share_is_refused(tmp_path: Path, share: Any) -> None:
    with pytest.raises(OptionError, match="max_rejects="):
        ss.pack(lines(tmp_path / "a.jsonl", META), tmp_path / "out", max_rejects=share)


def test_the_share_of_rejects_is_exact() -> None:
    for rejected, most, allowed in ((1, 0.5, True), (2, 0.5, False), (1, 0, False), (9, 1, True)):
        result = Result(0, rejects=[("f:1", "bad")], rejected=rejected)
        outcome = Outcome([result], [], [])
        outcome.samples = 1
        if allowed:
            outcome.check_rejects(most, "there")
        else:
            with pytest.raises(SourceError, match=f"{rejected} of {rejected + 1} samples"):
                outcome.check_rejects(most, "there")


def test_a_task_with_very_many_rejects_counts_them_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shardstream.packing.worker._MAX_REJECTS_LISTED", 2)
    bad = tmp_path / "bad.jsonl"
    bad.write_text("x\n" * 5 + '{"text": "a"}\n' * 9)
    assert ss.pack(bad, tmp_path / "out", workers=1, on_error="skip").provenance["rejected"] == 5
    rows = [json.loads(line) for line in (tmp_path / "out" / REJECTS).read_text().splitlines()]
    assert [row["where"] for row in rows] == [f"{bad}:1", f"{bad}:2", ""]
    assert rows[2]["reason"] == "3 more, which are not listed"


@pytest.mark.parametrize("workers", [1, 2])
def test_a_file_that_breaks_off_is_named_and_the_others_are_packed(tmp_path: Path, workers: int) -> None:
    good = [lines(tmp_path / f"{n}.jsonl", META) for n in "acd"]
    text = "".join(json.dumps({"id": n, "text": os.urandom(400).hex()}) + "\n" for n in range(5_000))
    broken = tmp_path / "b.jsonl.gz"
    broken.write_bytes(gzip.compress(text.encode())[:-1_000])
    inputs = [good[0], broken, *good[1:]]
    with pytest.raises(SourceError, match=r"b\.jsonl\.gz"):
        ss.pack(inputs, tmp_path / "out", workers=workers)
    manifest = ss.pack(inputs, tmp_path / "out", workers=workers, on_error="skip")
    assert manifest.provenance["rejected"] == 1
    (row,) = [json.loads(line) for line in (tmp_path / "out" / REJECTS).read_text().splitlines()]
    assert row["where"] == str(broken)
    found = dict(texts(tmp_path / "out"))
    assert {f"{n}/{key}" for n in "acd" for key in "abc"} <= set(found)
    rows = [json.loads(line) for line in text.splitlines()]
    packed = [row for row in rows if f"b/{row['id']}" in found]
    assert packed == rows[: len(packed)]  # whole samples from the begin, and none of another file is missing
    assert len(found) == len(packed) + 9 == manifest.samples


@pytest.mark.parametrize("kind", ["gz", "zst", "xz"])
@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
def test_no_sample_of_a_file_whose_checksum_is_wrong_is_packed(
    tmp_path: Path, suffix: str, kind: str
) -> None:
    """The damage lies in the first bytes, the checksum behind 3 MiB: until then texts look right."""
    write = {"gz": gzip.compress, "zst": zstandard.ZstdCompressor(write_checksum=True).compress}.get(
        kind, functools.partial(lzma.compress, preset=0)
    )
    rows = [{"id": n, "text": random.Random(n).randbytes(400).hex()} for n in range(3_000)]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    if suffix == "csv":
        text = "id,text\n" + "".join(f"{row['id']},{row['text']}\n" for row in rows)
    good = lines(tmp_path / "a.jsonl", META) if suffix == "jsonl" else tmp_path / "a.csv"
    if suffix == "csv":
        good.write_text("id,text\na,a\nb,b\nc,c\n")
    data = write(text.encode())
    bad = tmp_path / f"b.{suffix}.{kind}"
    for at in (300, 9_000):
        bad.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        with pytest.raises(SourceError, match=f"b.{suffix}.{kind}"):
            ss.pack([good, bad], tmp_path / "out", workers=1)
        manifest = ss.pack([good, bad], tmp_path / "out", workers=1, on_error="skip")
        assert sorted(key for key, _ in texts(tmp_path / "out")) == ["a/a", "a/b", "a/c"]
        (row,) = [json.loads(line) for line in (tmp_path / "out" / REJECTS).read_text().splitlines()]
        assert row["where"] == str(bad)
        assert not row["reason"].startswith(str(bad))
        assert manifest.provenance["rejected"] == 1
        shutil.rmtree(tmp_path / "out")


def test_a_file_that_is_gone_is_named_and_the_others_are_packed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "abcdef":
        (tmp_path / f"in-{name}.txt").write_text(name)
    plan = TextSource.plan

    def planned(self: TextSource, files: Any, target: int) -> Any:
        tasks = plan(self, files, target)
        (tmp_path / "in-a.txt").unlink(missing_ok=True)  # the first, which is looked at for the compression
        (tmp_path / "in-d.txt").unlink(missing_ok=True)
        return tasks

    monkeypatch.setattr(TextSource, "plan", planned)
    manifest = ss.pack(str(tmp_path / "in-*.txt"), tmp_path / "out", workers=1, on_error="skip")
    assert [text for _, text in texts(tmp_path / "out")] == ["b", "c", "e", "f"]
    assert manifest.provenance["rejected"] == 2


def test_a_file_that_cannot_be_planned_is_named_and_the_others_are_packed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [lines(tmp_path / f"{n}.jsonl", META) for n in "abc"]
    from shardstream.packing.sources.jsonl import JsonlSource

    plan = JsonlSource.plan

    def planned(self: JsonlSource, files: Any, target: int) -> Any:
        for file in files:
            if file.url.endswith("b.jsonl"):
                raise SourceError("b has no footer")
        return plan(self, files, target)

    monkeypatch.setattr(JsonlSource, "plan", planned)
    with pytest.raises(SourceError, match="no footer"):
        ss.pack(files, tmp_path / "out", workers=1)
    ss.pack(files, tmp_path / "out", workers=1, on_error="skip")
    assert [key for key, _ in texts(tmp_path / "out")] == ["a/a", "a/b", "a/c", "c/a", "c/b", "c/c"]
    (row,) = [json.loads(line) for line in (tmp_path / "out" / REJECTS).read_text().splitlines()]
    assert row == {"where": str(files[1]), "reason": "b has no footer"}
    with pytest.raises(SourceError, match="no footer"):  # nothing would be left
        ss.pack(files[1], tmp_path / "none", workers=1, on_error="skip")


def test_pipes_sockets_and_links_in_a_folder_are_named(tmp_path: Path) -> None:
    root = tmp_path / "in"
    root.mkdir()
    for name in "abcde":
        (root / f"{name}.txt").write_text(name)
    kinds = {
        "broken": "a broken link",
        "folder": "a link to a directory",
        "pipe": "a pipe",
        "socket": "a pipe",
    }
    (root / "broken").symlink_to("nowhere")
    (root / "folder").symlink_to(tmp_path)
    os.mkfifo(root / "pipe")
    with socket.socket(socket.AF_UNIX) as server:
        here = os.getcwd()
        os.chdir(root)  # the name of a socket must be short
        server.bind("socket")
        os.chdir(here)
        with pytest.raises(SourceError, match="--on-error skip"):
            ss.pack(root, tmp_path / "out", workers=1)
        ss.pack(root, tmp_path / "out", workers=1, on_error="skip", format="text")
    assert [text for _, text in texts(tmp_path / "out")] == list("abcde")
    rows = [json.loads(line) for line in (tmp_path / "out" / REJECTS).read_text().splitlines()]
    assert {Path(row["where"]).name for row in rows} == set(kinds)
    assert all(row["reason"].startswith(kinds[Path(row["where"]).name]) for row in rows)


def test_a_missing_eos_is_a_warning_that_none_answers(tmp_path: Path) -> None:
    path = lines(tmp_path / "a.jsonl", META)
    with pytest.warns(FutureWarning, match="no end of document.*the next version") as caught:
        glued = ss.pack(path, tmp_path / "warned", tokenizer="bytes", workers=1)
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        meant = ss.pack(path, tmp_path / "none", tokenizer="bytes", eos="none", workers=1)
        ended = ss.pack(path, tmp_path / "ended", tokenizer="bytes", eos=0, workers=1)
        ss.pack(path, tmp_path / "samples", workers=1)
    assert meant == glued
    assert ended.tokens == meant.tokens + 3
    with pytest.raises(OptionError, match="needs a tokenizer"):
        ss.pack(path, tmp_path / "x", eos="none")
    with pytest.raises(OptionError, match="eos='two'"):
        ss.pack(path, tmp_path / "x", tokenizer="bytes", eos="two")  # type: ignore[call-overload]
