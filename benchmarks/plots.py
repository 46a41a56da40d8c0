"""Pictures of shuffles, of simulated jobs and of growing rates. Needs matplotlib; bars.py does not."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import matplotlib as mpl

COLOURS = {"ours": "#0b6e99", "peer": "#9a9a9a", "ceiling": "#d9b44a"}


def mixing(rows: list[tuple[str, float, float]], path: str) -> None:
    """Shards per batch and spread of batch means of each (name, shards, spread)."""
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    names, shards, spreads = zip(*rows, strict=True)
    figure, axes = plt.subplots(1, 2, figsize=(9, 0.8 + 0.28 * len(rows)), dpi=80, sharey=True)
    colours = [COLOURS["ours" if "shardstream" in n else "ceiling" if "full" in n else "peer"] for n in names]
    for axis, found, title in zip(
        axes, (shards, spreads), ("shards per batch", "spread of batch means (1 is random)"), strict=True
    ):
        axis.barh(range(len(rows)), found, color=colours, height=0.7)
        for at, value in enumerate(found):
            axis.text(value, at, f" {value:.3g}", va="center", fontsize=7)
        axis.set_title(title, fontsize=9)
        axis.margins(x=0.15)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_yticks(range(len(rows)), names, fontsize=7)
    axes[0].invert_yaxis()
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)


def jobs(rows: list[dict[str, Any]], scale: dict[str, Any], path: str) -> None:
    """Simulated jobs beside real ones, and the base of the simulation by its ranks."""
    mpl.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib import ticker

    figure, axes = plt.subplots(1, 3, figsize=(11, 3.4), dpi=80)
    for axis, name, unit in ((axes[0], "first batch", "s"), (axes[1], "steps per second", "")):
        real, simulated = ([row[kind][name] for row in rows] for kind in ("real", "simulated"))
        ends = [min(real + simulated), max(real + simulated)]
        axis.plot(ends, ends, color=COLOURS["peer"], linewidth=1)
        axis.fill_between(
            ends, [0.85 * end for end in ends], [1.15 * end for end in ends], color=COLOURS["peer"], alpha=0.2
        )
        quiet = [row["real"]["cores busy"] <= 0.5 for row in rows]
        colours = [COLOURS["ours"] if alone else COLOURS["ceiling"] for alone in quiet]
        axis.scatter(real, simulated, color=colours, s=14)
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.set_xlabel("measured; yellow: on a busy machine", fontsize=8)
        axis.set_title(f"{name}{', ' + unit if unit else ''}: simulated", fontsize=9)
    for kind, colour in (("base", COLOURS["ours"]), ("one prefix", COLOURS["ceiling"])):
        found = sorted((row["ranks"], row) for name, row in scale.items() if name.startswith(f"{kind} "))
        ranks = [count for count, _ in found]
        axes[2].plot(
            ranks, [row["first batch"] for _, row in found], "o-", color=colour, label=kind, markersize=4
        )
    axes[2].set_xscale("log")
    axes[2].set_yscale("log")
    axes[2].set_xlabel("ranks", fontsize=8)
    axes[2].set_title("first batch, s", fontsize=9)
    axes[2].legend(fontsize=8)
    for axis in axes:
        for line in (axis.xaxis, axis.yaxis):
            line.set_major_locator(ticker.LogLocator(subs=(1, 2, 3, 5)))
            line.set_major_formatter(ticker.StrMethodFormatter("{x:g}"))
            line.set_minor_formatter(ticker.NullFormatter())
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=6)
    axes[2].set_xticks([8, 64, 512, 4096])
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)


def rates(results: str, path: str) -> None:
    """Rates of each kind by samples of one process, and by processes, each with its spread.

    Args:
        results: The file of `growth_rates`.
        path: Of the picture.
    """
    rows = json.loads(Path(results).read_text())["cells"]
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), dpi=80, sharey=True)
    several = max(row["samples"] for row in rows if row["processes"] > 1)
    kinds = dict.fromkeys(row["kind"] for row in rows)
    for (kind, colour), mark in zip(zip(kinds, COLOURS.values(), strict=True), "os^", strict=True):
        for axis, name, kept in (
            (axes[0], "samples", [row for row in rows if row["processes"] == 1]),
            (axes[1], "processes", [row for row in rows if row["samples"] == several]),
        ):
            found = sorted(
                (row[name], [one["samples/s"] for one in row["rounds"]])
                for row in kept if row["kind"] == kind
            )  # fmt: skip
            at = [size for size, _ in found]
            axis.plot(at, [statistics.median(one) for _, one in found], f"{mark}-", color=colour, label=kind)
            axis.vlines(at, [min(one) for _, one in found], [max(one) for _, one in found], color=colour)
            axis.set_xscale("log", base=10 if name == "samples" else 2)
            axis.set_xlabel(f"{name}, {'one process' if name == 'samples' else f'{several:,} samples'}")
            axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_yscale("log")
    axes[0].set_ylabel("samples/s, all processes")
    axes[0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)
