"""Bars with spread for each question: python -m benchmarks.plots RESULTS.json DIR. Needs matplotlib."""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl

from benchmarks.report import values

COLOURS = {"ours": "#0b6e99", "peer": "#9a9a9a", "ceiling": "#d9b44a"}


def plot(name: str, answer: dict[str, Any], path: Path) -> None:
    """One PNG."""
    from matplotlib import pyplot as plt

    scale = 1 if answer["measure"] == "rate" else 1e3
    rows = {
        label: (row["role"], [value * scale for value in values(answer, row)])
        for label, row in answer["contenders"].items()
        if row["rounds"]
    }
    figure, axes = plt.subplots(figsize=(8, 0.6 + 0.34 * len(rows)), dpi=80)
    for at, (role, found) in enumerate(rows.values()):
        middle = statistics.median(found)
        axes.barh(at, middle, color=COLOURS[role], height=0.7)
        axes.plot([min(found), max(found)], [at, at], color="black", linewidth=1)
        axes.text(
            middle, at, f" {middle:,.0f}" if middle >= 100 else f" {middle:.2g}", va="center", fontsize=8
        )
    axes.set_yticks(range(len(rows)), list(rows), fontsize=8)
    axes.invert_yaxis()
    axes.margins(x=0.15)
    axes.set_title(f"{name}: {answer['unit']}", fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)


def main(results: str, out: str) -> None:
    """All questions of a results file."""
    mpl.use("Agg")
    for name, answer in json.loads(Path(results).read_text())["questions"].items():
        plot(name, answer, Path(out) / f"{name}.png")


if __name__ == "__main__":
    main(*sys.argv[1:])
