"""The report of `simulate`: a Markdown file and a picture of the results that are there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.plots import jobs

__all__ = ["report"]

_HEADINGS = (
    "| case, ranks | first batch, s | steps/s of ideal | steps | wait p99, s | longest wait, s | requests "
    "| refused | sent twice | most a second of a prefix | GB/s, and needed | simulated in, s |"
)
QUIET = 0.5  # of the cores: above that, other programs have slowed what was measured
BAR = 0.15  # by which the simulation may be off
COMPARED = ("first batch", "steps per second")


def report(out: Path, validation: dict[str, Any], scale: dict[str, Any]) -> None:
    """Write `simulate.md`, and `simulate.png` if there are sizes to draw."""
    rows = [row for part in validation.values() for row in part["rows"]]
    lines = ["# Simulation of large jobs", ""]
    if rows:
        lines += [*_validated(rows), ""]
    lines += [*_scale(scale), ""]
    out.mkdir(parents=True, exist_ok=True)
    (out / "simulate.md").write_text("\n".join(lines))
    if rows and scale:
        jobs(rows, scale, str(out / "simulate.png"))
    print("\n".join(lines))


def _off(row: dict[str, Any], name: str) -> float:
    return float(row["simulated"][name]) / float(row["real"][name]) - 1


def _validated(rows: list[dict[str, Any]]) -> list[str]:
    lines = [
        "## Real processes beside it", "",
        "Each cell: measured / simulated, and how far the simulation is off. CPU: how busy all cores were,",
        "with other programs of the machine. Cases without a number of ranks have 64.", "",
        "| ranks | trip, ms | link, MB/s | step, ms | | first batch, s | steps/s | requests | MB | CPU |",
        "|" + " --- |" * 10,
    ]  # fmt: skip
    for row in rows:
        told, real, simulated = row["setting"], row["real"], row["simulated"]
        more = [f"{told['slow']:.0%} of answers 0.3 s late"] if told["slow"] else []
        more += [f"{told['refused']:.0%} refused"] if told["refused"] else []
        more += ["transform"] if told["transform"] else []
        cells = [f"{real[name]:.2f} / {simulated[name]:.2f} ({_off(row, name):+.0%})" for name in COMPARED]
        lines.append(
            f"| {told['ranks']} | {told['latency'] * 1e3:.0f} | {told['rate'] / 1e6:.0f} "
            f"| {told['step'] * 1e3:.0f} | {', '.join(more)} | {' | '.join(cells)} "
            f"| {real['requests']:.0f} / {simulated['requests']:.0f} "
            f"| {real['GB'] * 1e3:.0f} / {simulated['GB'] * 1e3:.0f} | {real['cores busy']:.0%} |"
        )
    lines.append("")
    quiet = [row for row in rows if row["real"]["cores busy"] <= QUIET]
    for name in COMPARED:
        for some, where in ((quiet, f"with cores at most {QUIET:.0%} busy"), (rows, "in all")):
            near = sum(abs(_off(row, name)) <= BAR for row in some)
            lines.append(f"- {name}, {where}: within {BAR:.0%} in {near} of {len(some)} rows")
    return lines


def _scale(scale: dict[str, Any]) -> list[str]:
    lines = [
        "## Simulated jobs", "",
        _HEADINGS,
        "|" + " --- |" * 12,
    ]  # fmt: skip
    for name, row in scale.items():
        end = f", ends at {row['total seconds']:.1f} s: a request failed" if row["failed"] else ""
        note = f" ({row['note']})" if "note" in row else ""
        lines.append(
            f"| {name}{note} | {row['first batch']:.2f} | {row['of ideal']:.1%} | {row['steps']}{end} "
            f"| {row['wait p99']:.3f} | {row['wait most']:.2f} | {row['requests']:,} | {row['refused']:,} "
            f"| {row['hedges']:,} | {row['busiest prefix']:,} "
            f"| {row['GB per second']:,.1f}, {row['needed GB per second']:,.1f} | {row['simulated in']:.0f} |"
        )
    return lines
