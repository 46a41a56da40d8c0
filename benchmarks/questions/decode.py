"""How fast do JPEGs with a label become batches of floats, on the CPU?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks.corpora import Corpus
from benchmarks.make_corpora import Maker
from benchmarks.question import Bar, Contender, Question, Size

OURS, CEILING = "shardstream", "libjpeg-turbo, all cores"
HF, LITDATA, LOOSE, MDS, WDS = "HF datasets", "LitData", "loose files", "MDS", "WebDataset"
DALI, DALI_WDS, SPDL = "DALI, file reader", "DALI, webdataset reader", "SPDL"
_OPTIONS: dict[str, Any] = {"codec": "none", "decode": 224}


def _corpus(size_of_one: int, share: int) -> Callable[[Maker, Size], Corpus]:
    return lambda maker, size: maker.images(size.images // share, size_of_one)


def _question(name: str, kilobytes: int, share: int) -> Question:
    return Question(
        name,
        f"JPEG of about {kilobytes} KB and label to float [32, 3, 224, 224]: random resized crop, flip, "
        "normalised, shuffled, warm",
        _corpus(kilobytes << 10, share),
        (
            Contender(CEILING, "ceilings", "ceiling", _OPTIONS | {"ceiling": "jpeg"}, dataset="ours-none"),
            Contender(OURS, "ours", "ours", _OPTIONS),
            Contender(HF, "hf", "peer", _OPTIONS, (0, 2)),
            Contender(LITDATA, "litdata", "peer", _OPTIONS, (0, 2)),
            Contender(LOOSE, "plain", "peer", _OPTIONS, (0, 2), dataset="plain"),
            Contender(MDS, "mosaic", "peer", _OPTIONS, (0, 2)),
            Contender(WDS, "wds", "peer", _OPTIONS, (0, 2)),
            Contender(SPDL, "spdl", "peer", _OPTIONS, dataset="plain"),
            Contender(DALI, "dali", "peer", _OPTIONS, dataset="ours-none"),
            Contender(DALI_WDS, "dali", "peer", _OPTIONS | {"reader": "webdataset"}, dataset="ours-none"),
        ),
        (
            Bar("at least 2 x the best of those with Pillow", 2, OURS, (HF, LITDATA, LOOSE, MDS, WDS)),
            Bar("at least 1.1 x SPDL and DALI's readers", 1.1, OURS, (SPDL, DALI, DALI_WDS)),
            Bar("at least 0.8 x libjpeg-turbo alone", 0.8, OURS, (CEILING,)),
        ),
        batch=32,
        notes="The ceiling decodes at the scales that ours decodes at, and does nothing else. HF datasets, "
        "LitData, loose files, MDS and WebDataset decode with Pillow, as torchvision's transforms do. All "
        "resize with an antialiased linear filter but SPDL, which uses FFmpeg's. Each has two threads, or "
        "0 or 2 workers. Of the pixels see `benchmarks/decode_quality.py`.",
    )


QUESTIONS = (_question("decode40", 40, 1), _question("decode110", 110, 3))
