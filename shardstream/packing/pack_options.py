"""The arguments of `pack`, for its types."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, TypedDict

from shardstream.format.names import SplitKey
from shardstream.packing.end_of_text import Eos
from shardstream.packing.engines.choice import EngineOption
from shardstream.packing.layout import Codec
from shardstream.packing.sources import Format, Source
from shardstream.packing.sources.base import TokenDtype
from shardstream.progress import Report
from shardstream.storage.store import Options

__all__ = ["PackOptions", "Sources"]

Sources = str | os.PathLike[str] | Iterable[str | os.PathLike[str]]


class PackOptions(TypedDict, total=False):
    """The arguments of `pack` that do not decide what it returns; see there."""

    format: Format | Source | None
    text_key: str
    column: Mapping[str, str] | None
    chat_template: str | None
    key: str | None
    split_key: SplitKey
    keep: Sequence[str] | None
    compression: Codec | None
    level: int
    frame_size: str | int | None
    shard_size: str | int | None
    workers: int | None
    shuffle: int | None
    tokenizer: str | None
    eos: Eos
    dtype: TokenDtype | None
    limit: int | None
    on_error: Literal["raise", "skip"]
    max_rejects: float
    resume: bool
    append: bool
    commit: bool
    resize: int | None
    quality: int | None
    labels: Literal["none", "leaf", "top"] | None
    query: str | None
    engine: EngineOption
    storage_options: Options
    progress: Report
