"""Writes datasets with other tools, and what those tools' own readers find in them.

    pip install mosaicml-streaming litdata datasets webdataset
    python tests/packing/foreign/peers.py FOLDER

Each dataset is FOLDER/NAME, and FOLDER/NAME.json says what is in it: for each sample the SHA-256 of each
field, and the values of field json. It needs nothing of this project.
"""

from __future__ import annotations

import hashlib
import io
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

Expected = list[dict[str, Any]]
DTYPES = (
    "uint8",
    "int8",
    "uint16",
    "int16",
    "uint32",
    "int32",
    "uint64",
    "int64",
    "float16",
    "float32",
    "float64",
)
COUNT = 30


def png(number: int) -> bytes:
    out = io.BytesIO()
    PIL.Image.new("RGB", (5, 4), (number, 99, 7)).save(out, "PNG")
    return out.getvalue()


def jpeg(number: int) -> bytes:
    out = io.BytesIO()
    PIL.Image.new("RGB", (16, 8), (number, 99, 7)).save(out, "JPEG")
    return out.getvalue()


def digest(value: Any) -> str:
    """The SHA-256 of a value as a field: of text in UTF-8, of an array as .npy, of an image its pixels."""
    if isinstance(value, PIL.Image.Image):
        value = f"{value.mode} {value.size} ".encode() + value.tobytes()
    elif isinstance(value, np.ndarray):
        out = io.BytesIO()
        np.save(out, value)
        value = out.getvalue()
    elif isinstance(value, (memoryview, bytearray)):
        value = bytes(value)
    elif not isinstance(value, (str, bytes)):
        value = json.dumps(value).encode()
    return hashlib.sha256(value.encode() if isinstance(value, str) else value).hexdigest()


def described(rows: Iterator[dict[str, Any]], keep: tuple[str, ...]) -> Expected:
    return [
        {
            "fields": {name: digest(value) for name, value in row.items() if name not in keep},
            "json": {
                name: row[name].item() if isinstance(row[name], np.generic) else row[name] for name in keep
            },
        }
        for row in rows
    ]


def mds(folder: Path) -> Iterator[tuple[str, Expected, tuple[str, ...]]]:
    """Each encoding, behind each compression."""
    from streaming import MDSWriter, StreamingDataset

    numbers = [name for name in DTYPES if not name.startswith("uint64")]
    columns = {
        "id": "str",
        "text": "str",
        "raw": "bytes",
        "image": "png",
        "photo": "jpeg",
        "any": "ndarray",
        "fixed": "ndarray:int16:2,3",
        "meta": "json",
        "count": "str_int",
        "share": "str_float",
        "n": "int",
        **{f"a_{name}": f"ndarray:{name}" for name in DTYPES},
        **{f"n_{name}": name for name in numbers},
    }
    keep = ("meta", "count", "share", "n", *(f"n_{name}" for name in numbers))
    for compression in ("", "zstd", "zstd:19", "gz", "bz2", "br", "snappy"):
        name = f"mds-{compression.replace(':', '-') or 'plain'}"
        hashes = ["sha1", "xxh64"] if compression else None
        with MDSWriter(
            out=str(folder / name),
            columns=columns,
            compression=compression or None,
            size_limit=20_000,
            hashes=hashes,
        ) as writer:
            for n in range(COUNT):
                row = {
                    "id": f"r.{n}",
                    "text": f"größe ✓ {n}" * (n % 4),
                    "raw": bytes(range(n)),
                    "image": PIL.Image.open(io.BytesIO(png(n))),
                    "photo": jpeg(n),
                    "any": np.full((n % 3 + 1, 2, 1), n / 3),
                    "fixed": np.full((2, 3), n, np.int16),
                    "meta": {"tags": ["a", n], "none": None},
                    "count": 10**30 + n,
                    "share": n / 7,
                    "n": n - 9,
                }
                row |= {f"a_{name}": np.arange(n % 5 + 1).astype(name) for name in DTYPES}
                row |= {f"n_{name}": np.dtype(name).type(n) for name in numbers}
                writer.write(row)
        dataset = StreamingDataset(local=str(folder / name), shuffle=False, batch_size=1)
        found = [dict(dataset[n]) for n in range(COUNT)]
        for n, row in enumerate(found):
            row["image"], row["photo"] = png(n), jpeg(n)  # their reader gives pixels
        yield name, described(iter(found), keep), keep


def litdata(folder: Path) -> Iterator[tuple[str, Expected, tuple[str, ...]]]:
    import litdata as ld

    for compression in (None, "zstd"):
        name = f"litdata-{compression or 'plain'}"
        ld.optimize(
            fn=_item,
            inputs=list(range(COUNT)),
            output_dir=str(folder / name),
            chunk_bytes=4000,
            num_workers=1,
            compression=compression,
        )
        dataset = ld.StreamingDataset(str(folder / name), shuffle=False)
        keep = ("n", "half", "flag")
        rows = sorted((dict(dataset[n]) for n in range(len(dataset))), key=lambda row: int(row["n"]))
        for row in rows:
            row["tensor"] = row["tensor"].numpy()
        yield name, described(iter(rows), keep), keep


