"""What counting costs: CPU seconds of epochs with counters, without them, and with a trace, in turn.

    python -m benchmarks.counters [--processes 6] [--rounds 80] [--only KIND...] [--out FOLDER]
    python -m benchmarks.counters --instructions [--rounds 5] [--only KIND...] [--out FOLDER]

Three loaders: tokens that are mapped (the shortest batches that there are), tokens that are decompressed,
and JPEGs that are decoded. One process has copies of the package (`counters_copies`): "off" is compiled
without the statements that count, and without looks at the clock that only they need; "on" is the package
as it is; "eleven" has each of these statements eleven times. Short epochs of all of them take turns in a
random order, and each round is compared with itself, so that a busy machine disturbs all alike.

Copies lie elsewhere in memory, which alone makes one a percent faster than another. So "on" beside "off"
says little about a cost of a few thousandths, also in the mean of processes that load the copies in
different orders. A tenth of what "eleven" takes more than "on" is the cost, too, and the disturbance is a
tenth. (What is done again finds its memory in the cache of the processor; that is why "on" beside "off" is
there, too.) What is said is the mean of the processes with two standard errors.

The same is also computed: the calls of an epoch, each times what it takes in a loop, beside the CPU time of
the epoch. The bars: counters at most 0.5 %, a trace at most 3 %. `--instructions` counts instead of timing:
see `counters_instructions`.
"""

from __future__ import annotations

import argparse
import gc
import io
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import timeit
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import counters_instructions
from benchmarks.counters_copies import Copy

ROOT = Path(__file__).parent.parent
KINDS = ("mapped tokens", "tokens", "JPEG")
MORE = 10  # times that "eleven" counts more
COPIES = {"off": 0, "on": 1, "eleven": 1 + MORE}
# What is shown: (one variant, beside another, how many times the cost is in the difference)
SHOWN = {
    "on, by eleven": ("eleven", "on", MORE),
    "on / off": ("on", "off", 1),
    "trace / on": ("trace", "on", 1),
}
IMAGES = 320  # an epoch of them is short
BARS = {"on": 0.5, "trace": 3.0}  # percent


def make(folder: Path) -> None:
    """The datasets."""
    import numpy as np
    from PIL import Image

    import shardstream as ss

    random = np.random.default_rng(5)
    words = [bytes(random.integers(97, 123, n, np.uint8)).decode() for n in random.integers(2, 9, 2000)]
    texts = [" ".join(words[n] for n in random.integers(0, 2000, 1500)) for _ in range(3000)]
    for name, codec in (("mapped tokens", "none"), ("tokens", "zstd")):
        rows = ({"__key__": str(number), "txt": text} for number, text in enumerate(texts))
        ss.pack(rows, folder / name, tokenizer="bytes", eos=256, compression=codec)  # type: ignore[arg-type]
    with ss.Writer(folder / "JPEG") as writer:
        for number in range(IMAGES):
            small = Image.fromarray(random.integers(0, 256, (16, 16, 3), np.uint8))
            data = io.BytesIO()
            small.resize((256, 256), Image.Resampling.BICUBIC).save(data, "JPEG", quality=90)
            writer.write({"__key__": str(number), "jpg": data.getvalue()})


def computed(loader: Any, file: str) -> list[float]:
    """The CPU seconds that counting takes in an epoch, and those that tracing takes beside it."""
    import shardstream as ss
    from shardstream.counters import recorder
    from shardstream.counters.layout import slot, stage

    def each(call: Callable[[], Any], number: int = 2_000) -> float:
        return min(timeit.repeat(call, number=number, repeat=60)) / number

    counted: Counter[str] = Counter()

    def watch(frame: Any, event: str, _: Any) -> None:
        if event == "call" and frame.f_globals.get("__name__") == recorder.__name__:
            counted[frame.f_code.co_name] += 1

    def watched() -> None:
        counted.clear()
        threading.setprofile(watch)
        sys.setprofile(watch)
        for _ in loader:
            pass
        sys.setprofile(None)
        threading.setprofile(None)  # type: ignore[arg-type]

    mine, place, fetch = recorder.Recorder(), slot("frames"), stage("fetch")
    cost = {
        "span": each(lambda: mine.span(fetch, 1.0, 1.0003)), "add": each(lambda: recorder.add(place, 1)),
        "put": each(lambda: recorder.put(place, 1)), "listening": each(recorder.listening),
    }  # fmt: skip
    watched()
    on = sum(cost[name] * number for name, number in counted.items() if name in cost)
    with ss.observe.trace(file):
        noting = each(lambda: mine.span(fetch, 1.0, 1.0003)) - cost["span"]
        watched()
    spans = counted["span"]
    traced = sum(cost[name] * number for name, number in counted.items() if name in cost) + noting * spans
    return [on, traced]


