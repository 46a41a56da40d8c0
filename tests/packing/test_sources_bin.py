"""Files of token ids: dtypes, documents, what is refused, and what comes out of a pack."""

from __future__ import annotations

import shutil
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import shardstream as ss
from shardstream.errors import OptionError, ShardstreamError, SourceError
from shardstream.packing.sources import SourceOptions, make_source
from shardstream.packing.sources.base import prepared
from shardstream.storage.inputs import expand
from shardstream.testing.sources import read_source
from tests.data.foreign import make

MEGATRON = Path(make.__file__).parent / "megatron"


def documents(dest: Path) -> list[list[int]]:
    dataset = ss.StreamingDataset(str(dest), shuffle=False)
    return [sample["tokens"].tolist() for sample in dataset]


def names(dest: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in dest.iterdir() if path.suffix != ".json"}


def test_ids_of_any_width_come_out_in_blocks_as_they_went_in(tmp_path: Path) -> None:
    ids = np.random.default_rng(0).integers(0, 50_000, 10_000)
    for dtype in ("uint16", "uint32"):
        ids.astype(dtype).tofile(tmp_path / f"{dtype}.bin")
        dest = tmp_path / f"out-{dtype}"
        manifest = ss.pack(tmp_path / f"{dtype}.bin", dest, dtype=dtype, eos=17)
        assert (manifest.kind, manifest.tokens, manifest.fields[0].dtype) == ("tokens", 10_000, dtype)
        assert manifest.provenance["tokens"] == {"dtype": dtype, "eos": 17}
        found = documents(dest)
        assert [one for document in found for one in document] == ids.tolist()
        assert all(document[-1] == 17 and 17 not in document[:-1] for document in found[:-1])
        blocks = np.concatenate([block["tokens"] for block in ss.TokenDataset(str(dest), seq_len=8)])
        assert len(blocks) >= 9_000


def test_any_number_of_workers_and_a_shuffle_give_the_same_bytes(tmp_path: Path) -> None:
    ids = np.random.default_rng(1).integers(0, 1000, 50_000).astype(np.uint16)
    ids.tofile(tmp_path / "x.bin")
    sizes = {"frame_size": "4KiB", "shard_size": "16KiB"}
    for more in ({}, {"shuffle": 3}):
        found = []
        for workers in (1, 2):
            dest = tmp_path / f"out-{workers}-{len(more)}"
            ss.pack(tmp_path / "x.bin", dest, eos=7, workers=workers, **sizes, **more)
            found.append(names(dest))
            assert sorted(one for document in documents(dest) for one in document) == sorted(ids.tolist())
        assert found[0] == found[1]


def test_megatron_is_cut_by_its_index_and_never_by_an_eos(tmp_path: Path) -> None:
    ss.pack(MEGATRON, tmp_path / "out", eos=make.documents()[3][1])
    assert documents(tmp_path / "out") == make.documents()


def test_ids_that_do_not_fit_the_dtype_are_rejected_by_document(tmp_path: Path) -> None:
    with pytest.raises(
        SourceError, match=r"ids.bin, document \d+: ids from \d+ to [78]\d{4} do not fit uint16"
    ):
        ss.pack(MEGATRON, tmp_path / "out", dtype="uint16")


def test_the_wrong_width_is_seen(tmp_path: Path) -> None:
    ids = np.random.default_rng(0).integers(0, 100_000, 1000)
    ids.astype(np.uint32).tofile(tmp_path / "wide.bin")
    (ids % 50_000).astype(np.uint16).tofile(tmp_path / "narrow.bin")
    with pytest.raises(OptionError, match=r"wide.bin: every second.*--dtype uint32"):
        ss.pack(tmp_path / "wide.bin", tmp_path / "out")
    with pytest.raises(OptionError, match=r"narrow.bin: as uint32 .*--dtype uint16"):
        ss.pack(tmp_path / "narrow.bin", tmp_path / "out", dtype="uint32")
    (tmp_path / "odd.bin").write_bytes(b"abc")
    with pytest.raises(SourceError, match=r"odd.bin: 3 bytes are no whole uint16 ids"):
        ss.pack(tmp_path / "odd.bin", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("data", "said"), [(b"PK\x03\x04", "zip archive"), (b"\x80\x02\x8a\n", "pickle"), (b"GGUF", "GGUF")]
)
def test_what_is_named_bin_and_is_something_else_is_named(tmp_path: Path, data: bytes, said: str) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(data * 100)
    with pytest.raises(SourceError, match=f"pytorch_model.bin: this is .*{said}"):
        ss.pack(tmp_path / "pytorch_model.bin", tmp_path / "out")


