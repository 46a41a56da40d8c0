"""From raw rounds to tables: medians with spread, and ratios taken within rounds."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from benchmarks.question import Bar, Question

Row = dict[str, Any]
RATES = ("rate", "epoch")


def values(answer: Row, row: Row) -> list[float]:
    """Samples per second, or seconds, of each round."""
    if answer["measure"] in RATES:
        return [r["samples"] / r["seconds"] for r in row["rounds"]]
    return [r["seconds"] for r in row["rounds"]]


def spread(found: Sequence[float], digits: int = 3) -> str:
    """Median [min .. max]."""
    if not found:
        return "-"
    middle, low, high = (_short(f(found), digits) for f in (statistics.median, min, max))
    return f"{middle} [{low} .. {high}]"


def _short(value: float, digits: int) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.{digits}g}"


def ratios(answer: Row, over: str, under: Sequence[str]) -> list[float]:
    """In each round, the rate of `over` by the best rate of `under`."""
    rows = answer["contenders"]
    each = [values(answer, rows[name]) for name in under if name in rows and rows[name]["rounds"]]
    if over not in rows or not each:
        return []
    best = max if answer["measure"] in RATES else min
    return [own / best(others) for own, *others in zip(values(answer, rows[over]), *each, strict=True)]


def judged(bar: Bar, answer: Row) -> tuple[str, str]:
    """What was reached, and whether that meets the bar: "yes", "no" or "not measured"."""
    rows = answer["contenders"]
    # Without one of the others the bar would be lower. One that failed is named.
    if not rows.get(bar.ours, {}).get("rounds") or not all(name in rows for name in bar.against):
        return "-", "not measured"
    failed = [name for name in bar.against if not rows[name]["rounds"]]
    if bar.of:
        found = _costs(bar, answer)
        met = bool(found) and statistics.median(found) <= bar.factor
    elif bar.against:
        found = ratios(answer, bar.ours, bar.against)
        if answer["measure"] not in RATES:
            found = [1 / value for value in found]
        met = bool(found) and statistics.median(found) >= bar.factor
    else:
        found = values(answer, answer["contenders"][bar.ours])
        met = bool(found) and statistics.median(found) <= bar.factor
        found = [value * 1e3 for value in found]
    if not found:
        return "-", "not measured"
    without = f", without {', '.join(failed)}, which failed" if failed else ""
    return spread(found) + without, "yes" if met else "no"


def _costs(bar: Bar, answer: Row) -> list[float]:
    """What ours needs in each round; of CPU seconds a GB, in relation to the least of `against`."""
    rows = answer["contenders"]
    if bar.of == "cpu":
        names = [name for name in (bar.ours, *bar.against) if name in rows and rows[name]["rounds"]]
        if bar.ours not in names or len(names) < 2:
            return []
        each = [[r["cpu"] / r.get("cpu_bytes", 1) for r in rows[name]["rounds"]] for name in names]
        return [own / min(others) for own, *others in zip(*each, strict=True)]
    if bar.of == "requests":
        return [r["wire"]["requests"] for r in rows[bar.ours]["rounds"] if "wire" in r]
    return [r[bar.of] for r in rows[bar.ours]["rounds"] if bar.of in r]


def section(question: Question, answer: Row) -> str:
    """The tables of one question, as Markdown."""
    rate = answer["measure"] in RATES
    corpus = answer["corpus"]
    ours = next(bar.ours for bar in question.bars)
    lines = [
        f"## {question.name}: {answer['title']}",
        "",
        f"{corpus['count']:,} samples, {corpus['bytes'] / 1e6:,.0f} MB. {answer['notes']}".rstrip(),
        "",
        f"| | {answer['unit']} | to {ours} | workers | CPU s/GB | PSS (private) MiB | threads | MB on disk |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, row in answer["contenders"].items():
        if "error" in row:
            lines.append(f"| {name} | failed: {row['error'].splitlines()[0][:90]} | | | | | | |")
            continue
        found = values(answer, row)
        shown = spread(found if rate else [value * 1e3 for value in found])
        if not rate and "construct" in row["rounds"][0]:
            shown += f" (construct {statistics.median(r['construct'] for r in row['rounds']) * 1e3:.3g})"
        cpu = [r["cpu"] / r["cpu_bytes"] * 1e9 for r in row["rounds"]] if rate else []
        cells = [
            f"{name} ({row['role']})" if row["role"] != "peer" else name,
            shown,
            spread(ratios(answer, name, [ours])),
            str(row.get("workers", 0)),
            f"{statistics.median(cpu):.2f}" if cpu else "-",
            f"{row['pss'] >> 20} ({row['private'] >> 20})",
            str(row["threads"]),
            f"{row['written']['bytes'] / 1e6:,.0f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    lines += _wire(answer)
    lines += ["", "| bar | reached | met |", "| --- | --- | --- |"]
    for bar in question.bars:
        reached, met = judged(bar, answer)
        lines.append(f"| {bar.text} | {reached} | {met} |")
    tried = [
        f"{name}: " + ", ".join(f"{rate:,.0f} with {workers}" for workers, rate in row["tried"].items())
        for name, row in answer["contenders"].items()
        if len(row.get("tried", {})) > 1
    ]
    if tried:
        lines += [
            "",
            f"Workers tried in the warm-up, samples/s; the better was measured. {'; '.join(tried)}.",
        ]
    return "\n".join(lines) + "\n"


def _wire(answer: Row) -> list[str]:
    """What a proxy saw of each contender, where the data came through one: medians."""
    lines = ["", "| | requests | HEAD | connections | most at once | chain | MB over the wire |"]
    lines.append("| --- | --- | --- | --- | --- | --- | --- |")
    for name, row in answer["contenders"].items():
        found = [r["wire"] for r in row["rounds"] if "wire" in r]
        if found:
            middle = {key: statistics.median(each[key] for each in found) for key in found[0]}
            counts = ("requests", "heads", "connections", "most_in_flight", "depth")
            cells = [f"{middle[key]:.0f}" for key in counts] + [f"{middle['body_bytes'] / 1e6:,.2f}"]
            lines.append("| " + " | ".join([name, *cells]) + " |")
    return lines if len(lines) > 3 else []


def document(questions: Sequence[Question], results: Row) -> str:
    """The whole report."""
    facts = results["facts"]
    versions = ", ".join(f"{name} {number}" for name, number in sorted(results["versions"].items()))
    head = [
        f"# Results of the suite `{facts['suite']}`",
        "",
        f"{facts['date']}, {facts['machine']}. Python {facts['python']}. {versions}.",
        "",
        f"`{facts['command']}`",
        "",
        "Median [min .. max] of the rounds, in which all ran in turn; ratios are taken within each round.",
        "",
    ]
    parts = [section(q, results["questions"][q.name]) for q in questions if q.name in results["questions"]]
    return "\n".join(head) + "\n" + "\n".join(parts)
