"""Values of Python as the bytes of fields: each rule of the table, and all that has no rule."""

from __future__ import annotations

import enum
import io
import json
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from shardstream.decode.registry import decode_field
from shardstream.errors import SourceError
from shardstream.format.kinds import IMAGES
from shardstream.packing.values import value_bytes

PIXELS = np.arange(5 * 7 * 3, dtype=np.uint8).reshape(5, 7, 3)


@pytest.mark.parametrize(
    ("field", "value", "data"),
    [
        ("bin", b"\0\1", b"\0\1"),
        ("json", b"not json", b"not json"),
        ("jpg", bytearray(b"x"), b"x"),
        ("npy", memoryview(b"xyz")[1:], b"yz"),
        ("txt", "ü\n", "ü\n".encode()),
        ("caption", "a", b"a"),
        ("cls", 3, b"3"),
        ("cls", np.int64(3), b"3"),
        ("cls", torch.tensor(3).numpy()[()], b"3"),
        ("score", 2.5, b"2.5"),
        ("score", np.float32(2.5), b"2.5"),
        ("flag", True, b"true"),
        ("flag", np.bool_(False), b"false"),
        ("count", 10**30, b"1" + b"0" * 30),
        ("json", {"a": [1, None, "ü", True]}, '{"a":[1,null,"ü",true]}'.encode()),
        ("meta.JSON", [1, (2, 3)], b"[1,[2,3]]"),
        ("json", {"a": np.arange(3), "b": np.float32(0.5)}, b'{"a":[0,1,2],"b":0.5}'),
        ("json", None, b"null"),
        ("json", 3, b"3"),
        ("json", '{"a": 1}', b'{"a": 1}'),
        ("msg", {"a": b"x"}, b"\x81\xa1a\xc4\x01x"),
        ("jpg", {"bytes": b"x", "path": None}, b"x"),
        ("wav", {"bytes": b"x"}, b"x"),
        ("json", {"bytes": "x"}, b'{"bytes":"x"}'),
    ],
)
def test_the_table(field: str, value: Any, data: bytes) -> None:
    found = value_bytes(field, value)
    assert found == data
    assert type(found) is bytes


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("txt", None, "leave the field out"),
        ("txt", {"a": 1}, "name the field json"),
        ("txt", [1], "name the field json"),
        ("txt", np.arange(3), "name the field npy"),
        ("txt", object(), "type object"),
        ("txt", "\ud800", "not valid Unicode"),
        ("score", float("nan"), "nan has no form"),
        ("score", float("inf"), "inf has no form"),
        ("json", "hello", "not JSON"),
        ("json", {"a": float("nan")}, "JSON has no nan"),
        ("json", {"a": [np.array([1.0, np.inf])]}, "JSON has no inf"),
        ("json", {"a": object()}, "no form in JSON"),
        ("json", {"a": "\ud800"}, "stored as json"),
        ("npy", "text", "a str is no npy"),
        ("npy", object(), "only pickle stores"),
        ("npy", np.array([{}]), "only pickle stores"),
        ("npy", [[1], [1, 2]], "stored as npy"),
        ("npz", np.arange(3), "dict of arrays"),
        ("npz", {"a": object()}, "only pickle stores"),
        ("png", "a.png", "a str is no png"),
        ("png", 3, "no image"),
        ("png", np.zeros((2, 2)), "float64"),
        ("png", np.zeros((2, 2, 5), np.uint8), r"uint8 \[2, 2, 5\]"),
        ("jpg", np.zeros((2, 2), np.uint16), "uint16"),
        ("jpg", Image.new("RGBA", (2, 2)), "RGBA"),
        ("jpg", {"path": "a.jpg"}, "name the field json"),
        ("txt", Image.new("RGB", (2, 2)), "a field such as jpg"),
        ("bin", {1, 2}, "type set"),
        ("cls", 1j, "type complex"),
    ],
)
def test_what_has_no_rule_is_an_error_that_names_the_field(field: str, value: Any, message: str) -> None:
    with pytest.raises(SourceError, match=message) as caught:
        value_bytes(field, value)
    assert repr(field) in str(caught.value)
    assert " at 0x" not in str(caught.value)


