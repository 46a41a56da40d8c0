"""Rows of tables, and objects: what becomes the key and the fields of a sample."""

from __future__ import annotations

import functools
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import xxhash

from shardstream.errors import SourceError
from shardstream.format.names import MAX_NAME, escape_key, shorten
from shardstream.packing.columns import columns_of
from shardstream.packing.sources.base import (
    NO_COUNTS,
    TOKENS,
    FileSpan,
    Reject,
    Sample,
    SourceOptions,
    TokenDtype,
)
from shardstream.packing.sources.chat import ChatTemplate
from shardstream.packing.sources.content import content_extension
from shardstream.packing.sources.encoded import field_bytes, text_bytes, to_json

KEYS = ("__key__", "key", "id")
Kind = Literal["text", "bytes", "other"]  # of a column; bytes also within an object, as HF stores media
HASHED = "xxh3-"


@dataclass(frozen=True)
class Rows:
    """Makes samples of rows.

    Args:
        text_key, keep, column, key, dtype, eos: See `SourceOptions`.
        chat: Makes the text of field txt of messages, or None.
    """

    text_key: str = "text"
    keep: tuple[str, ...] | None = None
    column: tuple[tuple[str, str], ...] | None = None
    key: str | None = None
    dtype: TokenDtype | None = None
    eos: int | None = None
    chat: ChatTemplate | None = None

    @classmethod
    def make(cls, options: SourceOptions) -> Rows:
        chat = None if options.chat_template is None else ChatTemplate.load(options.chat_template)
        text_key = "messages" if chat is not None and options.text_key == "text" else options.text_key
        return cls(text_key, options.keep, options.column, options.key, options.dtype, options.eos, chat)

    @property
    def token_dtype(self) -> TokenDtype | None:
        """How tokens are stored, if a column is field `tokens`; else None: samples are no tokens."""
        there = any(name == TOKENS for name, _ in self.column or ())
        return (self.dtype or "uint32") if there else None

    def options(self) -> dict[str, Any]:
        """The options, for the manifest's provenance; those that were not given are left out."""
        given = {
            "text_key": None if self.text_key == "text" else self.text_key,
            "keep": None if self.keep is None else list(self.keep),
            "column": None if self.column is None else dict(self.column),
            "key": self.key,
            "chat_template": None if self.chat is None else self.chat.digest(),
        }
        return {name: value for name, value in given.items() if value is not None}

    def of_table(self, columns: Mapping[str, Kind], where: str, *, one_of_many: bool = False) -> Rows:
        """The same for a table, whose columns are known: `column` says what becomes which field.

        Unless it was said, the text is in `text_key`, and each column of bytes is a field, whose name is the
        extension of its content. With several columns of bytes it is `<column>.<extension>`.

        Args:
            columns: The kind of each column, by name.
            where: The table, for messages.
            one_of_many: A name in `keep` may be a column of another file. Samples tell which they miss, and a
                name that no row has is an error before the commit.

        Raises:
            SourceError: A column that was asked for is not there, or no column can be a field.
        """
        listed = ", ".join(map(repr, columns))
        wanted = [column for _, column in self.column or ()]
        wanted += [] if one_of_many else list(self.keep or ())
        if self.key not in (None, "none"):
            wanted.append(str(self.key))
        for name in wanted:
            if name not in columns and name.partition(".")[0] not in columns:
                raise SourceError(f"{where}: there is no column {name!r}; there are {listed}")
        if self.column is not None:
            return self
        found = [("txt", self.text_key)] if self.text_key in columns else []
        media = [name for name, kind in columns.items() if kind == "bytes" and name != self.text_key]
        found += [("*" if len(media) == 1 else f"{name}.*", name) for name in media]
        if not found or (self.text_key != "text" and self.text_key not in columns):
            tokens = "; for token ids: --column tokens=input_ids" if "input_ids" in columns else ""
            raise SourceError(
                f"{where}: there is no column {self.text_key!r} of text, and none of bytes; say what becomes "
                f"a field with --text-key COLUMN or --column FIELD=COLUMN{tokens}; there are {listed}"
            )
        return replace(self, column=tuple(found))

    def needed(self) -> set[str] | None:
        """The columns that samples are made of, if not all: their names, or those of parts of them."""
        if self.keep is None:
            return None
        keys = KEYS if self.key is None else () if self.key == "none" else (self.key,)
        return {*self.keep, *keys, *(column for _, column in self.column or ())}

    def reads(self, column: str) -> bool:
        """Whether samples are made of this column: of all of them, unless `keep` says which."""
        needed = self.needed()
        if self.column is None and column == self.text_key:
            return True
        return needed is None or any(name == column or name.startswith(f"{column}.") for name in needed)

    def texts(self) -> set[str]:
        """The columns that only become fields, so that their text may come as bytes of UTF-8."""
        keys = {*KEYS} if self.key is None else {self.key}
        return {column for _, column in self.column or ()} - keys - set(self.keep or ())

    def sample(self, row: Mapping[str, Any], span: FileSpan, number: int, where: str) -> Sample | Reject:
        """The sample of one row.

        Args:
            row: The values of the columns, by name.
            span: The part of the input that the row is in. It names the sample.
            number: The number of the row in the file, from 0.
            where: Where the row is, for messages.
        """
        fields: dict[str, bytes] = {}
        counts = NO_COUNTS
        try:
            key = key_of(row, self.key, span, number)
            if self._dtype is not None:
                (column,) = (column for name, column in self.columns if name == TOKENS)
                ids = _ids(find(row, column), self._dtype, self.eos)
                return Sample(key, {TOKENS: ids}, where, NO_COUNTS, columns_of(row, self.keep))
            for name, column in self.columns:
                value = row[column] if column in row else find(row, column)
                if self.chat is not None and name == "txt":
                    value = self.chat.render(value, row)
                if isinstance(value, str):
                    data, some = text_bytes(value)
                    counts = some or counts
                else:
                    data = field_bytes(name, value)
                if "*" in name:
                    name = name.replace("*", content_extension(data) or _plain(column))
                if name in fields:
                    raise SourceError(f"two columns give field {name!r}; use --column FIELD=COLUMN")
                fields[name] = data
        except SourceError as error:
            return Reject(where, str(error))
        used = self.used
        missing: tuple[str, ...] = ()
        if self.keep is None:
            rest = {name: value for name, value in row.items() if name not in used}
        else:
            rest, missing = kept(row, self.keep)
        rest = with_id(rest, row, self.key, key)
        if rest:
            if "json" in fields:
                names = ", ".join(map(repr, rest))
                return Reject(where, f"{names} go into field json, but a column does so, too; say --keep")
            try:
                fields["json"] = to_json(rest)
            except (TypeError, ValueError, OverflowError, RecursionError) as error:
                return Reject(where, f"a column cannot be stored as JSON ({error}); leave it out with --keep")
        return Sample(key, fields, where, counts, columns_of(row, self.keep), missing)

    # What is the same for all rows, since a row has a few microseconds.

    @functools.cached_property
    def columns(self) -> tuple[tuple[str, str], ...]:
        """Pairs of a field and the column that becomes it."""
        return (("txt", self.text_key),) if self.column is None else self.column

    @functools.cached_property
    def used(self) -> frozenset[str]:
        """The columns that are not stored a second time, in field json."""
        return frozenset(column.partition(".")[0] for _, column in self.columns) | {"__key__"}

    @functools.cached_property
    def _dtype(self) -> TokenDtype | None:
        return self.token_dtype


