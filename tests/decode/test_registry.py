"""Fields to values, and fields that are damaged."""

from __future__ import annotations

import io
import sys

import numpy as np
import pytest

from shardstream.decode import registry
from shardstream.decode.registry import decode_field, decoder
from shardstream.errors import MissingExtraError, OptionError, SourceError


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


def test_arrays_by_name_and_msgpack():
    file = io.BytesIO()
    np.savez(file, a=np.arange(3), b=np.ones(2))
    found = decode_field("npz", file.getvalue())
    assert found["a"].tolist() == [0, 1, 2]
    assert decode_field("mp", b"\x81\xa1a\x01") == {"a": 1}
    bad = io.BytesIO()
    np.savez(bad, a=np.array([{}], object))
    with pytest.raises(SourceError, match="npz"):
        decode_field("npz", bad.getvalue())


def test_pickles_stay_bytes():
    for field in ("pyd", "pkl", "pickle", "pth"):
        assert decode_field(field, b"cos\nsystem\n") == b"cos\nsystem\n"


@pytest.mark.parametrize("format", ["wav", "flac"])
def test_audio_is_float_and_its_rate(format):
    soundfile = pytest.importorskip("soundfile")
    wave = np.stack((np.sin(np.arange(800) / 20), np.zeros(800))).astype(np.float32) / 2
    file = io.BytesIO()
    soundfile.write(file, wave.T, 8000, format=format)
    found, rate = decode_field(format, file.getvalue())
    assert (found.shape, found.dtype, rate) == ((2, 800), np.float32, 8000)
    assert np.abs(found - wave).max() < 1e-4
    with pytest.raises(SourceError, match=format):
        decode_field(format, file.getvalue()[:20])


@pytest.mark.parametrize(("field", "extra"), [("jpg", "images"), ("wav", "audio")])
def test_what_is_not_installed_names_its_extra(monkeypatch, field, extra):
    for module in ("simplejpeg", "PIL.Image", "soundfile"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=rf"shardstream\[{extra}\]"):
        decode_field(field, b"\xff\xd8\xff")