def _item(n: int) -> dict[str, Any]:
    import torch

    return {
        "id": f"r.{n}",
        "text": f"größe ✓ {n}" * (n % 4),
        "raw": bytes(range(n)),
        "array": np.full((n % 3 + 1, 2), n / 3),
        "tensor": torch.arange(n + 1).reshape(1, -1, 1),
        "n": n,
        "half": n / 2,
        "flag": n % 2 == 0,
    }


def datasets(folder: Path) -> Iterator[tuple[str, Expected, tuple[str, ...]]]:
    """What save_to_disk, to_parquet, to_json and to_csv write."""
    import datasets as hf

    rows = [
        {
            "id": f"r.{n}",
            "text": f"größe ✓ {n}" * (n % 4),
            "image": {"bytes": png(n), "path": f"{n}.png"},
            "label": n % 3,
            "words": ["a"] * (n % 3),
            "score": n / 4,
        }
        for n in range(COUNT)
    ]
    features = hf.Features(
        {
            "id": hf.Value("string"),
            "text": hf.Value("large_string"),
            "image": hf.Image(decode=False),
            "label": hf.ClassLabel(names=["a", "b", "c"]),
            "words": hf.List(hf.Value("string")),
            "score": hf.Value("float32"),
        }
    )
    keep = ("label", "words", "score")
    dataset = hf.Dataset.from_list(rows, features=features)
    flat = dataset.remove_columns(["image", "words"])

    def expected(found: Any, names: tuple[str, ...] = keep) -> Expected:
        each = ({k: v["bytes"] if k == "image" else v for k, v in row.items()} for row in found)
        return described(each, names)

    dataset.save_to_disk(str(folder / "hf-shards"), num_shards=3)
    yield "hf-shards", expected(hf.load_from_disk(str(folder / "hf-shards"))), keep
    chosen = dataset.shuffle(seed=3).select(range(11)).filter(lambda row: row["label"] != 1)
    chosen.save_to_disk(str(folder / "hf-chosen"))
    yield "hf-chosen", expected(hf.load_from_disk(str(folder / "hf-chosen"))), keep
    splits = dataset.train_test_split(0.3, seed=1)
    splits.save_to_disk(str(folder / "hf-splits"))
    found = hf.load_from_disk(str(folder / "hf-splits"))
    yield "hf-splits", [*expected(found["test"]), *expected(found["train"])], keep
    (folder / "parquet-hf").mkdir()
    dataset.to_parquet(str(folder / "parquet-hf" / "train-00000-of-00001.parquet"))
    yield "parquet-hf", expected(dataset), keep
    (folder / "jsonl-hf").mkdir()
    flat.to_json(str(folder / "jsonl-hf" / "a.jsonl"))
    yield "jsonl-hf", expected(flat, ("label", "score")), ("label", "score")
    (folder / "json-hf").mkdir()
    flat.to_json(str(folder / "json-hf" / "a.json"), lines=False)
    yield "json-hf", expected(flat, ("label", "score")), ("label", "score")
    (folder / "csv-hf").mkdir()
    flat.to_csv(str(folder / "csv-hf" / "a.csv"))
    texts = [{name: str(value) for name, value in row.items()} for row in flat]
    yield "csv-hf", expected(texts, ("label", "score")), ("label", "score")


def webdataset(folder: Path) -> Iterator[tuple[str, Expected, tuple[str, ...]]]:
    import webdataset as wds

    for suffix in ("tar", "tar.gz"):
        name = f"webdataset-{suffix.partition('.')[2] or 'plain'}"
        (folder / name).mkdir()
        with wds.ShardWriter(str(folder / name / f"%05d.{suffix}"), maxcount=7, verbose=0) as writer:
            for n in range(COUNT):
                writer.write(
                    {
                        "__key__": f"k{n:03d}",
                        "png": png(n),
                        "txt": f"größe {n}",
                        "cls": n,
                        "npy": np.arange(n),
                    }
                )
        paths = sorted(map(str, (folder / name).iterdir()))
        found = wds.WebDataset(paths, shardshuffle=False, empty_check=False)
        rows = ({k: v for k, v in row.items() if not k.startswith("__")} for row in found)
        yield name, described(rows, ()), ()


TOOLS: tuple[Callable[[Path], Iterator[tuple[str, Expected, tuple[str, ...]]]], ...] = (
    mds,
    litdata,
    datasets,
    webdataset,
)

if __name__ == "__main__":
    out = Path(sys.argv[1])
    for tool in TOOLS:
        for name, samples, keep in tool(out):
            (out / f"{name}.json").write_text(json.dumps({"keep": keep, "samples": samples}))
