"""The tables of `python -m benchmarks.advise`."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from typing import Any

WITHIN, WANTED = 0.15, 10  # of the measured time; settings of the twelve
SETTINGS, DOUBLING = 12, 2
DISTURBED = 0.1  # cores that other programs may take, on the average


def error(row: dict[str, Any]) -> float:
    """By how much the prediction differs from the measured median."""
    return float(row["predicted"] / statistics.median(row["seconds"]) - 1)


def line(row: dict[str, Any]) -> str:
    """One setting in words."""
    times = row["seconds"]
    return (
        f"{row['kind']}, {1e3 * row['latency']:.0f} ms, {row['ranks']} ranks: "
        f"{statistics.median(times):.2f} s "
        f"({min(times):.2f} to {max(times):.2f}), predicted {row['predicted']:.2f} s ({error(row):+.0%}), "
        f"by {row['bound']}; cores {row['cpu']:.2f} s, predicted {row['predicted_cpu']:.2f} s; "
        f"others {max(row['others']):.2f} cores; load {row['load']:.0f}"
    )


def report(found: dict[str, Any]) -> str:
    """All of it as Markdown."""
    return (
        "\n".join([*_epochs(found["rows"]), "", *_knees(found["knees"]), "", *_grids(found["grid"])]) + "\n"
    )


def _epochs(rows: list[dict[str, Any]]) -> Iterator[str]:
    near = sum(abs(error(row)) <= WITHIN for row in rows)
    yield "# advise beside the loader"
    yield ""
    yield "Made by `python -m benchmarks.advise`. An epoch without a cache and with new connections, until"
    yield "the slowest rank has it; the median of the rounds. Core seconds are those of the ranks; beside"
    yield "them are those of the store and the proxy. `others` is what other programs took of the machine, in"
    yield "cores. The rounds with the least of it were taken."
    yield ""
    yield (
        "| data | ms | ranks | seconds | from, to | predicted | error | bound | core s | predicted | "
        "store, core s | others | others, probe | load |"
    )
    yield "| --- " * 14 + "|"
    for row in rows:
        times = row["seconds"]
        yield (
            f"| {row['kind']} | {1e3 * row['latency']:.0f} | {row['ranks']} | "
            f"{statistics.median(times):.2f} | {min(times):.2f} to {max(times):.2f} | "
            f"{row['predicted']:.2f} | {error(row):+.0%} | {row['bound']} | "
            f"{row['cpu']:.2f} | {row['predicted_cpu']:.2f} | {row['store_cpu']:.2f} | "
            f"{max(row['others']):.2f} | {row['probe_others']:.2f} | {row['load']:.1f} |"
        )
    yield ""
    met = "met" if near >= WANTED else "not met"
    yield f"Within 15 %: {near} of {len(rows)} (wanted: {WANTED} of 12): {met}."
    noisy = sum(max(*row["others"], row["probe_others"]) > DISTURBED for row in rows)
    if noisy:
        yield f"Disturbed by other programs, and so to be measured again: {noisy} of {len(rows)}."
    if len(rows) < SETTINGS:
        yield f"Incomplete: {len(rows)} of {SETTINGS} settings were measured."


def _knees(knees: list[dict[str, Any]]) -> Iterator[str]:
    near = 0
    rows = []
    for one in knees:
        sweep = {int(workers): rate for workers, rate in one["sweep"].items()}
        best = max(sweep, key=lambda workers: sweep[workers])
        near += max(best / one["knee"], one["knee"] / best) <= DOUBLING
        rows.append(
            f"| {one['kind']} | {1e3 * one['latency']:.0f} | {one['knee']} | {best} | "
            f"{sweep[one['knee']] / sweep[best]:.2f} | {max(one['others']):.2f} |"
        )
    yield "| data | ms | knee of the probe | best of obstore's sweep | rate at the knee / best | others |"
    yield "| --- " * 6 + "|"
    yield from rows
    yield ""
    yield f"Within one doubling: {near} of {len(knees)}."


def _grids(grid: list[dict[str, Any]]) -> Iterator[str]:
    yield "One rank, the settings in turn:"
    yield ""
    yield "| data | ms | setting | seconds, median | from, to | best / this |"
    yield "| --- " * 6 + "|"
    for kind, latency in dict.fromkeys((row["kind"], row["latency"]) for row in grid):
        cases = [row for row in grid if (row["kind"], row["latency"]) == (kind, latency)]
        best = min(statistics.median(row["seconds"]) for row in cases)
        for row in cases:
            middle, times = statistics.median(row["seconds"]), row["seconds"]
            yield (
                f"| {kind} | {1e3 * latency:.0f} | {row['case']}: prefetch {row['prefetch']}, "
                f"threads {row['threads']} | {middle:.2f} | {min(times):.2f} to {max(times):.2f} | "
                f"{best / middle:.2f} |"
            )
