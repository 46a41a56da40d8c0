"""What is read of a TokenDataset: blocks of a fixed number of tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from shardstream.dataset.dataset_rank import DatasetRank
from shardstream.dataset.opening import Opening
from shardstream.dataset.requests import Request, UnitOptions
from shardstream.dataset.selected import SelectedContents
from shardstream.dataset.subset import Choice
from shardstream.dataset.token_batches import FIELD, TokenMaker
from shardstream.errors import OptionError
from shardstream.format.manifest import Manifest
from shardstream.format.numbers import whole_number
from shardstream.format.shards import shard_values
from shardstream.format.shown import counted
from shardstream.order.lanes import Order, in_order
from shardstream.order.reuse import Share
from shardstream.order.shuffle import Shuffle
from shardstream.read.reader import DatasetReader
from shardstream.read.tokens.blocks import BlockOptions
from shardstream.read.tokens.plan import TokenPlan, TokenUnit
from shardstream.read.tokens.source import TokenSource

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["TokenContents"]

Ints = NDArray[np.int64]
_THREADS = 16  # that read indexes
_PLAN = 16 << 10  # blocks
_LONG = 1 << 10  # bytes of a block from which on copying it costs more than the call
_UNIT = 16 << 20  # bytes of batches that one thread builds at a time
_DIRECT = 64 << 20  # and that the consumer builds, a batch at a time
_STORED: dict[str, np.dtype[Any]] = {"uint16": np.dtype("<u2"), "uint32": np.dtype("<u4")}


class TokenContents(SelectedContents[TokenSource]):
    """The blocks of a dataset that was packed with a tokenizer.

    Args:
        opening, shuffle, rank, function: See `StoredContents`.
        blocks: How tokens are cut into blocks.
        dtype: Of the tokens in batches.
        boundaries: Whether batches describe the bounds of documents.
        pad_id: The padding token, or None for the tokenizer's end token.
    """

    def __init__(
        self,
        opening: Opening,
        shuffle: Shuffle | None,
        rank: DatasetRank,
        function: Callable[..., Any] | None,
        blocks: BlockOptions,
        dtype: np.dtype[Any],
        boundaries: bool,
        pad_id: int | None,
    ) -> None:
        super().__init__(opening, shuffle, rank, function)
        self.blocks, self.boundaries = blocks, boundaries
        self._dtype, self._asked_pad_id = dtype, pad_id
        self.fit()

    def fit(self) -> None:
        """Take over what the manifest says, and count the blocks."""
        info = next((info for info in self.manifest.fields if info.name == FIELD), None)
        if info is None or info.dtype not in _STORED:
            raise OptionError(
                f"{self.url} holds no tokens; pack it with --tokenizer, or read it with StreamingDataset"
            )
        self._stored = _STORED[info.dtype]
        if self._dtype.itemsize < self._stored.itemsize:
            raise OptionError(
                f"dtype={self._dtype.name!r} is too narrow for the tokens of {self.url}, which are "
                f"{info.dtype}; choose 'int32' or 'int64'"
            )
        self.pad_id = _pad_id(self.manifest, self._asked_pad_id, self._stored)
        self._column = [field.name for field in self.manifest.fields].index(FIELD)
        self._maker = self._make_maker()
        self._select()
        self._fit_blocks()

    def _fit_blocks(self) -> None:
        """Count the blocks of the documents that are chosen."""
        self._source = None  # it knows of other documents
        self._tokens, self._counts, self._padding = self._count()
        self._total = sum(self._counts)
        if not self._total:
            raise OptionError(self._nothing())

    def _nothing(self) -> str:
        """Why there is no block."""
        options, most = self.blocks, max(self._tokens, default=0)
        needed, other = options.seq_len + 1, "a smaller seq_len, or tail='pad'"
        if options.pack is not None:
            needed, other = 1, "other documents"
        elif options.tail == "pad":
            needed, other = 2, "other documents"
        which = "the chosen documents of a shard have" if self._selection is not None else "a shard has"
        return (
            f"{self.url}: seq_len={options.seq_len} leaves no block: a block needs {needed:,} tokens of one "
            f"shard, and {which} {most:,} at most; choose {other}"
        )

    def narrowed(self, choice: Choice) -> Self:
        """The blocks of the documents of these that a choice names. The reader is shared."""
        found = super().narrowed(choice)
        found._fit_blocks()  # noqa: SLF001 - it is of this class
        return found

    def _make_maker(self) -> TokenMaker:
        return TokenMaker(self.url, self.transform)

    def _count(self) -> tuple[list[int], list[int], int]:
        """The tokens and the blocks of each shard, and the padding in all of them."""
        options, shards, selection = self.blocks, self.manifest.shards, self._selection
        tokens = list(shard_values(shards, "tokens"))
        asked = list(range(len(shards))) if options.pack is not None else []
        if selection is not None:
            some = np.array(shard_values(shards, "samples"), np.int64) != selection.counts
            tokens = np.where(selection.counts > 0, tokens, 0).tolist()
            asked = [shard for shard in selection.shards() if some[shard] or options.pack is not None]
        blocks = list(map(options.stream_blocks, tokens)) if options.pack is None else [0] * len(shards)
        padding = list(map(options.stream_padding, tokens)) if options.pack is None else [0] * len(shards)
        if not asked:
            return tokens, blocks, sum(padding)
        source = self.source

        def measure(shard: int) -> None:
            found = source.blocks(shard)
            tokens[shard], blocks[shard], padding[shard] = found.layout.tokens, found.count, found.padding

        # Indexes may be a round trip away each.
        with ThreadPoolExecutor(_THREADS, "shardstream-index") as pool:
            list(pool.map(measure, asked))
        return tokens, blocks, sum(padding)

    @property
    def total(self) -> int:
        """The blocks of all ranks."""
        return self._total

    @property
    def dropped_tokens(self) -> int:
        """The tokens of an epoch that are in no block: they follow the last whole block of a shard."""
        if self.blocks.pack is not None:
            return 0
        counts = zip(self._tokens, self._counts, strict=True)
        length = self.blocks.seq_len
        return sum(max(0, tokens - (number * length + bool(number))) for tokens, number in counts)

    @property
    def padding_share(self) -> float:
        """The share of all blocks' tokens that is padding."""
        return self._padding / (self._total * (self.blocks.seq_len + 1)) if self._total else 0.0

    @property
    def planned_at_once(self) -> int:
        """How many blocks are best planned at once."""
        return max(1, min(_PLAN, (1 << 30) // self.item_bytes))

    @property
    def item_bytes(self) -> int:
        """The bytes of one block."""
        return (self.blocks.seq_len + 1) * self._dtype.itemsize

    @property
    def row_shape(self) -> tuple[object, ...] | None:
        """What datasets must share for their blocks to fit in one tensor; None if a transform decides."""
        if self.transform:
            return None
        return self.blocks.seq_len, self._dtype.name, self.boundaries, self.blocks.padded

    def order(self, epoch: int, lanes: int | None = None) -> Order:
        """The order of one epoch, in so many lanes or in the dataset's own number."""
        source = self.source
        lanes = lanes or self.lanes
        return Order(
            self._counts,
            lambda shard: source.blocks(shard).groups,
            self.shuffle,
            epoch,
            lanes,
            recent=self.reader.windows,
        )

    def _open_source(self, reader: DatasetReader) -> TokenSource:
        chosen = None if self._selection is None else self._selection.chosen
        return TokenSource(reader, self._column, self._stored, self.blocks, self.pad_id, chosen)

    def frames_of(self, shard: int, numbers: Ints) -> Ints:
        """The frames that these blocks are read from; a block may go on in the frame after its own."""
        blocks = self.source.blocks(shard)
        rows, frames, _, _ = blocks.pieces(numbers, True)
        return blocks.read_with(in_order(frames[np.argsort(rows, kind="stable")]))

    @property
    def consulted(self) -> Iterable[int]:
        """The shards whose indexes say which documents are chosen, and how many blocks there are.

        Best fit needs the index of each shard; so does each shard of which some documents are chosen.
        """
        if self.blocks.pack is not None:
            return range(len(self.manifest.shards))
        partly = () if self._selection is None else self._selection.shards()
        return sorted({*super().consulted, *partly})

    def share(self, shard: int) -> Share | None:
        """The frames of a shard that hold documents of a subset, and the blocks before each, roughly."""
        found = super().share(shard)
        if found is None or not len(found.frames):
            return found
        return Share(found.frames, found.first * self._counts[shard] // found.first[-1])

    def units(self, order: Order, requests: Iterable[Request], options: UnitOptions) -> Iterator[TokenUnit]:
        """The work for all requests; what is planned at once is then cut for the threads."""
        # What a function of the user's makes of blocks may be larger: each batch is a unit.
        grows = 2 if self.transform or options.collates else 0
        direct = options.direct and not grows and self.item_bytes >= _LONG
        most = 1 if grows else max(1, (_DIRECT if direct else _UNIT) // self.item_bytes)
        for request, shards, numbers in self.located(order, requests):
            plan = TokenPlan(self.source, shards, numbers, self.boundaries)
            plan.generators = self.transform.generators(order.epoch, options.source, request.positions)
            begin = at = 0
            sizes: list[int] = []
            for size in request.sizes:
                if sizes and at - begin + size > most:
                    yield TokenUnit(plan, begin, sizes, self._dtype, self.boundaries, direct, grows)
                    begin, sizes = at, []
                sizes.append(size)
                at += size
            yield TokenUnit(plan, begin, sizes, self._dtype, self.boundaries, direct, grows)

    def item(self, number: int) -> Any:
        """Block `number` in the natural order, of all ranks' blocks: transformed."""
        bounds = np.cumsum([0, *self._counts])
        shard = int(np.searchsorted(bounds, number, side="right")) - 1
        place, source = np.array([number - bounds[shard]], np.int64), self.source
        plan = TokenPlan(source, np.array([shard], np.int64), place, self.boundaries)
        plan.generators = self.transform.generators(0, 0, np.array([number], np.int64), items=True)
        unit = TokenUnit(plan, 0, [1], self._dtype, self.boundaries)
        buffers = {need.frame: source.fetch(*need.frame) for need in unit.needs}
        batch = next(iter(unit.build(buffers)))
        source.check_again()
        return next(iter(self._maker.items(self._maker.listed(batch))))

    def identity(self) -> dict[str, Any]:
        """What a state must agree with; how tokens are cut into blocks decides what a position means."""
        blocks = self.blocks
        return super().identity() | {"seq_len": blocks.seq_len, "pack": blocks.pack, "tail": blocks.tail}

    def described(self) -> dict[str, str]:
        """What a person wants to know of it."""
        blocks = {"blocks": counted(self._total, "block"), "seq_len": f"seq_len={self.blocks.seq_len}"}
        if self._selection is not None:
            known = self.opening.known
            of = "" if known is None else f" of {known.samples}"
            blocks["documents"] = f"subset of {self._selection.total}{of} documents"
        return self._described(blocks, {})


def _pad_id(manifest: Manifest, asked: int | None, stored: np.dtype[Any]) -> int:
    """The padding token: the one asked for, the tokenizer's end token, or 0."""
    if asked is None:
        record = manifest.provenance.get("tokenizer") or manifest.provenance.get("tokens", {})
        eos = record.get("eos")
        return eos if isinstance(eos, int) else 0
    try:
        return whole_number("pad_id", asked, 0, int(np.iinfo(stored).max))
    except OptionError as error:
        raise OptionError(f"pad_id={asked!r} must be a token id, an int that fits {stored.name}") from error
