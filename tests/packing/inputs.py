"""Small inputs of each format, made by the tools that people use."""

from __future__ import annotations

import contextlib
import gzip
import json
import shutil
import sqlite3
import struct
import subprocess
import wave
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.data.foreign import make as foreign

__all__ = ["INPUTS", "Input"]

ROWS = [
    {"id": f"r{number}", "text": f"row {number}: データ " * (number % 7), "n": number, "lang": "en"}
    for number in range(60)
]


@dataclass(frozen=True)
class Input:
    """An input of one format.

    Args:
        make: Writes its files into an empty folder.
        format: The format that it is packed as.
        options: How it is packed.
        memory: By how many bytes the memory may grow while damaged files are packed.
        url: What is packed, with {folder} for the folder.
    """

    make: Callable[[Path], object]
    format: str
    options: dict[str, Any] = field(default_factory=dict)
    memory: int = 64 << 20
    url: str = "{folder}"


def jsonl(folder: Path) -> None:
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()
    (folder / "a.jsonl").write_bytes(lines)
    (folder / "b.jsonl.gz").write_bytes(gzip.compress(lines, mtime=0))
    subprocess.run(["zstd", "-q", "a.jsonl", "-o", "c.jsonl.zst"], check=True, cwd=folder)


def text(folder: Path) -> None:
    for number, row in enumerate(ROWS):
        (folder / f"{number:03d}.txt").write_text(str(row["text"]))


def images(folder: Path) -> None:
    from PIL import Image

    for name in ("jpeg", "png", "webp"):
        (folder / name).mkdir()
        for number in range(4):
            picture = Image.effect_mandelbrot((40 + number, 30), (-2, -1, 1, 1), 9).convert("RGB")
            picture.save(folder / name / f"{number}.{name.replace('jpeg', 'jpg')}")


def webdataset(folder: Path) -> None:
    source = folder / "source"
    source.mkdir()
    for number, row in enumerate(ROWS):
        (source / f"{number:03d}.json").write_text(json.dumps(row))
        (source / f"{number:03d}.txt").write_text(str(row["text"]))
    names = sorted(path.name for path in source.iterdir())
    # No clock in them, so that a seed damages the same bytes again.
    pax = ("-z", "--format=pax", "--pax-option=delete=atime,delete=ctime")
    for option, suffix in ((), "tar"), (pax, "tar.gz"), (("--zstd",), "tar.zst"):
        command = ["tar", *option, "--mtime=@0", "-cf", f"../plain.{suffix}", *names]
        subprocess.run(command, check=True, cwd=source)
    for path in source.iterdir():
        path.unlink()
    source.rmdir()


def tables(name: str) -> Callable[[Path], None]:
    """Two files of the same rows, as pyarrow writes them."""

    def make(folder: Path) -> None:
        import pyarrow as pa
        import pyarrow.ipc
        import pyarrow.parquet

        table = pa.Table.from_pylist(ROWS)
        if name == "parquet":
            pyarrow.parquet.write_table(table, folder / "a.parquet", row_group_size=20)
            pyarrow.parquet.write_table(table, folder / "b.parquet", compression="zstd", use_dictionary=False)
            return
        for number, new in enumerate((pyarrow.ipc.new_file, pyarrow.ipc.new_stream)):
            with new(folder / f"{number}.arrow", table.schema) as writer:
                writer.write_table(table, max_chunksize=25)

    return make


def saved(folder: Path) -> None:
    """A dict of datasets, as `save_to_disk` of Hugging Face datasets lays it out."""
    for split in ("test", "train"):
        (folder / split).mkdir()
        tables("arrow")(folder / split)
        names = sorted(path.name for path in (folder / split).iterdir())
        state = {"_data_files": [{"filename": name} for name in names], "_split": split}
        (folder / split / "state.json").write_text(json.dumps(state))
        (folder / split / "dataset_info.json").write_text("{}")
    (folder / "dataset_dict.json").write_text('{"splits": ["test", "train"]}')


def csv(folder: Path) -> None:
    import csv as writing

    for name, delimiter in (("a.csv", ","), ("b.tsv", "\t")):
        with (folder / name).open("w", newline="", encoding="utf-8") as file:
            writer = writing.DictWriter(file, list(ROWS[0]), delimiter=delimiter)
            writer.writeheader()
            writer.writerows({**row, "text": f'"{row["text"]}"\n'} for row in ROWS)


def json_array(folder: Path) -> None:
    (folder / "a.json").write_text(json.dumps(ROWS, indent=1))


