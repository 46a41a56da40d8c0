"""Where documents lie in blocks: for attention within documents, and for losses without padding."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardstream.read.tokens.source import TokenSource

__all__ = ["FLAT", "DocumentBounds", "runs"]

Ints = NDArray[np.int64]
FLAT = ("cu_seqlens", "max_seqlen")  # the fields of a batch that do not have a row for each block


def runs(position_ids: Ints) -> dict[str, Any]:
    """ "cu_seqlens" and "max_seqlen" of a batch.

    Args:
        position_ids: int64 [B, T], which begin at 0 with each document.

    Returns:
        "cu_seqlens": int32 [s + 1], where each of s documents begins in the flat batch, then B T.
        "max_seqlen": the length of the longest one.
    """
    bounds = np.append(np.flatnonzero(position_ids.ravel() == 0), position_ids.size)
    return {"cu_seqlens": bounds.astype(np.int32), "max_seqlen": int(np.diff(bounds).max())}


class DocumentBounds:
    """The documents in n rows of `seq_len` + 1 tokens: where each document begins, and where padding begins.

    Args:
        source: Of the tokens.
        rows: int64 [s], the row of each document's first token, rising.
        columns: int64 [s], the column of each document's first token. Each row has one at column 0.
        used: int64 [n], how many tokens of each row are not padding.
    """

    def __init__(self, source: TokenSource, rows: Ints, columns: Ints, used: Ints) -> None:
        self._source, self._columns, self._used, self._rows = source, columns, used, rows
        self._bounds = np.searchsorted(rows, np.arange(len(used) + 1, dtype=np.int64))

    @classmethod
    def of(cls, source: TokenSource, groups: list[Ints], shards: Ints, numbers: Ints) -> DocumentBounds:
        """The documents in some blocks.

        Args:
            source: Of the tokens.
            groups: The rows of each shard.
            shards: int64 [n], the shard of each row.
            numbers: int64 [n], the block of each row in its shard.
        """
        used = np.empty(len(numbers), np.int64)
        rows, columns = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        for mine in groups:
            blocks = source.blocks(int(shards[mine[0]]))
            row, column = blocks.segments(numbers[mine])
            used[mine] = blocks.used(numbers[mine])
            rows.append(mine[row])
            columns.append(column)
        row, column = np.concatenate(rows), np.concatenate(columns)
        order = np.argsort(row, kind="stable")
        return cls(source, row[order], column[order], used)

    def batch(self, rows: slice, boundaries: bool) -> dict[str, Any]:
        """The fields of a batch beside its tokens, see TokenDataset.

        Args:
            rows: The rows of the batch.
            boundaries: Whether the batch says where documents begin.

        Returns:
            "cu_seqlens", "max_seqlen" and "position_ids" with `boundaries`; "mask" if there may be padding.
        """
        options = self._source.options
        length = options.seq_len
        pieces = slice(int(self._bounds[rows.start]), int(self._bounds[rows.stop]))
        row, column, used = self._rows[pieces] - rows.start, self._columns[pieces], self._used[rows]
        found: dict[str, Any] = {}
        if boundaries:
            found = self._boundaries(row, column, used, length)
        if options.padded:
            mask = np.arange(1, length + 1, dtype=np.int64) < used[:, None]
            if options.pack is not None:
                # The first token of a document is not the target of the document before.
                first = column > 0
                mask[row[first], column[first] - 1] = False
            found["mask"] = mask
        return found

    @staticmethod
    def _boundaries(row: Ints, column: Ints, used: Ints, length: int) -> dict[str, Any]:
        size = len(used) * length
        inside = column < length
        starts = row[inside] * length + column[inside]
        padded = np.flatnonzero(used < length)
        if len(padded):
            starts = np.sort(np.concatenate((starts, padded * length + used[padded])))
        bounds = np.append(starts, size)
        many = np.diff(bounds)
        positions = np.arange(size, dtype=np.int64) - np.repeat(starts, many)
        return {
            "cu_seqlens": bounds.astype(np.int32),
            "max_seqlen": int(many.max()),
            "position_ids": positions.reshape(len(used), length),
        }
