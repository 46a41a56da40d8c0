"""Shards as columns are the same shards; what is wrong with them is named."""

from __future__ import annotations

import contextlib
import pickle
from typing import Any

import msgspec
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from shardstream.errors import CorruptionError
from shardstream.format.columns import ColumnInfo
from shardstream.format.manifest import FieldInfo, Manifest, ShardInfo
from shardstream.format.manifest_files import Stub, join, load, load_body, load_stub, make_body, make_stub
from shardstream.format.shard_info import are_plain
from shardstream.format.shards import Shards, shard_checksums, shard_values

DIGITS = st.text("0123456789abcdef", min_size=32, max_size=32)
SIZES = st.integers(0, (1 << 62) - 1)


@st.composite
def infos(draw: Any) -> ShardInfo:
    number, samples = draw(st.integers(0, 10**7)), draw(st.integers(0, 1000))
    codec = draw(st.sampled_from(["zstd", "none", "gzip"]))
    name = draw(st.sampled_from([f"shard-{number:06d}.tar.zst", f"shard-{number:06d}.tar", f"a/é {number}"]))
    columns = (ColumnInfo("n", "int64", samples // 2),) if draw(st.booleans()) else ()
    size = draw(st.integers(1, 10**9))
    return ShardInfo(
        url=name, codec=codec, fields=draw(st.sampled_from([("jpg", "cls"), ("txt",), ()])),
        bytes=draw(SIZES), raw_bytes=draw(SIZES), samples=samples, tokens=draw(st.integers(0, 9)),
        frames=samples, checksum=draw(DIGITS),
        index_url=draw(st.sampled_from([f"shard-{number:06d}.index", f"other-{number}.index"])),
        index_bytes=size, index_checksum=draw(DIGITS), grouped=draw(st.booleans()), columns=columns,
        index_head=size if columns else 0,
        index_head_checksum="f" + draw(DIGITS)[1:] if columns else "", sparse=draw(st.booleans()),
    )  # fmt: skip


def manifest_of(shards: list[ShardInfo], **provenance: Any) -> Manifest:
    fields = tuple(FieldInfo(name, name) for name in ("jpg", "cls", "txt"))
    return Manifest.build("samples", fields, tuple(shards), provenance)


@settings(max_examples=60)
@given(st.lists(infos(), max_size=6), st.dictionaries(st.text(max_size=5), st.integers(), max_size=3))
def test_a_body_holds_the_manifest_whose_identity_does_not_change(
    shards: list[ShardInfo], provenance: dict[str, int]
) -> None:
    manifest = manifest_of(shards, **provenance)
    body = make_body(manifest)
    stub = load_stub(make_stub(manifest, body).to_bytes())
    found = load_body(stub, body, "body")
    assert isinstance(found.shards, Shards)
    assert found == manifest
    assert manifest == found
    assert found.shards[:] == tuple(found.shards) == tuple(shards)
    assert [found.shards[at - len(shards)] for at in range(len(shards))] == shards
    assert list(shard_values(found.shards, "frames")) == shard_values(shards, "frames")
    # As one file it is the same bytes again, and so is its body.
    assert found.to_bytes() == manifest.to_bytes()
    assert make_body(found) == body
    assert load(join(found)) == pickle.loads(pickle.dumps(found)) == load(join(manifest))
    with pytest.raises(IndexError):
        found.shards[len(shards)]


@settings(max_examples=60)
@given(st.data())
def test_no_flipped_bit_of_a_stub_or_body_is_taken_for_another_manifest(data: Any) -> None:
    shards = [data.draw(infos()) for _ in range(3)]
    manifest = manifest_of(shards)
    whole = bytearray(join(load(_joined(manifest))))
    at = data.draw(st.integers(0, 8 * len(whole) - 1))
    whole[at // 8] ^= 1 << at % 8
    with contextlib.suppress(CorruptionError):
        assert load(bytes(whole)) == manifest  # white space of the stub may differ


def _joined(manifest: Manifest) -> bytes:
    body = make_body(manifest)
    return make_stub(manifest, body).to_bytes() + body


def _changed(**changes: Any) -> tuple[Stub, bytes]:
    """A body whose JSON is changed, and a stub that fits it."""
    manifest = manifest_of(
        [ShardInfo("a.tar", "none", ("txt",), 5, 5, 2, 0, 1, "0" * 32, "a.index", 9, "1" * 32)]
    )
    content = msgspec.json.decode(zstandard.decompress(make_body(manifest)))
    content["shards"] |= changes
    body = zstandard.compress(msgspec.json.encode(content))
    return make_stub(manifest, body), body


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"count": 2}, "1 names for 2 shards"),
        ({"bytes": [1, 2]}, "bytes: 2 numbers for 1 shards"),
        ({"bytes": [1 << 62]}, "size out of range"),
        ({"bytes": [1 << 64]}, "size out of range"),
        ({"samples": 0}, "more frames than samples"),
        ({"samples": [3]}, "totals"),
        ({"checksum": "X" * 32}, "32 hex digits"),
        ({"url": ["../a.tar"]}, "leaves the dataset's root"),
        ({"url": []}, "0 names for 1 shards"),
        ({"index_url": ["/a.index"]}, "leaves the dataset's root"),
        ({"layout": 1}, "a layout that is not listed"),
        ({"layouts": [{"codec": "none", "fields": ["odd"]}]}, "columns that are not fields"),
        ({"layouts": [{"codec": "lz4", "fields": ["txt"]}]}, "not the body of a manifest"),
        ({"frames": [2]}, "fingerprint"),
    ],
)
def test_what_is_wrong_with_a_body_is_named(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(CorruptionError, match=f"the-body: .*{said}"):
        load_body(*_changed(**changes), "the-body", fingerprint=said == "fingerprint")


def test_a_stub_names_only_the_body_of_its_fingerprint() -> None:
    stub, body = _changed()
    elsewhere = msgspec.structs.replace(stub, body=msgspec.structs.replace(stub.body, url="../x.json.zst"))
    with pytest.raises(CorruptionError, match=r"manifest.json: it names '\.\./x"):
        load_stub(elsewhere.to_bytes())
    with pytest.raises(CorruptionError, match="format version 3"):
        load_stub(stub.to_bytes().replace(b'"version": 2', b'"version": 3'))
    with pytest.raises(CorruptionError, match="the-body: it is not the manifest that"):
        load_body(msgspec.structs.replace(stub, samples=3), body, "the-body")


@pytest.mark.parametrize("count", [10**12, 10**30])
def test_a_count_that_no_column_bears_out_takes_no_memory(count: int) -> None:
    made = manifest_of([])
    columns = msgspec.json.decode(Shards.of(made.shards).to_json())
    with pytest.raises((CorruptionError, msgspec.DecodeError)):
        Shards.from_json(msgspec.Raw(msgspec.json.encode({**columns, "count": count})))


@settings(max_examples=20)
@given(st.lists(infos(), max_size=4))
def test_checksums_of_columns_are_those_of_the_shards(shards: list[ShardInfo]) -> None:
    for name in ("checksum", "index_checksum"):
        assert shard_checksums(Shards.of(shards), name) == shard_checksums(shards, name)


@pytest.mark.parametrize("member", ["checksum", "index_checksum", "index_head_checksum"])
@pytest.mark.parametrize("wrong", ["", "a" * 31, "a" * 31 + "g", "a" * 33])
@pytest.mark.parametrize("every", [False, True])
def test_the_first_shard_with_a_wrong_checksum_is_named(member: str, wrong: str, every: bool) -> None:
    good = ShardInfo(
        "shard-000000.tar", "none", (), 1, 1, 1, 0, 1, "a" * 32, "shard-000000.index", 1, "b" * 32,
        columns=(ColumnInfo("n", "int64"),), index_head=1, index_head_checksum="c" * 32,
    )  # fmt: skip
    changed = {"url": "shard-000001.tar", "index_url": "shard-000001.index", member: wrong}
    bad = msgspec.structs.replace(good, **changed)
    shards = (bad, bad) if every else (good, bad, good)
    if member == "index_head_checksum" and not wrong:  # there may be none: `shards_problem` looks at these
        assert Shards.of(shards)[:] == shards
        return
    with pytest.raises(CorruptionError, match=r"shard-000001\.tar.* not 32 hex digits"):
        Shards.of(shards)


@pytest.mark.parametrize("early", ["index_checksum", "index_head_checksum"])
def test_the_first_of_shards_with_different_wrong_checksums_is_named(early: str) -> None:
    good = ShardInfo(
        "shard-000000.tar", "none", (), 1, 1, 1, 0, 1, "a" * 32, "shard-000000.index", 1, "b" * 32,
        columns=(ColumnInfo("n", "int64"),), index_head=1, index_head_checksum="c" * 32,
    )  # fmt: skip
    first = msgspec.structs.replace(good, **{"url": "shard-000001.tar", early: "x"})
    second = msgspec.structs.replace(good, url="shard-000002.tar", checksum="x")
    with pytest.raises(CorruptionError, match=r"shard-000001\.tar.* not 32 hex digits"):
        Shards.of((good, first, second))


@pytest.mark.parametrize("odd", ["", "a/b", "../a", ".a", "-a", "a b", "a\nb", "\n", "s3:a", "é"])
def test_a_name_that_needs_a_second_look_is_found_among_plain_ones(odd: str) -> None:
    plain = [f"shard-{number:06d}.tar.zst" for number in range(3)]
    assert are_plain(plain)
    assert are_plain([])
    for names in ([odd, *plain], [*plain, odd], [*plain, odd, *plain]):
        assert not are_plain(names)
