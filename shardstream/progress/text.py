"""The progress in words: as much of it as a line has room for."""

from __future__ import annotations

from shardstream.format.shown import counted, duration
from shardstream.format.sizes import human_size
from shardstream.progress.numbers import Progress

__all__ = ["amount", "in_words", "percent"]

_SPARE = 5  # the number of the parts that go before bytes become a share


def amount(now: Progress) -> tuple[int, int]:
    """What measures the work best: done, and of how much; the latter is 0 if nobody knows."""
    if now.total_bytes or not now.total_samples:  # an export only knows its samples
        return now.done_bytes, now.total_bytes
    return now.samples, now.total_samples


def percent(now: Progress) -> str:
    """Such as "25 %"; "" if the whole is not known."""
    done, total = amount(now)
    return f"{100 * min(done, total) // total} %" if total else ""


def in_words(now: Progress, room: int | None = None) -> str:
    """The numbers, the most useful ones if there is no room for all.

    Args:
        now: The progress.
        room: How many letters there is room for; None: any number.
    """
    parts = [(number, text) for number, text in _parts(now) if text]
    if room is None:
        return _joined(parts)
    parts = _fitting(parts, room, _SPARE)
    if len(_joined(parts)) > room and percent(now):
        # A share is shorter than the bytes that it is made of.
        parts = [(0, percent(now)), *(part for part in parts if part[0] > 0)]
    return _joined(_fitting(parts, room, 1))


def _fitting(parts: list[tuple[int, str]], room: int, least: int) -> list[tuple[int, str]]:
    """The parts that have room, with all whose numbers are below `least`."""
    kept = list(parts)
    while len(_joined(kept)) > room and (spare := [part for part in kept if part[0] >= least]):
        kept.remove(max(spare, key=lambda part: part[0]))
    return kept


def _joined(parts: list[tuple[int, str]]) -> str:
    return ", ".join(text for _, text in parts)


def _parts(now: Progress) -> list[tuple[int, str]]:
    """The parts in their order, each with a number: those of the largest numbers go first."""
    samples = counted(now.samples, "sample") if now.samples else ""
    if now.total_samples:
        samples = f"{now.samples:,} of {counted(now.total_samples, 'sample')}"
    size = human_size(now.done_bytes) if now.done_bytes else ""
    if now.total_bytes:
        size = f"{human_size(now.done_bytes)} of {human_size(now.total_bytes)}"
    left = f"{duration(now.seconds_left)} left" if now.total_bytes and now.bytes_per_second else ""
    if now.total_bytes and now.done_bytes >= now.total_bytes:
        left = f"in {duration(now.seconds)}"
    return [
        (0 if now.total_bytes else 2, size),
        (3, f"{human_size(now.bytes_per_second)}/s" if size else ""),
        (5 if now.total_bytes else 0, samples),
        (1, f"{now.rejected:,} rejected" if now.rejected else ""),
        (7, f"{now.nodes:,} nodes" if now.nodes > 1 else ""),
        (4, f"{counted(now.lost, 'worker')} lost" if now.lost else ""),
        (6, f"{now.retried:,} retried" if now.retried else ""),
        (2, left),
    ]
