"""How fast are JSONL documents as dict samples?"""

from __future__ import annotations

from benchmarks.corpora import Corpus
from benchmarks.make_corpora import Maker
from benchmarks.question import Bar, Contender, Question, Size
from benchmarks.questions import more_peers

OURS, PLAIN, ALONE = "shardstream, zstd", "shardstream, uncompressed", "zstd alone, all cores"
FLOOR, PLAIN_FLOOR = "floor, zstd", "floor, uncompressed"
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
            Contender(
                FLOOR,
                "floors_samples",
                "ceiling",
                {"floor": "documents", "codec": "zstd"},
                dataset="ours-zstd",
            ),
            Contender(
                PLAIN_FLOOR,
                "floors_samples",
                "ceiling",
                {"floor": "documents", "codec": "none"},
                dataset="ours-none",
            ),
            Contender(OURS, "ours", "ours", {"codec": "zstd"}),
            Contender(f"{OURS}, the same again", "ours", "ours", {"codec": "zstd"}),
            Contender(
                "shardstream, zstd, sample by sample", "ours", "ours", {"codec": "zstd", "iterate": True}
            ),
            Contender(PLAIN, "ours", "ours", {"codec": "none"}),
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
            Bar("zstd: at least 0.85 of the floor", 0.85, OURS, (FLOOR,)),
            Bar("uncompressed: at least 1.5 x LitData and HF datasets", 1.5, PLAIN, (LITDATA, HF)),
            Bar("zstd: at least 5 x WebDataset, zstd", 5, OURS, (WDS,)),
            Bar("zstd: at least 5 x MDS, zstd", 5, OURS, (MDS,)),
        ),
        notes="MDS decompresses its zstd shards once, into a folder, and is timed reading that. The floor is "
        "two threads that decompress 4 frames at a time, cut them and make the same dicts, without an "
        "order of the whole dataset and without checks. It and zstd alone decompress with the library that "
        "ours takes: the system's, if that is 1.5.2 or later. " + more_peers.NOTES,
    ),
)
