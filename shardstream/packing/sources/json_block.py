"""Lines of JSON as a block of samples: what can be done for all lines in one call is."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import msgspec

from shardstream.errors import SourceError
from shardstream.format.members import longest_key
from shardstream.format.names import check_key, escape_key
from shardstream.packing.sources.base import FileSpan, Reject, Sample
from shardstream.packing.sources.list_block import ListBlock
from shardstream.packing.sources.rows import HASHED, KEYS

__all__ = ["Line", "json_block"]

Line = tuple[int, bytes | memoryview]
_MOST = 4 << 20  # bytes of a block
_LONGEST = longest_key([b".json"])
# Texts of which `escape_key` changes nothing but the dots behind the last slash.
_PLAIN_PATHS = re.compile(r"(?:(?:[A-Za-z0-9_~+=-][A-Za-z0-9_.~+=-]*/)*[A-Za-z0-9_.~+=-]+\n)+\Z")
_LAST_DOTS = re.compile(r"\.(?=[^/\n]*\n)")
_decode = msgspec.json.Decoder(dict[str, Any]).decode
_encode_lines = msgspec.json.Encoder().encode_lines


def json_block(
    lines: Sequence[Line],
    span: FileSpan,
    text_key: str,
    wanted: str | None,
    samples: Callable[[], Iterator[Sample | Reject]],
) -> ListBlock | None:
    """The samples of some lines; None if a line may be a reject, or has to be looked at alone.

    Args:
        lines: The place of each line in its file, and its bytes.
        span: The part of the file that the lines are in.
        text_key: The key of the text. All other values of the row are kept.
        wanted: What names a sample; see `SourceOptions`.
        samples: Gives the samples of these lines one by one.
    """
    if text_key in KEYS or sum([len(line) for _, line in lines]) > _MOST:
        return None
    try:
        rows = [_decode(line) for _, line in lines]
        shapes = set(map(tuple, rows))
        if not all(text_key in shape for shape in shapes):
            return None
        keys = _keys(rows, shapes, lines, span, wanted)
        if keys is None:
            return None
        fields = {"txt": [row.pop(text_key).encode() for row in rows]}
        rest = {len(shape) > 1 + (wanted is None and KEYS[0] in shape) for shape in shapes}
        if len(rest) > 1:
            return None
        if rest == {True}:
            fields["json"] = _encode_lines(rows).split(b"\n")[:-1]
    except (msgspec.DecodeError, AttributeError, UnicodeError, RecursionError, SourceError):
        return None
    return ListBlock(keys, fields, samples)


def _keys(
    rows: Sequence[dict[str, Any]],
    shapes: set[tuple[str, ...]],
    lines: Sequence[Line],
    span: FileSpan,
    wanted: str | None,
) -> list[str] | None:
    """The keys of the rows, as `key_of` makes them; None if one of them needs another way.

    `__key__` is taken out of the rows if it is the key.

    Raises:
        SourceError: One is no key.
    """
    if wanted is None:
        # Of all rows the same name has to be the first one that is there.
        names = {next((name for name in KEYS if name in shape), None) for shape in shapes}
    else:
        names = {None if wanted == "none" else wanted}
    if len(names) > 1:
        return None
    (name,) = names
    if name is None:
        keys = [f"{span.key_base}-{place:012d}" for place, _ in lines]
        check_key(keys[0])  # the others differ in the number alone
    else:
        if wanted is not None and not all(name in shape for shape in shapes):
            return None
        take = dict.pop if wanted is None and name == KEYS[0] else dict.__getitem__
        ids = [take(row, name) for row in rows]
        kinds = set(map(type, ids))
        if kinds == {int}:
            keys = list(map(str, ids))
        elif kinds == {str} and all(ids):
            keys = _escaped(ids)
        else:
            return None
        if wanted is None and span.prefix:
            keys = [span.prefix + key for key in keys]
            check_key(keys[0])
    text = "".join(keys)
    if not text.isascii() or HASHED in text or max(map(len, keys)) > _LONGEST:
        return None
    return keys


def _escaped(ids: list[str]) -> list[str]:
    text = "\n".join(ids) + "\n"
    if _PLAIN_PATHS.match(text) and text.count("\n") == len(ids):
        return _LAST_DOTS.sub("%2E", text).split("\n")[:-1] if "." in text else ids
    keys = list(map(escape_key, ids))
    for key in keys:
        check_key(key)
    return keys
