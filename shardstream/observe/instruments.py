"""The counters of this process as instruments of OpenTelemetry, for any exporter of the program."""

from __future__ import annotations

import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from shardstream.counters.layout import COUNTERS, STAGES, Counter, Stage
from shardstream.counters.snapshots import Snapshot, read_all, read_own
from shardstream.errors import OptionError, require
from shardstream.observe.metrics import counts_here, waiting_seconds
from shardstream.version import __version__

if TYPE_CHECKING:
    from opentelemetry.metrics import CallbackOptions, Meter, MeterProvider, Observation

__all__ = ["otel"]

_WINDOW = 60.0  # seconds over which percentiles are taken
_PERCENTILES = (50, 95, 99)
_UNITS = {"bytes": "By", "seconds": "s", "": "1"}  # UCUM, as the specification wants

_made: weakref.WeakSet[MeterProvider] = weakref.WeakSet()
_lock = threading.Lock()


def otel(meter_provider: MeterProvider | None = None, *, node: bool = False) -> None:
    """Give OpenTelemetry what this process counts, as observable instruments with names `shardstream.*`.

    Call it once, after the program has set its MeterProvider. The numbers are read when the provider collects
    them, so that nothing is done for each sample. An OpenTelemetry histogram cannot be observed: a stage has
    a counter of its events, a counter of their sum, and a gauge with the percentiles of the last minute.

    Args:
        meter_provider: Where to; None is the global one of the program.
        node: Observe all processes of this user on this machine, not this process alone. Then one process of
            a node should call it.

    Raises:
        MissingExtraError: The API of OpenTelemetry is not installed.
        OptionError: It was called for this provider before: each number would be counted twice.
    """
    metrics = require("opentelemetry.metrics", "otel")
    provider = metrics.get_meter_provider() if meter_provider is None else meter_provider
    with _lock:
        if provider in _made:
            raise OptionError("this MeterProvider observes shardstream already; call otel() once")
        _Instruments(provider.get_meter("shardstream", __version__), metrics.Observation, node)
        _made.add(provider)


class _Instruments:
    """All instruments of one meter, on one source of snapshots."""

    def __init__(self, meter: Meter, observation: type[Observation], node: bool) -> None:
        self._observation, self._looks = observation, _Looks(node)
        for counter in COUNTERS:
            waits = counter.name == "waiting_since"
            name = f"shardstream.{'waiting' if waits else counter.name}"
            make: Callable[..., Any] = meter.create_observable_gauge
            if counter.kind == "sum":
                make = meter.create_observable_counter
            meaning = "how long the loop has waited for its next batch by now" if waits else counter.help
            make(name, [self._counted(counter)], _UNITS[counter.unit], meaning)
        for stage in STAGES:
            name, unit = f"shardstream.{stage.name}", _UNITS[stage.unit]
            meter.create_observable_counter(f"{name}.count", [self._events(stage)], "1", stage.help)
            meter.create_observable_counter(f"{name}.sum", [self._sums(stage)], unit, stage.help)
            meter.create_observable_gauge(
                f"{name}.percentile",
                [self._percentiles(stage)],
                unit,
                f"{stage.help}: percentiles of the last minute",
            )

    def _counted(self, counter: Counter) -> Callable[[CallbackOptions], Iterable[Observation]]:
        def values(process: Snapshot) -> Iterator[tuple[float, dict[str, Any]]]:
            if counts_here(process, counter):
                waits = counter.name == "waiting_since"
                yield waiting_seconds(process) if waits else process.values[counter.name], {}

        return self._callback(values)

    def _events(self, stage: Stage) -> Callable[[CallbackOptions], Iterable[Observation]]:
        return self._callback(lambda process: _if_any(process, stage, process.stages[stage.name].count))

    def _sums(self, stage: Stage) -> Callable[[CallbackOptions], Iterable[Observation]]:
        return self._callback(lambda process: _if_any(process, stage, process.stages[stage.name].sum))

    def _percentiles(self, stage: Stage) -> Callable[[CallbackOptions], Iterable[Observation]]:
        def values(process: Snapshot) -> Iterator[tuple[float, dict[str, Any]]]:
            recent = process.stages[stage.name]
            if (before := self._looks.before(process)) is not None:
                recent = recent.since(before.stages[stage.name])
            if recent.count:
                for percent in _PERCENTILES:
                    yield recent.percentile(percent), {"percentile": percent}

        return self._callback(values)

    def _callback(
        self, values: Callable[[Snapshot], Iterable[tuple[float, dict[str, Any]]]]
    ) -> Callable[[CallbackOptions], Iterable[Observation]]:
        def observe(_: CallbackOptions) -> Iterator[Observation]:
            for process in self._looks.now(values):
                attributes = _attributes(process)
                for value, more in values(process):
                    yield self._observation(value, attributes | more)

        return observe


def _if_any(process: Snapshot, stage: Stage, value: float) -> list[tuple[float, dict[str, Any]]]:
    return [(value, {})] if process.stages[stage.name].count else []


def _attributes(process: Snapshot) -> dict[str, Any]:
    header = process.header
    found: dict[str, Any] = {"job": header.job, "pid": header.pid, "host": header.host}
    return found | {"rank": header.rank} if header.rank >= 0 else found


class _Looks:
    """Snapshots: one for all instruments of a collection, and one that is about a minute old.

    A collection asks each instrument once. So one that asks again begins the next collection.
    """

    def __init__(self, node: bool) -> None:
        self._node, self._lock = node, threading.Lock()
        self._asked: set[object] = set()  # who has had the last snapshot
        self._past: deque[tuple[float, dict[tuple[int, int, str], Snapshot]]] = deque()

    def now(self, instrument: object) -> Sequence[Snapshot]:
        """The processes at this collection."""
        with self._lock:
            time_now = time.monotonic()
            if not self._past or instrument in self._asked:
                self._asked.clear()
                found = read_all() if self._node else [read_own()]
                self._past.append((time_now, {_key(process): process for process in found}))
            self._asked.add(instrument)
            # The first one that is kept is the last one that is older than a minute.
            while len(self._past) > 1 and self._past[1][0] <= time_now - _WINDOW:
                self._past.popleft()
            return list(self._past[-1][1].values())

    def before(self, process: Snapshot) -> Snapshot | None:
        """The same process about a minute ago, or at the first collection; None at the first one."""
        with self._lock:
            return self._past[0][1].get(_key(process)) if len(self._past) > 1 else None


def _key(process: Snapshot) -> tuple[int, int, str]:
    return process.header.pid, process.header.start, process.header.host
