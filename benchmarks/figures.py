"""The parts of README.md and docs/benchmarks.md that are figures, as Markdown, from the committed results."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping

from benchmarks import families, report
from benchmarks.bars import Row, drawn, number
from benchmarks.committed import RESULTS, Found
from benchmarks.elsewhere import OTHERS, verdicts
from benchmarks.explained import WHY
from benchmarks.renew_steps import STEPS

All = Mapping[str, Found]


def command(name: str, found: Found) -> str:
    """What repeats a question."""
    if name.startswith("packing_"):
        short = name.removeprefix("packing_")
        more = {"tokens": " --tokenizer FILE.json", "writer-jpeg": " --images DIR"}.get(short, "")
        return f"python -m benchmarks.packing --only {short} --text FILE.jsonl{more} --peers PYTHON"
    suite = found.facts.get("suite", "full")
    return f"python -m benchmarks run --suite {suite} --only {name} --out DIR --peers PYTHON"


def shown(found: Found) -> list[Row]:
    """Who is drawn and listed: all of ours, all ceilings, and each peer's best row; the best first."""
    assert found.answer is not None
    answer = found.answer
    scale = 1.0 if answer["measure"] in report.RATES else 1e3
    rows = []
    for name, row in answer["contenders"].items():
        values = [value * scale for value in report.values(answer, row)] if row["rounds"] else []
        if values:
            rows.append(Row(name, row["role"], values))
    rows.sort(key=lambda row: statistics.median(row.values), reverse=scale == 1.0)
    return families.best(rows)


def picture(name: str, found: Found) -> str:
    """The bars of a question as an SVG."""
    assert found.answer is not None
    return drawn(name, found.answer["title"], found.answer["unit"], shown(found))


def question(name: str, everything: All) -> str:
    """The picture, the table and the bars of a question, and why bars are not met."""
    found = everything[name]
    if found.answer is None:
        return (
            f"**Not measured:** `{name}` has no results in `benchmarks/results`. `{command(name, found)}`\n"
        )
    answer, corpus = found.answer, found.answer["corpus"]
    count = f"{corpus['count']:,} samples, " if corpus["count"] else ""
    facts = [f"{count}{corpus['bytes'] / 1e6:,.0f} MB"]
    facts += [str(found.facts[key]) for key in ("date", "machine") if key in found.facts]
    if "suite" in found.facts:
        facts.append(f"suite `{found.facts['suite']}`")
    lines = [
        f"![{name}, {answer['unit']}](images/benchmarks/{name}.svg)", "",
        f"{'; '.join(facts)}. `{command(name, found)}`", "",
    ]  # fmt: skip
    if answer["notes"]:
        lines += [answer["notes"], ""]
    lines += _table(found)
    lines += ["", "| bar | reached | met |", "| --- | --- | --- |"]
    reasons = []
    for bar in found.question.bars:
        reached, met = report.judged(bar, answer)
        lines.append(f"| {bar.text} | {reached} | {met} |")
        if met == "no":
            why = WHY.get(name, {}).get(bar.text, "No explanation yet.")
            reasons.append(f"- *{bar.text}*, not met. {why}")
    if reasons:
        lines += ["", *reasons]
    return "\n".join(lines) + "\n"


def _table(found: Found) -> list[str]:
    """The rows of a question: the measure with its spread, the ratio to ours, CPU and memory."""
    answer = found.answer
    assert answer is not None
    ours = found.question.bars[0].ours
    scale = 1.0 if answer["measure"] in report.RATES else 1e3
    lines = [
        f"| {answer['unit']} | median [least .. most] | to {ours} | CPU s/GB |",
        "| --- | --- | --- | --- |",
    ]
    for row in shown(found):
        rounds = answer["contenders"][row.name]["rounds"]
        cpu = [r["cpu"] / r["cpu_bytes"] * 1e9 for r in rounds if r.get("cpu") and r.get("cpu_bytes")]
        cost = f"{statistics.median(cpu):.2f}" if cpu and scale == 1.0 else "-"
        ratio = report.spread(report.ratios(answer, row.name, [ours]))
        name = f"**{row.name}**" if row.role == "ours" else row.name
        middle = report.spread(row.values)
        if scale != 1.0 and "construct" in rounds[0]:
            middle += f" (construct {statistics.median(r['construct'] for r in rounds) * 1e3:.3g})"
        lines.append(f"| {name} | {middle} | {ratio} | {cost} |")
    failed = [
        f"{name} ({row['error'].splitlines()[0][:90]})"
        for name, row in answer["contenders"].items()
        if "error" in row
    ]
    if failed:
        lines += ["", f"Failed: {'; '.join(failed)}."]
    if found.file is not None and found.file.name == "results.json":
        target = f"../benchmarks/results/{found.file.parent.name}/results.md"
        lines += ["", f"[All rows, memory, threads, requests]({target})."]
    return lines


def bars(everything: All) -> str:
    """Of each question how many of its bars are met, and which are not."""
    counts = {"yes": 0, "no": 0, "not measured": 0}
    lines = ["| question | bars | met | not met | not measured |", "| --- | --- | --- | --- | --- |"]
    missing = []
    for name, found in everything.items():
        if found.answer is None:
            missing.append(f"`{name}` ({len(found.question.bars)})")
            counts["not measured"] += len(found.question.bars)
            continue
        judged: dict[str, list[str]] = {met: [] for met in counts}
        for bar in found.question.bars:
            judged[report.judged(bar, found.answer)[1]].append(bar.text)
        for met, texts in judged.items():
            counts[met] += len(texts)
        shown = ["; ".join(judged["no"]), "; ".join(judged["not measured"])]
        lines.append(f"| {name} | {len(found.question.bars)} | {len(judged['yes'])} | {' | '.join(shown)} |")
    told = ", ".join(
        f"{count} {met}"
        for met, count in zip(("met", "not met", "not measured"), counts.values(), strict=True)
        if count
    )
    text = f"Of {sum(counts.values())} bars: {told}.\n\n" + "\n".join(lines) + "\n"
    if missing:
        text += f"\nWithout results, with their bars: {', '.join(missing)}.\n"
    return text


