"""Token datasets: the ids are the tokenizer's, each document's own, in the smaller dtype that fits."""

from __future__ import annotations

import base64
import json
import pickle
import sys
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import models, pre_tokenizers, processors

import shardstream as ss
from shardstream.errors import MissingExtraError, OptionError, SourceError
from shardstream.packing.tokenize import load_tokenizer
from shardstream.read.reader import DatasetReader

TEXTS = ["hello world", "", "héllo ✓ 数据", "world " * 300, "<|endoftext|> [CLS]", "\0\n\t"]


def documents(path: Path, texts: Sequence[str] = TEXTS) -> Path:
    path.write_text("".join(json.dumps({"id": f"d{n}", "text": t}) + "\n" for n, t in enumerate(texts)))
    return path


def pack(source: Path, dest: Path, **options: Any) -> tuple[str, list[list[int]]]:
    """(dtype, ids of each document)."""
    manifest = ss.pack(source, dest, workers=1, **options)
    assert ss.verify(str(dest), deep=True).sound
    assert manifest.kind == "tokens"
    dtype = np.dtype(manifest.fields[0].dtype).newbyteorder("<")
    found = list(DatasetReader.open(str(dest)).iter_samples())
    assert [key for key, _ in found] == [f"d{number}" for number in range(len(found))]
    ids = [np.frombuffer(fields["tokens"], dtype).tolist() for _, fields in found]
    assert manifest.tokens == sum(map(len, ids))
    return dtype.name, ids


def word_level(path: Path, words: Mapping[str, int], unknown: str | None = "[UNK]") -> Path:
    engine = tokenizers.Tokenizer(models.WordLevel(dict(words), unk_token=unknown))
    engine.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    engine.save(str(path))
    return path


