"""The text that Prometheus reads: format version 0.0.4 (https://prometheus.io/docs/instrumenting/exposition_formats)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import accumulate
from typing import Literal

__all__ = ["CONTENT_TYPE", "Buckets", "Family", "labelled", "render"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


@dataclass(frozen=True)
class Buckets:
    """One histogram as Prometheus wants it.

    Args:
        bounds: The upper bounds of the buckets, rising, without infinity.
        counts: How many values lie in each bucket, and last how many lie above all bounds.
        total: The sum of all values.
    """

    bounds: Sequence[float]
    counts: Sequence[int]
    total: float


@dataclass
class Family:
    """One metric: its name and meaning, and a value for each set of labels.

    Args:
        name: Its full name; that of a counter ends in `_total`.
        kind: How the values behave.
        help: One sentence that says what is counted, and in which unit.
        samples: Pairs of labels, as text of `labelled`, and a value.
    """

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    samples: list[tuple[str, float | Buckets]] = field(default_factory=list)


def labelled(labels: Mapping[str, object]) -> str:
    """Labels as they stand between braces. Values may be any text."""
    return ",".join(f'{name}="{_escaped(str(value))}"' for name, value in labels.items())


def render(families: Iterable[Family]) -> bytes:
    """All metrics as text. A family without values is left out."""
    lines: list[str] = []
    for family in families:
        if not family.samples:
            continue
        text = family.help.replace("\\", "\\\\").replace("\n", "\\n")
        lines.append(f"# HELP {family.name} {text}")
        lines.append(f"# TYPE {family.name} {family.kind}")
        for labels, value in family.samples:
            if isinstance(value, Buckets):
                _add_histogram(lines, family.name, labels, value)
            else:
                braces = f"{{{labels}}}" if labels else ""
                lines.append(f"{family.name}{braces} {_number(value)}")
    lines.append("")  # the last line, too, ends with a line feed
    return "\n".join(lines).encode("utf-8", "replace")


def _add_histogram(lines: list[str], name: str, labels: str, value: Buckets) -> None:
    start = f"{name}_bucket{{{labels}{',' if labels else ''}le="
    counts = list(accumulate(value.counts))
    ends = _ends(tuple(value.bounds))
    lines += [f"{start}{end}{count}" for end, count in zip(ends, counts, strict=True)]
    lines.append(f"{name}_sum{{{labels}}} {_number(value.total)}")
    # The sum of what was read: buckets that change meanwhile must not disagree with their count.
    lines.append(f"{name}_count{{{labels}}} {counts[-1]}")


@lru_cache
def _ends(bounds: tuple[float, ...]) -> list[str]:
    """What follows `le=` in the line of each bucket. Formatting floats is most of the work."""
    return [f'"{bound}"}} ' for bound in (*bounds, "+Inf")]


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _number(value: float) -> str:
    if value == float("inf"):
        return "+Inf"
    if value == float("-inf"):
        return "-Inf"
    return "NaN" if math.isnan(value) else repr(value)