def others(everything: All) -> str:
    """What is measured by programs of its own: where the results are, and how many of their bars are met."""
    lines = ["| question | command | bars met | results |", "| --- | --- | --- | --- |"]
    for other in OTHERS:
        file = RESULTS / other.file
        met, link = "no results", "-"
        if file.exists():
            good, all_ = verdicts(file.read_text(encoding="utf-8"))
            met = f"{good} of {all_}" if all_ else "no bars"
            link = f"[{other.name}](../benchmarks/results/{other.file})"
        lines.append(f"| {other.asks} | `python -m benchmarks.{other.program}` | {met} | {link} |")
    return "\n".join(lines) + "\n"


def readme(everything: All) -> str:
    """The one table against the peers: medians, for each library the best of its ways."""
    columns = families.COLUMNS
    taken = [_medians(column, everything[column.question]) for column in columns]
    more = sorted({label for each in taken for label in each} - {*families.LABELS, families.FLOOR})
    lines = [f"| | {' | '.join(column.title for column in columns)} |", "| --- |" + " --- |" * len(columns)]
    for label in (*families.LABELS, *more, families.FLOOR):
        if any(label in each for each in taken):
            cells = [number(each[label]) if label in each else "" for each in taken]
            lines.append(f"| {label} | {' | '.join(cells)} |")
    ratios = [_best(column, everything[column.question]) for column in columns]
    lines.append(f"| best of ours / best of the others, in each round | {' | '.join(ratios)} |")
    text = "\n".join(lines) + "\n"
    facts = [found for column in columns if (found := everything[column.question]).answer is not None]
    missing = [f"`{column.question}`" for column in columns if everything[column.question].answer is None]
    if missing:
        text += f"\nNot measured: {', '.join(missing)}.\n"
    machines = sorted({str(f.facts["machine"]).split(", Linux")[0] for f in facts if "suite" in f.facts})
    quick = [one.title for one in columns if everything[one.question].facts.get("suite") == "quick"]
    if quick:
        text += f"\nOf small corpora, in three short rounds: {'; '.join(quick)}.\n"
    return text + f"\n{'; '.join(machines)}. {families.versions(facts)}.\n"


def _medians(column: families.Column, found: Found) -> dict[str, float]:
    """Of each library the best median, and of the first floor that has results its median."""
    if found.answer is None:
        return {}
    rate = found.answer["measure"] in report.RATES
    middles = {
        name: statistics.median(report.values(found.answer, row)) * (1.0 if rate else 1e3)
        for name, row in found.answer["contenders"].items()
        if row["rounds"]
    }
    floors = [middles[name] for name in column.floors if name in middles]
    taken = {families.FLOOR: floors[0]} if floors else {}
    for name, middle in middles.items():
        role = found.answer["contenders"][name]["role"]
        label = column.ours.get(name) if role == "ours" else families.family(name)
        if label is None and role == "peer":
            label = name.partition(",")[0]
        if label is not None:
            taken[label] = (max if rate else min)(middle, taken.get(label, middle))
    return taken


def _best(column: families.Column, found: Found) -> str:
    """The best of ours to the best of the others in each round, the median of that; above 1 is ours."""
    if found.answer is None:
        return ""
    rows = {name: row for name, row in found.answer["contenders"].items() if row["rounds"]}
    ours = [name for name, row in rows.items() if row["role"] == "ours" and name in column.ours]
    peers = [name for name, row in rows.items() if row["role"] == "peer"]
    if not ours or not peers:
        return ""
    rate = found.answer["measure"] in report.RATES
    middles = {name: statistics.median(report.values(found.answer, rows[name])) for name in ours}
    best = (max if rate else min)(ours, key=middles.__getitem__)
    each = report.ratios(found.answer, best, peers)
    return f"{statistics.median(each if rate else [1 / one for one in each]):.2f} x"


def steps(everything: All) -> str:
    """What a renewal does, and how long each step takes."""
    lines = ["| step | about, minutes | results |", "| --- | --- | --- |"]
    lines += [f"| {step.name} | {step.minutes:g} | `results/{step.name}` |" for step in STEPS]
    return "\n".join(lines) + f"\n| all | {sum(step.minutes for step in STEPS):g} | |\n"


BLOCKS: dict[str, Callable[[All], str]] = {"bars": bars, "others": others, "readme": readme, "steps": steps}


def block(name: str, everything: All) -> str:
    """The text between the marks of a block.

    Args:
        name: "bars", "others", "readme", "steps", or "question" and the name of a question.
        everything: What is committed.

    Raises:
        ValueError: If there is no such block, with the names that there are.
    """
    kind, _, rest = name.partition(" ")
    if kind == "question" and rest in everything:
        return question(rest, everything)
    if name in BLOCKS:
        return BLOCKS[name](everything)
    raise ValueError(
        f"no figures {name!r}: {', '.join(BLOCKS)}, or question and one of {', '.join(everything)}"
    )
