"""The values of a sample of LitData, by the formats of its columns."""

from __future__ import annotations

import struct
from typing import Any

from shardstream.errors import SourceError
from shardstream.packing.sources.leaves import DTYPES, npy, png_of_pil
from shardstream.packing.sources.litdata_nested import nested
from shardstream.packing.sources.rows import Kind

_ARRAYS = (
    "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16", "float32", "float64",
    "complex64", "complex128", "bool",
)  # fmt: skip
_TENSORS = {
    0: "float32", 1: "float32", 2: "float64", 3: "float64", 4: "complex64", 5: "complex64", 6: "complex128",
    7: "complex128", 8: "float16", 9: "float16", 11: "uint8", 12: "int8", 13: "int16", 14: "int16",
    15: "int32", 16: "int32", 17: "int64", 18: "int64", 19: "bool", 20: "uint16",
}  # fmt: skip
_MEDIA = ("bytes", "jpeg", "image", "pil")
_PLAIN = {"int": "<q", "float": "<d", "bool": "<?"}


def unknown(form: str) -> str:
    """Why a column of this format cannot be read; empty if it can."""
    base, _, more = form.partition(":")
    if base == "pickle":
        return "holds pickles, which may run any code; none is read"
    known = base in {"str", "text", "numpy", "tensor", "json", *_MEDIA, *_PLAIN} and (
        not more or base == "image"
    )
    if base.startswith("no_header_"):
        known = bare_dtype(form) is not None
    return "" if known else f"has the format {form!r}, which is not known"


def bare_dtype(form: str) -> str | None:
    """The dtype of arrays or tensors that are stored as their values alone; None of another format."""
    base, _, more = form.partition(":")
    return _dtype(base, int(more)) if base.startswith("no_header_") and more.isdecimal() else None


def kind(form: str) -> Kind:
    """What a column of this format can become."""
    base = form.partition(":")[0]
    if base in ("str", "text"):
        return "text"
    return "other" if base in _PLAIN or base in ("", "json") else "bytes"


def value(form: str, data: bytes) -> Any:
    """The value of a column: a text, a number, or the bytes of a file.

    Raises:
        SourceError: It is damaged, or no file can hold it.
    """
    base, _, more = form.partition(":")
    if not form:
        return None  # nobody reads it
    if base in ("str", "text"):
        return data.decode()
    if base in _PLAIN:
        return struct.unpack(_PLAIN[base], data)[0]
    if base == "json":
        return nested(data)
    if base == "pil":
        return png_of_pil(data)
    if base in ("numpy", "tensor"):
        order = "<" if base == "numpy" else ">"
        code, axes = struct.unpack_from(f"{order}2I", data)
        if axes > 64:
            raise SourceError(f"an array of {axes} axes")
        shape = struct.unpack_from(f"{order}{axes}I", data, 8)
        return _array(base, code, shape, data[8 + 4 * axes :])
    if base.startswith("no_header_"):
        dtype = _dtype(base, int(more)) or ""
        return npy(dtype, [len(data) // int(DTYPES[dtype][2:])], data)
    return data


def _array(base: str, code: int, shape: tuple[int, ...], values: bytes) -> bytes:
    dtype = _dtype(base, code)
    if dtype is None:
        raise SourceError(
            f"a {base} with the dtype of number {code}, which .npy does not have or is not known"
        )
    return npy(dtype, shape, values)


def _dtype(base: str, code: int) -> str | None:
    if base.endswith("tensor"):
        return _TENSORS.get(code)
    return _ARRAYS[code] if code < len(_ARRAYS) else None
