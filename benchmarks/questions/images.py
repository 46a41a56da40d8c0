"""How fast are JPEGs with a label, bytes only, not decoded?"""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.corpora import Corpus
from benchmarks.make_corpora import Maker
from benchmarks.question import Bar, Contender, Question, Size
from benchmarks.questions import more_peers

OURS, VIEWS, COPY, FLOOR = "shardstream", "shardstream, views", "page cache to memory, all cores", "floor"
HF, LITDATA, LOOSE = "HF datasets", "LitData", "loose files"
_READ = {"codec": "none", "hash": True}  # the consumer hashes each image


def _corpus(size_of_one: int, share: int) -> Callable[[Maker, Size], Corpus]:
    return lambda maker, size: maker.images(size.images // share, size_of_one)


def _question(name: str, kilobytes: int, share: int) -> Question:
    contenders = (
        Contender(COPY, "ceilings", "ceiling", {"ceiling": "copy", "codec": "none"}, dataset="ours-none"),
        Contender(FLOOR, "floors_samples", "ceiling", _READ | {"floor": "images"}, dataset="ours-none"),
        Contender(OURS, "ours", "ours", _READ),
        Contender(f"{OURS}, the same again", "ours", "ours", _READ),
        Contender(f"{OURS}, samples of bytes", "ours", "ours", _READ | {"bytes": True}),
        Contender(VIEWS, "ours", "ours", _READ | {"views": True}),
        Contender(HF, "hf", "peer", _READ, (0, 2)),
        Contender("HF datasets, streaming", "hf", "peer", _READ | {"streaming": True}, (0, 2)),
        Contender(LITDATA, "litdata", "peer", _READ, (0, 2)),
        Contender(LOOSE, "plain", "peer", _READ, (0, 2), dataset="plain"),
        Contender("MDS", "mosaic", "peer", _READ, (0, 2)),
        Contender("WebDataset", "wds", "peer", _READ, (0, 2)),
        *more_peers.reading(_READ, more_peers.RECORDS + more_peers.SPDL),
    )
    peers = tuple(one.name for one in contenders if one.role == "peer")
    return Question(
        name,
        f"JPEG of about {kilobytes} KB and label, bytes only, batches of 32, shuffled, warm; the consumer "
        "hashes every byte",
        _corpus(kilobytes << 10, share),
        contenders,
        (
            Bar("at least 1.2 x the best peer", 1.2, OURS, peers),
            Bar("views: at least 1.2 x the best peer", 1.2, VIEWS, peers),
        ),
        batch=32,
        notes="xxh3_64 of each image. The floor is two threads that copy random images from the page cache, "
        "into memory that is used again, while the consumer hashes. Ours gives one buffer for the images of "
        "a batch; the row of samples of bytes, and all peers, give an object for each. The row of views "
        "gives memoryviews of the mapped files. " + more_peers.NOTES,
    )


QUESTIONS = (_question("images40", 40, 1), _question("images110", 110, 3))
