"""How fast are JPEGs with a label, bytes only, not decoded?"""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.corpora import Corpus
from benchmarks.make_corpora import Maker
from benchmarks.question import Bar, Contender, Question, Size
from benchmarks.questions import more_peers

OURS, COPY = "shardstream", "page cache to memory, all cores"
HF, LITDATA, LOOSE = "HF datasets", "LitData", "loose files"


def _corpus(size_of_one: int, share: int) -> Callable[[Maker, Size], Corpus]:
    return lambda maker, size: maker.images(size.images // share, size_of_one)


def _question(name: str, kilobytes: int, share: int) -> Question:
    return Question(
        name,
        f"JPEG of about {kilobytes} KB and label, bytes only, batches of 32 left as lists, shuffled, warm",
        _corpus(kilobytes << 10, share),
        (
            Contender(COPY, "ceilings", "ceiling", {"ceiling": "copy", "codec": "none"}, dataset="ours-none"),
            Contender(OURS, "ours", "ours", {"codec": "none"}),
            Contender(HF, "hf", "peer", workers=(0, 2)),
            Contender("HF datasets, streaming", "hf", "peer", {"streaming": True}, (0, 2)),
            Contender(LITDATA, "litdata", "peer", workers=(0, 2)),
            Contender(LOOSE, "plain", "peer", workers=(0, 2), dataset="plain"),
            Contender("MDS", "mosaic", "peer", {"codec": "none"}, (0, 2)),
            Contender("WebDataset", "wds", "peer", {"codec": "none"}, (0, 2)),
            *more_peers.RECORDS,
            *more_peers.SPDL,
        ),
        (Bar("at least 3 x the best of HF datasets, LitData, loose files", 3, OURS, (HF, LITDATA, LOOSE)),),
        batch=32,
        notes=more_peers.NOTES,
    )


QUESTIONS = (_question("images40", 40, 1), _question("images110", 110, 3))
