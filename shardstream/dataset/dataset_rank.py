"""The rank that a dataset reads for: as it was given, or found out when the dataset is first used."""

from __future__ import annotations

import os
from typing import Any

from shardstream.dataset.worker_epochs import current_worker
from shardstream.distributed import Topology
from shardstream.errors import OptionError
from shardstream.order.topology import Topology as Ranks

__all__ = ["DatasetRank"]


class DatasetRank:
    """Where a dataset stands among the ranks.

    "auto" is asked again until the dataset is used, since a program may make it before it initialises
    torch.distributed, or in the process that starts the ranks. From then on it stays.
    """

    def __init__(self, value: Ranks | str) -> None:
        if isinstance(value, Ranks):
            self.given: Ranks | None = value
        elif value == "auto":
            self.given = None
            Topology.detect()  # what contradicts itself is said early
        else:
            raise OptionError(f"topology={value!r} must be a Topology or 'auto'")
        self._used: Ranks | None = None
        self._process = 0  # that used it
        self._sent: Ranks | None = None  # what the process knew that sent this one

    @property
    def now(self) -> Ranks:
        """The topology as far as it is known now."""
        if self.given is not None:
            return self.given
        return self._found() if self._used is None or not self._mine else self._used

    @property
    def decided(self) -> bool:
        """Whether it stays as it is."""
        return self.given is not None or (self._used is not None and self._mine)

    def decide(self, url: str) -> Ranks:
        """The topology, which from now on stays; raises OptionError if it was another one before."""
        if self.given is not None:
            return self.given
        found = self._found()
        if self._used is not None and self._mine and found != self._used:
            raise OptionError(
                f"{url} was used as rank {self._used.dp_rank} of {self._used.dp_size}, and now this process "
                f"is rank {found.dp_rank} of {found.dp_size}: initialise torch.distributed before len(), "
                f"a state or an iteration, or give the dataset its place: "
                f"topology=ss.Topology(dp_rank, dp_size)"
            )
        self._used, self._process = found, os.getpid()
        return found

    @property
    def _mine(self) -> bool:
        # A process that was started by the one that used it has a rank of its own, unless it is a worker.
        return self._process == os.getpid() or current_worker() is not None

    def _found(self) -> Ranks:
        # A worker that was not forked from the rank does not know what the rank knows.
        return self._sent if self._sent is not None and current_worker() is not None else Topology.detect()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_sent": self.now}
