"""A box of a stored tensor, and the memory it goes to."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch.distributed.checkpoint.metadata import MetadataIndex

from shardstream.checkpoint.dcp.boxes import Piece, pieces
from shardstream.checkpoint.tensors import bytes_of

__all__ = ["Request"]


@dataclass(frozen=True)
class Request:
    """A box of a stored tensor, and where it goes.

    index: the part of a saved tensor.  shape, dtype: those of the part as it is stored.
    offsets, lengths: the box in it, in elements.  target: a tensor of size `lengths`, on any device.
    """

    index: MetadataIndex
    shape: torch.Size
    dtype: torch.dtype
    offsets: torch.Size
    lengths: torch.Size
    target: torch.Tensor

    @property
    def is_direct(self) -> bool:
        """Whether pieces of the stored bytes can go straight into the target."""
        return self.target.dtype == self.dtype and self.target.device.type == "cpu"

    @property
    def nbytes(self) -> int:
        """The size of the box, as it is stored."""
        return self.lengths.numel() * self.dtype.itemsize

    def pieces(self) -> Iterator[Piece]:
        """The ranges of the stored part that the box is read by."""
        return pieces(self.shape, self.offsets, self.lengths, self.dtype.itemsize, bounced=not self.is_direct)

    def direct(self, piece: Piece) -> memoryview | None:
        """The memory that a piece can be read into as it is, or None."""
        if not piece.whole or self.target.dtype != self.dtype:
            return None
        return bytes_of(self._part(piece))

    def copy(self, data: bytes | bytearray | memoryview, piece: Piece) -> None:
        """Put a piece that was read elsewhere where it goes, in the target's dtype and on its device."""
        # The bytes of a store may be read-only, which frombuffer would warn of.
        held = torch.frombuffer(bytearray(data), dtype=self.dtype).reshape(piece.shape)
        for dim, (start, length) in enumerate(zip(piece.offsets, piece.lengths, strict=True)):
            held = held.narrow(dim, start, length)
        self._part(piece).copy_(held)

    def _part(self, piece: Piece) -> torch.Tensor:
        part = self.target.detach()
        for dim, (start, length) in enumerate(zip(piece.target, piece.lengths, strict=True)):
            part = part.narrow(dim, start, length)
        return part