@pytest.mark.parametrize("dtype", ["u1", "<i8", "<f2", "?", "<c16", "<U3"])
def test_arrays_come_back_as_they_are(dtype: str) -> None:
    for array in (np.zeros((2, 0, 3), dtype), np.ones((3, 4), dtype), np.ones((), dtype)):
        found = decode_field("npy", value_bytes("npy", array))
        assert (found.dtype, found.shape) == (array.dtype, array.shape)
        assert (found == array).all()
        both = decode_field("npz", value_bytes("npz", {"a": array, "ü": [1, 2]}))
        assert (both["a"] == array).all()
        assert both["ü"].tolist() == [1, 2]
    assert value_bytes("npz", {"a": [1]}) == value_bytes("npz", {"a": [1]})
    assert decode_field("npy", value_bytes("npy", torch.arange(3))).tolist() == [0, 1, 2]


@pytest.mark.parametrize("field", ["png", "seg.PNG", "bmp", "tiff", "tif", "gif"])
def test_images_without_loss(field: str) -> None:
    for image in (Image.fromarray(PIXELS), PIXELS, torch.from_numpy(PIXELS)):
        if field == "gif":
            image = Image.fromarray(PIXELS[..., 0])
        with Image.open(io.BytesIO(value_bytes(field, image))) as found:
            wanted = PIXELS[..., 0] if field == "gif" else PIXELS
            assert (np.asarray(found.convert("L" if field == "gif" else "RGB")) == wanted).all()


@pytest.mark.parametrize(("field", "format"), [("jpg", "JPEG"), ("jpeg", "JPEG"), ("webp", "WEBP")])
def test_images_with_loss(field: str, format: str) -> None:
    smooth = np.asarray(Image.linear_gradient("L").resize((64, 64)).convert("RGB"))
    for image in (smooth, Image.fromarray(smooth)):
        with Image.open(io.BytesIO(value_bytes(field, image))) as found:
            assert found.format == format
            assert np.abs(np.asarray(found).astype(int) - smooth).max() < 8


def test_masks_keep_their_depth_and_their_palette() -> None:
    deep = np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000
    with Image.open(io.BytesIO(value_bytes("depth.png", deep))) as found:
        assert (np.asarray(found) == deep).all()
    mask = Image.fromarray(np.arange(4, dtype=np.uint8).reshape(2, 2), "L").convert("P")
    mask.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0, 0, 0, 255])
    with Image.open(io.BytesIO(value_bytes("mask.png", mask))) as found:
        assert found.mode == "P"
        assert (np.asarray(found) == np.asarray(mask)).all()


def test_every_image_that_can_be_packed_can_be_written() -> None:
    for name in IMAGES:
        Image.open(io.BytesIO(value_bytes(name, Image.new("L", (3, 3))))).load()


def test_numbers_that_are_subclasses_are_numbers() -> None:
    class Label(enum.IntEnum):
        CAT = 3

    assert value_bytes("cls", Label.CAT) == b"3"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False, allow_infinity=False) | st.text(st.characters(codec="utf-8")),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=8,
)  # fmt: skip


@settings(max_examples=100, deadline=None)
@given(JSON)
def test_any_json_comes_back(value: Any) -> None:
    if isinstance(value, str):
        return
    assert json.loads(value_bytes("json", value)) == value


def test_neither_numpy_nor_pillow_is_loaded_for_values_that_need_none() -> None:
    code = (
        "import sys\n"
        "from shardstream.packing.values import value_bytes\n"
        "value_bytes('json', {'a': [1.5, None]}), value_bytes('txt', 'a'), value_bytes('cls', 3)\n"
        "print([name for name in ('numpy', 'PIL', 'torch') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"
