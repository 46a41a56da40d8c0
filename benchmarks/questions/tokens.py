"""How fast are shuffled blocks of 2,049 tokens, of 32 and of 16 bits, uncompressed and zstd?"""

from __future__ import annotations

from benchmarks.corpora import Corpus
from benchmarks.make_corpora import Maker
from benchmarks.question import Bar, Contender, Question, Size
from benchmarks.questions import more_peers

OURS, ZSTD = "shardstream", "shardstream, zstd"
AGAIN = "shardstream, once more (A/A)"
STORED, STORED_ZSTD = "shardstream, as stored", "shardstream, zstd, as stored"
LITDATA, MDS_ZSTD = "LitData TokensLoader", "MDS, zstd"
GATHER, ALONE = "batched np.memmap gather", "zstd alone, all cores"
FLOOR, FLOOR_ZSTD = "floor: take and widen", "floor: decompress, gather and widen"
FLOOR_STORED, FLOOR_STORED_ZSTD = "floor: take", "floor: decompress and gather"


def _contenders(peers: tuple[Contender, ...], stored: str) -> tuple[Contender, ...]:
    kept = {"dtype": stored}
    return (
        Contender(GATHER, "ceilings", "ceiling", {"ceiling": "gather"}, dataset="gather"),
        Contender(ALONE, "ceilings", "ceiling", {"ceiling": "zstd", "codec": "zstd"}, dataset="ours-zstd"),
        _floor(FLOOR, "none"),
        Contender(OURS, "ours", "ours", {"codec": "none"}),
        _floor(FLOOR_ZSTD, "zstd"),
        Contender(ZSTD, "ours", "ours", {"codec": "zstd"}),
        Contender(AGAIN, "ours", "ours", {"codec": "none"}),
        _floor(FLOOR_STORED, "none", kept),
        Contender(STORED, "ours", "ours", {"codec": "none"} | kept),
        _floor(FLOOR_STORED_ZSTD, "zstd", kept),
        Contender(STORED_ZSTD, "ours", "ours", {"codec": "zstd"} | kept),
        *peers,
    )


def _floor(name: str, codec: str, more: dict[str, str] | None = None) -> Contender:
    options = {"codec": codec} | (more or {})
    return Contender(
        name, "token_floors", "ceiling", options, dataset="ours-zstd" if codec == "zstd" else "gather"
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
    "All give int64 but the rows that say so, LitData, MDS and HF datasets, which give what is stored (int32 "
    "or uint16) and so copy less. A floor does the same copies with two threads and recycled memory, and has "
    "no order, no checks and no state. The floor of zstd mixes the rows of 4 frames, which stay in the CPU's "
    "cache; ours mixes those of 256 frames. It and zstd alone decompress with the library that ours takes: "
    "the system's, if that is 1.5.2 or later. MDS decompresses its zstd shards once, into a folder, and is "
    "timed reading that. Our blocks of 2,049 share one token with the next, as inputs and targets do; those "
    "of the others do not. Rounds last at least 3 seconds, of repeated epochs. " + more_peers.NOTES
)
BARS = (
    Bar("none: at least 0.9 of its floor", 0.9, OURS, (FLOOR,)),
    Bar("none: at most 1.15 x the CPU of its floor", 1.15, OURS, (FLOOR,), of="cpu"),
    Bar("none: at least 6.5 x LitData TokensLoader", 6.5, OURS, (LITDATA,)),
    Bar("zstd: at least 0.9 of its floor", 0.9, ZSTD, (FLOOR_ZSTD,)),
    Bar("zstd: at most 1.15 x the CPU of its floor", 1.15, ZSTD, (FLOOR_ZSTD,), of="cpu"),
    Bar("as stored: at least 1.5 x int64", 1.5, STORED, (OURS,)),
    Bar("zstd: at least 2.5 x LitData uncompressed", 2.5, ZSTD, (LITDATA,)),
    Bar("zstd: at least 30 x MDS zstd", 30, ZSTD, (MDS_ZSTD,)),
)
QUESTIONS = (
    Question(
        "tokens32", "Blocks of 2,049 tokens of 32 bits (BPE), batch 8, shuffled, warm",
        _wide, _contenders(PEERS, "int32"), BARS, notes=NOTES,
    ),
    Question(
        "tokens16", "Blocks of 2,049 tokens of 16 bits (bytes), batch 8, shuffled, warm",
        _narrow, _contenders(PEERS, "uint16"), BARS, notes=NOTES,
    ),
)  # fmt: skip