def child(kind: str, folder: str, seed: int, rounds: int) -> None:
    """Print the CPU seconds of each variant and round, the batches of an epoch, and what is computed."""
    draw = random.Random(seed)
    copies: dict[str, Copy] = {}
    loaders: dict[str, Any] = {}
    for name in draw.sample([*COPIES], len(COPIES)):
        copies[name] = Copy(COPIES[name])
        copies[name].enter()
        loaders[name] = loader_of(copies[name].package, kind, str(Path(folder) / kind))
        epoch(loaders[name])
        copies[name].leave()
    file = str(Path(folder) / f"{os.getpid()}.pftrace")
    taken: dict[str, list[float]] = {variant: [] for variant in (*COPIES, "trace")}
    batches = 0
    for _ in range(rounds):
        for variant in draw.sample([*taken], len(taken)):
            name = "on" if variant == "trace" else variant
            copies[name].enter()
            trace = copies[name].package.observe.trace(file) if variant == "trace" else None
            gc.collect()
            began = time.process_time()
            batches = epoch(loaders[name])
            taken[variant].append(time.process_time() - began)
            if trace is not None:
                trace.stop()  # to write the file is not a cost of the loop
            copies[name].leave()
    copies["on"].enter()
    cost = computed(loaders["on"], file)
    print(json.dumps({"cpu seconds": taken, "batches": batches, "computed": cost}))


def loader_of(ss: Any, kind: str, url: str) -> Any:
    """A loader of one kind, by a copy of the package."""
    if kind == "JPEG":
        return ss.StreamingLoader(ss.StreamingDataset(url), batch_size=32, threads=2)
    return ss.StreamingLoader(ss.TokenDataset(url, seq_len=2048), batch_size=8, threads=2)


def epoch(loader: Any) -> int:
    """Read an epoch; returns its batches."""
    return sum(1 for _ in loader)


def measure(folder: Path, kind: str, processes: int, rounds: int) -> dict[str, Any]:
    """What each variant takes beside "off", and the CPU seconds that say so."""
    found = []
    for number in range(processes):
        given = [kind, str(folder), str(number), str(rounds)]
        command = [sys.executable, "-m", "benchmarks.counters", "--child", *given]
        said = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout
        found.append(json.loads(said))
        print(
            kind,
            {name: round(_beside(found[-1]["cpu seconds"], *names), 2) for name, names in SHOWN.items()},
            flush=True,
        )
    # The least of an epoch: what nothing has disturbed.
    least = min(min(one["cpu seconds"]["on"]) for one in found)
    on, traced = (min(one["computed"][number] for one in found) for number in (0, 1))
    return {
        "microseconds a batch": 1e6 * least / found[0]["batches"],
        "percent": {
            name: _mean([_beside(one["cpu seconds"], *names) for one in found])
            for name, names in SHOWN.items()
        },
        "computed percent": {"on": 100 * on / least, "trace": 100 * traced / least},
        "cpu seconds": [one["cpu seconds"] for one in found],
    }


def _beside(taken: dict[str, list[float]], mine: str, other: str, times: int) -> float:
    """By how many percent a variant takes longer than another in one process: the median of its rounds."""
    rounds = zip(taken[mine], taken[other], strict=True)
    return 100 * (statistics.median(one / two for one, two in rounds) - 1) / times


def _mean(values: list[float]) -> dict[str, float]:
    """The mean of the processes, and two of its standard errors."""
    error = statistics.stdev(values) / len(values) ** 0.5
    return {"mean": statistics.mean(values), "two standard errors": 2 * error}


def table(found: dict[str, dict[str, Any]]) -> str:
    """The result for people."""
    lines = [
        "# What counting costs",
        "",
        "CPU time beside that of the same loader without counters, in percent: the mean of processes, and",
        "two standard errors of it. By eleven: a tenth of what counting eleven times takes more. Computed:",
        f"the calls, each times what it takes. Bars: counters {BARS['on']} %, trace {BARS['trace']} %.",
        "",
        f"| loader | us a batch | {' | '.join(SHOWN)} | on, computed | trace, computed |",
        "| --- " * (4 + len(SHOWN)) + "|",
    ]
    for kind, each in found.items():
        cells = [f"{one['mean']:+.2f} ± {one['two standard errors']:.2f}" for one in each["percent"].values()]
        cells += [f"{each['computed percent'][name]:.2f}" for name in BARS]
        lines.append(f"| {kind} | {each['microseconds a batch']:.0f} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, print and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--processes", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=80)
    parser.add_argument("--only", nargs="*", choices=KINDS, default=[*KINDS])
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "counters")
    parser.add_argument("--instructions", action="store_true", help="count instructions, by valgrind")
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    parser.add_argument("--counted", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.counted:
        counters_instructions.child(*json.loads(given.counted))
        return
    if given.child:
        kind, place, seed, rounds = given.child
        child(kind, place, int(seed), int(rounds))
        return
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder))
        given.out.mkdir(parents=True, exist_ok=True)
        if given.instructions:
            _instructions(Path(folder), given)
            return
        file = given.out / "counters.json"
        before = json.loads(file.read_text()) if file.exists() else {}
        found = {kind: each for kind, each in before.items() if set(each["percent"]) == set(SHOWN)}
        for kind in given.only:
            found[kind] = measure(Path(folder), kind, given.processes, given.rounds)
            file.write_text(json.dumps(found, indent=1) + "\n")
            (given.out / "counters.md").write_text(table(found))
    print(table(found))


def _instructions(folder: Path, given: argparse.Namespace) -> None:
    """The same in instructions; kinds that are not measured now keep their figures."""
    file = given.out / "instructions.json"
    found = json.loads(file.read_text()) if file.exists() else {}
    found |= counters_instructions.measure(folder, given.only, min(given.rounds, 5))
    found = {kind: found[kind] for kind in KINDS if kind in found}
    file.write_text(json.dumps(found, indent=1) + "\n")
    (given.out / "instructions.md").write_text(counters_instructions.table(found))
    print(counters_instructions.table(found))


if __name__ == "__main__":
    main()
