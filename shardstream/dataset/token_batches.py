"""Arrays of blocks to the tensors of a batch, or to single blocks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from shardstream.dataset.batch_maker import BatchMaker, Collate, Finish
from shardstream.dataset.transforms import Transform
from shardstream.read.samples.batch import collate as default_collate
from shardstream.read.samples.batch import tensor
from shardstream.read.tokens.document_bounds import FLAT
from shardstream.read.tokens.plan import GENERATORS

__all__ = ["FIELD", "TokenMaker"]

FIELD = "tokens"


class TokenMaker(BatchMaker):
    """How a TokenDataset makes batches.

    Args:
        url: The dataset's, for messages.
        transform: Of the dataset.
    """

    def __init__(self, url: str, transform: Transform) -> None:
        super().__init__(url)
        self._transform = transform

    @property
    def transforms(self) -> bool:
        return bool(self._transform)

    def watching(self) -> bool:
        return self._transform.watching()

    @property
    def cheap(self) -> bool:
        return not self._transform

    def collated(self, collate: Collate | None) -> Finish:
        """The function that makes tensors of arrays, or collates the single blocks."""
        if collate is None and not self._transform:
            return _tensors
        join = default_collate if collate is None else self.noting(collate)
        return lambda batch: join(list(self.items(self.listed(batch))))

    def singles(self, built: dict[str, Any]) -> tuple[Any, Exception | None]:
        """The batch; or with a transform, its blocks up to the first that fails, and the error of that."""
        if not self._transform:
            return built, None
        blocks = list(self.items(built))

        def name(row: int) -> str:
            return f"the block that begins with {blocks[row][FIELD][:8].tolist()}"

        return self._transform.of_each(blocks, built.get(GENERATORS), name)

    def items(self, made: dict[str, Any] | list[Any]) -> Iterable[Any]:
        """The single blocks of a batch."""
        if isinstance(made, list):
            return made
        columns = {name: value for name, value in made.items() if name not in FLAT and name != GENERATORS}
        rows = zip(*columns.values(), strict=True)
        return (_tensors(dict(zip(columns, values, strict=True))) for values in rows)


def _tensors(batch: dict[str, Any]) -> dict[str, Any]:
    if len(batch) == 1:  # most batches: nothing but tokens
        return {FIELD: tensor(batch[FIELD])}
    return {name: tensor(value) if isinstance(value, np.ndarray) else value for name, value in batch.items()}
