"""How fast are JSONL documents as dict samples?"""

from __future__ import annotations

from benchmarks.corpora import Corpus
from benchmarks.make_corpora import Maker
from benchmarks.question import Bar, Contender, Question, Size
from benchmarks.questions import more_peers

OURS, ALONE = "shardstream, zstd", "zstd alone, all cores"
MDS, WDS = "MDS, zstd", "WebDataset, zstd"
LITDATA, HF = "LitData, uncompressed", "HF datasets, uncompressed"


def _corpus(maker: Maker, size: Size) -> Corpus:
    return maker.documents(size.text)


QUESTIONS = (
    Question(
        "documents",
        "Documents as dict samples, batches of 8 left as lists, shuffled, warm",
        _corpus,
        (
            Contender(
                ALONE, "ceilings", "ceiling", {"ceiling": "zstd", "codec": "zstd"}, dataset="ours-zstd"
            ),
            Contender(OURS, "ours", "ours", {"codec": "zstd"}),
            Contender(
                "shardstream, zstd, sample by sample", "ours", "ours", {"codec": "zstd", "iterate": True}
            ),
            Contender("shardstream, uncompressed", "ours", "ours", {"codec": "none"}),
            Contender(MDS, "mosaic", "peer", {"codec": "zstd"}, (0, 2)),
            Contender(WDS, "wds", "peer", {"codec": "zstd"}, (0, 2)),
            Contender(LITDATA, "litdata", "peer", workers=(0, 2)),
            Contender(HF, "hf", "peer", workers=(0, 2)),
            Contender("HF datasets, streaming", "hf", "peer", {"streaming": True}, (0, 2)),
            Contender("MDS, uncompressed", "mosaic", "peer", {"codec": "none"}, (0, 2)),
            Contender("WebDataset, uncompressed", "wds", "peer", {"codec": "none"}, (0, 2)),
            *more_peers.RECORDS,
            *more_peers.ZSTD,
        ),
        (
            Bar("at least 5 x WebDataset, zstd", 5, OURS, (WDS,)),
            Bar("at least 5 x MDS, zstd", 5, OURS, (MDS,)),
            Bar("at least 1.5 x LitData and HF datasets, uncompressed", 1.5, OURS, (LITDATA, HF)),
            Bar("at least 80 % of zstd alone", 0.8, OURS, (ALONE,)),
        ),
        notes="MDS decompresses its zstd shards once, into a folder, and is timed reading that. "
        + more_peers.NOTES,
    ),
)
