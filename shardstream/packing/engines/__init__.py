"""Where the tasks of a pack run: on this machine, on a Ray cluster, or in an executor that the caller has."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from shardstream.packing.engines.engine import Counts as Counts
    from shardstream.packing.engines.engine import Engine as Engine
    from shardstream.packing.engines.engine import Needs as Needs
    from shardstream.packing.engines.engine import Workers as Workers
    from shardstream.packing.engines.processes import Local as Local
    from shardstream.packing.engines.ray import Ray as Ray
    from shardstream.packing.engines.submit import Submit as Submit

# Imported at first use: a worker process imports this package, and starts sooner without them.
_HOMES = {
    "Counts": "engine",
    "Engine": "engine",
    "Local": "processes",
    "Needs": "engine",
    "Ray": "ray",
    "Submit": "submit",
    "Workers": "engine",
}

__all__ = ["Counts", "Engine", "Local", "Needs", "Ray", "Submit", "Workers"]

if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*__all__, *(name for name in globals() if name.startswith("__"))])
