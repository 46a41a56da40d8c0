"""What it costs to pack 1, 10 and 100 TB in parts: requests as counted here, and rates of other results.

    python -m benchmarks.cluster

The requests of parts and of the commit are counted by a proxy in front of SeaweedFS, for two numbers of tasks
and two numbers of parts: the differences are what a task and what a part costs. CPU seconds a GB are those of
`benchmarks/results`; nothing is timed here.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import shardstream as ss
from shardstream.storage.store import Store
from tests.proxy import Proxy
from tests.servers import Weed

RESULTS = Path(__file__).parent / "results" / "cluster"
SHARDS = 4 << 20, 16 << 20  # bytes of a slice of the input, and so of a shard

# CPU seconds for each GB of input, and where the figure is from.
RATES = {
    "documents": (
        8.3,
        "C files of Linux as JSONL, measured earlier: 2.79 s on 2 cores for 0.672 GB",
    ),
    "short rows": (22.2, "JSONL of 1 KB a row, `results/packing_others/packing.md`, on a busy machine"),
    "tokens": (334.2, "The same with a tokenizer, `results/packing_others/packing.md`, on a busy machine"),
}
# Dollars; see HEAD.
PUT, GET, CORE_HOUR = 0.005 / 1000, 0.0004 / 1000, 0.0816 / 2
CORES, NETWORK = 16, 1.25e9  # of a machine: cores, and bytes a second of 10 Gbit/s
SIZES = {"1 TB": (1e12, 64 << 20), "10 TB": (1e13, 256 << 20), "100 TB": (1e14, 1 << 30)}
PARTS = 100
MACHINES = (1, 10, 100)


def kind(method: str, path: str) -> str:
    """What a request is for: LIST, PUT, DELETE, or GET of the input or of the target."""
    if method == "POST":
        return "DELETE"  # of many objects
    if path.count("/") == 1:  # of the bucket
        return "LIST"
    if method in ("GET", "HEAD"):
        return "GET input" if ".jsonl" in path else "GET target"
    return method


def count(weed: Weed, tasks: int, parts: int, shard: int = SHARDS[0]) -> dict[str, Counter[str]]:
    """The requests of all parts together, and those of the commit."""
    line = json.dumps({"text": "some words " * 370}).encode() + b"\n"
    found: dict[str, Counter[str]] = {}
    with Proxy(weed.address) as proxy:
        direct, options = weed.options(), weed.options(proxy.url)
        source, dest = f"{weed.bucket()}/in.jsonl", weed.bucket()
        Store.open(source.rpartition("/")[0], direct).write("in.jsonl", line * (tasks * shard // len(line)))
        settings: Any = {"shard_size": shard, "workers": 1, "storage_options": options}
        for number in range(parts):
            ss.pack(source, dest, part=(number, parts), **settings)
        found["parts"] = Counter(kind(*each) for each in proxy.counts.paths.elements())
        proxy.reset_counts()
        ss.pack(source, dest, commit=True, **settings)
        found["commit"] = Counter(kind(*each) for each in proxy.counts.paths.elements())
    return found


def slope(many: Counter[str], few: Counter[str], by: int) -> dict[str, float]:
    """How many more requests there are for each of `by` more."""
    return {name: (many[name] - few[name]) / by for name in sorted({*many, *few})}


def money(requests: dict[str, float]) -> float:
    """What requests cost, in dollars."""
    puts = requests.get("PUT", 0) + requests.get("LIST", 0)
    return puts * PUT + (requests.get("GET input", 0) + requests.get("GET target", 0)) * GET


def table(task: dict[str, float], byte: float) -> list[str]:
    """Rows of Markdown: what each size costs."""
    rows = [
        "| input | shards of | tasks | requests | they cost | CPU | hours of a core | they cost | "
        + " | ".join(f"{count} machine{'s' if count > 1 else ''}" for count in MACHINES) + " |",
        "| --- " * (8 + len(MACHINES)) + "|",
    ]  # fmt: skip
    for name, (size, shard) in SIZES.items():
        tasks = size / shard
        # A part lists the target twice, and the commit some times: 2 objects a task, 1,000 a request.
        asked = {
            "PUT": task["PUT"] * tasks,
            "LIST": (2 * PARTS + 5) * 2 * tasks / 1000,
            "GET input": task["GET input"] * tasks + byte * (size - SHARDS[0] * tasks),
        }
        total = sum(asked.values())
        for what, (rate, _) in RATES.items():
            hours = size / 1e9 * rate / 3600
            walls = [max(hours / (n * CORES), size / (n * NETWORK) / 3600) for n in MACHINES]
            shown = " | ".join(
                f"{wall:.1f} h" if wall >= 1 else f"{max(1, wall * 60):.0f} min" for wall in walls
            )
            shard_size = f"{shard >> 20} MiB" if shard < 1 << 30 else f"{shard >> 30} GiB"
            rows.append(
                f"| {name} | {shard_size} | {tasks:,.0f} | {total / 1e6:.2f} M | ${money(asked):.2f} "
                f"| {what} | {hours:,.0f} | ${hours * CORE_HOUR:,.2f} | {shown} |"
            )
    return rows


HEAD = """# Packing 1, 10 and 100 TB in {parts} parts: arithmetic

