"""What a question is: a corpus, contenders, and the bars that the answer has to meet."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from benchmarks.corpora import Corpus
from benchmarks.make_corpora import Maker


@dataclass(frozen=True)
class Size:
    """How much a suite does."""

    name: str
    rounds: int
    limit: float  # seconds for a command, after which its contender has failed
    least: float  # seconds of a round: shorter epochs are repeated
    most: float  # seconds after which a round ends in the midst of a longer epoch
    text: int  # bytes of documents
    tokens16: int  # bytes of text
    tokens32: int
    images: int
    lines: int


SIZES = {
    "tiny": Size("tiny", 2, 60.0, 0.0, 2.0, 1 << 18, 1 << 18, 1 << 18, 40, 2000),
    "quick": Size("quick", 3, 120.0, 0.3, 1.0, 32 << 20, 16 << 20, 24 << 20, 1500, 100_000),
    "full": Size("full", 5, 900.0, 3.0, 4.0, 256 << 20, 48 << 20, 240 << 20, 10_200, 1_200_000),
}


@dataclass(frozen=True)
class Contender:
    """One row of the table. role: "ours", "peer" or "ceiling"; `workers` are tried, the best counts."""

    name: str
    adapter: str
    role: str
    options: dict[str, Any] = field(default_factory=dict)
    workers: tuple[int, ...] = (0,)
    dataset: str = ""  # contenders with the same name here share what was written

    @property
    def stored(self) -> str:
        """The name of its dataset."""
        return self.dataset or f"{self.adapter}-{self.options.get('codec', 'none')}"


@dataclass(frozen=True)
class Bar:
    """Ours is at least `factor` times as fast as the best of `against`; without, at most `factor` seconds.

    of: "cpu": ours takes at most `factor` times the CPU seconds a GB of the cheapest of `against`. "requests"
        to the store, or "filled", the seconds after the epoch until the cache is on the disk: at most
        `factor`.
    """

    text: str
    factor: float
    ours: str
    against: tuple[str, ...] = ()
    of: str = ""


@dataclass(frozen=True)
class Question:
    """measure: "rate" or "epoch" (samples per second, of a cold epoch), "first" or "resume" (seconds).

    latency: of a round trip in seconds, where the datasets are in an object store; else they are local.
    rate: bytes per second of the link to the store, which all connections share; None for no limit.
    """

    name: str
    title: str
    corpus: Callable[[Maker, Size], Corpus]
    contenders: tuple[Contender, ...]
    bars: tuple[Bar, ...]
    batch: int = 8
    measure: str = "rate"
    unit: str = "samples/s"
    notes: str = ""
    latency: float | None = None
    rate: float | None = None
