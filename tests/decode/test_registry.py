"""Fields to values, and fields that are damaged."""

from __future__ import annotations

import io

import numpy as np
import pytest

from shardstream.decode import registry
from shardstream.decode.registry import decode_field, decoder
from shardstream.errors import OptionError, SourceError


def saved(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=array.dtype == object)
    return file.getvalue()


@pytest.mark.parametrize(
    ("field", "data", "value"),
    [
        ("txt", "grüß".encode(), "grüß"), ("caption.text", b"a", "a"), ("json", b'{"a": [1]}', {"a": [1]}),
        ("cls", b"7", 7), ("cls2", b"-1\n", -1), ("bin", b"\x00\xff", b"\x00\xff"), ("TXT", b"a", "a"),
    ],
)  # fmt: skip
def test_plain_values(field, data, value):
    assert decode_field(field, data) == value


def test_arrays_without_pickle():
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert np.array_equal(decode_field("emb.npy", saved(array)), array)
    with pytest.raises(SourceError, match=r"'k7'.*'npy'"):
        decode_field("npy", saved(np.array([{}], object)), key="k7")


@pytest.mark.parametrize("dtype", ["uint16", "uint32"])
def test_tokens(dtype):
    tokens = np.array([1, 2, 65535], "<u2" if dtype == "uint16" else "<u4")
    found = decode_field("tokens", tokens.tobytes(), dtype=dtype)
    assert found.dtype == dtype
    assert found.tolist() == tokens.tolist()
    found[0] = 5


@pytest.mark.parametrize("format", ["png", "jpeg", "webp"])
def test_images_are_rgb(format):
    image = pytest.importorskip("PIL.Image")
    file = io.BytesIO()
    image.new("L", (5, 4), 200).save(file, format)
    found = decode_field(format, file.getvalue())
    assert found.shape == (4, 5, 3)
    assert found.dtype == np.uint8
    assert abs(int(found[0, 0, 0]) - 200) < 4


@pytest.mark.parametrize("field", ["json", "cls", "npy", "jpg", "txt"])
def test_damage_names_key_and_field(field):
    with pytest.raises(SourceError, match=f"'dir/k'.*'x.{field}'"):
        decode_field(f"x.{field}", b"\xff\xfe{", key="dir/k")


def test_a_decoder_of_ones_own(monkeypatch):
    monkeypatch.setattr(registry, "_DECODERS", dict(registry._DECODERS))

    @decoder("mp3", "ogg")
    def sound(data: bytes) -> int:
        return len(data)

    assert decode_field("a.mp3", b"123") == decode_field("ogg", b"123") == 3
    with pytest.raises(OptionError):
        decoder()
