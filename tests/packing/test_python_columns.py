"""`keep` for samples and functions of Python: columns as those of files."""

from __future__ import annotations

import functools
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import shardstream as ss
from shardstream.errors import OptionError, SourceError
from tests.corpora import digests
from tests.packing.test_columns import kept

SMALL: dict[str, Any] = {"shard_size": "2KiB", "frame_size": "512B"}
KEEP = ["lang", "n", "meta.json.deep.ok", "score"]


def samples(count: int = 90) -> list[dict[str, Any]]:
    return [
        {
            "__key__": f"k{n}",
            "txt": "text " * (n % 9),
            "lang": ["en", "de", None][n % 3],
            "json": {"n": n, "more": "x"},
            "meta.json": {"deep": {"ok": n % 2 == 0}},
            **({"score": np.float32(n / 4)} if n > 50 else {}),
        }
        for n in range(count)
    ]


def wanted(count: int = 90) -> dict[str, dict[str, Any]]:
    rows: dict[str, dict[str, Any]] = {}
    for n in range(count):
        row: dict[str, Any] = {"lang": ["en", "de", None][n % 3], "n": n, "meta.json.deep.ok": n % 2 == 0}
        rows[f"k{n}"] = {name: value for name, value in row.items() if value is not None}
        if n > 50:
            rows[f"k{n}"]["score"] = n / 4
    return rows


def part(first: int, end: int) -> list[dict[str, Any]]:
    return samples(end)[first:]


@pytest.mark.parametrize("shuffle", [None, 4])
def test_every_way_of_python_gives_the_columns(tmp_path: Path, shuffle: int | None) -> None:
    options = {"keep": KEEP, "shuffle": shuffle, **SMALL}
    with ss.Writer(tmp_path / "writer", **options) as writer:
        for sample in samples():
            writer.write(sample)
    ss.pack(samples(), tmp_path / "list", **options)
    ss.pack(iter(samples()), tmp_path / "iterable", workers=1, **options)
    calls = [functools.partial(part, 0, 40), functools.partial(part, 40, 90)]
    ss.pack(calls, tmp_path / "calls", workers=1, **options)
    for rank in range(2):
        with ss.Writer(tmp_path / "parts", part=(rank, 2), **options) as writer:
            for sample in samples()[rank::2]:
                writer.write(sample)
    ss.commit(tmp_path / "parts")
    for way in ("writer", "list", "iterable", "calls", "parts"):
        assert kept(tmp_path / way) == wanted(), way
        assert ss.verify(str(tmp_path / way), deep=True).sound
        ds = ss.StreamingDataset(tmp_path / way)
        assert len(ds.manifest.shards) >= 3
        chosen = {
            sample["__key__"] for sample in ds.subset(where=lambda c: (c["lang"] == "en") & (c["n"] < 30))
        }
        assert chosen == {f"k{n}" for n in range(0, 30, 3)}
        assert ds[0]["json"]["more"] == "x"  # the fields stay as they are
    assert digests(tmp_path / "writer") == digests(tmp_path / "list")


def test_the_same_columns_as_of_a_file(tmp_path: Path) -> None:
    rows = [{"id": str(n), "text": "x", "lang": "en", "n": n} for n in range(5)]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    of_file = ss.pack(tmp_path / "in.jsonl", tmp_path / "file", keep=["lang", "n"], workers=1)
    given = [{"__key__": str(r["id"]), "txt": "x", "json": {"lang": "en", "n": r["n"]}} for r in rows]
    of_python = ss.pack(given, tmp_path / "python", keep=["lang", "n"])
    assert of_python.columns == of_file.columns
    assert kept(tmp_path / "python") == kept(tmp_path / "file")
    for name in ("shard-000000.index", "shard-000000.tar.zst"):
        assert (tmp_path / "python" / name).read_bytes() == (tmp_path / "file" / name).read_bytes()


@pytest.mark.parametrize("text", [json.dumps, lambda value: json.dumps(value).encode()])
def test_the_field_json_may_be_text(tmp_path: Path, text: Any) -> None:
    keep = ["lang", "meta.n", "json.more", "ok"]
    rows = [{"lang": "en", "meta": {"n": n}, "more": n / 2} for n in range(3)]
    given = [{"__key__": str(n), "ok": n == 1, "txt": "x", "json": text(row)} for n, row in enumerate(rows)]
    other = {"__key__": "3", "txt": "x", "json": text([1])}
    ss.pack([*given, other], tmp_path / "out", keep=keep)
    assert kept(tmp_path / "out") == {
        **{str(n): {"lang": "en", "meta.n": n, "json.more": n / 2, "ok": n == 1} for n in range(3)},
        "3": {},
    }
    ss.pack(
        [{"txt": "x", "json": text(row)} for row in rows],
        tmp_path / "t",
        keep=["lang"],
        tokenizer="bytes",
        eos=0,
    )
    assert [one["lang"] for one in kept(tmp_path / "t").values()] == ["en"] * 3


def test_bytes_that_are_no_json_have_no_values(tmp_path: Path) -> None:
    bad = [b"{", b"\xff", b"[" * 100_000]
    with ss.Writer(tmp_path / "out", keep="lang") as writer:
        for data in [b'{"lang": "en"}', *bad]:
            writer.write({"json": data})
    assert list(kept(tmp_path / "out").values()) == [{"lang": "en"}, {}, {}, {}]


