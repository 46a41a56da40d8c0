"""The file of a trace: Perfetto's TrackEvents, which ui.perfetto.dev and trace_processor open.

The few messages that are needed are encoded here. Their fields and numbers are those of `trace_packet.proto`,
`track_event.proto`, `track_descriptor.proto` and `clock_snapshot.proto` of Perfetto.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

__all__ = ["Clocks", "Lane", "Slice", "encoded"]

_REALTIME, _MONOTONIC = 1, 3  # clocks of Perfetto
_BEGIN, _END = 1, 2  # types of events
_SEQUENCE = 1  # all packets are of one writer
_CLEARED = 1  # flag of its first packet: nothing was lost before


@dataclass
class Slice:
    """Something that a thread did.

    Attributes:
        name: What it was.
        start: When it began, in nanoseconds since 1970.
        end: When it ended.
        count: How many events of this kind it stands for.
        flows: The numbers of the arrows that go through it.
    """

    name: str
    start: int
    end: int
    count: int = 1
    flows: list[int] = field(default_factory=list)


@dataclass
class Lane:
    """What is drawn on one line: the slices of a thread.

    Attributes:
        name: Of the thread.
        thread: Its id in the operating system.
        slices: In any order. They may lie in each other.
    """

    name: str
    thread: int
    slices: list[Slice]


@dataclass(frozen=True)
class Clocks:
    """What two clocks said at the same moment, in nanoseconds."""

    realtime: int
    monotonic: int


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _number(tag: int, value: int) -> bytes:
    return _varint(tag << 3) + _varint(value)


def _fixed(tag: int, value: int) -> bytes:
    return _varint(tag << 3 | 1) + struct.pack("<Q", value)


def _bytes(tag: int, value: bytes) -> bytes:
    return _varint(tag << 3 | 2) + _varint(len(value)) + value


def _text(tag: int, value: str) -> bytes:
    return _bytes(tag, value.encode())


def _packet(content: bytes) -> bytes:
    return _bytes(1, content + _number(10, _SEQUENCE))


def encoded(process: int, name: str, clocks: Clocks, lanes: Sequence[Lane]) -> Iterator[bytes]:
    """The parts of a trace file.

    Args:
        process: The process id.
        name: Of the program.
        clocks: At the end of the trace.
        lanes: The threads.
    """
    yield _packet(_number(13, _CLEARED) + _bytes(59, _number(58, _REALTIME)))
    both = (_REALTIME, clocks.realtime), (_MONOTONIC, clocks.monotonic)
    snapshot = b"".join(_bytes(1, _number(1, clock) + _number(2, at)) for clock, at in both)
    # The times of all events are real time, on which torch.profiler's are, too.
    yield _packet(_bytes(6, snapshot + _number(2, _REALTIME)))
    whole = _number(1, process) + _text(6, name)
    yield _packet(_bytes(60, _number(1, process) + _bytes(3, whole)))
    for number, lane in enumerate(lanes, 1):
        track = (process << 20) + number
        thread = _number(1, process) + _number(2, lane.thread) + _text(5, lane.name)
        yield _packet(_bytes(60, _number(1, track) + _number(5, process) + _bytes(4, thread)))
        yield from _events(track, lane.slices)


def _events(track: int, slices: Iterable[Slice]) -> Iterator[bytes]:
    """Begins and ends, in the order of time; a slice ends at the latest with the one that it lies in."""
    tail = _number(11, track)
    open_ends: list[int] = []
    for each in sorted(slices, key=lambda each: (each.start, -each.end)):
        while open_ends and open_ends[-1] <= each.start:
            yield _event(open_ends.pop(), _number(9, _END) + tail)
        end = min(each.end, open_ends[-1]) if open_ends else each.end
        open_ends.append(end)
        parts = [_number(9, _BEGIN), tail, _text(22, "shardstream"), _text(23, each.name)]
        if each.count > 1:
            parts.append(_bytes(4, _text(10, "count") + _number(3, each.count)))
        parts += [_fixed(47, flow) for flow in each.flows]
        yield _event(each.start, b"".join(parts))
    while open_ends:
        yield _event(open_ends.pop(), _number(9, _END) + tail)


def _event(at: int, content: bytes) -> bytes:
    return _packet(_number(8, at) + _bytes(11, content))
