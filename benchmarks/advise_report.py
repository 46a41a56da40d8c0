"""The tables of `python -m benchmarks.advise`."""

from __future__ import annotations

import statistics
from typing import Any

WITHIN, WANTED = 0.15, 10  # of the measured time; settings of the twelve


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
        f"load {row['load']:.0f}"
    )


def report(found: dict[str, Any]) -> str:
    """All of it as Markdown."""
    rows = found["rows"]
    near = sum(abs(error(row)) <= WITHIN for row in rows)
    text = [
        "# advise beside the loader", "",
        "Made by `python -m benchmarks.advise`. An epoch without a cache, until the slowest rank has it; the",
        "median of the rounds. Core seconds are those of the ranks, without store and proxy.", "",
        "| data | ms | ranks | seconds | from, to | predicted | error | bound | core s | predicted | load |",
        "| --- " * 11 + "|",
    ]  # fmt: skip
    for row in rows:
        times = row["seconds"]
        text.append(
            f"| {row['kind']} | {1e3 * row['latency']:.0f} | {row['ranks']} | "
            f"{statistics.median(times):.2f} | {min(times):.2f} to {max(times):.2f} | "
            f"{row['predicted']:.2f} | {error(row):+.0%} | {row['bound']} | "
            f"{row['cpu']:.2f} | {row['predicted_cpu']:.2f} | {row['load']:.1f} |"
        )
    text += [
        "",
        f"Within 15 %: {near} of {len(rows)} (wanted: {WANTED}).",
        "",
        "| data | latency, ms | knee of the probe | best of obstore's sweep | rate at the knee / best |",
        "| --- | --- | --- | --- | --- |",
    ]
    for one in found["knees"]:
        sweep = {int(workers): rate for workers, rate in one["sweep"].items()}
        best = max(sweep, key=lambda workers: sweep[workers])
        text.append(
            f"| {one['kind']} | {1e3 * one['latency']:.0f} | {one['knee']} | {best} | "
            f"{sweep[one['knee']] / sweep[best]:.2f} |"
        )
    text += ["", "| data | setting | seconds, median | advised / best |", "| --- | --- | --- | --- |"]
    for kind in dict.fromkeys(row["kind"] for row in found["grid"]):
        cases = [row for row in found["grid"] if row["kind"] == kind]
        best_seconds = min(statistics.median(row["seconds"]) for row in cases)
        for row in cases:
            middle = statistics.median(row["seconds"])
            share = f"{best_seconds / middle:.2f}" if row["case"] == "advised" else ""
            text.append(
                f"| {kind} | {row['case']}: prefetch {row['prefetch']}, threads {row['threads']} | "
                f"{middle:.2f} | {share} |"
            )
    return "\n".join(text) + "\n"
