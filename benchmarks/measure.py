"""Runs a question: prepare, prove that each contender reads everything, then rounds in turn (A B A B)."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from benchmarks.corpora import Corpus
from benchmarks.make_corpora import Maker
from benchmarks.processes import Child
from benchmarks.question import Contender, Question, Size

if TYPE_CHECKING:
    from benchmarks.store import Remote

OWN = ("ours", "ceilings", "floors_samples", "token_floors", "dali", "dali_source")
_COLD_ROUNDS = 3


class Link(Protocol):
    """A contender that can be asked: a child process, or in tests this one."""

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]: ...
    def watched(self, do: str, **arguments: Any) -> tuple[dict[str, Any], dict[str, int]]: ...
    def close(self) -> None: ...


@dataclass
class Setting:
    """Where everything is; peers is None without them."""

    data: Path
    maker: Maker
    size: Size
    peers: str | None
    start: Callable[[str], Link]

    @classmethod
    def of(cls, data: Path, maker: Maker, size: Size, peers: str | None) -> Setting:
        """Contenders run as children: ours in this Python, peers in theirs."""

        def start(adapter: str) -> Link:
            python = sys.executable if adapter in OWN or peers is None else peers
            return Child(python, adapter, data / "logs" / f"{adapter}.log", size.limit)

        return cls(data, maker, size, peers, start)


def prepare(question: Question, setting: Setting) -> None:
    """Make the corpus and every contender's dataset, and measure nothing."""
    corpus = question.corpus(setting.maker, setting.size)
    for entry in _entries(question, setting):
        link = setting.start(entry.adapter)
        try:
            options = entry.options | {"batch": question.batch, "workers": 0}
            place = _place(setting, corpus, entry)
            answer = link.ask("write", corpus=corpus.folder, dest=place, options=options)
            _say(question, f"{entry.name}: written in {answer['seconds']:.1f} s")
        finally:
            link.close()


def _entries(question: Question, setting: Setting) -> list[Contender]:
    return [entry for entry in question.contenders if entry.role != "peer" or setting.peers is not None]


def run(question: Question, setting: Setting) -> dict[str, Any]:
    """Everything measured, raw."""
    corpus = question.corpus(setting.maker, setting.size)
    entries = _entries(question, setting)
    rows: dict[str, dict[str, Any]] = {c.name: {"role": c.role, "rounds": []} for c in entries}
    if question.latency is not None:
        from benchmarks.store import Remote  # a server, and what it takes to run one

        with Remote(setting.data) as remote:
            _starts(question, setting, corpus, entries, rows, remote)
    else:
        measure = _rates if question.measure == "rate" else _starts
        measure(question, setting, corpus, entries, rows)
    facts = {"count": corpus.count, "bytes": corpus.bytes, "kind": corpus.kind, "dtype": corpus.dtype}
    return {
        "title": question.title, "measure": question.measure, "unit": question.unit, "notes": question.notes,
        "batch": question.batch, "corpus": facts, "contenders": rows,
    }  # fmt: skip


def _say(question: Question, text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {question.name}: {text}", file=sys.stderr, flush=True)


def _place(setting: Setting, corpus: Corpus, entry: Contender) -> str:
    return str(setting.data / "datasets" / Path(corpus.folder).name / entry.stored)


def _rates(
    question: Question, setting: Setting, corpus: Corpus, entries: list[Contender], rows: dict[str, Any]
) -> None:
    links: dict[str, Link] = {}
    try:
        for entry in entries:
            try:
                links[entry.name] = _ready(question, setting, corpus, entry, rows[entry.name])
            except RuntimeError as error:
                # One peer that fails must not cost the others' figures; the table says so.
                if entry.role != "peer":
                    raise
                rows[entry.name]["error"] = str(error)
                _say(question, f"{entry.name}: FAILED: {error}")
        for number in range(setting.size.rounds):
            for name, link in links.items():
                answer = link.ask("round", least=setting.size.least, most=setting.size.most)
                rows[name]["rounds"].append(answer)
                _say(question, f"round {number + 1}: {name}: {answer['samples'] / answer['seconds']:,.0f}/s")
    finally:
        for link in links.values():
            link.close()


def _ready(
    question: Question, setting: Setting, corpus: Corpus, entry: Contender, row: dict[str, Any]
) -> Link:
    """The process of a contender, warm, with the number of workers that is best for it."""
    place, best = _place(setting, corpus, entry), None
    row["tried"] = {}
    for workers in entry.workers:
        link = setting.start(entry.adapter)
        try:
            options = entry.options | {"batch": question.batch, "workers": workers}
            row |= link.ask("facts")
            row["written"] = link.ask("write", corpus=corpus.folder, dest=place, options=options)
            row["open_seconds"] = link.ask("open", corpus=corpus.folder, dest=place, options=options)[
                "seconds"
            ]
            if workers == entry.workers[0]:
                row["verified"] = link.ask("verify")
            warm, peaks = link.watched("round", least=setting.size.least, most=setting.size.most)
        except BaseException:
            link.close()
            if best is not None:
                best[1].close()
            raise
        rate = warm["samples"] / warm["seconds"]
        row["tried"][workers] = rate
        _say(question, f"warm-up: {entry.name}, {workers} workers: {rate:,.0f}/s")
        if best is not None and best[0] >= rate:
            link.close()
            continue
        if best is not None:
            best[1].close()
        best = rate, link
        row |= {"workers": workers} | peaks
    assert best is not None
    return best[1]


def _starts(
    question: Question, setting: Setting, corpus: Corpus, entries: list[Contender], rows: dict[str, Any],
    remote: Remote | None = None,
) -> None:  # fmt: skip
    """Each time is taken in a process of its own, the first round being the warm-up.

    From a store all is cold each time, and of some peers takes a minute: there is no warm-up.
    """
    failed: set[str] = set()
    rounds = range(setting.size.rounds + 1) if remote is None else range(1, _COLD_ROUNDS + 1)
    for number in rounds:
        for entry in entries:
            if entry.name in failed:
                continue
            row, place = rows[entry.name], _place(setting, corpus, entry)
            options = entry.options | {"batch": question.batch, "workers": 0}
            fraction = options.pop("fraction", None)
            # Reading the rest takes slow contenders minutes, where there is much of it.
            check = number == 0 and (fraction or 0) > 0.9
            more = {} if fraction is None else {"fraction": fraction, "check": check}
            link = setting.start(entry.adapter)
            try:
                row |= link.ask("facts")
                row["written"] = link.ask("write", corpus=corpus.folder, dest=place, options=options)
                if remote is not None:
                    options["remote"] = remote.ready(place, question.latency, question.rate)
                answer, peaks = link.watched(
                    question.measure, corpus=corpus.folder, dest=place, options=options, **more
                )
                row |= peaks
                if remote is not None:
                    answer["wire"] = remote.passed()
                    if question.measure == "first":
                        answer["seconds"] += answer["construct"]
            except RuntimeError as error:
                if entry.role != "peer":
                    raise
                failed.add(entry.name)
                row["rounds"].clear()  # ratios are taken within rounds that all have
                row["error"] = str(error)
                _say(question, f"{entry.name}: FAILED: {error}")
                continue
            finally:
                link.close()
            if number:
                row["rounds"].append(answer)
            _say(question, f"round {number}: {entry.name}: {answer['seconds'] * 1e3:.1f} ms")
