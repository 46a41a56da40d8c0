"""How long until the first batch of 1,000 local shards, and until the next batch after a resume?"""

from __future__ import annotations

from typing import Any

from benchmarks.corpora import Corpus
from benchmarks.make_corpora import Maker
from benchmarks.question import Bar, Contender, Question, Size

OURS = "shardstream, zstd"


def _documents(maker: Maker, size: Size) -> Corpus:
    return maker.documents(size.text)


def _lines(maker: Maker, size: Size) -> Corpus:
    return maker.lines(size.lines)


def _row(name: str, adapter: str, role: str, codec: str, **more: Any) -> Contender:
    options = {"codec": codec, "shards": 1000}
    return Contender(name, adapter, role, options | more, dataset=f"{adapter}-{codec}-1000")


def _resume(fraction: float) -> Question:
    part = f"{fraction:.0%}".removesuffix("%")
    return Question(
        f"resume{part}",
        f"From a state at {part} % of an epoch of short documents to the next batch, in a new process",
        _lines,
        (
            Contender(OURS, "ours", "ours", {"codec": "zstd", "fraction": fraction}),
            Contender("MDS", "mosaic", "peer", {"codec": "none", "fraction": fraction}),
            Contender("LitData", "litdata", "peer", {"fraction": fraction}),
        ),
        (Bar("at most 50 ms", 0.05, OURS),),
        measure="resume",
        unit="ms",
        notes="Imports are not counted; constructing the dataset and loader, and loading the state, are.",
    )


QUESTIONS = (
    Question(
        "first_batch",
        "From construction to the first batch, 1,000 shards, shuffled, in a new process",
        _documents,
        (
            _row(OURS, "ours", "ours", "zstd"),
            _row("shardstream, uncompressed", "ours", "ours", "none"),
            _row("MDS", "mosaic", "peer", "none"),
            _row("LitData", "litdata", "peer", "none"),
            _row("HF datasets", "hf", "peer", "none"),
            _row("WebDataset", "wds", "peer", "none"),
        ),
        (Bar("at most 25 ms after construction", 0.025, OURS),),
        measure="first",
        unit="ms",
        notes="Imports are not counted; the time to construct is given beside.",
    ),
    _resume(0.01),
    _resume(0.5),
    _resume(0.99),
)
