"""Wrappers that share out among processes what a dataset has shared out by itself: found, and refused.

They know a dataset by its class alone, and ask it nothing. The call stack shows them: an iteration for such
a wrapper begins somewhere below one of its methods.
"""

from __future__ import annotations

import inspect
from typing import Any

from shardstream.errors import OptionError
from shardstream.order.topology import Topology

__all__ = ["refuse_wrappers"]

# The module of each and its classes; the Trainers of Hugging Face use them, too.
_WRAPPERS = {
    "accelerate.data_loader": ("IterableDatasetShard", "DataLoaderDispatcher"),
    "transformers.trainer_pt_utils": ("IterableDatasetShard",),
}


def refuse_wrappers(url: str, topology: Topology) -> None:
    """Raise OptionError if the caller acts for a wrapper that would share out the rank's part once more."""
    if topology.dp_size == 1:  # everything comes from here, and the wrapper alone shares it out
        return
    frame = inspect.currentframe()
    while frame is not None:
        names = _WRAPPERS.get(frame.f_globals.get("__name__", ""))
        if names is not None:
            wrapper = frame.f_locals.get("self")
            name = next((cls.__name__ for cls in type(wrapper).__mro__ if cls.__name__ in names), None)
            if name is not None and (processes := _processes(wrapper)) > 1:
                raise OptionError(
                    f"{url} is shared out already, this is rank {topology.dp_rank} of {topology.dp_size}, "
                    f"and {name} would share it out again among {processes} processes: samples would be "
                    f"lost. Keep it out of prepare() and train_dataset, and iterate loader = "
                    f"ss.StreamingLoader(ds, batch_size), or give that to StreamingTrainer(..., "
                    f"train_loader=loader). The other way is to open it with topology=ss.Topology(), so "
                    f"that {name} alone shares it out"
                )
        frame = frame.f_back


def _processes(wrapper: Any) -> int:
    """Among how many processes it shares out."""
    return int(getattr(wrapper, "num_processes", None) or wrapper.state.num_processes)