Nothing was packed at these sizes. Counted by a proxy in front of SeaweedFS: a task puts {put:.0f}
objects (shard, index, receipt), and reads its input in requests of 4 MiB, with {begin:.0f} more at its
beginning. A part needs {gets:.0f} GETs and HEADs and {lists:.0f} listings more.

{rates}
- S3 Standard, US East: PUT and LIST ${put_price:g} per 1,000, GET and HEAD ${get_price:g} per 1,000,
  DELETE and traffic within the region free. List prices of 2025, not looked up again for this table:
  https://aws.amazon.com/s3/pricing/
- A core: ${core:.4f} an hour, half an m7g.large on demand, US East, June 2026:
  https://www.factualminds.com/blog/amazon-ec2-on-demand-pricing-instance-families-2026/
- A machine: {cores} cores and 10 Gbit/s. It takes the longer of CPU time and input over the network.
"""


def head(task: dict[str, float], part: dict[str, float]) -> str:
    """What the table is made of."""
    rates = [f"- {name}: {rate} CPU seconds a GB. {where}." for name, (rate, where) in RATES.items()]
    return HEAD.format(
        parts=PARTS,
        put=task["PUT"],
        begin=task["GET input"] - 1,
        gets=part["GET input"] + part["GET target"],
        lists=part["LIST"],
        rates="\n".join(rates),
        put_price=PUT * 1000,
        get_price=GET * 1000,
        core=CORE_HOUR,
        cores=CORES,
    )


def main() -> None:
    few, many = 4, 12
    with Weed() as weed:
        base, more_tasks = count(weed, few, 2), count(weed, many, 2)
        more_parts, more_bytes = count(weed, few, 6), count(weed, few, 2, SHARDS[1])
    task = slope(more_tasks["parts"], base["parts"], many - few)
    part = slope(more_parts["parts"], base["parts"], 4)
    commit = slope(more_tasks["commit"], base["commit"], many - few)
    byte = slope(more_bytes["parts"], base["parts"], few * (SHARDS[1] - SHARDS[0]))["GET input"]
    found = {
        "bytes of a shard": SHARDS[0],
        "a task": task,
        "a MiB of input more": {"GET input": byte * 2**20},
        "a part": part,
        "a task at the commit": commit,
        "the commit of 4 tasks in 2 parts": base["commit"],
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "requests.json").write_text(json.dumps(found, indent=1) + "\n")
    (RESULTS / "results.md").write_text("\n".join([head(task, part), *table(task, byte)]) + "\n")
    print((RESULTS / "results.md").read_text())


if __name__ == "__main__":
    main()
