"""Values of Python to the bytes of fields. The last extension of a field's name says what the bytes are.

| field                  | value                                 | bytes                                 |
| ---------------------- | ------------------------------------- | ------------------------------------- |
| any                    | bytes, bytearray, memoryview          | as they are                           |
| txt, and all not below | str                                   | UTF-8                                 |
| cls, and all not below | bool, int, float, a NumPy scalar      | as in JSON: 3, 2.5, true              |
| json, jsn              | dict, list, tuple, number, bool, None | JSON in UTF-8                         |
| json, jsn              | str                                   | UTF-8; it has to be JSON already      |
| msg, mp                | dict, list, tuple, number, bool, None | MessagePack                           |
| npy                    | an array, a number, a list of numbers | NumPy's .npy, without pickle          |
| npz                    | a dict of arrays                      | NumPy's .npz, without pickle          |
| jpg, png, webp, ...    | a PIL image                           | encoded; jpg and webp with quality 95 |
| jpg, png, webp, ...    | an array uint8 [h, w], [h, w, 3 or 4] | as a PIL image of these pixels        |
| png                    | an array uint16 [h, w]                | a PNG of 16 bits                      |
| any but json           | a dict {"bytes": ..., "path": ...}    | the bytes, as Hugging Face's datasets |
|                        |                                       | hold images and audio                 |

An array is anything with `__array__`, so also a tensor of torch in the memory of the CPU. All else is an
error.
"""

from __future__ import annotations

import functools
import io
import math
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from shardstream.errors import SourceError, require
from shardstream.format.kinds import IMAGES, PIXELS, extension

__all__ = ["IMAGE_QUALITY", "encoder", "value_bytes"]

IMAGE_QUALITY = 95
_JSON = ("json", "jsn")
_MSGPACK = ("msg", "mp")
_ARRAYS = ("npy", "npz")
_PICTURES = frozenset(IMAGES)
_NO_TEXT = frozenset({*_JSON, *_MSGPACK, *_ARRAYS, *_PICTURES})


def value_bytes(field: str, value: Any) -> bytes:
    """The bytes of a value as a field; see the table of this module.

    Args:
        field: The name of the field, such as "jpg" or "mask.png".
        value: The value.

    Raises:
        SourceError: There is no rule for this value in this field, or the value cannot be encoded.
        MissingExtraError: An image needs Pillow, which is not installed.
    """
    if type(value) is bytes:
        return value
    kind = _kind(field)
    if isinstance(value, str):
        return _text(field, kind, value)
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value)
    try:
        if kind in _JSON:
            return _json(value)
        if kind in _MSGPACK:
            return msgspec.msgpack.encode(value, enc_hook=_plain)
    except (TypeError, ValueError, OverflowError, RecursionError, msgspec.MsgspecError) as error:
        raise SourceError(f"field {field!r}: {_name(value)} cannot be stored as {kind} ({error})") from error
    if (
        isinstance(value, Mapping)
        and isinstance(value.get("bytes"), bytes)
        and set(value) <= {"bytes", "path"}
    ):
        return bytes(value["bytes"])
    if kind in _ARRAYS:
        return _arrays(field, kind, value)
    if _is_picture(value) or (kind in _PICTURES and hasattr(value, "__array__")):
        return _picture(field, kind, value)
    return _number(field, kind, value)


def encoder(field: str) -> Callable[[str, Any], bytes]:
    """The same as `value_bytes`, faster for what this field holds mostly."""
    kind = _kind(field)
    return _usual_text if kind not in _NO_TEXT else _usual_json if kind in _JSON else value_bytes


def _usual_text(field: str, value: Any) -> bytes:
    if type(value) is str and value.isascii():
        return value.encode()
    return value_bytes(field, value)


def _usual_json(field: str, value: Any) -> bytes:
    if type(value) is dict:
        try:
            data = _encode_json(value)
        except (TypeError, ValueError, OverflowError, RecursionError, msgspec.MsgspecError):
            return value_bytes(field, value)  # which says what is wrong
        if b"null" not in data:
            return data
    return value_bytes(field, value)


def _text(field: str, kind: str, value: str) -> bytes:
    try:
        data = value.encode()
    except UnicodeEncodeError as error:
        raise SourceError(f"field {field!r}: the text is not valid Unicode ({error})") from error
    if kind not in _NO_TEXT:
        return data
    if kind not in _JSON:
        raise SourceError(
            f"field {field!r}: a str is no {kind}; give bytes, or what the table of values lists"
        )
    try:
        msgspec.json.decode(data)
    except msgspec.DecodeError as error:
        raise SourceError(
            f"field {field!r}: the text is not JSON ({error}); give the value, or name the field txt"
        ) from error
    return data


