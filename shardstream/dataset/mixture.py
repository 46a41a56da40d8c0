"""Mixture: several datasets in fixed proportions, as one dataset."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from shardstream.dataset.argument_errors import unexpected
from shardstream.dataset.arguments import Sample, Stop, check_choice
from shardstream.dataset.base import OrderedDataset, contents_of
from shardstream.dataset.mixture_contents import MixtureContents
from shardstream.dataset.mixture_units import SOURCE
from shardstream.dataset.stored import StoredContents
from shardstream.dataset.token_contents import TokenContents
from shardstream.errors import OptionError
from shardstream.format.shown import one_line
from shardstream.order.mixture import shares

if TYPE_CHECKING:
    from typing_extensions import TypeVar

    T = TypeVar("T", default=Sample)
else:
    from typing import TypeVar

    T = TypeVar("T")

__all__ = ["SOURCE", "Mixture"]

# What its datasets have and a mixture has not, and what to do instead.
_OF_DATASETS = {
    "manifest": "a mixture has no manifest; each of its datasets has one: mixture.datasets[0].manifest",
    "reader": "a mixture has no reader: each of its datasets has its own",
    "subset": "a mixture has no subsets; mix subsets of its datasets: Mixture([(ds.subset(...), 1)])",
}


class _NotOfMixturesError(OptionError, AttributeError):
    """What datasets have and mixtures do not; `hasattr` says so, too."""


class Mixture(OrderedDataset[T]):
    """Samples of several datasets, each with its part of all positions.

    Each sample and batch says in `"__source__"` which dataset it came from: its number, in a batch a tensor
    [B]. TokenDatasets of the same seq_len and dtype give one tensor "tokens" per batch.

    Args:
        datasets: {dataset: weight} or [(dataset, weight), ...]: StreamingDatasets, TokenDatasets or subsets
            of them. Weights are relative. Proportions are exact if they have a common denominator of at most
            65,536, else rounded to multiples of 1 / 65,536; `shares` holds them as whole numbers.
        stop: When an epoch ends. "first" ends it when the first dataset has been read completely. "all" ends
            it when the last has; the others begin their next epochs, reshuffled. "never" never ends it.

    Raises:
        OptionError: The datasets do not fit together, one is empty, or a weight is not positive.
    """

    _contents: MixtureContents

    def __init__(
        self,
        datasets: Mapping[OrderedDataset[T], float] | Sequence[tuple[OrderedDataset[T], float]],
        stop: Stop = "first",
        **unknown: NoReturn,
    ) -> None:
        if unknown:
            raise unexpected("Mixture", unknown, ("datasets", "stop"))
        pairs = list(datasets.items() if isinstance(datasets, Mapping) else datasets)
        if not pairs:
            raise OptionError("a mixture needs at least one dataset")
        check_choice("stop", stop, Stop)
        self._datasets, parts = [ds for ds, _ in pairs], []
        for ds in self._datasets:
            part = contents_of(ds) if isinstance(ds, OrderedDataset) else None
            if not isinstance(part, StoredContents):
                raise OptionError(f"{ds!r} is not a StreamingDataset or TokenDataset")
            if not part.total:
                raise OptionError(f"{ds.url} is empty and cannot be part of a mixture")
            parts.append(part)
        _check_kinds(parts)
        super().__init__(MixtureContents(parts, shares([weight for _, weight in pairs]), stop))

    @property
    def datasets(self) -> list[OrderedDataset[T]]:
        """The datasets."""
        return list(self._datasets)

    @property
    def shares(self) -> list[int]:
        """The part of all positions that each dataset has, as whole numbers without a common divisor."""
        return list(self._contents.shares)

    @property
    def stop(self) -> Stop:
        """When an epoch ends."""
        return self._contents.stop

    def __getitem__(self, number: object) -> NoReturn:
        """A mixture has no natural order; its datasets do."""
        raise OptionError(
            f"a mixture has no sample {number!r}: it has no natural order; take it of one of its datasets: "
            f"mixture.datasets[0][{number!r}]"
        )

    if not TYPE_CHECKING:

        def __getattr__(self, name):
            if name in _OF_DATASETS:
                raise _NotOfMixturesError(_OF_DATASETS[name])
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __repr__(self) -> str:
        return one_line(type(self).__name__, self._contents.described().values())


def _check_kinds(parts: Sequence[StoredContents[Any]]) -> None:
    """Raise OptionError if the datasets' own samples cannot be in one batch; a transform may change them."""
    plain = [part for part in parts if not part.transform]
    blocks = [part for part in plain if isinstance(part, TokenContents)]
    others = [part for part in plain if not isinstance(part, TokenContents)]
    if blocks and others:
        raise OptionError(
            f"a mixture of tokens and of samples has no common batch: {blocks[0].url} is a TokenDataset and "
            f"{others[0].url} is none; pack both with --tokenizer, or give each of one kind a transform that "
            f"makes it like the other"
        )
    for part in blocks[1:]:
        one, other = blocks[0].row_shape or (), part.row_shape or ()
        names = ("seq_len", "dtype", "boundaries", "padding (tail, pack)")
        told = [
            f"{name} is {mine!r} and {its!r}"
            for name, mine, its in zip(names, one, other, strict=True)
            if mine != its
        ]
        if told:
            raise OptionError(
                f"{blocks[0].url} and {part.url} give blocks that do not fit in one batch: {'; '.join(told)}"
            )
