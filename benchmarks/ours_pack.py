"""Packs with the package itself, for packing.py; prints the seconds and the CPU seconds taken.

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
    if question == "writer":
        with writer(dest) as out:
            for sample in samples:
                out.write(sample)
    elif question == "plan":
        pack(source, dest, format="text", dry_run=True)
    elif question == "tokens":
        pack(source, dest, format="jsonl", tokenizer=sys.argv[5], eos=0, workers=workers)
    elif question == "parquet":
        pack(source, dest, format="parquet", key="id", workers=workers)
    else:
        pack(source, dest, format="jsonl", workers=workers)
    now = os.times()
    print(json.dumps([time.perf_counter() - started, sum(now[:4]) - sum(before[:4])]))


if __name__ == "__main__":
    main()
