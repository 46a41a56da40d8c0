"""The figures of the pages are those of the committed results, and other results are shown, too."""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import bars, committed, families, figures, renew, tables
from benchmarks.elsewhere import OTHERS, verdicts
from benchmarks.explained import WHY
from benchmarks.packing_bars import PACKING
from benchmarks.questions import all_questions
from benchmarks.renew_steps import STEPS


def rounds(rate: float, bytes_: int = 1000) -> list[dict[str, Any]]:
    """Three rounds about a rate."""
    return [
        {"samples": rate * factor, "seconds": 1.0, "cpu": 1.0, "cpu_bytes": bytes_}
        for factor in (0.9, 1, 1.2)
    ]


def answer(**rows: tuple[str, float]) -> dict[str, Any]:
    """An answer with a row for each (role, rate)."""
    contenders: dict[str, Any] = {
        name: {
            "role": role, "rounds": rounds(rate), "pss": 1 << 20, "private": 1 << 20, "threads": 1,
            "written": {"bytes": 1},
        }
        for name, (role, rate) in rows.items()
    }  # fmt: skip
    corpus = {"count": 10, "bytes": 1000}
    return {
        "title": "a title", "measure": "rate", "unit": "samples/s", "notes": "", "corpus": corpus,
        "contenders": contenders,
    }  # fmt: skip


