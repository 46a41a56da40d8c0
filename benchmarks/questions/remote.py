"""How soon is the first batch of a remote dataset here, and how fast is a cold epoch?"""

from __future__ import annotations

from benchmarks.corpora import Corpus
from benchmarks.make_corpora import Maker
from benchmarks.question import Bar, Contender, Question, Size

OURS, BARE = "shardstream", "ranged GETs alone"
LITDATA, MDS, WDS, HF = "LitData", "MDS", "WebDataset", "HF datasets, streaming"
SHARDS = 64


def _corpus(maker: Maker, size: Size) -> Corpus:
    return maker.images(size.images, 40 << 10)


_ROWS = (
    Contender(OURS, "ours", "ours", {"codec": "none", "shards": SHARDS}, dataset="ours-none-64"),
    Contender(LITDATA, "litdata", "peer", {"shards": SHARDS}, dataset="litdata-none-64"),
    Contender(MDS, "mosaic", "peer", {"codec": "none", "shards": SHARDS}, dataset="mosaic-none-64"),
    Contender(WDS, "wds", "peer", {"codec": "none", "shards": SHARDS}, dataset="wds-none-64"),
    Contender(
        HF, "hf", "peer", {"streaming": True, "parquet": True, "shards": SHARDS}, dataset="hf-parquet-64"
    ),
)
_BARE = Contender(
    BARE,
    "ceilings",
    "ceiling",
    {"ceiling": "ranges", "codec": "none", "shards": SHARDS},
    dataset="ours-none-64",
)
PEERS = (LITDATA, MDS, WDS, HF)
NOTES = (
    f"{SHARDS} shards, in SeaweedFS on loopback behind a proxy that adds the latency to each connection and "
    "each request. Every row is a new process with an empty cache; imports are not counted, constructing is. "
    "The proxy counts; `chain` is the longest series of requests of which each came after an answer to the "
    "one before, those after the first batch included. WebDataset runs curl on signed URLs, and HF datasets "
    "reads signed URLs of Parquet files. No workers: they would start cold, too."
)


def _first(milliseconds: int, bars: tuple[Bar, ...]) -> Question:
    return Question(
        f"remote_first{milliseconds}",
        f"From construction to the first batch of 32 images, cold, {milliseconds} ms per round trip",
        _corpus,
        _ROWS,
        bars,
        batch=32,
        measure="first",
        unit="ms",
        notes=NOTES,
        latency=milliseconds / 1e3,
    )


def _epoch(milliseconds: int) -> Question:
    return Question(
        f"remote_epoch{milliseconds}",
        f"A whole epoch of images, bytes only, from construction on, cold, {milliseconds} ms per round trip",
        _corpus,
        (_BARE, *_ROWS),
        (
            Bar("at least 2 x the best peer", 2, OURS, PEERS),
            Bar("at least 80 % of ranged GETs alone", 0.8, OURS, (BARE,)),
        ),
        batch=32,
        measure="epoch",
        unit="samples/s",
        notes=NOTES,
        latency=milliseconds / 1e3,
    )


_LINK = 150e6  # bytes per second
_FLOOR = "the same frames, verified and copied once"
_RAM, _SSD = "shardstream, RAM only", "shardstream, with an SSD"
_LINKED = (
    Contender(_FLOOR, "ceilings", "ceiling", {"ceiling": "frames", "codec": "none"}, dataset="ours-none"),
    Contender(_RAM, "ours", "ours", {"codec": "none", "ram": "4GiB", "ssd": False}, dataset="ours-none"),
    Contender(_SSD, "ours", "ours", {"codec": "none", "ram": "4GiB", "ssd": True}, dataset="ours-none"),
)
_CAPPED = Question(
    "remote_link150",
    "A whole epoch from construction on, cold, 20 ms per round trip, over a link of 150 MB/s",
    lambda maker, size: maker.noise(4 * size.images, 44 << 10),
    _LINKED,
    (
        Bar("RAM only: at most 1.5 x the CPU of the floor", 1.5, _RAM, (_FLOOR,), "cpu"),
        Bar("RAM only: at least 0.8 of the rate of the floor", 0.8, _RAM, (_FLOOR,)),
        Bar("with an SSD: at least 0.8 of the rate of the floor", 0.8, _SSD, (_FLOOR,)),
        Bar("with an SSD: filled at most 60 s after the epoch", 60, _SSD, of="filled"),
        Bar("RAM only: at most 300 requests (of 1.8 GB)", 300, _RAM, of="requests"),
        Bar("with an SSD: at most 300 requests (of 1.8 GB)", 300, _SSD, of="requests"),
    ),
    batch=32,
    measure="epoch",
    notes=(
        "Shards of 64 MiB in SeaweedFS on loopback, behind a proxy that adds the latency to each connection "
        "and each request, and lets 150 MB a second pass on all connections together: so store and reader do "
        "not fight for the cores. The samples are random bytes, of 44 KB in the mean. CPU is of the process "
        "that reads. The floor has no order, no cache and no state."
    ),
    latency=0.02,
    rate=_LINK,
)

QUESTIONS = (
    _first(0, (Bar("at least 5 x as soon as the best peer", 5, OURS, PEERS),)),
    _first(
        100,
        (
            Bar("at most 5 round trips of 100 ms, constructing and processor time included", 0.5, OURS),
            Bar("at least 5 x as soon as the best peer", 5, OURS, PEERS),
        ),
    ),
    _epoch(0),
    _epoch(20),
    _CAPPED,
)
