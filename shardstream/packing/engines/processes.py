"""The engine of one machine: worker processes; see `local` for how they work."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from shardstream.packing.engines.engine import Counts, Needs
from shardstream.packing.engines.local import run_tasks

__all__ = ["Local"]


@dataclass(frozen=True)
class Local:
    """Tasks run in processes of this machine, one for each core if `workers` is not given."""

    shared = False

    @contextlib.contextmanager
    def started(self, needs: Needs) -> Iterator[_Processes]:
        """See `Engine.started`. The processes start with the first task, and end with the last one."""
        yield _Processes(needs.workers or os.cpu_count() or 1)


@dataclass
class _Processes:
    workers: int
    counts: Counts = field(default_factory=lambda: Counts(nodes=1))

    def run(
        self,
        function: Callable[[Any, Any], Any],
        job: object,
        tasks: Sequence[Any],
        inherited: Sequence[int] = (),
    ) -> Iterator[Any]:
        return run_tasks(function, job, tasks, self.workers, inherited, self.counts)
