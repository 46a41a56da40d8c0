"""Loops beside a loader, memory, and instructions: the verdicts follow from the figures."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks import busy_python, counters_instructions, memory, train_step


def test_the_better_engine_is_chosen_for_each_work() -> None:
    def row(work: str, engine: str, ratios: list[float]) -> dict[str, Any]:
        return {"work": work, "milliseconds": 2, "engine": engine, "ratios": ratios}

    rows = [row("Python", "thread", [1.2, 1.1, 1.3]), row("Python", "process", [1.04, 1.0, 1.2])]
    rows += [row("Python", "the same again", [0.9, 0.9, 0.9])]  # not an engine
    rows += [row("matrix product", "thread", [1.06]), row("matrix product", "process", [1.2])]
    assert busy_python.verdicts(rows) == [
        "- Python, 2 ms: the process engine, 1.040; at most 1.05: met.",
        "- matrix product, 2 ms: the thread engine, 1.060; at most 1.05: not met.",
    ]


@pytest.mark.parametrize(("thread", "said"), [(1.008, "1.008; at most 1.01: met"), (1.02, "not met")])
def test_a_training_step_is_judged_by_the_better_engine(thread: float, said: str) -> None:
    def row(engine: str, ratio: float) -> dict[str, Any]:
        return {
            "engine": engine,
            "milliseconds": 20.0,
            "ratios": [ratio] * 3,
            "cpu": [1.0] * 3,
            "stall": 0.01,
        }

    rows = [row("thread", thread), row("process", 1.05), row("the same again", 0.99)]
    assert said in train_step.table(rows)


def test_a_peak_above_the_sum_is_said() -> None:
    row = {"case": "remote", "stated": 96 * memory.MB, "told": {"ram": memory.MB}, "seconds": 9.0}
    row |= {"peak": 240 * memory.MB, "peaks of epochs": [200 * memory.MB, 240 * memory.MB, 230 * memory.MB]}
    assert "| remote | 96 MB | 240 MB | 1 MB | 200, 240, 230 MB | 9 | yes |" in memory.table([row])
    assert "| NO |" in memory.table([row | {"peak": 247 * memory.MB}])


def test_instructions_of_counters_are_a_tenth_of_what_eleven_takes_more() -> None:
    taken = {"off": [1000, 1000, 1400], "on": [1003, 1003, 1403], "eleven": [1033, 1043, 1433]}
    found = {"batches": 10, "instructions": taken}
    found |= counters_instructions.summary(found)
    assert found["percent by eleven"] == pytest.approx(0.4)
    assert found["percent on - off"] == pytest.approx(0.3)
    assert found["of counters a batch"] == pytest.approx(0.4)
    assert found["of single rounds"] == pytest.approx([3 / 14, 0.4])
    assert "| 0.40 (0.21 to 0.40) | 0.30 | no |" in counters_instructions.table({"tokens": found})
