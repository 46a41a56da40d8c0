"""Corpora in a neutral form that every contender's writer starts from; numpy and the standard library only.

A corpus is a folder with meta.json and

    tokens      tokens.bin, a flat little-endian array
    documents   documents.jsonl, lines of {"id", "text", "bytes"}
    images      images/<class>/<number>.jpg

What a contender delivers is compared with the corpus by a digest that does not depend on the order.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

META = "meta.json"


@dataclass(frozen=True)
class Corpus:
    """A corpus on disk: count samples of `bytes` bytes in all."""

    folder: str
    kind: str
    count: int
    bytes: int
    digest: str
    dtype: str = ""
    block: int = 0
    tokenizer: str = ""

    @property
    def file(self) -> str:
        """The file, or for images the folder, of the samples."""
        names = {"tokens": "tokens.bin", "documents": "documents.jsonl", "images": "images"}
        return os.path.join(self.folder, names[self.kind])

    def rows(self) -> Any:
        """The tokens as a memory map [count, block]."""
        flat = np.memmap(self.file, self.dtype, mode="r")
        return flat[: self.count * self.block].reshape(self.count, self.block)

    def documents(self) -> Iterator[dict[str, Any]]:
        """The documents."""
        with open(self.file, encoding="utf-8") as file:
            yield from map(json.loads, file)

    def images(self) -> list[tuple[str, int]]:
        """(path, class) of all images."""
        found = []
        for number, name in enumerate(sorted(os.listdir(self.file))):
            folder = os.path.join(self.file, name)
            found += [(os.path.join(folder, image), number) for image in sorted(os.listdir(folder))]
        return found

    def payloads(self) -> Iterator[bytes]:
        """What has to arrive of each sample."""
        if self.kind == "tokens":
            yield from (row.tobytes() for row in self.rows())
        elif self.kind == "documents":
            yield from (document_payload(row["id"], row["text"]) for row in self.documents())
        else:
            for path, label in self.images():
                yield image_payload(Path(path).read_bytes(), label)


def document_payload(key: str, text: str) -> bytes:
    """The bytes of one document for the digest."""
    return f"{key}\n{text}".encode()


def image_payload(data: bytes, label: int) -> bytes:
    """The bytes of one image and its class for the digest."""
    return data + b"%d" % label


class Digest:
    """The number of samples, their bytes, and the sum of their hashes: the same in any order."""

    def __init__(self) -> None:
        self.count = self.bytes = self.sum = 0

    def add(self, payloads: Iterable[bytes]) -> None:
        """Take in some samples."""
        for data in payloads:
            self.count += 1
            self.bytes += len(data)
            self.sum += int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")

    def facts(self) -> dict[str, Any]:
        """For meta.json and for comparing."""
        return {"count": self.count, "bytes": self.bytes, "digest": f"{self.sum % (1 << 64):016x}"}


def seal(folder: Path, kind: str, **more: Any) -> Corpus:
    """Write meta.json, last: the corpus is complete."""
    digest = Digest()
    if kind == "tokens":
        size = os.path.getsize(folder / "tokens.bin") // np.dtype(more["dtype"]).itemsize
        more["count"] = size // more["block"]
    rough = Corpus(**({"folder": str(folder), "kind": kind, "count": 0, "bytes": 0, "digest": ""} | more))
    digest.add(rough.payloads())
    facts = {"kind": kind} | more | digest.facts()
    (folder / META).write_text(json.dumps(facts, indent=1))
    return load(folder)


def load(folder: str | Path) -> Corpus:
    """A corpus made before."""
    return Corpus(folder=str(folder), **json.loads((Path(folder) / META).read_text()))
