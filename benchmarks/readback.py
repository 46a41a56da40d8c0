"""Packs a JSONL corpus and compares every document that is read back, by SHA-256.

    python -m benchmarks.readback CORPUS.jsonl

Runs for both codecs, and shuffled; exits 1 if a document is missing, changed or there twice.
"""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable

import shardstream as ss


def digests(texts: Iterable[str]) -> Counter[bytes]:
    """How often each text occurs, by its SHA-256."""
    return Counter(hashlib.sha256(text.encode()).digest() for text in texts)


def main(corpus: str) -> int:
    """Check all configurations; returns the exit code."""
    with open(corpus, encoding="utf-8") as file:
        expected = digests(json.loads(line)["text"] for line in file)
    print(f"{expected.total()} documents, {len(expected)} different")
    for options in ({}, {"compression": "none"}, {"shuffle": 7}):
        with tempfile.TemporaryDirectory() as folder:
            ss.pack(corpus, f"{folder}/packed", format="jsonl", **options)
            dataset = ss.StreamingDataset(f"{folder}/packed", shuffle=True)
            equal = digests(sample["txt"] for sample in dataset) == expected
            sound = ss.verify(f"{folder}/packed", deep=True).sound
        print(f"{options}: {'all equal' if equal else 'DIFFERENT'}, {'sound' if sound else 'DAMAGED'}")
        if not (equal and sound):
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