def listed_ids(folder: Path) -> None:
    rows = [{"id": number, "input_ids": list(range(number)), "lang": "en"} for number in range(60)]
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def files(folder: Path) -> None:
    """Sounds with texts, and folders with metadata as Hugging Face's imagefolder has them."""
    for number in range(4):
        with wave.open(str(folder / f"{number}.wav"), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(8000)
            file.writeframes(bytes(range(100)) * (number + 1))
        (folder / f"{number}.txt").write_text(f"sound {number}")
    for name in ("csv", "jsonl"):
        (folder / name).mkdir()
        rows = [{"file_name": f"{number}.bin", "text": f'"{number}", "é\n"'} for number in range(9)]
        for row in rows:
            (folder / name / row["file_name"]).write_bytes(row["text"].encode() * 9)
        write_rows(folder / name / f"metadata.{name}", rows)


def write_rows(path: Path, rows: list[dict[str, str]]) -> None:
    import csv as writing

    with path.open("w", newline="", encoding="utf-8") as file:
        if path.suffix == ".jsonl":
            file.writelines(json.dumps(row) + "\n" for row in rows)
            return
        writer = writing.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def token_files(folder: Path) -> None:
    """train.bin of nanoGPT, and a file of llm.c."""
    ids = [number % 97 for number in range(1000)]
    (folder / "train.bin").write_bytes(struct.pack(f"<{len(ids)}H", *ids))
    header = struct.pack("<256i", 20240520, 1, len(ids), *[0] * 253)
    (folder / "fineweb.bin").write_bytes(header + struct.pack(f"<{len(ids)}H", *ids))


def peers(name: str) -> Callable[[Path], None]:
    """The files that another tool has written."""

    def make(folder: Path) -> None:
        shutil.copytree(Path(foreign.__file__).parent / name, folder, dirs_exist_ok=True)

    return make


def chosen(*names: str) -> dict[str, str]:
    return dict(zip(names, names, strict=True))


_MDS = {
    "column": chosen("image", "raw", "any", "ints", "fixed", "pil", "decimal", "text"),
    "keep": ["n", "half", "meta"],
}
_LITDATA = {
    "column": chosen(
        "image", "raw", "text", *(f"more.{name}" for name in ("any", "ints", "tensor", "ids", "photo", "pil"))
    ),
    "keep": ["n", "half", "more.flag"],
}


def sqlite(folder: Path) -> None:
    with contextlib.closing(sqlite3.connect(folder / "rows.sqlite")) as database, database:
        database.execute("CREATE TABLE rows (id TEXT, text TEXT, n INTEGER, lang TEXT)")
        database.executemany("INSERT INTO rows VALUES (:id, :text, :n, :lang)", ROWS)


def duckdb(folder: Path) -> None:
    import duckdb

    with duckdb.connect(str(folder / "rows.duckdb")) as database:
        database.execute("CREATE TABLE rows (id TEXT, text TEXT, n INTEGER, lang TEXT)")
        rows = [list(row.values()) for row in ROWS]
        database.executemany("INSERT INTO rows VALUES (?, ?, ?, ?)", rows)


_SQL = {"query": "SELECT * FROM rows", "key": "id"}
INPUTS = {
    "jsonl": Input(jsonl, "jsonl"),
    "jsonl-tokens": Input(listed_ids, "jsonl", {"column": {"tokens": "input_ids"}, "eos": 0}),
    "json": Input(json_array, "json"),
    "csv": Input(csv, "csv"),
    "text": Input(text, "text"),
    "images": Input(images, "images"),
    # Pillow decodes what the header of a WebP says: a few bytes may be a large picture of one colour.
    "images-resized": Input(images, "images", {"resize": 16}, memory=700 << 20),
    "files": Input(files, "files"),
    "webdataset": Input(webdataset, "webdataset"),
    "parquet": Input(tables("parquet"), "parquet"),
    # Small shards, so that files are cut between record batches.
    "arrow": Input(tables("arrow"), "arrow", {"shard_size": "1KiB"}),
    "hf": Input(saved, "hf"),
    "bin": Input(token_files, "bin", {"eos": 0}),
    "megatron": Input(peers("megatron"), "bin"),
    "mds": Input(peers("mds"), "mds", _MDS),
    "litdata": Input(peers("litdata"), "litdata", _LITDATA),
    "tfrecord": Input(peers("tfrecord"), "tfrecord", {"keep": ["n", "half", "none"]}),
    "sqlite": Input(sqlite, "sql", _SQL, url="sqlite:///{folder}/rows.sqlite"),
    "duckdb": Input(duckdb, "sql", _SQL, url="duckdb:///{folder}/rows.duckdb"),
}
