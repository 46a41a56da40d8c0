"""What the coordinator tells each rank with its plan, and plans of planners that cache them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from torch.distributed.checkpoint.planner import SavePlan

from shardstream.errors import OptionError

__all__ = ["Assignment", "Plans"]


@dataclass(frozen=True)
class Assignment:
    """Which part a rank writes. It goes through a pickle of torch."""

    attempt: str
    rank: int
    world: int


class Plans:
    """The plans of all ranks, on the coordinator."""

    def __init__(self) -> None:
        self._kept: dict[int, SavePlan] = {}

    def assigned(self, plans: list[SavePlan], attempt: str) -> list[SavePlan]:
        """The plans, with the name of an attempt.

        Raises:
            OptionError: A planner that caches plans says that nothing has changed, and it was not seen here.
        """
        found = []
        for rank, plan in enumerate(plans):
            kept = plan if plan.usable else self._kept.get(rank)
            if kept is None:
                raise OptionError(
                    "a planner with enable_plan_caching needs one Writer for all its saves: keep it, and "
                    "give each save its checkpoint_id"
                )
            self._kept[rank] = kept
            given = Assignment(attempt, rank, len(plans))
            found.append(dataclasses.replace(kept, storage_data=given, usable=True))
        return found
