"""What the ranks of a job tell each other, in the calls that all of them make."""

from __future__ import annotations

import sys
from typing import Any

__all__ = ["Ranks"]


class Ranks:
    """The ranks that save together. Without torch.distributed there is one.

    Args:
        group: A process group of torch.distributed; None for all ranks. One that can only speak between GPUs
            gets a gloo group beside it, at the first call.
    """

    def __init__(self, group: Any = None) -> None:
        self._given = group
        self._group: Any = None
        self._ready = False

    @property
    def distributed(self) -> Any:
        """torch.distributed if there is more than one rank, else None."""
        found = sys.modules.get("torch.distributed")
        if found is None or not found.is_available() or not found.is_initialized():
            return None
        return found if found.get_world_size(self._given) > 1 else None

    @property
    def rank(self) -> int:
        """The number of this rank in its group."""
        found = self.distributed
        return 0 if found is None else int(found.get_rank(self._given))

    @property
    def size(self) -> int:
        """How many ranks there are."""
        found = self.distributed
        return 1 if found is None else int(found.get_world_size(self._given))

    def gather(self, value: Any) -> list[Any]:
        """The values of all ranks, on all ranks. Each rank calls it, in the same order."""
        found = self.distributed
        if found is None:
            return [value]
        if not self._ready:
            self._prepare(found)
        values: list[Any] = [None] * self.size
        found.all_gather_object(values, value, group=self._group)
        return values

    def exchange(self, given: Any, got: Any, sizes: list[int], expected: list[int]) -> None:
        """Give each rank a part of this rank's bytes, and get parts of theirs. All ranks call it.

        Args:
            given: A tensor of bytes on the CPU: what is for the first rank, for the next one, and so on.
            got: Such a tensor for what comes, in the order of the ranks.
            sizes: The bytes for each rank.
            expected: The bytes from each rank.
        """
        found = self.distributed
        if not self._ready:
            self._prepare(found)
        found.all_to_all_single(got, given, expected, sizes, group=self._group)

    def _prepare(self, distributed: Any) -> None:
        self._group = self._given
        if "gloo" not in str(distributed.get_backend_config(self._given)):
            ranks = None if self._given is None else distributed.get_process_group_ranks(self._given)
            self._group = distributed.new_group(
                ranks, backend="gloo", use_local_synchronization=ranks is not None
            )
        self._ready = True
