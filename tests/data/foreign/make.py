"""Makes the files of other tools in this folder again, each by the tool itself.

    python tests/data/foreign/make.py megatron tests/data/foreign     # pip install megatron-core torch
    python tests/data/foreign/make.py mds tests/data/foreign          # pip install mosaicml-streaming
    python tests/data/foreign/make.py litdata tests/data/foreign      # pip install litdata
    python tests/data/foreign/make.py litdata-arrow tests/data/foreign  # pip install litdata pyarrow
    python tests/data/foreign/make.py tfrecord tests/data/foreign     # pip install tensorflow-cpu

The tests read what the files must hold from the functions here. So nothing but the standard library is
imported before a tool is asked for.
"""

from __future__ import annotations

import decimal
import sys
import zlib
from pathlib import Path
from typing import Any


def documents() -> list[list[int]]:
    """The documents of the Megatron dataset: token ids up to 87,000; one is empty, one has two sequences."""
    return [[(n * 7919 + at) % 120_000 for at in range(n * 5 % 23)] for n in range(12)]


def megatron(folder: Path) -> None:
    """ids.bin and ids.idx"""
    import numpy as np
    import torch
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    folder.mkdir(exist_ok=True)
    builder = IndexedDatasetBuilder(str(folder / "ids.bin"), dtype=np.int32)
    for number, ids in enumerate(documents()):
        halves = [ids[:3], ids[3:]] if number == 4 else [ids]
        for half in halves:
            builder.add_item(torch.tensor(half, dtype=torch.int32))
        builder.end_document()
    builder.finalize(str(folder / "ids.idx"))


def png(number: int) -> bytes:
    """A grey image of 2 x 1 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    head = b"\0\0\0\2\0\0\0\1\x08\0\0\0\0"
    body = chunk(b"IDAT", zlib.compress(bytes([0, number, number])))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + body + chunk(b"IEND", b"")


def rows() -> list[dict[str, Any]]:
    """The samples of the MDS folders and of the LitData folders, but for arrays and raw images."""
    return [
        {
            "id": f"row.{n}", "text": f"h\u00e9llo {n}" * (n % 3), "image": png(n), "raw": bytes(range(n)),
            "n": n - 3, "half": n / 4, "meta": {"tags": ["a", n], "none": None},
        }
        for n in range(7)
    ]  # fmt: skip


MDS_COMPRESSIONS = ("", "zstd:3", "gz", "bz2", "br", "snappy")


def mds(folder: Path) -> None:
    """A folder for each compression, of two shards each."""
    import numpy as np
    from PIL import Image
    from streaming import MDSWriter

    columns = {
        "id": "str", "text": "str", "image": "png", "raw": "bytes", "n": "int", "half": "float16",
        "meta": "json", "any": "ndarray", "ints": "ndarray:int32", "fixed": "ndarray:uint8:2,3", "pil": "pil",
        "decimal": "str_decimal",
    }  # fmt: skip
    for compression in MDS_COMPRESSIONS:
        out = str(folder / (compression.partition(":")[0] or "plain"))
        with MDSWriter(
            out=out, columns=columns, compression=compression or None, size_limit=1500, exist_ok=True
        ) as w:
            for number, row in enumerate(rows()):
                more = {
                    "any": np.full((number + 1, 2), number / 3),
                    "ints": np.arange(number + 1, dtype=np.int32),
                    "fixed": np.full((2, 3), number, np.uint8),
                    "pil": Image.new("RGB", (3, 2), (number, 0, 9)),
                    "decimal": decimal.Decimal(number) / 8,
                }
                w.write(row | more)


def mds_pickle(folder: Path) -> None:
    """A folder with a column of pickles."""
    from streaming import MDSWriter

    with MDSWriter(out=str(folder), columns={"text": "str", "any": "pkl"}, exist_ok=True) as writer:
        writer.write({"text": "a", "any": {1}})


LITDATA = {"plain": {}, "batch": {"compression": "zstd"}}
LITDATA |= {level: {"compression": "zstd", "compression_level": level} for level in ("chunk", "sample")}


def litdata(folder: Path) -> None:
    """A folder for each way to compress, of two chunks each."""
    import numpy as np
    import PIL.Image
    import torch
    from litdata.streaming import Cache
    from litdata.types import Image, Jpeg

    for name, how in LITDATA.items():
        cache = Cache(str(folder / name), chunk_size=4, **how)
        for number, row in enumerate(rows()):
            more = {
                "image": Jpeg(bytes=row["image"]),
                "any": np.full((number + 1, 2), number / 3),
                "ints": np.arange(number + 1, dtype=np.int32),
                "tensor": torch.full((2, 3), number, dtype=torch.int64),
                "ids": torch.arange(number + 1),
                "flag": number % 2 == 0,
                "photo": Image(bytes=row["image"]),
                "pil": PIL.Image.new("RGB", (3, 2), (number, 0, 9)),
            }
            cache[number] = {key: value for key, value in row.items() if key != "meta"} | {"more": more}
        cache.done()
        cache.merge()


ARROW: dict[str, dict[str, Any]] = {"plain": {}, "zstd": {"compression": "zstd"}}


def litdata_arrow(folder: Path) -> None:
    """The same of rows that LitData puts into Arrow files, if pyarrow is there."""
    from litdata.streaming import Cache

    for name, how in ARROW.items():
        cache = Cache(str(folder / name), chunk_size=4, **how)
        for number, row in enumerate(rows()):
            more = {"tags": ["a", row["id"]], "deep": {"x": number}}
            cache[number] = {key: row[key] for key in ("id", "text", "n", "half")} | {"more": more}
        cache.done()
        cache.merge()


def tfrecord(folder: Path) -> None:
    """A file for each compression."""
    import tensorflow as tf

    folder.mkdir(exist_ok=True)
    for kind in ("", "GZIP", "ZLIB"):
        path = folder / f"rows{kind.lower()}.tfrecord"
        with tf.io.TFRecordWriter(str(path), tf.io.TFRecordOptions(kind)) as writer:
            for row in rows():
                features = {
                    "id": tf.train.Feature(bytes_list=tf.train.BytesList(value=[row["id"].encode()])),
                    "text": tf.train.Feature(bytes_list=tf.train.BytesList(value=[row["text"].encode()])),
                    "image": tf.train.Feature(bytes_list=tf.train.BytesList(value=[row["image"]])),
                    "n": tf.train.Feature(int64_list=tf.train.Int64List(value=[row["n"], 1 << 40])),
                    "half": tf.train.Feature(float_list=tf.train.FloatList(value=[row["half"]])),
                    "none": tf.train.Feature(int64_list=tf.train.Int64List(value=[])),
                }
                example = tf.train.Example(features=tf.train.Features(feature=features))
                writer.write(example.SerializeToString())


TOOLS = {
    "megatron": megatron, "mds": mds, "mds-pickle": mds_pickle, "litdata": litdata,
    "litdata-arrow": litdata_arrow, "tfrecord": tfrecord,
}  # fmt: skip

if __name__ == "__main__":
    name, out = sys.argv[1:]
    TOOLS[name](Path(out) / name)