def _number(field: str, kind: str, value: Any) -> bytes:
    """A number as text."""
    if not isinstance(value, (bool, int, float)):
        scalar = _scalar(value)
        if not isinstance(scalar, (bool, int, float)) or kind in _PICTURES:
            raise SourceError(f"field {field!r}: {_name(value)} has no form here; {_advice(value)}")
        value = scalar
    if kind in _PICTURES:
        raise SourceError(f"field {field!r}: {_name(value)} is no image")
    if isinstance(value, float) and not math.isfinite(value):
        raise SourceError(f"field {field!r}: {value} has no form in text; give a str, or name the field npy")
    return str(value).encode() if type(value) is int else _encode_json(value)


def _scalar(value: Any) -> Any:
    """The number that a NumPy scalar holds; anything else as it is."""
    if type(value).__module__ == "numpy" and getattr(value, "shape", None) == () and hasattr(value, "item"):
        return value.item()
    return value


def _plain(value: Any) -> Any:
    """What msgspec calls for a value that it does not know: numbers and lists for NumPy's."""
    if hasattr(value, "__array__"):
        return value.tolist() if hasattr(value, "tolist") else value.__array__().tolist()
    raise TypeError(f"{_name(value)} has no form in JSON")


def _json(value: Any) -> bytes:
    data = _encode_json(value)
    # msgspec writes null for a number that JSON does not have. The walk is only made if there is a null.
    if b"null" in data:
        _refuse_nan(value)
    return data


def _refuse_nan(value: Any) -> None:
    if isinstance(value, Mapping):
        value = list(value.values())
    elif hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        for item in value:
            _refuse_nan(item)
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"JSON has no {value}")


_kind = functools.lru_cache(maxsize=1024)(extension)  # a dataset has few fields and many samples
_encode_json = msgspec.json.Encoder(enc_hook=_plain).encode


def _arrays(field: str, kind: str, value: Any) -> bytes:
    import numpy as np

    out = io.BytesIO()
    try:
        if kind == "npy":
            np.save(out, _array(value), allow_pickle=False)
        elif isinstance(value, Mapping) and all(isinstance(name, str) for name in value):
            np.savez(out, **{name: _array(item) for name, item in value.items()})
        else:
            raise TypeError("an npz is a dict of arrays")
    except (TypeError, ValueError, RuntimeError) as error:
        raise SourceError(f"field {field!r}: {_name(value)} cannot be stored as {kind} ({error})") from error
    return out.getvalue()


def _array(value: Any) -> Any:
    import numpy as np

    found = np.asarray(value)
    if found.dtype.kind not in "biufcSU":
        raise ValueError(f"its dtype is {found.dtype}, which only pickle stores")
    return found


def _is_picture(value: Any) -> bool:
    """Whether this is a PIL image. Pillow is not imported for that: the owner of an image has done it."""
    return any(base.__module__ == "PIL.Image" and base.__name__ == "Image" for base in type(value).__mro__)


def _picture(field: str, kind: str, value: Any) -> bytes:
    if kind not in _PICTURES:
        raise SourceError(f"field {field!r}: an image needs a field such as jpg, png or webp")
    image_module: Any = require("PIL.Image", "images")
    out = io.BytesIO()
    options: dict[str, Any] = {"quality": IMAGE_QUALITY} if kind in ("jpg", "jpeg", "jfif", "webp") else {}
    try:
        image = value if _is_picture(value) else image_module.fromarray(_pixels(kind, value))
        image.save(out, format=PIXELS[kind], **options)
    except (OSError, ValueError, TypeError, KeyError, RuntimeError) as error:
        raise SourceError(f"field {field!r}: {_name(value)} cannot be written as {kind} ({error})") from error
    return out.getvalue()


def _pixels(kind: str, value: Any) -> Any:
    import numpy as np

    found = np.asarray(value)
    gray = found.ndim == 2 or (found.ndim == 3 and found.shape[2] in (3, 4))
    if not (found.dtype == np.uint8 and gray) and not (
        kind == "png" and found.dtype == np.uint16 and found.ndim == 2
    ):
        raise ValueError(
            f"{found.dtype} {list(found.shape)} is no image; it takes uint8 [h, w], [h, w, 3] or [h, w, 4]"
            + (", or uint16 [h, w]" if kind == "png" else "")
        )
    return np.ascontiguousarray(found)


def _name(value: Any) -> str:
    kind = type(value)
    name = (
        kind.__qualname__
        if kind.__module__ in ("builtins", "numpy")
        else f"{kind.__module__}.{kind.__qualname__}"
    )
    return "None" if value is None else f"a value of type {name}"


def _advice(value: Any) -> str:
    if value is None:
        return "leave the field out of this sample"
    if isinstance(value, (Mapping, list, tuple)):
        return "name the field json, or such as meta.json"
    if hasattr(value, "__array__"):
        return "name the field npy, or such as depth.npy"
    return "give bytes or a str"