@pytest.mark.parametrize("tokenizer", [None, "bytes"])
@pytest.mark.parametrize("shuffle", [None, 4])
def test_documents_of_tokens_have_columns(tmp_path: Path, tokenizer: str | None, shuffle: int | None) -> None:
    options: dict[str, Any] = {"tokenizer": tokenizer, "eos": 0} if tokenizer else {"tokens": "uint16"}
    with ss.Writer(tmp_path / "out", keep=["lang", "meta.n"], shuffle=shuffle, **options, **SMALL) as writer:
        for n in range(200):
            text = {"txt": "a" * (n % 7)} if tokenizer else {"tokens": [97] * (n % 7) + [0]}
            writer.write({"__key__": f"k{n}", **text, "lang": ["en", "de"][n % 2], "meta": {"n": n}})
    assert kept(tmp_path / "out") == {f"k{n}": {"lang": ["en", "de"][n % 2], "meta.n": n} for n in range(200)}
    small = ss.TokenDataset(tmp_path / "out", seq_len=4).subset(where=lambda c: c["lang"] == "en")
    lengths = sum(n % 7 + 1 for n in range(0, 200, 2))
    assert len(small) == (lengths - 1) // 4
    with (
        pytest.raises(SourceError, match=r"there is a field 'n'; keep=\[...\]"),
        ss.Writer(tmp_path / "no", tokens=True) as writer,
    ):
        writer.write({"tokens": [1], "n": 3})


def test_a_name_that_no_sample_has_is_an_error_and_nothing_is_committed(tmp_path: Path) -> None:
    for name, make in (
        ("list", lambda dest: ss.pack(samples(9), dest, keep=["lang", "lnag"])),
        ("calls", lambda dest: ss.pack([functools.partial(part, 0, 2)], dest, keep="lnag", workers=1)),
    ):
        with pytest.raises(OptionError, match="no row has 'lnag'"):
            make(tmp_path / name)
        assert not (tmp_path / name / "manifest.json").exists()
    with pytest.raises(SourceError, match="keep='list': its value is a list"):
        ss.pack([{"txt": "a", "list": [1]}], tmp_path / "t", tokenizer="bytes", eos=0, keep=["list"])
    assert not (tmp_path / "t" / "manifest.json").exists()


@pytest.mark.parametrize(
    ("name", "sample"),
    [
        ("input_ids", {"input_ids": [1, 2]}),
        ("tokens", {"tokens": np.arange(3)}),
        ("meta", {"tokens": [1], "meta": {"n": 1}}),
        ("meta.tags", {"tokens": [1], "meta": {"tags": ["a"]}}),
    ],
)
def test_what_tokens_cannot_keep_is_an_error_of_the_first_sample(
    tmp_path: Path, name: str, sample: dict[str, Any]
) -> None:
    writer = ss.Writer(tmp_path / "out", tokens=True, keep=[name], on_error="skip")
    with pytest.raises(SourceError, match=f"keep='{name}': its value is a"):
        writer.write(sample)
    writer.abort()
    given = itertools.repeat({"txt": "a", "meta": sample.get("meta")})  # it has no end
    if "meta" in sample:
        with pytest.raises(SourceError, match=f"keep='{name}': its value is a"):
            ss.pack(given, tmp_path / "t", tokenizer="bytes", eos=0, keep=[name])


def test_parts_need_the_name_once(tmp_path: Path) -> None:
    for known in ("n", "m"):
        dest = tmp_path / known
        for rank, sample in enumerate([{"txt": "a", "n": 1}, {"txt": "b"}, None]):
            with ss.Writer(dest, part=(rank, 3), keep=[known]) as writer:
                if sample is not None:
                    writer.write(sample)
        if known == "n":
            assert ss.commit(dest).columns[0].missing == 1
        else:
            with pytest.raises(OptionError, match="no row has 'm'"):
                ss.commit(dest)
            assert not (dest / "manifest.json").exists()


def test_a_resume_sees_that_a_column_has_changed(tmp_path: Path) -> None:
    def write(changed: bool, resume: bool) -> None:
        with ss.Writer(tmp_path / "out", tokens=True, keep=["n"], resume=resume, **SMALL) as writer:
            for n in range(3000):
                writer.write({"tokens": [n], "n": -1 if changed and n == 7 else n})
            if not resume:
                raise KeyError

    with pytest.raises(KeyError):
        write(False, False)
    with pytest.raises(OptionError, match="samples have changed"):
        write(True, True)
    write(False, True)
    assert kept(tmp_path / "out")["000000000007"] == {"n": 7}


def test_a_kept_value_that_is_none_is_no_field(tmp_path: Path) -> None:
    ss.pack([{"txt": "a", "lang": "en"}, {"txt": "b", "lang": None}], tmp_path / "out", keep=["lang"])
    assert [sorted(sample) for sample in ss.StreamingDataset(tmp_path / "out")] == [
        ["__key__", "lang", "txt"],
        ["__key__", "txt"],
    ]
