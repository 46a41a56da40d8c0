"""Headers: what safetensors writes is read; everything else is an error that names file and tensor."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

from shardstream.errors import CorruptionError
from shardstream.storage.store import Store
from shardstream.weights.header import BITS, parse_header, read_header
from tests.weights.models import of_all_kinds


def file_of(header: Any, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def entry(dtype: Any = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def read(folder: Path, content: bytes) -> Any:
    (folder / "a.safetensors").write_bytes(content)
    return read_header(Store.open(str(folder)), "a.safetensors", "a.safetensors")


def test_it_agrees_with_safetensors(tmp_path: Path) -> None:
    save_file(of_all_kinds(10), tmp_path / "a.safetensors", metadata={"format": "pt", "x": "ы"})
    header = read_header(Store.open(str(tmp_path)), "a.safetensors", "a")
    with safe_open(tmp_path / "a.safetensors", "pt") as theirs:
        assert header.metadata == theirs.metadata()
        assert sorted(tensor.name for tensor in header.tensors) == sorted(theirs.keys())
        for tensor in header.tensors:
            part = theirs.get_slice(tensor.name)
            assert (tensor.dtype, list(tensor.shape)) == (part.get_dtype(), part.get_shape())
    assert {tensor.dtype for tensor in header.tensors} <= BITS.keys()


def test_a_long_header_and_one_that_is_not_padded(tmp_path: Path) -> None:
    many = {f"{'n' * 60}{number}": entry(offsets=(8 * number, 8 * number + 8)) for number in range(2000)}
    header = read(tmp_path, file_of(many, bytes(8 * 2000)))
    assert len(header.tensors) == 2000
    assert read(tmp_path, file_of({"a": entry("U8", (3,), (0, 3)), "b": entry(offsets=(3, 11))}, bytes(11)))
    assert read(tmp_path, file_of({})).tensors == ()


HOSTILE: dict[str, tuple[bytes, str]] = {
    "too short": (b"\0\0\0", "3 bytes are no safetensors file"),
    "empty": (b"", "0 bytes are no safetensors file"),
    "a page of HTML": (b"<html><body>not found</body></html>", "no safetensors file"),
    "longer than the file": ((1 << 40).to_bytes(8, "little") + b"{}", "a header of 1099511627776 bytes"),
    "longer than allowed": ((1 << 63).to_bytes(8, "little") + b"{}", "no safetensors file"),
    "no JSON": (file_of(b"{nonsense}"), "no JSON"),
    "no object": (file_of([1]), "no JSON"),
    "a space first": (file_of(b" {}"), "no JSON"),
    "no text": (file_of(b"{\"\xff\": 1}"), "no JSON"),
    "deep": (file_of(b"{\"a\":" + b"[" * 200_000), "no JSON"),
    "a huge number": (file_of(b"{\"a\":" + b"9" * 10_000 + b"}"), "a.safetensors"),
    "twice": (file_of(b"{\"x\": 1, \"x\": 2}"), "'x' is there twice"),
    "no entry": (file_of({"w": 3}), "tensor 'w'"),
    "another key": (file_of({"w": entry() | {"pickle": 1}}, bytes(8)), "tensor 'w'"),
    "an unknown dtype": (file_of({"w": entry("F128")}, bytes(8)), "tensor 'w': the dtype 'F128'"),
    "a dtype that is no text": (file_of({"w": entry(["F32"])}, bytes(8)), "tensor 'w': the dtype"),
    "a negative size": (file_of({"w": entry(shape=(-2,))}, bytes(8)), "tensor 'w': its shape"),
    "a size that is true": (file_of({"w": entry(shape=(True, 2))}, bytes(8)), "tensor 'w': its shape"),
    "a size with a fraction": (file_of({"w": entry(shape=(2.0,))}, bytes(8)), "tensor 'w': its shape"),
    "an overflow": (file_of({"w": entry(shape=(1 << 62, 8))}, bytes(8)), "tensor 'w': 8 bytes for"),
    "the end first": (file_of({"w": entry(offsets=(8, 0))}, bytes(8)), "tensor 'w': its data_offsets"),
    "three offsets": (file_of({"w": entry(offsets=(0, 4, 8))}, bytes(8)), "tensor 'w': its data_offsets"),
    "another size": (file_of({"w": entry(shape=(3,))}, bytes(8)), "tensor 'w': 8 bytes for a F32 of shape"),
    "half a byte": (file_of({"w": entry("F4", (3,), (0, 2))}, bytes(2)), "tensor 'w': .* misaligned"),
    "a gap": (file_of({"v": entry(), "w": entry(offsets=(12, 20))}, bytes(20)), "'w' begins after a gap"),
    "a gap first": (file_of({"w": entry(offsets=(4, 12))}, bytes(12)), "tensor 'w' begins after a gap"),
    "an overlap": (file_of({"v": entry(), "w": entry(offsets=(4, 12))}, bytes(12)), "tensor 'w' overlaps"),
    "cut": (file_of({"w": entry()}, bytes(7)), "the last one is 'w'; the file has"),
    "more": (file_of({"w": entry()}, bytes(9)), "the file has"),
    "other metadata": (file_of({"__metadata__": {"a": 1}}), "__metadata__"),
}  # fmt: skip


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_headers(tmp_path: Path, kind: str) -> None:
    content, message = HOSTILE[kind]
    with pytest.raises(CorruptionError, match=message) as caught:
        read(tmp_path, content)
    assert "a.safetensors" in str(caught.value)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=10,
)
ENTRIES = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(sorted(BITS)) | JSON,
        "shape": st.lists(st.integers(-1, 9), max_size=3) | JSON,
        "data_offsets": st.lists(st.integers(-1, 99), min_size=2, max_size=2) | JSON,
    }
)


@given(st.dictionaries(st.text(max_size=5), ENTRIES | JSON, max_size=4), st.integers(0, 200))
def test_any_header_is_read_or_refused(header: dict[str, Any], more: int) -> None:
    text = json.dumps(header).encode()
    try:
        found = parse_header(text, 8 + len(text) + more, "f", "f")
    except CorruptionError:
        return
    assert sum(tensor.size for tensor in found.tensors) == more
    assert len(found.tensors) == len(header.keys() - {"__metadata__"})


@given(st.binary(max_size=60))
def test_any_bytes_are_read_or_refused(text: bytes) -> None:
    with contextlib.suppress(CorruptionError):
        assert parse_header(text, 8 + len(text), "f", "f").tensors == ()
