"""What small inputs hold, as other readers than ours say: the standard library and pyarrow."""

from __future__ import annotations

import codecs
import contextlib
import csv
import gzip
import io
import json
import re
import struct
import subprocess
import tarfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

__all__ = ["ORACLES", "Fields", "UnsureError", "canonical"]

Fields = dict[str, Any]  # the fields of a sample; of field json its value
_LONE = re.compile("[\ud800-\udfff]")
Oracle = Callable[[Path], Iterator[Fields | None]]  # None is a row that must be refused


class UnsureError(Exception):
    """The other reader refuses what is right."""


def canonical(fields: Fields) -> str:
    """A sample as a text that is the same for equal samples. The order of keys in JSON counts for nothing."""
    parsed = dict(fields)
    if isinstance(parsed.get("json"), bytes):
        with contextlib.suppress(ValueError, RecursionError):
            parsed["json"] = json.loads(str(parsed["json"], "utf-8"))
    return json.dumps(parsed, sort_keys=True, default=lambda data: f"bytes:{data.hex()}")


def _files(folder: Path, *suffixes: str) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file() and path.suffix in suffixes)


def _content(path: Path) -> bytes:
    data = path.read_bytes()
    if data.startswith(b"\x1f\x8b"):
        return gzip.decompress(data)
    if data.startswith(b"\x28\xb5\x2f\xfd") or path.suffix == ".zst":
        return subprocess.run(["zstd", "-dcq"], input=data, capture_output=True, check=True).stdout
    return data


def _object(text: bytes) -> Fields | None:
    try:
        row = json.loads(str(text, "utf-8"))
        words = _LONE.sub("\ufffd", row.pop("text")).encode()
    except (ValueError, AttributeError, KeyError, TypeError, RecursionError):
        return None
    own = {name: value for name, value in row.items() if name != "__key__"}
    return {"txt": words} | ({"json": own} if own else {})


def jsonl(folder: Path) -> Iterator[Fields | None]:
    for path in sorted(folder.iterdir()):
        for line in _content(path).removeprefix(codecs.BOM_UTF8).split(b"\n"):
            if line.strip():
                yield _object(line)


def json_array(folder: Path) -> Iterator[Fields | None]:
    for path in _files(folder, ".json"):
        for row in json.loads(path.read_bytes().removeprefix(codecs.BOM_UTF8)):
            yield _object(json.dumps(row).encode())


def _table(rows: Iterable[dict[str, Any]], csv_file: bool = False) -> Iterator[Fields | None]:
    for row in rows:
        text = row.pop("text", None)
        short = None in row or (csv_file and None in row.values())
        yield None if text is None or short else {"txt": text.encode(), "json": row}


def tables(folder: Path) -> Iterator[Fields | None]:
    for path in _files(folder, ".csv", ".tsv"):
        text = io.StringIO(path.read_bytes().decode("utf-8-sig"), newline="")
        reader = csv.DictReader(text, delimiter="," if path.suffix == ".csv" else "\t", strict=True)
        yield from _table(map(dict, reader), csv_file=True)


def arrow(folder: Path) -> Iterator[Fields | None]:
    import pyarrow.ipc

    for path in _files(folder, ".arrow"):
        data = path.read_bytes()
        # A file of Arrow is a stream and a footer. If the footer alone is damaged, the rows are still there.
        with contextlib.suppress(pyarrow.ArrowException, OSError):
            file = pyarrow.ipc.open_file(data)
            if not file.schema.equals(pyarrow.ipc.open_stream(data[8:]).schema):
                raise pyarrow.ArrowInvalid("the footer is damaged")
            table = file.read_all()
            table.validate(full=True)  # else a wrong offset ends the process
            yield from _table(table.to_pylist())
            continue
        table = pyarrow.ipc.open_stream(data.removeprefix(b"ARROW1\0\0")).read_all()
        table.validate(full=True)
        yield from _table(table.to_pylist())


def parquet(folder: Path) -> Iterator[Fields | None]:
    import pyarrow.parquet

    for path in _files(folder, ".parquet"):
        yield from _table(pyarrow.parquet.read_table(path).to_pylist())


def tars(folder: Path) -> Iterator[Fields | None]:
    for path in sorted(folder.iterdir()):
        samples: dict[str, Fields] = {}
        content = io.BytesIO(_content(path))
        try:
            with tarfile.open(fileobj=content) as archive:
                members = list(archive)
                read = [(one.name, file.read()) for one in members if (file := archive.extractfile(one))]
                rest = content.getvalue()[archive.offset :]
        except (tarfile.TarError, KeyError) as error:
            raise UnsureError from error  # GNU tar reads more than Python does
        if any(rest):
            raise UnsureError  # Python stops at a block of zeros
        for name, data in read:
            folder_of, _, base = name.rpartition("/")
            key, _, ending = base.partition(".")
            if key and ending:
                samples.setdefault(f"{folder_of}/{key}", {})[ending.lower()] = data
        yield from samples.values()


def texts(folder: Path) -> Iterator[Fields | None]:
    for path in _files(folder, ".txt"):
        data = path.read_bytes()
        try:
            data.decode()
        except UnicodeDecodeError:
            yield None
        else:
            yield {"txt": data}


def images(folder: Path) -> Iterator[Fields | None]:
    for path in _files(folder, ".jpg", ".png", ".webp"):
        label = sorted(one.name for one in folder.iterdir()).index(path.parent.name)
        yield {path.suffix[1:]: path.read_bytes(), "cls": b"%d" % label}


def token_lists(folder: Path) -> Iterator[Fields | None]:
    for path in _files(folder, ".jsonl"):
        for line in path.read_bytes().removeprefix(codecs.BOM_UTF8).split(b"\n"):
            try:
                ids = json.loads(str(line, "utf-8"))["input_ids"]
                yield {"tokens": struct.pack(f"<{len(ids) + 1}I", *ids, 0)}
            except (ValueError, KeyError, TypeError, struct.error, RecursionError):
                if line.strip():
                    yield None


ORACLES: dict[str, Oracle] = {
    "jsonl": jsonl,
    "json": json_array,
    "csv": tables,
    "text": texts,
    "images": images,
    "webdataset": tars,
    "parquet": parquet,
    "arrow": arrow,
    "hf": arrow,
}
