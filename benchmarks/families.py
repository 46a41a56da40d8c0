"""Which rows of which questions belong to one library, for tables of a line each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from benchmarks.bars import Row
from benchmarks.committed import Found

# The names of rows begin so.
_FAMILIES: dict[str, tuple[str, ...]] = {
    "LitData": ("LitData", "litdata"),
    "HF datasets": ("HF datasets",),
    "MosaicML Streaming": ("MDS",),
    "WebDataset": ("WebDataset", "wds."),
    "Grain, ArrayRecord": ("Grain",),
    "tf.data, TFRecord": ("tf.data",),
    "DataLoader, Parquet": ("Parquet",),
    "DataLoader, files or memmap": ("loose files", "np.memmap"),
    "SPDL": ("SPDL",),
    "DALI, on the CPU": ("DALI",),
}
OURS = ("**shardstream**", "**shardstream, zstd**")
FLOOR = "floor or ceiling"
LABELS = (*OURS, *_FAMILIES)
_PACKAGES = (
    "shardstream", "litdata", "datasets", "mosaicml-streaming", "webdataset", "grain", "array-record",
    "tensorflow-cpu", "pyarrow", "torch", "spdl-core", "nvidia-dali-cuda120",
)  # fmt: skip


@dataclass(frozen=True)
class Column:
    """A question as a column of the table of libraries.

    Args:
        question: Its name.
        title: The head of the column, with the unit.
        ours: Our rows, and the labels under which they stand.
        floors: Rows of the least work that can be done; the first one with results counts.
    """

    question: str
    title: str
    ours: Mapping[str, str]
    floors: tuple[str, ...] = field(default=())


_PLAIN, _ZSTD = OURS
COLUMNS = (
    Column(
        "tokens32",
        "tokens, blocks/s",
        {"shardstream": _PLAIN, "shardstream, zstd": _ZSTD},
        ("floor: take and widen", "batched np.memmap gather"),
    ),
    Column(
        "documents",
        "documents/s",
        {"shardstream, uncompressed": _PLAIN, "shardstream, zstd": _ZSTD},
        ("floor, uncompressed",),
    ),
    Column(
        "images40",
        "JPEGs of 40 KB, /s",
        {"shardstream": _PLAIN, "shardstream, samples of bytes": _PLAIN},
        ("floor", "page cache to memory, all cores"),
    ),
    Column("decode40", "decoded, images/s", {"shardstream": _PLAIN}, ("libjpeg-turbo, all cores",)),
    Column("remote_first100", "from a store: first batch, ms", {"shardstream": _PLAIN}),
    Column("remote_epoch20", "from a store: images/s", {"shardstream": _PLAIN}, ("ranged GETs alone",)),
    Column("packing_jsonl", "packing, MB/s", {"shardstream": _ZSTD}, ("zstd alone",)),
)


def family(name: str) -> str | None:
    """The label of the library that a row is of; None if it is none of them."""
    for label, beginnings in _FAMILIES.items():
        if name.startswith(beginnings):
            return label
    return None


def best(rows: Sequence[Row]) -> list[Row]:
    """Of each library its first row, and all that are of no library; the order stays.

    Ours a second time, which shows chance, and variants of ours beside the first stay out of pictures only if
    they say that they are a repetition.
    """
    seen: set[str] = set()
    kept = []
    for row in rows:
        label = family(row.name) if row.role == "peer" else None
        if label in seen or "the same again" in row.name or "once more" in row.name:
            continue
        if label is not None:
            seen.add(label)
        kept.append(row)
    return kept


def versions(found: Iterable[Found]) -> str:
    """The versions of the libraries that were measured."""
    numbers: dict[str, str] = {}
    for one in found:
        numbers |= one.versions | one.facts.get("peers", {})
    return ", ".join(f"{name} {numbers[name]}" for name in _PACKAGES if name in numbers)
