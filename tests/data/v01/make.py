"""How the files beside this one were made, by version 0.1: python tests/data/v01/make.py FOLDER.

They are frozen: what a later version writes may differ, what it reads from these may not.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import random
import sys
import tarfile
from pathlib import Path
from typing import Any

import msgspec

import shardstream as ss
from shardstream.format.manifest import Manifest


def documents(path: Path) -> None:
    numbers = random.Random(1)
    with path.open("w", encoding="utf-8") as file:
        for number in range(97):
            words = [f"w{numbers.randrange(500)}" for _ in range(numbers.randrange(60))]
            text = f"document {number}: ключ ✓ " + " ".join(words)
            row: dict[str, Any] = {"id": f"doc-{number:03d}", "text": text, "number": number}
            if number % 7 == 3:
                del row["number"]
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def tar(path: Path, name: str, count: int, mode: str) -> None:
    numbers = random.Random(name)
    with tarfile.open(path, mode) as file:
        for number in range(count):
            for field, data in (("bin", numbers.randbytes(numbers.randrange(400))), ("cls", b"%d" % number)):
                member = tarfile.TarInfo(f"{name}-{number:04d}.{field}")
                member.size = len(data)
                file.addfile(member, io.BytesIO(data))


def relative(folder: Path, names: list[str]) -> None:
    """Adopt archives as shards that lie in the dataset's own folder, so that it can be moved."""
    ss.index([str(folder / name) for name in names], folder)
    found = Manifest.from_bytes((folder / "manifest.json").read_bytes())
    shards = tuple(
        msgspec.structs.replace(shard, url=name) for shard, name in zip(found.shards, names, strict=True)
    )
    moved = Manifest.build(found.kind, found.fields, shards, {})
    (folder / "manifest.json").write_bytes(moved.to_bytes())


def make(folder: Path) -> None:
    folder.mkdir()
    documents(folder / "documents.jsonl")
    source = str(folder / "documents.jsonl")
    ss.pack(source, folder / "zstd", compression="zstd", shard_size="6KiB", frame_size="1KiB", workers=1)
    ss.pack(source, folder / "plain", compression="none", shard_size="15KiB", frame_size="2KiB", workers=1)
    ss.pack(
        source, folder / "tokens", tokenizer="bytes", compression="zstd",
        shard_size="5KiB", frame_size="1KiB", workers=1,
    )  # fmt: skip
    (folder / "adopted").mkdir()
    tar(folder / "adopted" / "a.tar", "a", 23, "w")
    tar(folder / "adopted" / "b.tar.gz", "b", 19, "w:gz")
    relative(folder / "adopted", ["a.tar", "b.tar.gz"])
    Path(source).unlink()


# What is asked of each dataset: options of its shuffle (None: natural order), and of the dataset.
QUESTIONS: list[tuple[str, dict[str, Any] | None, dict[str, Any]]] = [
    ("zstd", None, {}),
    ("zstd", {"seed": 3}, {}),
    ("zstd", {"seed": 3, "lanes": 6, "window": 1}, {}),
    ("zstd", {"seed": 4, "lanes": 4, "scope": "lane"}, {}),
    ("plain", None, {}),
    ("plain", {"seed": 5, "lanes": 2}, {}),
    ("adopted", {"seed": 1, "lanes": 3}, {}),
    ("tokens", None, {"seq_len": 64}),
    ("tokens", {"seed": 9, "lanes": 4}, {"seq_len": 64, "tail": "pad"}),
    ("tokens", {"seed": 9}, {"seq_len": 128, "pack": "best-fit", "boundaries": True}),
]


def dataset(folder: Path, name: str, shuffle: dict[str, Any] | None, options: dict[str, Any]) -> Any:
    kind = ss.TokenDataset if name == "tokens" else ss.StreamingDataset
    how = False if shuffle is None else ss.Shuffle(**shuffle)
    return kind(str(folder / name), shuffle=how, topology=ss.Topology(0, 1), **options)


def fact(value: Any) -> Any:
    """A value as bytes that hang on it alone."""
    if hasattr(value, "numpy"):
        value = value.numpy()
    if hasattr(value, "dtype"):
        return [str(value.dtype), list(value.shape), value.tobytes().hex()]
    if isinstance(value, bytes):
        return value.hex()
    return value


def digest(item: dict[str, Any]) -> str:
    """A short name for all that an item holds."""
    text = json.dumps({name: fact(value) for name, value in item.items()}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def mixture(folder: Path) -> Any:
    parts = [dataset(folder, name, {"seed": 2, "lanes": 4}, {}) for name in ("zstd", "adopted")]
    return ss.Mixture([(parts[0], 0.7), (parts[1], 0.3)], stop="all")


def answers(ds: Any) -> dict[str, Any]:
    """Two epochs of items, the state after some batches, and the first of those that follow."""
    epochs = [[digest(item) for item in ds] for _ in range(2)]
    ds.set_epoch(0)
    loader = ss.StreamingLoader(ds, batch_size=4, collate=list)
    for _ in itertools.islice(loader, 5):
        pass
    state = loader.state_dict()
    return {"epochs": epochs, "state": state}


def main() -> None:
    folder = Path(sys.argv[1])
    make(folder)
    found = [
        {"question": list(question), "answer": answers(dataset(folder, *question))} for question in QUESTIONS
    ]
    found.append({"question": ["mixture"], "answer": answers(mixture(folder))})
    (folder / "answers.json").write_text(json.dumps(found, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
