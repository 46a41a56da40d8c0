"""Chunks that LitData has written for its TokensLoader: each item is a document of token ids.

The loader cuts blocks across the items. The chunks themselves say where each item ends, as all chunks do.
Source: `BinaryWriter._create_chunk` of litdata 0.2.76.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

from shardstream.errors import SourceError
from shardstream.packing.sources.base import TOKENS, FileSpan, Reject, Sample, TokenDtype
from shardstream.packing.sources.litdata_values import bare_dtype
from shardstream.storage.store import redact

__all__ = ["TOKENS_LOADER", "Config", "stored_tokens", "token_samples"]

TOKENS_LOADER = "TokensLoader"
_NARROW = ("bool", "uint8", "uint16")  # what always fits uint16; other ids may not


class Config(msgspec.Struct):
    """What an index.json says of all its chunks."""

    data_format: list[str] | None = None
    data_spec: str | None = None
    compression: str | None = None
    compression_level: str | None = None
    encryption: Any = None
    item_loader: str | None = None


def stored_tokens(config: Config, where: str) -> TokenDtype | None:
    """How the ids of the chunks are stored in a dataset; None if the chunks hold samples.

    Raises:
        SourceError: They hold tokens of a kind that is not known.
    """
    if config.item_loader != TOKENS_LOADER:
        return None
    return "uint16" if _dtype(config, where) in _NARROW else "uint32"


def _dtype(config: Config, where: str) -> str:
    """The dtype of the ids in the chunks."""
    formats = config.data_format or []
    found = bare_dtype(formats[0]) if len(formats) == 1 else None
    if found is None or found.startswith(("float", "complex")):
        raise SourceError(f"{where}: chunks of tokens in the format {formats!r}, which is not known")
    return found


def token_samples(
    items: Iterable[bytes], config: Config, stored: TokenDtype, eos: int | None, span: FileSpan
) -> Iterator[Sample | Reject]:
    """A document for each item of a chunk.

    Args:
        items: The bytes of the items.
        config: Of the index.
        stored: How ids are stored.
        eos: The id behind each document, or None.
        span: The chunk.
    """
    import numpy as np

    where = redact(span.url)
    dtype: Any = np.dtype(_dtype(config, where)).newbyteorder("<")
    wanted: Any = np.dtype(stored).newbyteorder("<")
    for number, data in enumerate(items):
        place = f"{where}, document {number}"
        if len(data) % dtype.itemsize:
            yield Reject(place, f"{len(data)} bytes are no whole ids of {dtype.name}")
            continue
        ids = np.frombuffer(data, dtype)
        if eos is not None:
            ids = np.append(ids, eos)
        if ids.size and (ids.min() < 0 or ids.max() > np.iinfo(wanted).max):
            yield Reject(place, f"ids from {ids.min()} to {ids.max()} do not fit {stored}")
            continue
        key = f"{span.key_base}-{number:012d}"
        yield Sample(key, {TOKENS: ids.astype(wanted).tobytes()}, place)
