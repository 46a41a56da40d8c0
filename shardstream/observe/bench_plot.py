"""The plot of a bench: the rates of the three phases, and what a step of the cold phase consists of."""

from __future__ import annotations

import io
import os
from typing import Any

from shardstream.errors import require
from shardstream.observe.bench import Bench
from shardstream.storage.store import Store

__all__ = ["plot"]

_COLOURS = {"replayed": "#d9b44a", "cached": "#0b6e99", "cold": "#9a9a9a"}
_NAMES = {"replayed": "replayed (ceiling)", "cached": "cached", "cold": "cold"}


def plot(found: Bench, path: str | os.PathLike[str]) -> None:
    """Draw a PNG.

    Args:
        found: What bench() returned.
        path: Of the file; a local path or a URL.

    Raises:
        MissingExtraError: matplotlib is not installed.
        StorageError: The file cannot be written.
    """
    require("matplotlib", "plot")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), dpi=100)
    FigureCanvasAgg(figure)
    rates, shares = figure.subplots(1, 2, width_ratios=[3, 2])
    _rates(rates, found)
    _step(shares, found)
    ranks = f"{len(found.ranks)} of {found.world} ranks" if found.world > 1 else "1 rank"
    figure.suptitle(f"{_short(found.url)}: {ranks}, batches of {found.batch}", fontsize=10)
    figure.tight_layout()
    data = io.BytesIO()
    figure.savefig(data, format="png")
    name = os.fspath(path)
    folder, _, last = name.rpartition("/")
    Store.open(folder or ("/" if name.startswith("/") else ".")).write(last, data.getvalue())


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"...{text[-57:]}"


def _rates(axes: Any, found: Bench) -> None:
    phases = [found.cold, found.cached, *([found.replayed] if found.step_ms else [])]
    for at, phase in enumerate(phases):
        axes.barh(at, phase.per_second, color=_COLOURS[phase.name], height=0.6)
        scale = len(phase.ranks)
        if scale > 1:
            axes.plot([rate * scale for rate in phase.ranks], [at] * scale, "|", color="black", markersize=10)
        axes.text(phase.per_second, at, f" {phase.per_second:,.0f}", va="center", fontsize=9)
    axes.set_yticks(range(len(phases)), [_NAMES[phase.name] for phase in phases], fontsize=9)
    axes.margins(x=0.2)
    axes.set_xlim(left=0)
    each = " (lines: each rank x ranks)" if len(found.ranks) > 1 else ""
    axes.set_xlabel(f"samples/s of all ranks here{each}", fontsize=8)
    axes.tick_params(axis="x", labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)


def _step(axes: Any, found: Bench) -> None:
    """Milliseconds that a step takes on the average, in each phase."""
    size = found.batch * len(found.ranks)
    times = {phase.name: 1e3 * size / max(phase.per_second, 1e-9) for phase in (found.cached, found.cold)}
    step = 1e3 * size / max(found.replayed.per_second, 1e-9) if found.step_ms else 0.0
    cached, cold = max(times["cached"], step), max(times["cold"], times["cached"], step)
    parts = [("step", step, _COLOURS["replayed"])] if step else []
    parts += [("preparation", cached - step, _COLOURS["cached"]), ("fetch", cold - cached, _COLOURS["cold"])]
    bottom = 0.0
    for name, height, colour in parts:
        share = height / cold if cold else 0.0
        axes.bar(
            0, height, bottom=bottom, color=colour, width=0.5, label=f"{name}: {height:,.3g} ms, {share:.0%}"
        )
        bottom += height
    axes.set_xlim(-0.5, 1.9)
    axes.set_xticks([])
    axes.set_ylabel("ms a step, cold", fontsize=8)
    axes.tick_params(axis="y", labelsize=8)
    handles, labels = axes.get_legend_handles_labels()
    axes.legend(handles[::-1], labels[::-1], fontsize=8, loc="center right", frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
