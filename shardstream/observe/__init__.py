"""Watching a job: traces of its threads, an endpoint that tells what its processes count, and pictures."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from shardstream.observe.contact import contact_sheet as contact_sheet
    from shardstream.observe.instruments import otel as otel
    from shardstream.observe.serving import Endpoint as Endpoint
    from shardstream.observe.serving import serve as serve
    from shardstream.observe.stalls import plot_stalls as plot_stalls
    from shardstream.observe.tracing import Trace as Trace
    from shardstream.observe.tracing import trace as trace

# Imported at first use.
_HOMES = {
    "Endpoint": "shardstream.observe.serving",
    "Trace": "shardstream.observe.tracing",
    "contact_sheet": "shardstream.observe.contact",
    "otel": "shardstream.observe.instruments",
    "plot_stalls": "shardstream.observe.stalls",
    "serve": "shardstream.observe.serving",
    "trace": "shardstream.observe.tracing",
}

__all__ = ["Endpoint", "Trace", "contact_sheet", "otel", "plot_stalls", "serve", "trace"]

if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        if name not in _HOMES:
            raise AttributeError(f"module 'shardstream.observe' has no attribute {name!r}")
        return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*__all__, *(name for name in globals() if name.startswith("__"))])
