"""How fast are shuffled blocks of 2,049 tokens, of 32 and of 16 bits, uncompressed and zstd?"""

from __future__ import annotations

from benchmarks.corpora import Corpus
from benchmarks.make_corpora import Maker
from benchmarks.question import Bar, Contender, Question, Size
from benchmarks.questions import more_peers

OURS, ZSTD = "shardstream", "shardstream, zstd"
LITDATA, MDS_ZSTD = "LitData TokensLoader", "MDS, zstd"
GATHER, ALONE = "batched np.memmap gather", "zstd alone, all cores"


def _contenders(peers: tuple[Contender, ...]) -> tuple[Contender, ...]:
    return (
        Contender(GATHER, "ceilings", "ceiling", {"ceiling": "gather"}, dataset="gather"),
        Contender(ALONE, "ceilings", "ceiling", {"ceiling": "zstd", "codec": "zstd"}, dataset="ours-zstd"),
        Contender(OURS, "ours", "ours", {"codec": "none"}),
        Contender(ZSTD, "ours", "ours", {"codec": "zstd"}),
        Contender("shardstream, int32", "ours", "ours", {"codec": "none", "dtype": "int32"}),
        *peers,
    )


def _wide(maker: Maker, size: Size) -> Corpus:
    return maker.tokens32(size.tokens32)


def _narrow(maker: Maker, size: Size) -> Corpus:
    return maker.tokens16(size.tokens16)


LITDATA_ROW = Contender(LITDATA, "litdata", "peer", workers=(0, 2))
MEMMAP = Contender("np.memmap, DataLoader", "plain", "peer", workers=(0, 2), dataset="plain")
PEERS = (
    LITDATA_ROW,
    MEMMAP,
    Contender("HF datasets", "hf", "peer", workers=(0, 2)),
    Contender("HF datasets, streaming", "hf", "peer", {"streaming": True}, (0, 2)),
    Contender("MDS", "mosaic", "peer", {"codec": "none"}, (0, 2)),
    Contender(MDS_ZSTD, "mosaic", "peer", {"codec": "zstd"}, (0, 2)),
    Contender("WebDataset", "wds", "peer", {"codec": "none"}, (0, 2)),
    *more_peers.RECORDS,
    *more_peers.ZSTD,
)
NOTES = (
    "All give int64 but our row that says so, LitData, MDS and HF datasets, which give what is stored (int32 "
    "or uint16) and so copy less. MDS decompresses its zstd shards once, into a folder, and is timed reading "
    "that. Our blocks of 2,049 share one token with the next, as inputs and targets do; those of the others "
    "do not. " + more_peers.NOTES
)
BARS = (
    Bar("none: at least 8 x LitData TokensLoader", 8, OURS, (LITDATA,)),
    Bar("none: at least 80 % of the batched gather", 0.8, OURS, (GATHER,)),
    Bar("zstd: at least 2.5 x LitData uncompressed", 2.5, ZSTD, (LITDATA,)),
    Bar("zstd: at least 30 x MDS zstd", 30, ZSTD, (MDS_ZSTD,)),
    Bar("zstd: at least 85 % of zstd alone on all cores", 0.85, ZSTD, (ALONE,)),
)
QUESTIONS = (
    Question(
        "tokens32", "Blocks of 2,049 tokens of 32 bits (BPE), batch 8, shuffled, warm",
        _wide, _contenders(PEERS), BARS, notes=NOTES,
    ),
    Question(
        "tokens16", "Blocks of 2,049 tokens of 16 bits (bytes), batch 8, shuffled, warm",
        _narrow, _contenders(PEERS), BARS, notes=NOTES,
    ),
)  # fmt: skip
