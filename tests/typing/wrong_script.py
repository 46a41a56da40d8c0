"""Mistakes that `mypy --strict` finds: an error in each line that is marked, and in no other."""

from __future__ import annotations

from typing import Any

import shardstream as ss
from shardstream import StreamingDatset  # wrong


def mistakes(ds: ss.StreamingDataset[dict[str, Any]], anything: Any) -> None:
    ss.pack("in.jsonl", "out", format="jsnl")  # wrong
    ss.pack("in.jsonl", "out", compression="gzip")  # wrong
    ss.pack("in.jsonl", "out", on_error="ignore")  # wrong
    ss.pack("in.jsonl", "out", frame_sise="1MiB")  # wrong
    ss.pack("in.jsonl", "out", engine="spark")  # wrong
    ss.pack("in.jsonl", "out", engine=3)  # wrong
    print(ss.pack("in.jsonl", "out").tasks)  # wrong
    print(ss.pack("in.jsonl", "out", dry_run=True).samples)  # wrong
    ss.pack([{"txt": "a"}], "out", format="jsonl")  # wrong
    ss.pack([{"txt": "a"}], "out", dry_run=True)  # wrong
    ss.pack([1, 2], "out")  # wrong
    ss.Writer("out", tokens="int32")  # wrong
    ss.Writer("out", part=3)  # wrong
    ss.index("in.tar", "out", "1MiB")  # wrong
    print(ss.verify("out").sund)  # wrong
    ss.warm("out", "cache", tail="keep")  # wrong
    ss.warm("out", "cache", pack="first-fit")  # wrong
    ss.Cache("cache", disk_format="rw")  # wrong
    ss.Cache("cache", ram=1.5)  # wrong
    ss.Shuffle(scope="lanes")  # wrong
    ss.Shuffle(seed="3")  # wrong
    ss.Topology(0, "8")  # wrong
    ss.StreamingLoader(ds, 8, last="dropp")  # wrong
    ss.StreamingLoader(ds, 8, engine="threads")  # wrong
    ss.StreamingLoader(ds, 8, prefetsh="1MiB")  # wrong
    ss.StreamingLoader("out", 8)  # wrong
    ss.TokenDataset("out", 8, tail="padd")  # wrong
    ss.TokenDataset("out", 8, pack="best_fit")  # wrong
    ss.TokenDataset("out", 8, dtype="int16")  # wrong
    ss.Mixture([(ds, 1)], stop="last")  # wrong
    ss.StreamingDataset("out", topology="rank 0")  # wrong
    ss.Shufle()  # wrong
    ss.load(anything, StreamingDatset)  # wrong
