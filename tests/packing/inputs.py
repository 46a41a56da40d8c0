"""Small inputs of each format, made by the tools that people use."""

from __future__ import annotations

import gzip
import json
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

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
        options: How it is packed.
        mutations: How many times it is damaged by tests.
    """

    make: Callable[[Path], object]
    options: dict[str, Any] = field(default_factory=dict)
    mutations: int = 400


def jsonl(folder: Path) -> None:
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()
    (folder / "a.jsonl").write_bytes(lines)
    (folder / "b.jsonl.gz").write_bytes(gzip.compress(lines))
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
    for option, suffix in ((), "tar"), (("-z",), "tar.gz"), (("--zstd",), "tar.zst"):
        command = ["tar", *option, "-cf", f"../plain.{suffix}", *names]
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


INPUTS = {
    "jsonl": Input(jsonl),
    "text": Input(text),
    "images": Input(images),
    "webdataset": Input(webdataset),
    "parquet": Input(tables("parquet")),
    # Small shards, so that files are cut between record batches.
    "arrow": Input(tables("arrow"), options={"shard_size": "1KiB"}),
    "hf": Input(saved),
    "csv": Input(csv),
    "json": Input(json_array),
}
