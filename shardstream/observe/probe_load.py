"""Loads on a store: one request at a time, so many at a time, and so many a second."""

from __future__ import annotations

import contextlib
import os
import random
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import zstandard

from shardstream.observe.probe_limits import Limits
from shardstream.observe.probe_profile import Latency, Level, OpenLoop, Sweep, knee_of, percentile
from shardstream.observe.probe_ranges import Ranges
from shardstream.storage.cancellation import Cancelled, CancelScope, working_for

__all__ = [
    "busy_cores", "busy_seconds", "calibrated", "closed_loop", "keep_busy", "latency", "open_loop", "sweep",
]  # fmt: skip

Read = Callable[[int], int]  # reads so many bytes, and says how many came
_ROUNDS = 3  # requests of each worker of a closed loop, at least; the first one is not counted
# Requests that each level of a sweep may send beyond its rounds, so that low ones are measured, too.
_EVEN = 16
_GAIN = 1.05  # a doubling that brings less is no gain
_STILL = 3  # doublings without a gain after which the sweep ends: of two, both may be disturbed
_TURN = 0.3  # seconds of all cores, and of one: in a shorter one the start of the threads would count
_ARRIVALS = 256  # threads for requests that arrive by chance, at most


def latency(read: Read, size: int, limits: Limits) -> Latency | None:
    """Requests one after the other, three and as many as the limits allow; None if the bytes allow none."""
    times: list[float] = []
    read_one = _timed(read)
    for _ in range(min(_ROUNDS, limits.bytes_left // max(1, size))):
        limits.count(size)
        times.append(read_one(size)[1])
    while limits.take(size):
        times.append(read_one(size)[1])
    if not times:
        return None
    found = [1e3 * value for value in sorted(times)]
    return Latency(size, len(found), *(percentile(found, share) for share in (0.5, 0.95, 0.99)))


def closed_loop(read: Read, size: int, concurrency: int, limits: Limits, idle: float = 0.0) -> Level | None:
    """So many threads, each of which sends its next request when its last one is answered.

    What comes before each thread has had one answer does not count: connections are opened then. What is
    answered after the first thread has stopped does not count either.

    Args:
        read: Reads a range.
        size: Of a range, in bytes.
        concurrency: The number of threads.
        limits: When they stop. If the bytes do not allow three rounds, nothing is measured.
        idle: Cores of this machine that other processes had before.

    Returns:
        The level, or None.
    """
    if limits.bytes_left < _ROUNDS * concurrency * size:
        return None
    ends: list[tuple[float, float, int]] = []  # when a request was answered, after how long, and its bytes
    stopped: list[float] = []
    errors: list[BaseException] = []
    scope, started = CancelScope(), time.monotonic()
    read_one = _timed(read)

    def work() -> None:
        try:
            with working_for(scope):
                rounds = 0
                while not (errors or scope.over or stopped):
                    if rounds < _ROUNDS:
                        limits.count(size)  # looked at above
                    elif not limits.take(size):
                        break
                    came, took = read_one(size)
                    ends.append((time.monotonic(), took, came))
                    rounds += 1
        except Cancelled:
            pass
        except BaseException as error:  # noqa: BLE001 - raised by the thread that waits
            errors.append(error)
        finally:
            stopped.append(time.monotonic())

    before, machine = time.process_time(), busy_seconds()
    with _running(work, concurrency, scope):
        pass
    cpu, machine = time.process_time() - before, busy_seconds() - machine
    whole = time.monotonic() - started
    if errors:
        raise errors[0]
    ends.sort()
    total = sum(came for _, _, came in ends)
    counted = [one for one in ends[concurrency:] if one[0] <= min(stopped)]
    if not counted or not total:
        return None
    seconds = max(counted[-1][0] - ends[concurrency - 1][0], 1e-6)
    took = sorted(1e3 * one[1] for one in counted)
    rate = sum(one[2] for one in counted) / seconds
    others = max(0.0, machine - idle * whole)
    p50, p99 = percentile(took, 0.5), percentile(took, 0.99)
    return Level(
        concurrency, len(counted), len(counted) / seconds, rate, p50, p99,
        cpu / total * 1e9, max(cpu, others) / total * 1e9,
    )  # fmt: skip


def sweep(ranges: Ranges, size: int, limits: Limits, most: int, idle: float = 0.0) -> Sweep | None:
    """Closed loops of doubling concurrency, until three doublings bring nothing.

    Args:
        ranges: What is read.
        size: Of a range, in bytes.
        limits: Of all levels together.
        most: The highest concurrency.
        idle: See `closed_loop`.
    """
    levels: list[Level] = []
    concurrency, best, still = 1, 0.0, 0
    while concurrency <= most and still < _STILL:
        following = [2**power for power in range(concurrency.bit_length() - 1, most.bit_length())]
        weight = (_ROUNDS * concurrency + _EVEN) / sum(_ROUNDS * each + _EVEN for each in following)
        ranges.make_cold()
        fresh = ranges.fresh(size)
        if fresh is not None and fresh < _ROUNDS * size:
            limits.note(f"cold ranges of {size} bytes: the data is so small that some came from memory")
            fresh = None
        share = max(weight * limits.bytes_left, float(_ROUNDS * concurrency * size))
        share = share if fresh is None else min(share, fresh)
        part = limits.part(limits.seconds_left / len(following), share / max(1, limits.size))
        over = bool(levels) and limits.over  # one level comes, however slow the store is
        level = None if over else closed_loop(ranges.read, size, concurrency, part, idle)
        if level is None:
            limits.note(
                f"concurrency of {size} byte ranges: none above {concurrency // 2}, "
                "by the limits or the size of the data"
            )
            break
        levels.append(level)
        still = 0 if level.bytes_per_second >= _GAIN * best else still + 1
        best = max(best, level.bytes_per_second)
        concurrency *= 2
    return Sweep(size, tuple(levels), knee_of(levels)) if levels else None


def open_loop(
    read: Read, size: int, per_second: float, share: float, limits: Limits, seed: int = 0
) -> OpenLoop | None:
    """Requests that arrive at a mean rate, whether or not others are done; waiting for a thread counts."""
    draw, times, scope = random.Random(seed), [], CancelScope()
    errors: list[BaseException] = []
    read_one = _timed(read)

    def one(due: float) -> None:
        try:
            with working_for(scope):
                if not (errors or scope.over):
                    read_one(size)
                    times.append(1e3 * (time.monotonic() - due))
        except Cancelled:
            pass
        except BaseException as error:  # noqa: BLE001 - raised by the thread that waits
            errors.append(error)

    due = started = time.monotonic()
    pool = ThreadPoolExecutor(_ARRIVALS, "shardstream-probe")
    try:
        while not errors and limits.take(size):
            due += draw.expovariate(per_second)
            pause = due - time.monotonic()
            if pause > 0:
                time.sleep(pause)
            pool.submit(one, due)
        pool.shutdown(wait=True)
    finally:
        scope.end()
        pool.shutdown(wait=True, cancel_futures=True)
    if errors:
        raise errors[0]
    if not times or due == started:
        return None
    times.sort()
    shares = [percentile(times, part) for part in (0.5, 0.95, 0.99)]
    return OpenLoop(share, size, len(times), len(times) / (due - started), *shares)


def _timed(read: Read) -> Callable[[int], tuple[int, float]]:
    def run(size: int) -> tuple[int, float]:
        started = time.perf_counter()
        came = read(size)
        return came, time.perf_counter() - started

    return run


@contextlib.contextmanager
def _running(
    work: Callable[[], None], count: int, scope: CancelScope
) -> Iterator[Sequence[threading.Thread]]:
    """Threads that do some work. When the block is left, they have ended; after Ctrl-C, soon."""
    threads = [threading.Thread(target=work, name="shardstream-probe", daemon=True) for _ in range(count)]
    begun: list[threading.Thread] = []
    try:
        for thread in threads:
            thread.start()
            begun.append(thread)
        yield threads
        for thread in begun:
            thread.join()
    finally:
        scope.end()
        for thread in begun:
            thread.join()


def keep_busy(threads: int, seconds: float) -> tuple[float, float]:
    """Let so many threads decompress pieces of 256 KiB, beside other programs and within quotas.

    Returns:
        (how many cores they got, pieces for a second of their processor time).
    """
    piece = random.Random(0).randbytes(1 << 17) + bytes(1 << 17)
    data, until = zstandard.ZstdCompressor().compress(piece), time.monotonic() + seconds
    done: list[tuple[int, float]] = []

    def work() -> None:
        own, count, began = zstandard.ZstdDecompressor(), 0, time.thread_time()
        while not count or time.monotonic() < until:
            own.decompress(data)  # without Python's lock
            count += 1
        done.append((count, time.thread_time() - began))

    began = time.monotonic()
    with _running(work, threads, CancelScope()):
        pass
    wall, cpu = time.monotonic() - began, sum(taken for _, taken in done)
    return min(float(threads), cpu / wall), sum(count for count, _ in done) / max(1e-9, cpu)


def calibrated(count: int, seconds: float) -> tuple[float, float, float]:
    """What busy threads get, and do: all cores and one in turn, since other programs come and go.

    Returns:
        (how many cores `count` threads got, what one thread got of a core, what a core does in a second while
        all are busy, of what one does alone; at most 1). The medians of the turns.
    """
    turns = [
        (keep_busy(count, _TURN), keep_busy(1, _TURN)) for _ in range(max(1, round(seconds / 2 / _TURN)))
    ]
    return (
        statistics.median(together[0] for together, _ in turns),
        statistics.median(alone[0] for _, alone in turns),
        min(1.0, statistics.median(together[1] / alone[1] for together, alone in turns)),
    )


def busy_seconds() -> float:
    """Seconds of processor time of all processes of this machine so far; 0 if the system does not tell."""
    try:
        with open("/proc/stat", encoding="ascii") as file:
            words = file.readline().split()
        user, nice, system, _, _, irq, soft = map(int, words[1:8])
    except (OSError, ValueError):
        return 0.0
    return (user + nice + system + irq + soft) / os.sysconf("SC_CLK_TCK")


def busy_cores(seconds: float) -> float:
    """How many cores all processes of this machine have used, on the average, in the next seconds."""
    before, started = busy_seconds(), time.monotonic()
    time.sleep(seconds)
    return (busy_seconds() - before) / (time.monotonic() - started)