def write(folder: Path, name: str, found: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    facts = {
        "suite": "full", "date": "2030-01-01", "machine": "a machine, 2 cores, Linux 9", "python": "3.11",
        "command": "run",
    }  # fmt: skip
    versions = {"grain": "0.9", "litdata": "1.0"}
    text = json.dumps({"facts": facts, "versions": versions, "questions": {name: found}})
    (folder / "results.json").write_text(text)


TOKENS: dict[str, tuple[str, float]] = {
    "floor: take and widen": ("ceiling", 400.0), "shardstream": ("ours", 200.0),
    "shardstream, zstd": ("ours", 90.0), "shardstream, once more (A/A)": ("ours", 201.0),
    "LitData TokensLoader": ("peer", 40.0), "Grain, ArrayRecord": ("peer", 30.0),
    "Grain, ArrayRecord, no threads": ("peer", 80.0), "tf.data, TFRecord": ("peer", 20.0),
    "Parquet, DataLoader, zstd": ("peer", 10.0), "a library that is new": ("peer", 100.0),
}  # fmt: skip


@pytest.fixture
def everything(tmp_path: Path) -> dict[str, committed.Found]:
    """One question, measured with more contenders than have results today; the others are missing."""
    found = answer(**TOKENS)
    found["contenders"]["MDS"] = {"role": "peer", "rounds": [], "error": "it does not import\nmore"}
    write(tmp_path / "tokens32", "tokens32", found)
    return committed.found(tmp_path)


def test_pages_and_pictures_are_those_of_the_results(capsys: pytest.CaptureFixture[str]) -> None:
    assert tables.main(check=True) == 0, capsys.readouterr().out


def test_every_question_has_its_place_and_its_step() -> None:
    names = {question.name for question in all_questions()} | set(PACKING)
    assert names == set(committed.ORDER)
    page = (tables.ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    shown = set(re.findall(r"^<!-- figures: question (\S+) -->$", page, re.MULTILINE))
    steps = {step.name for step in STEPS} - {"packing"}
    assert steps <= shown <= names
    assert {name for name in shown if not name.startswith("packing_")} == steps


def test_explanations_are_of_bars_that_there_are() -> None:
    questions = {question.name: question for question in all_questions()} | PACKING
    for name, reasons in WHY.items():
        assert set(reasons) <= {bar.text for bar in questions[name].bars}, name


def test_libraries_have_a_line_with_the_best_of_their_ways(everything: dict[str, committed.Found]) -> None:
    lines = figures.block("readme", everything).splitlines()
    assert len({line.split(" | ")[0] for line in lines if " | " in line}) == sum(
        " | " in line for line in lines
    )
    cells = {line.split(" | ")[0].strip("| "): line.split(" | ")[1] for line in lines if " | " in line}
    assert cells["**shardstream**"] == "200"
    assert cells["Grain, ArrayRecord"] == "80"
    assert cells["DataLoader, Parquet"] == "10"
    assert cells["a library that is new"] == "100"
    assert cells[families.FLOOR] == "400"
    assert cells["best of ours / best of the others, in each round"] == "2.00 x"
    assert "Not measured: `documents`, `images40`" in "\n".join(lines)
    assert "litdata 1.0, grain 0.9" in lines[-1]


def test_a_question_says_what_is_met_and_why_not(everything: dict[str, committed.Found]) -> None:
    text = figures.block("question tokens32", everything)
    assert "| none: at least 0.9 of its floor | 0.5 [0.5 .. 0.5] | no |" in text
    assert WHY["tokens32"]["none: at least 0.9 of its floor"] in text
    assert "| none: at least 6.5 x LitData TokensLoader | 5 [5 .. 5] | no |" in text
    assert "| zstd: at least 30 x MDS zstd | - | not measured |" in text
    assert "Failed: MDS (it does not import)." in text
    assert "once more" not in text
    assert text.index("| floor: take and widen |") < text.index("| **shardstream** |")


def test_a_question_without_results_is_named(everything: dict[str, committed.Found]) -> None:
    text = figures.block("question remote_link150", everything)
    assert text.startswith("**Not measured:** `remote_link150`")
    assert "--only remote_link150" in text
    assert "`remote_link150`" in figures.block("bars", everything)


def test_times_are_better_if_they_are_less(tmp_path: Path) -> None:
    found = answer()
    found |= {"measure": "first", "unit": "ms"}
    for name, role, seconds in (
        ("shardstream", "ours", 0.4),
        ("WebDataset", "peer", 0.8),
        ("MDS", "peer", 6.0),
    ):
        found["contenders"][name] = {
            "role": role, "rounds": [{"samples": 1, "seconds": seconds}] * 3, "pss": 1, "private": 1,
            "threads": 1, "written": {"bytes": 1},
        }  # fmt: skip
    write(tmp_path / "remote_first100", "remote_first100", found)
    everything = committed.found(tmp_path)
    assert "| 2.00 x |" in figures.block("readme", everything)
    names = [row.name for row in figures.shown(everything["remote_first100"])]
    assert names == ["shardstream", "WebDataset", "MDS"]
    assert "| 400 [400 .. 400] |" in figures.block("question remote_first100", everything)


def test_two_results_of_one_question_are_refused(tmp_path: Path) -> None:
    for folder in ("tokens32", "old"):
        write(tmp_path / folder, "tokens32", answer(**TOKENS))
    with pytest.raises(ValueError, match=r"two results of tokens32: .*old.*tokens32"):
        committed.found(tmp_path)


def test_packing_is_a_question_like_the_others(tmp_path: Path) -> None:
    taken = {
        "zstd alone": [[1.0, None]] * 3,
        "shardstream": [[2.0, 3.0]] * 3,
        "MDSWriter, zstd": [[8.0, 9.0]] * 3,
    }
    facts = {"corpus_bytes": 10**9, "versions": {}, "machine": "x", "seconds": {"jsonl": taken, "plan": {}}}
    (tmp_path / "packing").mkdir()
    (tmp_path / "packing" / "packing.json").write_text(json.dumps(facts))
    everything = committed.found(tmp_path)
    text = figures.block("question packing_jsonl", everything)
    assert "| **shardstream** | 500 [500 .. 500] | 1 [1 .. 1] | 3.00 |" in text
    assert "| at least 0.75 of zstd alone | 0.5 [0.5 .. 0.5] | no |" in text
    assert "| at least 3.5 x MDSWriter | 4 [4 .. 4] | yes |" in text


def test_pages_are_filled_and_differences_are_found(
    everything: dict[str, committed.Found], tmp_path: Path
) -> None:
    page = "a\n<!-- figures: bars -->\nold | 1 |\n<!-- end of figures -->\nb\n"
    new = tables.filled(page, everything)
    assert re.match(r"a\n<!-- figures: bars -->\nOf \d+ bars: 1 met, 3 not met, ", new)
    assert new.endswith("\n<!-- end of figures -->\nb\n")
    assert tables.filled(new, everything) == new
    with pytest.raises(ValueError, match="no figures 'speed'"):
        tables.filled(page.replace("bars", "speed"), everything)
    file = tmp_path / "page.md"
    file.write_text(page)
    assert file in tables.stale({file: new})
    file.write_text(new)
    assert file not in tables.stale({file: new})


def test_a_picture_is_the_same_for_the_same_figures() -> None:
    rows = [bars.Row("a & b", "ours", [1.0, 3.0, 2.0]), bars.Row("c", "peer", [0.5])]
    svg = bars.drawn("name", "a <title>", "samples/s", rows)
    assert svg == bars.drawn("name", "a <title>", "samples/s", rows)
    assert "a &amp; b" in svg
    assert f'width="{bars.WIDTH * 2 / 3:.1f}"' in svg
    assert "prefers-color-scheme: dark" in svg
    assert "floor" not in svg  # no such row


def test_verdicts_of_other_programs_are_counted() -> None:
    text = (
        "| a | yes |\n| no such | 3 | not met |\n| x | missed |\n- b: met\nBar: c. Met: yes.\nnothing, no\n"
    )
    assert verdicts(text) == (3, 5)
    assert len({other.file for other in OTHERS}) == len(OTHERS)


def test_a_renewal_runs_its_steps_in_order(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ran: list[list[str]] = []

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        ran.append(command)
        return subprocess.CompletedProcess(command, int("documents" in command))

    written: list[bool] = []
    monkeypatch.setattr(renew.subprocess, "run", run)
    monkeypatch.setattr(renew.tables, "main", lambda check: written.append(check))
    text = tmp_path / "linux.jsonl"
    text.write_text("")
    options = argparse.Namespace(
        suite="full", only=["documents", "packing"], start=None, list=False, prepare=False, peers="/p/python",
        data=tmp_path,
    )  # fmt: skip
    assert renew.main(options) == 1  # documents failed; packing ran all the same
    assert "failed: documents" in capsys.readouterr().err
    assert written == [False]
    documents, packing = ran
    assert documents[:6] == [sys.executable, "-m", "benchmarks", "run", "--suite", "full"]
    assert documents[-4:] == ["--out", str(committed.RESULTS / "documents"), "--peers", "/p/python"]
    assert packing[:5] == [sys.executable, "-m", "benchmarks.packing", "--only", "jsonl"]
    options.only, options.start = [], "packing"
    assert renew.main(options) == 0
    assert [command[2] for command in ran[2:]] == ["benchmarks.packing", "benchmarks"]
    options.start = "nothing"
    with pytest.raises(SystemExit, match="no step 'nothing'"):
        renew.main(options)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ("| a | 3 MB | NO |", (0, 1)), ("| a | **not met** |", (0, 1)), ("| a | met, 1.30 x |", (1, 1)),
        ("Within 15 %: 4 of 12 (wanted: 10 of 12): not met.", (0, 1)), ("nothing was met on the way", (0, 0)),
    ],
)  # fmt: skip
def test_bars_that_are_missed_count(row: str, expected: tuple[int, int]) -> None:
    assert verdicts(row) == expected
