"""python -m tests.frameworks.ray_pack DEST ADDRESS OPTIONS: packs slow tasks on Ray, and tells its progress.

ADDRESS is that of a cluster; "here" starts Ray on this machine. OPTIONS is JSON: the arguments of `pack`, and
"seconds" for each task, or "sources" that are packed instead.
"""

from __future__ import annotations

import json
import sys

import shardstream as ss
from shardstream.progress import Progress
from tests.frameworks.ray_calls import slow


def show(now: Progress) -> None:
    print(json.dumps([now.done_tasks, now.total_tasks, now.nodes, now.retried, now.lost]), flush=True)


if __name__ == "__main__":
    dest, address, options = sys.argv[1:]
    engine = ss.engines.Ray(None if address == "here" else address)
    given = json.loads(options)
    sources = given.pop("sources", None) or slow(given.pop("seconds", 0.4))
    ss.pack(sources, dest, engine=engine, progress=show, **given)
