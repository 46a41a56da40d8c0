"""TokenDataset: blocks of a fixed number of tokens, straight from token shards."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, NoReturn, overload

import numpy as np

from shardstream.dataset.argument_errors import unexpected
from shardstream.dataset.arguments import (
    CacheLike,
    Location,
    Sample,
    TokenDtype,
    TopologyLike,
    cache_of,
    check_choice,
    shuffle_of,
)
from shardstream.dataset.choosing import ChoosableDataset
from shardstream.dataset.dataset_rank import DatasetRank
from shardstream.dataset.opening import Opening
from shardstream.dataset.token_contents import TokenContents
from shardstream.errors import OptionError
from shardstream.format.manifest import Manifest
from shardstream.order.shuffle import Shuffle
from shardstream.read.tokens.blocks import BlockOptions

if TYPE_CHECKING:
    from typing_extensions import TypeVar

    T = TypeVar("T", default=Sample)
    R = TypeVar("R")
else:
    from typing import TypeVar

    T, R = TypeVar("T"), TypeVar("R")

__all__ = ["TokenDataset"]

_OPTIONS = (
    "seq_len", "dtype", "shuffle", "cache", "topology", "transform", "storage_options", "boundaries", "pack",
    "tail", "pad_id",
)  # fmt: skip


class TokenDataset(ChoosableDataset[T]):
    """Blocks of `seq_len` + 1 tokens of the dataset at `url`, which was packed with a tokenizer.

    Block b of a shard is its tokens [b T, b T + T], T = seq_len: inputs and targets are
    tokens[:-1] and tokens[1:]. Iterating gives dicts {"tokens": tensor [T + 1]}; a StreamingLoader
    gives {"tokens": tensor [B, T + 1]} and more by the options below. Everything else is as in a
    StreamingDataset, with blocks in place of samples.

    Args:
        url: A local path, or the URL of a store.
        seq_len: T, the inputs of a block; at least 1.
        dtype: Of the tokens, "int64", "int32", or "uint16" if they are stored in 16 bits. Tokens that stay
            as wide as they are stored are only moved, not converted.
        shuffle: See `StreamingDataset`.
        cache: See `StreamingDataset`.
        topology: See `StreamingDataset`.
        transform: Called with each dict of one block, in background threads, with `rng` as for
            StreamingDataset. Batches are then collated from what it returns.
        storage_options: See `StreamingDataset`.
        boundaries: True describes the documents of the inputs, tokens[:, :-1], for attention that does not
            cross them. "position_ids", int64 [B, T], starts at 0 at each document and at each block.
            Batches of a loader also have "cu_seqlens", int32, the bounds of the same runs of
            tokens[:, :-1].flatten() from 0 to B T, and "max_seqlen", an int: what FlashAttention's varlen
            functions take. Padding is a run of its own.
        pack: "best-fit" never splits a document of at most T + 1 tokens; longer ones are cut into pieces
            of T + 1, each with the last token of the one before. Blocks are filled by best-fit-decreasing
            within groups of frames, from the indexes of all shards, which are read at the start.
            `padding_share` says how much is padding.
        tail: What becomes of the tokens after the last whole block of each shard. "drop" leaves them out and
            counts them in `dropped_tokens`; "pad" fills one more block with them and with padding.
        pad_id: The token that fills up blocks; the end token of the tokenizer by default, or 0.
            If blocks may be padded, batches have "mask", bool [B, T]: False where the target
            tokens[:, 1:] is padding and, with "best-fit", where it belongs to another document than its
            input. So each token but a document's first is a target exactly once.

    Raises:
        OptionError: An argument cannot be, the dataset holds no tokens, or too few for one block.
        StorageError: The store does not answer, or has no dataset there.
        CorruptionError: The manifest is damaged.
    """

    _contents: TokenContents

    @overload
    def __init__(
        self: TokenDataset[Sample],
        url: Location,
        seq_len: int,
        dtype: TokenDtype = "int64",
        shuffle: bool | Shuffle = False,
        cache: CacheLike = None,
        topology: TopologyLike = "auto",
        transform: None = None,
        storage_options: dict[str, Any] | None = None,
        *,
        boundaries: bool = False,
        pack: Literal["best-fit"] | None = None,
        tail: Literal["drop", "pad"] = "drop",
        pad_id: int | None = None,
    ) -> None: ...
    @overload
    def __init__(
        self: TokenDataset[R],
        url: Location,
        seq_len: int,
        dtype: TokenDtype = "int64",
        shuffle: bool | Shuffle = False,
        cache: CacheLike = None,
        topology: TopologyLike = "auto",
        *,
        transform: Callable[..., R],
        storage_options: dict[str, Any] | None = None,
        boundaries: bool = False,
        pack: Literal["best-fit"] | None = None,
        tail: Literal["drop", "pad"] = "drop",
        pad_id: int | None = None,
    ) -> None: ...
    def __init__(
        self,
        url: Location,
        seq_len: int,
        dtype: TokenDtype = "int64",
        shuffle: bool | Shuffle = False,
        cache: CacheLike = None,
        topology: TopologyLike = "auto",
        transform: Callable[..., Any] | None = None,
        storage_options: dict[str, Any] | None = None,
        *,
        boundaries: bool = False,
        pack: Literal["best-fit"] | None = None,
        tail: Literal["drop", "pad"] = "drop",
        pad_id: int | None = None,
        **unknown: NoReturn,
    ) -> None:
        if unknown:
            raise unexpected("TokenDataset", unknown, _OPTIONS)
        order = shuffle_of(shuffle)
        rank, blocks = DatasetRank(topology), BlockOptions(seq_len, pack, tail)
        opening = Opening(os.fspath(url), storage_options, cache_of(cache), order, rank)
        check_choice("dtype", dtype, TokenDtype)
        if not isinstance(boundaries, bool):
            raise OptionError(f"boundaries={boundaries!r} must be True or False")
        super().__init__(
            TokenContents(opening, order, rank, transform, blocks, np.dtype(dtype), boundaries, pad_id)
        )

    @property
    def manifest(self) -> Manifest:
        """What the dataset consists of: its shards and their sizes."""
        return self._contents.manifest

    @property
    def transform(self) -> Callable[..., Any] | None:
        """What is called with each block; another one takes effect with the next iteration."""
        return self._contents.transform.function

    @transform.setter
    def transform(self, function: Callable[..., Any] | None) -> None:
        self._contents.set_transform(function)

    @property
    def seq_len(self) -> int:
        """T: the inputs and the targets of a block."""
        return self._contents.blocks.seq_len

    @property
    def boundaries(self) -> bool:
        """Whether batches describe the bounds of documents."""
        return self._contents.boundaries

    @property
    def pad_id(self) -> int:
        """The token that fills up blocks."""
        return self._contents.pad_id

    @property
    def dropped_tokens(self) -> int:
        """The tokens of an epoch that are in no block: they follow the last whole block of a shard."""
        return self._contents.dropped_tokens

    @property
    def padding_share(self) -> float:
        """The share of all blocks' tokens that is padding, from 0 to 1."""
        return self._contents.padding_share

    def __getitem__(self, number: int) -> T:
        """Block `number` in the natural order, of all ranks' blocks: 0 to `total` - 1."""
        found: T = self._contents.item(self._numbered(number))
        return found
