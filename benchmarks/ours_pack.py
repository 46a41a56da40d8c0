"""Packs with the package itself, for packing.py; prints seconds, CPU seconds and how many samples there are.

Usage: python -m benchmarks.ours_pack QUESTION SOURCE DEST WORKERS [TOKENIZER].
"""

from __future__ import annotations

import json
import os
import sys
import time

import shardstream as ss
from benchmarks.peers_pack import in_memory


def main() -> None:
    question, source, dest, workers = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
    pack, writer = ss.pack, getattr(ss, "Writer", None)  # imported here, before the time begins
    samples = in_memory(source) if question == "writer" else []
    started, before = time.perf_counter(), os.times()
    count = 0
    if question == "writer":
        with writer(dest) as out:
            for sample in samples:
                out.write(sample)
        count = out.manifest.samples
    elif question == "plan":
        pack(source, dest, format="text", dry_run=True)
    elif question == "tokens":
        # A document is a sample of a dataset of tokens.
        count = pack(source, dest, format="jsonl", tokenizer=sys.argv[5], eos=0, workers=workers).samples
    elif question == "parquet":
        count = pack(source, dest, format="parquet", key="id", workers=workers).samples
    else:
        count = pack(source, dest, format="jsonl", workers=workers).samples
    seconds, now = time.perf_counter() - started, os.times()
    print(json.dumps([seconds, sum(now[:4]) - sum(before[:4]), count]))


if __name__ == "__main__":
    main()
