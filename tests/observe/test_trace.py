"""Traces: what the file says, by a small reader of protobuf, and by Perfetto's own schema if it is installed.

With the package `perfetto`, and TRACE_PROCESSOR=/path/to/trace_processor_shell, that one opens it, too.
"""

from __future__ import annotations

import os
import struct
import sys
import threading
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import shardstream as ss
from shardstream.counters.layout import stage
from shardstream.counters.recorder import NO_LOADER, listening
from shardstream.observe import tracing


def fields(data: bytes) -> dict[int, list[Any]]:
    """The fields of a protobuf message by number: integers, or bytes."""
    found: dict[int, list[Any]] = defaultdict(list)
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while at < len(data):
        tag = varint()
        if tag & 7 == 0:
            found[tag >> 3].append(varint())
        elif tag & 7 == 1:
            found[tag >> 3] += struct.unpack_from("<Q", data, at)
            at += 8
        else:
            assert tag & 7 == 2
            size = varint()
            found[tag >> 3].append(data[at : at + size])
            at += size
    return found


class Drawn(NamedTuple):
    track: int
    name: str
    start: int
    end: int
    depth: int
    flows: tuple[int, ...]


def read(path: Path) -> tuple[list[Drawn], dict[int, str]]:
    """The slices of a file, and the names of its threads by track."""
    names: dict[int, str] = {}
    open_slices: dict[int, list[tuple[str, int, tuple[int, ...]]]] = defaultdict(list)
    found: list[Drawn] = []
    last: dict[int, int] = {}
    for raw in fields(path.read_bytes())[1]:
        packet = fields(raw)
        for descriptor in map(fields, packet[60]):
            if descriptor[4]:
                names[descriptor[1][0]] = fields(descriptor[4][0])[5][0].decode()
        for event in map(fields, packet[11]):
            (track,), (at,), (kind,) = event[11], packet[8], event[9]
            assert track in names
            assert at >= last.get(track, 0)
            last[track] = at
            if kind == 1:
                open_slices[track].append((event[23][0].decode(), at, tuple(event[47])))
            else:
                name, start, flows = open_slices[track].pop()
                found.append(Drawn(track, name, start, at, len(open_slices[track]), flows))
    assert not any(open_slices.values())
    return found, names


@pytest.fixture
def compressed(tmp_path: Path) -> str:
    """A dataset of 8 frames, which have to be decompressed."""
    with ss.Writer(tmp_path / "data", frame_size="64KiB") as writer:
        for number in range(64):
            writer.write({"__key__": f"{number}", "bin": os.urandom(8 << 10)})
    return str(tmp_path / "data")


def transformed(sample: Any) -> Any:
    return sample


def test_arrows_go_from_frames_to_batches_to_steps(tmp_path: Path, compressed: str) -> None:
    ds = ss.StreamingDataset(compressed, transform=transformed)
    loader = ss.StreamingLoader(ds, batch_size=8, threads=2)
    path = tmp_path / "run.pftrace"
    with ss.observe.trace(path) as running:
        assert len(list(loader)) == 8
        assert running.running
    assert not running.running
    assert running.dropped == 0
    found, names = read(path)
    assert {"fetch", "decompress", "batch", "transform", "step"} <= {each.name for each in found}
    assert {"MainThread", "shardstream-build"} <= set(names.values())
    ends: dict[int, list[Drawn]] = defaultdict(list)
    for each in sorted(found, key=lambda each: each.start):
        for flow in each.flows:
            ends[flow].append(each)
    pairs = {(one.name, other.name) for flow in ends.values() for one in flow[:1] for other in flow[1:]}
    assert pairs == {("fetch", "batch"), ("batch", "step")}
    steps = [each for each in found if each.name == "step"]
    assert all(each.flows for each in steps)
    assert all(each.depth for each in found if each.name in ("decompress", "transform"))
    assert_perfetto_reads(path, len(found))


def assert_perfetto_reads(path: Path, slices: int) -> None:
    """Perfetto's schema knows each field; and its trace_processor, if there is one, finds the same slices."""
    try:
        from perfetto.protos.perfetto.trace import perfetto_trace_pb2 as schema
    except ImportError:
        return
    known = schema.Trace.FromString(path.read_bytes())
    events = [packet.track_event for packet in known.packet if packet.HasField("track_event")]
    assert len(events) == 2 * slices
    assert known.packet[1].clock_snapshot.primary_trace_clock == 1
    known.DiscardUnknownFields()  # a wrong number, or a wrong type
    assert known.ByteSize() == path.stat().st_size
    shell = os.environ.get("TRACE_PROCESSOR")
    if shell:
        from perfetto.trace_processor import TraceProcessor, TraceProcessorConfig

        with TraceProcessor(trace=str(path), config=TraceProcessorConfig(bin_path=shell)) as processor:
            (row,) = processor.query("select count(*) as n from slice")
            assert row.n == slices
            (row,) = processor.query("select count(*) as n from flow")
            assert row.n > 0
            (row,) = processor.query("select sum(value) as n from stats where severity = 'error'")
            assert not row.n


