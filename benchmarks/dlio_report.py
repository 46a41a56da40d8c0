"""From the runs of DLIO to a table: medians with the least and the largest, and which bars are met."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.report import spread

__all__ = ["FASTER", "figure_of", "markdown", "met", "ratio"]

Row = Mapping[str, Any]
FASTER = 1.2  # times the rate of DLIO's loader, where steps take no time


def epochs(runs: Sequence[Row], figure: str) -> list[float]:
    """A figure of all epochs of all runs."""
    return [float(value) for one in runs for value in one[figure]]


def figure_of(step: float) -> str:
    """What loaders are compared by: the utilisation, or samples a second if steps take no time."""
    return "au" if step else "rate"


def ratio(row: Row, ours: str, theirs: str) -> float:
    """Our median to theirs."""
    figure = figure_of(row["workload"]["step"])
    own, other = (statistics.median(epochs(row["rounds"][name], figure)) for name in (ours, theirs))
    return own / other


def met(row: Row, ours: str, theirs: str) -> bool:
    """The bar of a cell: our median utilisation is not below theirs; without steps, see `FASTER`."""
    return ratio(row, ours, theirs) >= (1 if row["workload"]["step"] else FASTER)


def markdown(rows: Mapping[str, Row], ours: str, theirs: str, machine: str) -> str:
    """The report."""
    loads = [one["load"] for row in rows.values() for runs in row["rounds"].values() for one in runs]
    heading = (
        f"{machine}. Load average after the runs: {min(loads):.1f} to {max(loads):.1f}. "
        "Medians of all epochs, with the least and the largest. AU is the accelerator utilisation as DLIO "
        "computes it. A bar is met if the median of our AU is not below that of DLIO's loader. Where steps "
        f"take no time, it is met if our rate is at least {FASTER} times that of DLIO's loader."
    )
    lines = [
        "# DLIO", "", heading, "",
        "| workload | page cache | loader | AU, % | samples/s | CPU s of 1,000 samples | bar |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]  # fmt: skip
    for name, row in rows.items():
        workload = row["workload"]
        per = workload["files"] // workload["batch"] * workload["batch"] / 1000
        for loader in (theirs, ours):
            runs = row["rounds"][loader]
            cpu = [seconds / per for seconds in epochs(runs, "cpu")]
            bar = "" if loader == theirs else "met" if met(row, ours, theirs) else "**not met**"
            if bar and not workload["step"]:
                bar += f", {ratio(row, ours, theirs):.2f} x"
            lines.append(
                f"| {name.split()[0]} | {row['cache']} | {loader} | {spread(epochs(runs, 'au'), 4)} "
                f"| {spread(epochs(runs, 'rate'), 4)} | {spread(cpu)} | {bar} |"
            )
    lines += ["", "Of the files' pages, the page cache held, before the runs and after them:", ""]
    for name, row in rows.items():
        for loader in (theirs, ours):
            shares = [one["cached"] for one in row["rounds"][loader]]
            before, after = (max if cold else min for cold in (row["cache"] == "cold", False))
            lines.append(
                f"- {name}, {loader}: {100 * before(pair[0] for pair in shares):.1f} % before, "
                f"{100 * after(pair[1] for pair in shares):.1f} % after"
            )
    lines += ["", "Workloads, by the configurations of DLIO that they are scaled from:", ""]
    for name, row in {name.split()[0]: row for name, row in rows.items()}.items():
        one, workers = row["workload"], row["tried"]
        lines.append(
            f"- {name}: {one['scaled']}. {one['files']:,} files of {one['record']:,} bytes, "
            f"batches of {one['batch']}, steps of {1e3 * one['step']:.1f} ms. "
            "Worker processes of DLIO's loader: "
            + ", ".join(
                f"{count} with an AU of {found:.1f} %"
                if one["step"]
                else f"{count} with {found:.1f} samples/s"
                for count, found in workers.items()
            )
            + f", tried once; {one['threads']} were measured."
        )
    return "\n".join(lines) + "\n"
