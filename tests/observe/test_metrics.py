"""The metrics: their names, their values against the snapshots, and that the dashboard uses them."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families as parsed

from shardstream.counters.layout import COUNTERS, STAGES
from shardstream.observe.exposition import Family, render
from shardstream.observe.metrics import families
from tests.observe.made import made

DOCS = Path(__file__).parents[2] / "docs"
ALL = ("loader", "pack", "warm", "checkpoint", "weights", "logs")


def full() -> list[Family]:
    """The metrics of a process that does all that there is to do."""
    events = {stage.name: [3.0, 4096.0] for stage in STAGES}
    return list(families([made(activities=ALL, events=events, waiting_since=1.0)]))


def test_all_counters_and_stages_have_a_metric_in_base_units() -> None:
    found = {family.name: family for family in full()}
    assert len([name for name, family in found.items() if family.samples]) == 4 + len(COUNTERS) + len(STAGES)
    for name, family in found.items():
        assert re.fullmatch(r"shardstream_[a-z_]+", name)
        assert name.endswith("_total") == (family.kind == "counter")
        assert not re.search(r"_(ms|us|milliseconds|mib|kib|mb)(_|$)", name)
        assert name.endswith(("_seconds", "_bytes")) or family.kind != "histogram"


def test_values_are_those_of_the_snapshots() -> None:
    ranks = [
        made(rank=rank, pid=10 + rank, samples=100.0 * rank, events={"wait": [0.01] * rank})
        for rank in range(4)
    ]
    found = {family.name: family for family in parsed(render(families(ranks)).decode())}
    samples = {sample.labels["rank"]: sample.value for sample in found["shardstream_samples"].samples}
    assert samples == {"0": 0, "1": 100, "2": 200, "3": 300}
    waits = found["shardstream_wait_seconds"].samples
    counts = {sample.labels["rank"]: sample.value for sample in waits if sample.name.endswith("_count")}
    assert counts == {"1": 1, "2": 2, "3": 3}
    info = found["shardstream_process_info"].samples[0].labels
    assert (info["job_name"], info["kind"], info["url"]) == ("train.py", "loader", "s3://bucket/corpus")
    # What nobody does is not there, and `job` is the label of Prometheus itself.
    assert "shardstream_pack_tasks" not in found
    assert all("job" not in sample.labels for family in found.values() for sample in family.samples)


def test_processes_of_two_containers_are_two() -> None:
    both = [made(pid=7, samples=1.0), made(pid=7, samples=2.0)]
    both[1].header.host = "other"
    lines = render(families(both)).decode().splitlines()
    names = [line.rpartition(" ")[0] for line in lines if not line.startswith("#")]
    assert len(set(names)) == len(names)
    assert sum(name.startswith("shardstream_samples_total") for name in names) == 2


@settings(max_examples=40)
@given(st.lists(st.floats(1e-6, 1e4), min_size=1, max_size=50))
def test_buckets_have_the_events_below_their_bounds(waits: list[float]) -> None:
    found = {family.name: family for family in families([made(events={"wait": waits})])}
    ((_, buckets),) = found["shardstream_wait_seconds"].samples
    below = 0
    for bound, count in zip(buckets.bounds, buckets.counts, strict=False):
        below += count
        assert below == sum(wait < bound for wait in waits)
    assert sum(buckets.counts) == len(waits)
    assert math.isclose(buckets.total, sum(waits))


def test_the_dashboard_asks_for_metrics_that_exist() -> None:
    text = (DOCS / "grafana-dashboard.json").read_text()
    board = json.loads(text)
    there = set()
    for family in full():
        there |= {
            f"{family.name}{end}"
            for end in ("", "_bucket", "_sum", "_count")[: 4 if family.kind == "histogram" else 1]
        }
    asked = set(re.findall(r"shardstream_[a-z_]+", text))
    assert asked <= there
    assert len(asked) > 30
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])


def test_the_checker_of_prometheus_has_nothing_to_say() -> None:
    promtool = shutil.which("promtool")
    if promtool is None:  # the parser of its client has read it in the other tests
        return
    done = subprocess.run(
        [promtool, "check", "metrics"], input=render(full()), capture_output=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, b"")
