"""The results that are committed under `results/`, as answers to questions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.packing_bars import PACKING, answers
from benchmarks.question import Question
from benchmarks.questions import all_questions

RESULTS = Path(__file__).resolve().parent / "results"


# As the pages and the renewal have them.
ORDER = (
    "tokens32", "tokens16", "documents", "images40", "images110", "decode40", "decode110", "dali",
    "first_batch", "resume1", "resume50", "resume99", "remote_first0", "remote_first100",
    "remote_epoch0", "remote_epoch20", "remote_link150", *PACKING,
)  # fmt: skip


class Found(NamedTuple):
    """A question and its answer; the answer is None if no results are there."""

    question: Question
    answer: dict[str, Any] | None
    facts: dict[str, Any]
    versions: dict[str, str]
    file: Path | None


def found(results: Path = RESULTS) -> dict[str, Found]:
    """All questions of the harness and of packing, by name, with what is committed of them.

    Args:
        results: The folder of results. A question is looked for in all folders below it.

    Raises:
        ValueError: If two files have results of one question.
    """
    answered: dict[str, Found] = {}
    questions = {question.name: question for question in all_questions()}
    for file in sorted(results.glob("**/results.json")):
        everything = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(everything, dict):
            continue
        for name, answer in everything.get("questions", {}).items():
            if name in answered:
                raise ValueError(f"two results of {name}: {answered[name].file} and {file}; remove one")
            if name in questions:
                facts, versions = everything["facts"], everything["versions"]
                answered[name] = Found(questions[name], answer, facts, versions, file)
    for file in (results / "packing" / "packing.json", results / "packing_others" / "packing.json"):
        if file.exists():
            facts = json.loads(file.read_text(encoding="utf-8"))
            for name, answer in answers(facts).items():
                if name not in answered:
                    answered[name] = Found(PACKING[name], answer, facts, facts["versions"], file)
    missing = {name: Found(q, None, {}, {}, None) for name, q in (questions | PACKING).items()}
    together = missing | answered
    return {name: together[name] for name in sorted(together, key=ORDER.index)}
