"""What units of a mixture build, to its batches or single samples."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import repeat
from typing import Any

import numpy as np

from shardstream.dataset.batch_maker import BatchMaker, Collate, Finish
from shardstream.dataset.mixture_units import SOURCE
from shardstream.dataset.stored import StoredContents
from shardstream.dataset.token_contents import TokenContents
from shardstream.read.samples.batch import collate as default_collate
from shardstream.read.samples.batch import tensor
from shardstream.read.tokens.document_bounds import FLAT

__all__ = ["MixtureMaker"]


class MixtureMaker(BatchMaker):
    """How a Mixture makes batches.

    Args:
        url: The mixture's, for messages.
        parts: Its datasets.
    """

    def __init__(self, url: str, parts: Sequence[StoredContents[Any]]) -> None:
        super().__init__(url)
        self._parts = parts

    @property
    def transforms(self) -> bool:
        return any(part.maker.transforms for part in self._parts)

    @property
    def views(self) -> bool:
        return any(part.maker.views for part in self._parts)

    def watching(self) -> bool:
        return any(part.maker.watching() for part in self._parts)

    @property
    def cheap(self) -> bool:
        return all(part.maker.cheap for part in self._parts)

    @property
    def tensors(self) -> bool:
        """Whether a batch is one tensor: token datasets of one shape, whose blocks nothing changes."""
        shapes = {part.row_shape if isinstance(part, TokenContents) else None for part in self._parts}
        return len(shapes) == 1 and None not in shapes

    def collated(self, collate: Collate | None) -> Finish:
        """The function that makes a batch of the rows of tensors, or collates samples."""
        if collate is None and self.tensors:
            return _tensors
        join = collate or default_collate
        return lambda built: join(list(self.items(self.listed(built))))

    def singles(self, built: Any) -> tuple[Any, Exception | None]:
        """A batch as units build it, and what went wrong behind that."""
        return (built, None) if self.tensors else built

    def items(self, made: Any) -> Iterable[Any]:
        """The single samples of a batch as units build it."""
        if not self.tensors:
            return made  # type: ignore[no-any-return]
        columns = {name: column for name, column in made.items() if name not in FLAT}
        return map(_row, repeat(list(columns)), zip(*columns.values(), strict=True))


def _tensors(columns: dict[str, Any]) -> dict[str, Any]:
    """The columns as tensors."""
    return {
        name: tensor(column) if isinstance(column, np.ndarray) else column for name, column in columns.items()
    }


def _row(names: list[str], values: tuple[Any, ...]) -> dict[str, Any]:
    """One sample of a batch's columns."""
    return {
        name: int(value) if name == SOURCE else tensor(value)
        for name, value in zip(names, values, strict=True)
    }