def test_the_clock_is_that_of_the_profiler_of_torch(tmp_path: Path) -> None:
    import json
    import time

    torch = pytest.importorskip("torch")
    path, theirs = tmp_path / "run.pftrace", tmp_path / "torch.json"
    cpu = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=cpu) as profile, ss.observe.trace(path):
        started = time.monotonic()
        with torch.profiler.record_function("mine"):
            torch.ones(1000).sum()
        NO_LOADER.span(stage("step"), started, time.monotonic())
    profile.export_chrome_trace(str(theirs))
    told = json.loads(theirs.read_text())
    (mine,) = (each for each in told["traceEvents"] if each.get("name") == "mine" and each["ph"] == "X")
    start = told.get("baseTimeNanoseconds", 0) + mine["ts"] * 1000
    (step,) = read(path)[0]
    apart = 1e6  # nanoseconds
    assert step.start - apart <= start
    assert start + mine["dur"] * 1000 <= step.end + apart


def test_it_ends_by_itself_and_another_one_may_begin(tmp_path: Path) -> None:
    first = ss.observe.trace(tmp_path / "one", seconds=0.05)
    with pytest.raises(ss.StateError, match="one"):
        ss.observe.trace(tmp_path / "two")
    written = threading.Event()
    while not (tmp_path / "one").exists():
        written.wait(0.01)
    first.stop()
    assert not listening()
    with ss.observe.trace(tmp_path / "two"):
        NO_LOADER.span(stage("put"), 1.0, 2.0)
    assert [each.name for each in read(tmp_path / "two")[0]] == ["put"]


def test_what_cannot_be_is_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(ss.OptionError, match="no such folder"):
        ss.observe.trace(tmp_path / "none" / "run")
    with pytest.raises(ss.OptionError, match="seconds"):
        ss.observe.trace(tmp_path / "run", seconds=0)
    assert not listening()


def test_threads_that_were_not_there_together_share_a_line(tmp_path: Path) -> None:
    def work(number: int) -> None:
        NO_LOADER.span(stage("task"), number, number + 0.5)
        NO_LOADER.span(stage("fetch"), number + 0.1, number + 0.9)  # it outlives the one that it begins in

    with ss.observe.trace(tmp_path / "run"):
        for number in (1, 2, 3):
            thread = threading.Thread(target=work, args=(number,), name="worker")
            thread.start()
            thread.join()
    found, names = read(tmp_path / "run")
    assert list(names.values()) == ["worker"]
    assert [each.name for each in sorted(found, key=lambda each: each.start)] == ["task", "fetch"] * 3


def test_threads_that_go_on_do_not_disturb_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracing, "_EVENTS", 5000)
    over, often = threading.Event(), sys.getswitchinterval()
    running = ss.observe.trace(tmp_path / "run")

    def work() -> None:
        while not over.is_set():
            NO_LOADER.span(stage("task"), 1.0, 2.0)
            running._note(stage("task"), 1.0, 2.0, 1, None)  # one that is late

    thread = threading.Thread(target=work)
    thread.start()
    sys.setswitchinterval(1e-5)
    try:
        over.wait(0.1)
        running.stop()
    finally:
        sys.setswitchinterval(often)
        over.set()
        thread.join()
    assert read(tmp_path / "run")[0]


def test_what_threads_that_ended_leave_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def work(number: int) -> None:
        for at in range(10):
            NO_LOADER.span(stage("task"), number * 10 + at, number * 10 + at + 0.5)

    monkeypatch.setattr(tracing, "_ENDED", 25)
    with ss.observe.trace(tmp_path / "run") as running:
        for number in range(6):
            thread = threading.Thread(target=work, args=(number,))
            thread.start()
            thread.join()
    found, _ = read(tmp_path / "run")
    assert (len(found), running.dropped) == (30, 30)  # those of the last thread, and of two before it


def test_a_fork_does_not_write_the_trace(tmp_path: Path) -> None:
    running = ss.observe.trace(tmp_path / "run")
    pid = os.fork()
    if not pid:
        running.stop()
        os._exit(running.running or (tmp_path / "run").exists())
    assert os.waitpid(pid, 0)[1] == 0
    assert running.running
    running.stop()
    assert (tmp_path / "run").exists()