def test_options_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    np.arange(100, dtype=np.uint16).tofile(tmp_path / "x.bin")
    with pytest.raises(OptionError, match="the input holds tokens"):
        ss.pack(tmp_path / "x.bin", tmp_path / "out", tokenizer="bytes")
    with pytest.raises(OptionError, match="dtype='int8' must be"):
        ss.pack(tmp_path / "x.bin", tmp_path / "out", dtype="int8")  # type: ignore[arg-type]
    with pytest.raises(OptionError, match=r"eos=70000 does not fit uint16; give --dtype uint32"):
        ss.pack(tmp_path / "x.bin", tmp_path / "out", dtype="uint16", eos=70_000)
    (tmp_path / "a.txt").write_text("a")
    with pytest.raises(OptionError, match="dtype is for --format"):
        ss.pack(tmp_path / "a.txt", tmp_path / "out", dtype="uint16")


def test_an_append_needs_the_same_dtype_and_no_tokenizer_before(tmp_path: Path) -> None:
    np.arange(100, dtype=np.uint16).tofile(tmp_path / "x.bin")
    ss.pack(tmp_path / "x.bin", tmp_path / "out")
    ss.pack(tmp_path / "x.bin", tmp_path / "out", append=True)
    assert documents(tmp_path / "out") == [[*range(100)]] * 2
    with pytest.raises(OptionError, match="are uint16, these would be uint32"):
        ss.pack(MEGATRON, tmp_path / "out", append=True)
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n')
    ss.pack(tmp_path / "a.jsonl", tmp_path / "texts", tokenizer="bytes")
    with pytest.raises(OptionError, match="packed with the tokenizer 'bytes'"):
        ss.pack(tmp_path / "x.bin", tmp_path / "texts", append=True)


def test_an_end_that_never_comes_is_an_error_and_costs_no_memory(tmp_path: Path) -> None:
    with (tmp_path / "x.bin").open("wb") as file:
        for _ in range(160):
            file.write(np.ones(1 << 19, np.uint16).tobytes())
    source = make_source("bin", SourceOptions(eos=5))
    with pytest.raises(SourceError, match=r"x.bin, byte 0: no token 5 in 64 MiB; is --eos right"):
        read_source(source, expand([str(tmp_path / "x.bin")]), 1 << 40)
    tracemalloc.start()
    for task in make_source("bin").plan(expand([str(tmp_path / "x.bin")]), 1 << 40):
        for _ in make_source("bin").read(task):
            pass
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 << 20


def test_an_index_without_its_file_is_refused(tmp_path: Path) -> None:
    shutil.copy(MEGATRON / "ids.idx", tmp_path)
    with pytest.raises(SourceError, match=r"ids.idx: there is no .bin file beside it"):
        ss.pack(tmp_path / "ids.idx", tmp_path / "out")


@pytest.mark.parametrize("name", ["ids.bin", "ids.idx"])
def test_a_cut_file_of_megatron_is_refused_wherever_it_is_cut(tmp_path: Path, name: str) -> None:
    shutil.copytree(MEGATRON, tmp_path / "in")
    whole = (MEGATRON / name).read_bytes()
    for size in range(0, len(whole), 7):
        (tmp_path / "in" / name).write_bytes(whole[:size])
        with pytest.raises(SourceError):
            read_source(*_megatron(tmp_path / "in"), 100)


@pytest.mark.parametrize("wrong", [-1, -(1 << 40), -(1 << 63)])
def test_an_index_of_megatron_with_a_negative_number_is_refused(tmp_path: Path, wrong: int) -> None:
    shutil.copytree(MEGATRON, tmp_path / "in")
    whole = (MEGATRON / "ids.idx").read_bytes()
    entries = int.from_bytes(whole[26:34], "little")  # the numbers of documents, at the end of the file
    for number in range(1, entries + 1):
        data = bytearray(whole)
        at = len(whole) - 8 * number
        data[at : at + 8] = wrong.to_bytes(8, "little", signed=True)
        (tmp_path / "in" / "ids.idx").write_bytes(data)
        with pytest.raises(SourceError, match="do not fit together"):
            read_source(*_megatron(tmp_path / "in"), 100)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.integers(0, 293), byte=st.integers(0, 255))
def test_a_changed_index_is_an_error_or_all_documents(tmp_path: Path, at: int, byte: int) -> None:
    shutil.copytree(MEGATRON, tmp_path / "in", dirs_exist_ok=True)
    data = bytearray((MEGATRON / "ids.idx").read_bytes())
    data[at] = byte
    (tmp_path / "in" / "ids.idx").write_bytes(data)
    try:
        source, files = _megatron(tmp_path / "in")
        found = read_source(source, files, 100)
    except ShardstreamError:
        return
    ids = (MEGATRON / "ids.bin").read_bytes()
    if source.token_dtype == "uint32":  # type: ignore[attr-defined]
        assert b"".join(sample.fields["tokens"] for sample in found) == ids  # type: ignore[union-attr]


def _megatron(folder: Path):  # type: ignore[no-untyped-def]
    files = expand([str(folder)])
    return prepared(make_source("bin"), files), files
