"""The instruments of OpenTelemetry, collected by its SDK."""

from __future__ import annotations

import itertools
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from shardstream.counters.layout import COUNTERS, STAGES
from shardstream.errors import MissingExtraError, OptionError
from shardstream.observe.instruments import otel
from tests.observe.children import counting


def collected(reader: InMemoryMetricReader) -> dict[str, Any]:
    data = reader.get_metrics_data()
    scope = data.resource_metrics[0].scope_metrics[0]
    assert scope.scope.name == "shardstream"
    return {metric.name: metric for metric in scope.metrics}


def test_all_processes_of_a_node(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SHARDSTREAM_COUNTERS", str(tmp_path))
    reader = InMemoryMetricReader()
    with counting(2, tmp_path, samples=50, remote_bytes=1000, waiting_since=1.0):
        provider = MeterProvider([reader])
        otel(provider, node=True)
        found = collected(reader)
        provider.shutdown()
    points = {point.attributes["rank"]: point for point in found["shardstream.samples"].data.data_points}
    assert {rank: point.value for rank, point in points.items()} == {0: 50, 1: 50}
    assert points[0].attributes["job"] == "train.py"
    assert found["shardstream.samples"].data.is_monotonic
    assert (found["shardstream.remote_bytes"].unit, found["shardstream.waiting"].unit) == ("By", "s")
    assert all(point.value > 0 for point in found["shardstream.waiting"].data.data_points)


def test_this_process_alone_with_percentiles(monkeypatch: pytest.MonkeyPatch) -> None:
    from shardstream.counters import recorder
    from shardstream.counters.layout import stage

    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])
    otel(provider)
    recorder.observe(stage("save"), 0.25)
    found = collected(reader)
    provider.shutdown()
    percentiles = {
        point.attributes["percentile"]: point.value
        for point in found["shardstream.save.percentile"].data.data_points
    }
    assert set(percentiles) == {50, 95, 99}
    assert found["shardstream.save.count"].data.data_points[0].value >= 1
    assert found["shardstream.save.sum"].unit == "s"


def test_a_collection_sees_one_snapshot_however_slow_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    from shardstream.counters import recorder
    from shardstream.counters.layout import stage
    from shardstream.observe import instruments

    clock = itertools.count(step=40)  # seconds between any two looks at the clock
    monkeypatch.setattr(instruments, "time", types.SimpleNamespace(monotonic=lambda: float(next(clock))))
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])
    otel(provider)
    counts = []
    for number in range(3):
        recorder.observe(stage("save"), 0.25)
        found = collected(reader)
        counts.append(found["shardstream.save.count"].data.data_points[0].value)
        assert "shardstream.save.percentile" in found, f"collection {number}"
    provider.shutdown()
    assert [count - counts[0] for count in counts] == [0, 1, 2]


def test_each_number_has_one_name() -> None:
    names = [counter.name for counter in COUNTERS] + [stage.name for stage in STAGES]
    assert len(set(names)) == len(names)


def test_twice_is_refused_and_a_missing_api_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    provider = MeterProvider([])
    otel(provider)
    with pytest.raises(OptionError, match="once"):
        otel(provider)
    provider.shutdown()
    monkeypatch.setitem(sys.modules, "opentelemetry.metrics", None)
    with pytest.raises(MissingExtraError, match=r"shardstream\[otel\]"):
        otel()
