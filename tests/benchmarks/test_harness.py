"""The benchmark harness at a tiny size: what was read is right, and the report says what was measured."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmarks import measure, report
from benchmarks.contender import Contender
from benchmarks.corpora import META
from benchmarks.make_corpora import Maker
from benchmarks.peers.decompressing import decompressing
from benchmarks.processes import Child
from benchmarks.question import SIZES, Bar, Question
from benchmarks.questions import all_questions
from shardstream.format.frames import compressor
from shardstream.read import system_zstd

QUESTIONS = {question.name: question for question in all_questions()}


class Here:
    """A contender in this process."""

    def __init__(self, adapter: str) -> None:
        self._contender = Contender(adapter)

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        command = {"do": do, **arguments}
        return json.loads(json.dumps(self._contender.handle(json.loads(json.dumps(command)))))

    def watched(self, do: str, **arguments: Any) -> tuple[dict[str, Any], dict[str, int]]:
        return self.ask(do, **arguments), {"pss": 0, "private": 0, "threads": 1}

    def close(self) -> None: ...


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> measure.Setting:
    """Texts and photographs made here; no peers."""
    folder = tmp_path_factory.mktemp("bench")
    rng = np.random.default_rng(0)
    with (folder / "texts.jsonl").open("w") as file:
        for number in range(60):
            words = " ".join(f"word{n} ✓" for n in rng.integers(0, 500, 100 + 30 * (number % 9)))
            file.write(json.dumps({"id": f"text/{number}", "text": words}) + "\n")
    (folder / "photos").mkdir()
    for number in range(2):
        pixels = rng.integers(0, 255, (500, 600, 3), np.uint8)
        Image.fromarray(pixels).save(folder / "photos" / f"{number}.png")
    maker = Maker(folder / "data", str(folder / "texts.jsonl"), str(folder / "photos"))
    return measure.Setting(folder / "data", maker, SIZES["tiny"], None, Here)


@pytest.mark.parametrize("name", ["documents", "images40", "tokens16"])
def test_rates(setting: measure.Setting, name: str) -> None:
    question = QUESTIONS[name]
    answer = measure.run(question, setting)
    assert {row["role"] for row in answer["contenders"].values()} == {"ours", "ceiling"}
    corpus = question.corpus(setting.maker, setting.size)
    for label, row in answer["contenders"].items():
        assert len(row["rounds"]) == setting.size.rounds
        assert all(found["epochs"] >= 1 and found["seconds"] > 0 for found in row["rounds"])
        if row["role"] == "ours" and name != "tokens16":
            facts = {"count": corpus.count, "bytes": corpus.bytes, "digest": corpus.digest}
            assert row["verified"] == facts, label
    text = report.section(question, answer)
    assert all(bar.text in text for bar in question.bars)


@pytest.mark.parametrize("name", ["first_batch", "resume50"])
def test_times(setting: measure.Setting, name: str) -> None:
    answer = measure.run(QUESTIONS[name], setting)
    for row in answer["contenders"].values():
        assert [found["samples"] for found in row["rounds"]] == [8] * setting.size.rounds
    assert QUESTIONS[name].bars[0].text in report.section(QUESTIONS[name], answer)


def test_resuming_gives_what_comes_next(setting: measure.Setting) -> None:
    question = QUESTIONS["resume50"]
    corpus = question.corpus(setting.maker, setting.size)
    place, options = str(setting.data / "resumed"), {"codec": "zstd", "batch": 8, "workers": 0}
    ours = Contender("ours")
    ours.write(corpus.folder, place, options)
    ours.open(corpus.folder, place, options)
    whole = [row["__key__"] for batch in ours.loader for row in batch]
    ours.resume(corpus.folder, place, options, 0.5, check=True)
    rest = ours.adapter.resume(corpus, place, options, ours.adapter.state(corpus, place, options, 0.5))
    assert [row["__key__"] for batch in rest for row in batch] == whole[corpus.count // 2 :]


def test_a_contender_that_reads_something_else_is_refused(setting: measure.Setting) -> None:
    corpus = QUESTIONS["documents"].corpus(setting.maker, setting.size)
    lines = (Path(corpus.folder) / "documents.jsonl").read_text().splitlines(keepends=True)
    facts = json.loads((Path(corpus.folder) / META).read_text())
    for name, content in {
        "less": lines[:-1],
        "changed": [*lines[:-1], lines[-1].replace("word", "Word")],
    }.items():
        folder = setting.data / name
        folder.mkdir()
        (folder / "documents.jsonl").write_text("".join(content))
        (folder / META).write_text(json.dumps(facts))
        options = {"codec": "zstd", "batch": 8, "workers": 0}
        ours = Contender("ours")
        ours.write(str(folder), str(folder / "packed"), options)
        ours.open(str(folder), str(folder / "packed"), options)
        with pytest.raises(ValueError, match="the corpus has"):
            ours.verify()


def test_what_an_interrupted_run_left_is_written_again(setting: measure.Setting) -> None:
    corpus = QUESTIONS["documents"].corpus(setting.maker, setting.size)
    place, options = setting.data / "interrupted", {"codec": "zstd", "batch": 8, "workers": 0}
    place.mkdir()
    (place / "manifest.json").write_text("half")
    ours = Contender("ours")
    ours.write(corpus.folder, str(place), options)
    ours.open(corpus.folder, str(place), options)
    assert ours.verify()["digest"] == corpus.digest


def test_a_peer_that_fails_costs_nothing_but_its_row(setting: measure.Setting) -> None:
    def start(adapter: str) -> Here:
        if adapter in measure.OWN:
            return Here(adapter)
        raise RuntimeError("it does not import")

    with_peers = measure.Setting(setting.data, setting.maker, setting.size, "python", start)
    answer = measure.run(QUESTIONS["documents"], with_peers)
    peers = [row for row in answer["contenders"].values() if row["role"] == "peer"]
    assert peers
    assert all(row["error"] == "it does not import" and not row["rounds"] for row in peers)
    text = report.section(QUESTIONS["documents"], answer)
    assert text.count("failed: it does not import") == len(peers)
    assert "not measured" in text


def test_a_child_process(setting: measure.Setting, tmp_path: Path) -> None:
    child = Child(sys.executable, "ours", tmp_path / "ours.log")
    try:
        assert "shardstream" in child.ask("facts")["versions"]
        with pytest.raises(RuntimeError, match="no_such_thing"):
            child.ask("no_such_thing")
        corpus = QUESTIONS["documents"].corpus(setting.maker, setting.size)
        where = {"dest": str(tmp_path / "packed"), "options": {"codec": "zstd", "batch": 8, "workers": 0}}
        child.ask("write", corpus=corpus.folder, **where)
        child.ask("open", corpus=corpus.folder, **where)
        answer, peaks = child.watched("round", least=0.5, most=1.0)
        assert answer["samples"] > 0
        assert peaks["threads"] >= 1
        assert peaks["pss"] >= peaks["private"] > 0
    finally:
        child.close()


def test_a_child_that_does_not_answer_is_ended_at_its_limit(tmp_path: Path) -> None:
    child = Child(sys.executable, "plain", tmp_path / "plain.log", limit=0.01)
    try:
        # It cannot even have started by then.
        with pytest.raises(RuntimeError, match=r"facts: no answer after 0.01 s"):
            child.ask("facts")
    finally:
        child.close()


@pytest.mark.parametrize("system", [False, True])
def test_floors_decompress_with_the_library_that_ours_takes(
    system: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw, into = b"some text " * 1000, bytearray(10_000)
    if not system:
        monkeypatch.setattr(system_zstd, "library", lambda: None)
    elif system_zstd.library() is None:
        pytest.skip("this system has no zstd library of 1.5.2 or later")
    decompress = decompressing()
    assert isinstance(getattr(decompress, "__self__", None), system_zstd.SystemZstd) == system
    assert decompress(compressor("zstd")(raw), memoryview(into)) == len(raw)
    assert into == raw


def test_questions_are_consistent() -> None:
    adapters = {path.stem for path in Path(measure.__file__).with_name("peers").glob("*.py")}
    for question in QUESTIONS.values():
        names = [entry.name for entry in question.contenders]
        assert len(set(names)) == len(names)
        assert {entry.adapter for entry in question.contenders} <= adapters
        for bar in question.bars:
            assert {bar.ours, *bar.against} <= set(names)


def _answer(measured: str, **rates: list[float]) -> dict[str, Any]:
    rows = {
        name: {"role": "peer", "rounds": [{"samples": value, "seconds": value if measured != "rate" else 1.0}
                                         for value in found]}
        for name, found in rates.items()
    }  # fmt: skip
    return {"measure": measured, "contenders": rows}


def test_ratios_are_taken_within_rounds_and_by_the_best_peer() -> None:
    answer = _answer("rate", ours=[10.0, 20.0, 40.0], a=[5.0, 2.0, 4.0], b=[1.0, 10.0, 1.0])
    assert report.ratios(answer, "ours", ["a", "b"]) == [2.0, 2.0, 10.0]
    assert report.judged(Bar("", 2.0, "ours", ("a", "b")), answer) == ("2 [2 .. 10]", "yes")
    assert report.judged(Bar("", 2.1, "ours", ("a", "b")), answer)[1] == "no"
    assert report.judged(Bar("", 2.1, "ours", ("c",)), answer) == ("-", "not measured")


def test_seconds_are_judged_by_the_median() -> None:
    answer = _answer("first", ours=[0.01, 0.02, 0.9])
    assert report.judged(Bar("", 0.02, "ours"), answer) == ("20 [10 .. 900]", "yes")
    assert report.judged(Bar("", 0.019, "ours"), answer)[1] == "no"


def test_every_question_names_a_measure() -> None:
    for question in QUESTIONS.values():
        assert isinstance(question, Question)
        assert question.measure in ("rate", "epoch", "first", "resume")


def test_costs_are_judged_within_rounds() -> None:
    wire = [{"requests": count} for count in (200, 310, 290)]
    rounds = [{"cpu": cpu, "wire": each, "filled": 3.0} for cpu, each in zip((3, 4, 9), wire, strict=True)]
    floor = [{"cpu": cpu} for cpu in (2, 4, 5)]
    answer = {"measure": "epoch", "contenders": {"ours": {"rounds": rounds}, "floor": {"rounds": floor}}}
    assert report.judged(Bar("", 1.5, "ours", ("floor",), "cpu"), answer) == ("1.5 [1 .. 1.8]", "yes")
    assert report.judged(Bar("", 1.4, "ours", ("floor",), "cpu"), answer)[1] == "no"
    assert report.judged(Bar("", 300, "ours", of="requests"), answer) == ("290 [200 .. 310]", "yes")
    assert report.judged(Bar("", 280, "ours", of="requests"), answer)[1] == "no"
    assert report.judged(Bar("", 2.9, "ours", of="filled"), answer)[1] == "no"