@pytest.fixture
def bpe(tmp_path: Path) -> Path:
    """A byte-level BPE that asks for special tokens, truncation and padding."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: number for number, letter in enumerate(alphabet)}
    merges = [("h", "e"), ("l", "l"), ("he", "ll")]
    for left, right in merges:
        vocabulary[left + right] = len(vocabulary)
    engine = tokenizers.Tokenizer(models.BPE(vocabulary, merges))
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    engine.add_special_tokens(["<s>"])
    engine.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", engine.token_to_id("<s>"))]
    )
    engine.enable_truncation(4)
    engine.enable_padding(length=16)
    engine.save(str(tmp_path / "bpe.json"))
    return tmp_path / "bpe.json"


def ranks(path: Path, merges: Sequence[bytes] = ()) -> Path:
    tokens = [*(bytes([number]) for number in range(256)), *merges]
    path.write_text("".join(f"{base64.b64encode(t).decode()} {n}\n" for n, t in enumerate(tokens)))
    return path


@pytest.mark.parametrize("options", [{}, {"frame_size": 64, "shard_size": 256}])
def test_bytes_are_the_bytes_of_the_text(tmp_path, options):
    dtype, ids = pack(documents(tmp_path / "d.jsonl"), tmp_path / "out", tokenizer="bytes", **options)
    assert (dtype, ids) == ("uint16", [list(text.encode()) for text in TEXTS])


@pytest.mark.parametrize(
    ("eos", "dtype"),
    [(0, "uint16"), (256, "uint16"), (65_535, "uint16"), (65_536, "uint32"), (2**32 - 1, "uint32")],
)
def test_eos_ends_every_document_and_widens_the_dtype_where_it_must(tmp_path, eos, dtype):
    wanted = [[*text.encode(), eos] for text in TEXTS]
    source = documents(tmp_path / "d.jsonl")
    assert pack(source, tmp_path / "out", tokenizer="bytes", eos=eos) == (dtype, wanted)


@pytest.mark.parametrize("eos", [-1, 2**32, 2**70])
def test_an_eos_that_is_no_token_id_is_refused(tmp_path, eos):
    with pytest.raises(OptionError, match=str(eos)):
        ss.pack(documents(tmp_path / "d.jsonl"), tmp_path / "out", tokenizer="bytes", eos=eos)
    assert not (tmp_path / "out").exists()


def test_a_tokenizers_file_gives_its_ids_without_special_tokens_truncation_or_padding(tmp_path, bpe):
    engine = tokenizers.Tokenizer.from_file(str(bpe))
    engine.no_truncation()
    engine.no_padding()
    wanted = [engine.encode(text, add_special_tokens=False).ids for text in TEXTS]
    assert max(map(len, wanted)) > 16
    source = documents(tmp_path / "d.jsonl")
    assert pack(source, tmp_path / "out", tokenizer=str(bpe)) == ("uint16", wanted)
    record = json.loads((tmp_path / "out" / "manifest.json").read_text())["provenance"]["tokenizer"]
    assert (record["name"], record["vocab_size"], record["eos"]) == ("bpe.json", 260, None)


@pytest.mark.parametrize(("largest", "dtype"), [(65_535, "uint16"), (65_536, "uint32")])
def test_the_dtype_holds_the_largest_id_of_the_vocabulary_whether_it_occurs_or_not(tmp_path, largest, dtype):
    path = word_level(tmp_path / "words.json", {"[UNK]": 0, "hello": 7, "last": largest})
    source = documents(tmp_path / "d.jsonl", ["hello hello", "hello there"])
    assert pack(source, tmp_path / "out", tokenizer=str(path)) == (dtype, [[7, 7], [7, 0]])
    source = documents(tmp_path / "d.jsonl", ["last"])
    assert pack(source, tmp_path / "last", tokenizer=str(path)) == (dtype, [[largest]])


def test_a_ranks_file_gives_merged_tokens_and_no_special_ones(tmp_path):
    path = ranks(tmp_path / "tiny.tiktoken", [b"he", b"ll", b"hell", b" w"])
    dtype, ids = pack(documents(tmp_path / "d.jsonl"), tmp_path / "out", tokenizer=str(path))
    assert dtype == "uint16"
    assert ids[0] == [258, ord("o"), 259, *b"orld"]
    tokens = [*(bytes([number]) for number in range(256)), b"he", b"ll", b"hell", b" w"]
    assert [b"".join(tokens[number] for number in document).decode() for document in ids] == TEXTS


@given(
    st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=30), min_size=1, max_size=12),
    st.integers(1, 64), st.none() | st.integers(0, 300),
)  # fmt: skip
@settings(max_examples=15)
def test_every_document_keeps_its_own_tokens_for_any_frame_size(texts, frame_size, eos):
    with tempfile.TemporaryDirectory() as folder:
        source = documents(Path(folder, "d.jsonl"), texts)
        sizes = {"frame_size": frame_size, "shard_size": 4 * frame_size}
        end = [] if eos is None else [eos]
        wanted = [[*text.encode(), *end] for text in texts]
        assert pack(source, Path(folder, "out"), tokenizer="bytes", eos=eos, **sizes)[1] == wanted


def test_the_documents_of_a_frame_are_one_array_in_one_member(tmp_path):
    source = documents(tmp_path / "d.jsonl")
    pack(source, tmp_path / "out", tokenizer="bytes", eos=256, compression="none", frame_size="1MiB")
    with tarfile.open(tmp_path / "out" / "shard-000000.tar") as shard:
        (member,) = shard.getmembers()
        file = shard.extractfile(member)
        assert file is not None
        tokens = np.frombuffer(file.read(), "<u2").tolist()
    assert tokens == [token for text in TEXTS for token in (*text.encode(), 256)]


def test_text_that_cannot_be_tokenized_is_rejected_and_named(tmp_path):
    for name, data in (("a.jpg", b"x"), ("b.txt", b"fine"), ("c.txt", b"\xff")):
        with tarfile.open(tmp_path / "in.tar", "a") as archive:
            (tmp_path / name).write_bytes(data)
            archive.add(tmp_path / name, name)
    with pytest.raises(SourceError, match=r"in\.tar:a: no text"):
        ss.pack(tmp_path / "in.tar", tmp_path / "out", workers=1, tokenizer="bytes")
    options = {"tokenizer": "bytes", "on_error": "skip", "max_rejects": 0.7}
    ss.pack(tmp_path / "in.tar", tmp_path / "skip", workers=1, **options)
    rows = [json.loads(line) for line in (tmp_path / "skip" / "rejects.jsonl").read_text().splitlines()]
    assert [row["where"].rpartition(":")[2] for row in rows] == ["a", "c"]
    assert [key for key, _ in DatasetReader.open(str(tmp_path / "skip")).iter_samples()] == ["b"]


@pytest.mark.parametrize("name", ["nonesuch", "", "Bytes", "gpt-99"])
def test_an_unknown_tokenizer_is_refused_with_the_choices(tmp_path, name):
    with pytest.raises(OptionError, match=r"give bytes, a tokenizers \.json file, .* or one of"):
        ss.pack(documents(tmp_path / "d.jsonl"), tmp_path / "out", tokenizer=name)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("module", "file"), [("tokenizers", "x.json"), ("tiktoken", "x.tiktoken"), ("tiktoken", "name")]
)
def test_a_missing_package_is_named_with_its_extra(tmp_path, monkeypatch, module, file):
    monkeypatch.setitem(sys.modules, module, None)  # as if it were not installed
    (tmp_path / file).touch()
    with pytest.raises(MissingExtraError, match=r"pip install 'shardstream\[tokenize\]'"):
        ss.pack(documents(tmp_path / "d.jsonl"), tmp_path / "out", tokenizer=str(tmp_path / file))


@pytest.mark.parametrize("name", ["x.json", "x.tiktoken"])
@pytest.mark.parametrize(
    "content", [None, b"", b"{}", b"\xff\xfe", b"YQ== 0 1\n", b"YQ== x\n", b"YQ==\n", b"!!! 1\n"]
)
def test_a_file_that_is_no_tokenizer_is_refused(tmp_path, name, content):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(OptionError, match=name):
        load_tokenizer(str(tmp_path / name))


def test_ranks_that_could_not_encode_every_text_are_refused(tmp_path):
    good = ranks(tmp_path / "good.tiktoken").read_text().splitlines()
    for lines in (good[:100] + good[101:], good[97:123], [*good, "YWI= 7"], [*good, "YWI= -1"]):
        (tmp_path / "bad.tiktoken").write_text("\n".join(lines))
        with pytest.raises(OptionError, match=r"bad\.tiktoken is not a tiktoken ranks file"):
            load_tokenizer(str(tmp_path / "bad.tiktoken"))


def test_a_text_outside_a_vocabulary_without_unknown_is_a_source_error(tmp_path):
    path = word_level(tmp_path / "words.json", {"hello": 0}, unknown=None)
    with pytest.raises(SourceError, match=r"words\.json cannot encode a text"):
        ss.pack(documents(tmp_path / "d.jsonl"), tmp_path / "out", workers=1, tokenizer=str(path))


def test_a_tokenizer_that_changes_between_processes_is_refused(tmp_path, bpe):
    for path in (bpe, ranks(tmp_path / "tiny.tiktoken")):
        tokenizer = load_tokenizer(str(path))
        message = pickle.dumps(tokenizer)
        (ids,), (same,) = tokenizer.encode_batch(["hello"]), pickle.loads(message).encode_batch(["hello"])
        assert ids.tolist() == same.tolist()
        path.write_text(path.read_text() + "\n")
        with pytest.raises(OptionError, match="has changed since packing began"):
            pickle.loads(message)


def test_the_ids_are_stored_little_endian(tmp_path):
    source = documents(tmp_path / "d.jsonl", ["a"])
    pack(source, tmp_path / "out", tokenizer="bytes", eos=0x01020304)
    (shard,) = (tmp_path / "out").glob("*.tar.zst")
    raw = zstandard.ZstdDecompressor().stream_reader(shard.read_bytes()).read(1024)
    assert raw[512:520] == b"a\0\0\0\x04\x03\x02\x01"


def test_one_text_that_the_tokenizer_refuses_is_named_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = type(load_tokenizer("bytes"))
    encode = tokenizer.encode_batch

    def refusing(self: Any, texts: Any) -> Any:
        if any("bad" in text for text in texts):
            raise SourceError("the tokenizer bytes cannot encode a text")
        return encode(self, texts)

    monkeypatch.setattr(tokenizer, "encode_batch", refusing)
    path = tmp_path / "d.jsonl"
    path.write_text("".join(f'{{"id": {n}, "text": "{"bad" if n == 7 else n}"}}\n' for n in range(70)))
    with pytest.raises(SourceError, match=r"d\.jsonl, byte 161: the tokenizer bytes cannot encode a text"):
        ss.pack(path, tmp_path / "out", workers=1, tokenizer="bytes", eos=256)
    manifest = ss.pack(path, tmp_path / "out", workers=1, tokenizer="bytes", eos=256, on_error="skip")
    assert (manifest.samples, manifest.provenance["rejected"]) == (69, 1)