def _ids(value: Any, dtype: TokenDtype, eos: int | None) -> bytes:
    """A list of token ids as little-endian bytes of this dtype, with `eos` behind them.

    Raises:
        SourceError: It is no list of whole numbers, or one does not fit the dtype.
    """
    try:
        if isinstance(value, (bytes, bytearray)):  # each byte of a file would be an id
            raise TypeError(f"{len(value)} bytes")
        ids = [*value] if eos is None else [*value, eos]
        return array("H" if dtype == "uint16" else "I", ids).tobytes()
    except (TypeError, OverflowError) as error:
        raise SourceError(f"no list of token ids that fit {dtype}: {error}") from error


def _plain(column: str) -> str:
    """The name of a field whose content shows no format: that of its column."""
    return column.removesuffix(".bytes").rpartition(".")[2]


def key_of(row: Mapping[str, Any], wanted: str | None, span: FileSpan, number: int) -> str:
    """The key of the sample of a row.

    Args:
        row: The values of the columns, by name.
        wanted: The option `key`; see `SourceOptions`.
        span: The part of the input that the row is in.
        number: The place of the row in its file.

    Raises:
        SourceError: The row has no value that `wanted` could name it by.
    """
    if wanted is None:
        for name in KEYS:
            value = row.get(name)
            if value is not None and ((isinstance(value, str) and value) or type(value) is int):
                return span.prefix + _short(escape_key(str(value)), span.prefix)
    elif wanted != "none":
        value = find(row, wanted)
        if not ((isinstance(value, str) and value) or type(value) is int):
            raise SourceError(
                f"{wanted!r} is {shorten(repr(value))}, which is no key: a key is text that is not empty, or "
                "a whole number; name another with --key, or number the samples with --key none"
            )
        return _short(escape_key(str(value)))
    return f"{span.key_base}-{number:012d}"


def _short(key: str, prefix: str = "") -> str:
    """The key itself, or a checksum of one that is too long to name a file in a tar."""
    if len(key) + len(prefix) <= MAX_NAME // 4 or len((prefix + key).encode()) <= MAX_NAME:
        return key
    return HASHED + xxhash.xxh3_128_hexdigest(key.encode())


def with_id(kept: dict[str, Any], row: Mapping[str, Any], wanted: str | None, key: str) -> dict[str, Any]:
    """The values that are kept of a row; with its id, if the key is only a checksum of it.

    Args:
        kept: The values, by name.
        row: The row.
        wanted: The option `key`.
        key: The key of the sample.
    """
    if HASHED not in key:
        return kept
    names = KEYS if wanted is None else (wanted,)
    name = next((name for name in names if _lookup(row, name) not in (_MISSING, None, "")), None)
    return kept if name is None else {name: _lookup(row, name), **kept}


def find(row: Mapping[str, Any], name: str) -> Any:
    """The value of a column, or of a nested one: "meta.lang" is `lang` of the object in `meta`.

    Raises:
        SourceError: There is no such column.
    """
    value = _lookup(row, name)
    if value is _MISSING:
        raise SourceError(f"there is no column {name!r}; there are {', '.join(map(repr, row))}")
    return value


def kept(row: Mapping[str, Any], names: Sequence[str]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The columns of these names, by name; and the names that the row does not have.

    Args:
        row: The values of the columns, by name.
        names: The option `keep`. "meta.lang" is `lang` of the object in `meta`.
    """
    found = {name: value for name in names if (value := _lookup(row, name)) is not _MISSING}
    missing = () if len(found) == len(names) else tuple(name for name in names if name not in found)
    return found, missing


_MISSING = object()


def _lookup(row: Mapping[str, Any], name: str) -> Any:
    if name in row:
        return row[name]
    value: Any = row
    for part in name.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return _MISSING
        value = value[part]
    return value
