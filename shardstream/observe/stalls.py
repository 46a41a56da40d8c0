"""observe.plot_stalls: when a loop waited for its data, and which stages took how long, as a picture."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from shardstream.errors import OptionError, require
from shardstream.format.shown import counted

if TYPE_CHECKING:
    from shardstream.loader import StreamingLoader
    from shardstream.observe.tracing import Trace

__all__ = ["plot_stalls"]

_WAIT, _STEP, _FAINT = "#b5473c", "#9db8cf", "#85857e"
_MOST = 20_000  # waits in a plot: the longest are drawn


def plot_stalls(found: StreamingLoader[Any] | Mapping[str, Any] | Trace) -> Any:
    """Draw how long a loop waited for its data.

    Of a loader, or of its `stats()`, it is the shares of waiting and of steps, and how long the stages took.
    Of a trace that has stopped, it is each wait at its time.

    Args:
        found: A loader, what its `stats()` gave, or what `trace` gave.

    Returns:
        A picture of Pillow. A notebook shows it; `.save("stalls.png")` writes it.

    Raises:
        OptionError: It is something else, nothing was iterated, or the trace still runs.
        MissingExtraError: matplotlib is not installed.
    """
    from shardstream.observe.tracing import Trace

    require("matplotlib", "plot")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.2), dpi=100)
    FigureCanvasAgg(figure)
    if isinstance(found, Trace):
        _timeline(figure.subplots(), found)
    else:
        _shares(figure, _stages(found))
    figure.tight_layout()
    data = io.BytesIO()
    figure.savefig(data, format="png")
    picture = require("PIL.Image", "plot").open(data)
    picture.load()
    return picture


def _stages(found: Any) -> Mapping[str, Mapping[str, float]]:
    stats = found if isinstance(found, Mapping) else found.stats() if hasattr(found, "stats") else {}
    stages = stats.get("stages")
    if not isinstance(stages, Mapping) or "wait" not in stages or "step" not in stages:
        raise OptionError(
            f"plot_stalls draws a loader, its stats() or a trace, not a {type(found).__name__} without stages"
        )
    if not stages["wait"]["count"]:
        raise OptionError("the loader has given no batch yet: iterate it before plot_stalls")
    return stages


def _shares(figure: Any, stages: Mapping[str, Mapping[str, float]]) -> None:
    """The loop's time as one bar, and the percentiles of all stages."""
    bar, times = figure.subplots(1, 2, width_ratios=[2, 3])
    wait, step = (stages[name]["seconds"] for name in ("wait", "step"))
    for name, seconds, below, colour in (("step", step, 0.0, _STEP), ("wait", wait, step, _WAIT)):
        share = seconds / max(wait + step, 1e-9)
        bar.bar(
            0, seconds, bottom=below, color=colour, width=0.6, label=f"{name}: {seconds:.3g} s, {share:.1%}"
        )
    bar.set_xlim(-0.5, 1.8)
    bar.set_xticks([])
    bar.set_ylabel("seconds of the loop", fontsize=8)
    handles, labels = bar.get_legend_handles_labels()
    bar.legend(handles[::-1], labels[::-1], fontsize=8, loc="center right", frameon=False)

    shown = [name for name, stage in stages.items() if stage["count"] and stage["seconds"]]
    for at, name in enumerate(reversed(shown)):
        low, middle, high = (1e3 * max(stages[name][point], 1e-6) for point in ("p50", "p95", "p99"))
        colour = {"wait": _WAIT, "step": _STEP}.get(name, _FAINT)
        times.plot([low, high], [at, at], color=colour, linewidth=4, solid_capstyle="round")
        times.plot([low, middle, high], [at] * 3, "|", color="black", markersize=9)
    times.set_yticks(range(len(shown)), shown[::-1], fontsize=8)
    times.set_xscale("log")
    times.set_xlabel("milliseconds of one event: p50, p95, p99", fontsize=8)
    for axes in (bar, times):
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)


def _timeline(axes: Any, trace: Trace) -> None:
    """Each wait at its time, as wide and as high as it is long."""
    from matplotlib.collections import PolyCollection

    if trace.running:
        raise OptionError("the trace is still running: stop it before plot_stalls")
    if not trace.waits and not trace.steps:
        raise OptionError("the trace has no step of a loop in it: iterate a loader while it runs")
    waits = sorted(trace.waits, key=lambda wait: wait[0] - wait[1])[:_MOST]
    heights = [1e3 * (end - begin) for begin, end in waits]
    # One collection: thousands of bars of their own would take seconds.
    boxes = [
        [(begin, 0), (begin, high), (end, high), (end, 0)]
        for (begin, end), high in zip(waits, heights, strict=True)
    ]
    axes.add_collection(PolyCollection(boxes, facecolor=_WAIT, edgecolor=_WAIT, linewidth=1))
    last = max(end for _, end in (*trace.waits, *trace.steps))
    first = min(begin for begin, _ in (*trace.waits, *trace.steps))
    waited = sum(end - begin for begin, end in trace.waits)
    axes.set_title(
        f"waited {waited:.3g} s of {last - first:.3g} s ({waited / max(last - first, 1e-9):.1%}), "
        f"{counted(len(trace.waits), 'wait')}",
        fontsize=9,
    )
    room = 0.01 * (last - first)
    axes.set_xlim(first - room, last + room)
    axes.set_ylim(0, 1.05 * max(heights, default=1.0) or 1.0)
    axes.set_xlabel("seconds since the trace began", fontsize=8)
    axes.set_ylabel("ms that the loop waited", fontsize=8)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
