"""What counting costs: CPU seconds of epochs with counters, without them, and with a trace, in turn.

    python -m benchmarks.counters [--rounds 15] [--before FOLDER] [--out FOLDER]

Three loaders: tokens that are mapped (the shortest batches that there are), tokens that are decompressed, and
JPEGs that are decoded. One process runs all variants, epoch by epoch: two processes of the same program
differ by more than what is measured here. "off" has functions that do nothing in place of those that count:
what is left there are looks at the clock. `--before` is a checkout of shardstream to look at beside, such as
one from before there were counters; it needs a process of its own.

A busy machine disturbs that by more than the bars. So the same is also computed: the calls of an epoch, each
times what it takes in a loop, beside the CPU time of the epoch. The bars: counters at most 0.5 %, a trace at
most 3 %.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import timeit
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
KINDS = {"mapped tokens": 8, "tokens": 4, "JPEG": 1}  # epochs of a round
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
        for number in range(1500):
            small = Image.fromarray(random.integers(0, 256, (16, 16, 3), np.uint8))
            data = io.BytesIO()
            small.resize((256, 256), Image.Resampling.BICUBIC).save(data, "JPEG", quality=90)
            writer.write({"__key__": str(number), "jpg": data.getvalue()})


def nothing(*_: Any, **__: Any) -> None:
    """In place of a function that counts."""


def switch() -> Callable[[bool], None]:
    """Turns counting on and off, for the whole process and for all who have imported the functions."""
    from shardstream.counters import page, recorder
    from shardstream.read.engine import stats

    methods = [
        (recorder.Recorder, "span"), (recorder.Recorder, "add"), (recorder.Recorder, "put"),
        (stats.Stats, "tell_process"), (stats.Stats, "hold"),
    ]  # fmt: skip
    functions = [recorder.add, recorder.put, recorder.observe, recorder.span, page.begin]
    own = {(kind, name): getattr(kind, name) for kind, name in methods}
    codes = {function: function.__code__ for function in functions}

    def turn(on: bool) -> None:
        for (kind, name), method in own.items():
            setattr(kind, name, method if on else nothing)
        for function, code in codes.items():
            function.__code__ = code if on else nothing.__code__

    return turn


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

    def epoch() -> None:
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
    epoch()
    on = sum(cost[name] * number for name, number in counted.items() if name in cost)
    with ss.observe.trace(file):
        noting = each(lambda: mine.span(fetch, 1.0, 1.0003)) - cost["span"]
        epoch()
    spans = counted["span"]
    traced = sum(cost[name] * number for name, number in counted.items() if name in cost) + noting * spans
    return [on, traced]


def child(kind: str, folder: str) -> None:
    """Answer each line, which names a variant, with the CPU seconds and the batches of some epochs."""
    import shardstream as ss

    url = str(Path(folder) / kind)
    if kind == "JPEG":
        loader: Any = ss.StreamingLoader(ss.StreamingDataset(url), batch_size=32, threads=2)
    else:
        loader = ss.StreamingLoader(ss.TokenDataset(url, seq_len=2048), batch_size=8, threads=2)
    for _ in loader:
        pass
    file = Path(folder) / f"{os.getpid()}.pftrace"
    turn = None
    for line in sys.stdin:
        variant = line.strip()
        if variant == "compute":
            if turn is not None:
                turn(True)
            print(json.dumps(computed(loader, str(file))), flush=True)
            continue
        if variant != "before":
            turn = turn or switch()
            turn(variant != "off")
        trace = ss.observe.trace(file) if variant == "trace" else None
        before, batches = _cpu(), 0
        for _ in range(KINDS[kind]):
            for _ in loader:
                batches += 1
        spent = _cpu() - before, batches
        if trace is not None:
            trace.stop()  # to write the file is not a cost of the loop
        print(json.dumps(spent), flush=True)


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _start(kind: str, folder: Path, path: str) -> Callable[[str], list[float]]:
    process = subprocess.Popen(
        [sys.executable, __file__, "--child", kind, str(folder)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": path},
        cwd=path,
    )  # fmt: skip

    def ask(variant: str) -> list[float]:
        assert process.stdin
        assert process.stdout
        process.stdin.write(f"{variant}\n")
        process.stdin.flush()
        found: list[float] = json.loads(process.stdout.readline())
        return found

    return ask


def measure(folder: Path, kind: str, rounds: int, before: str | None) -> dict[str, Any]:
    """The CPU seconds of each variant and round, and the medians of the ratios to "off"."""
    ask = _start(kind, folder, str(ROOT))
    asks = dict.fromkeys(("off", "on", "trace"), ask)
    if before:
        asks["before"] = _start(kind, folder, before)
    taken: dict[str, list[float]] = {variant: [] for variant in asks}
    batches = 0.0
    for number in range(rounds):
        for variant in asks if number % 2 else reversed(asks):
            cpu, batches = asks[variant](variant)
            taken[variant].append(cpu)
    base = "off"
    on, traced = (KINDS[kind] * seconds for seconds in ask("compute"))
    ratios = {
        variant: [mine / other for mine, other in zip(taken[variant], taken[base], strict=True)]
        for variant in asks
        if variant != base
    }
    # A round in which another program disturbed one of the two says nothing: the middle of all rounds counts,
    # and so do the best of each, which nothing has disturbed.
    return {
        "base": base,
        "microseconds a batch": 1e6 * min(taken["on"]) / batches,
        "percent": {name: 100 * (statistics.median(found) - 1) for name, found in ratios.items()},
        "percent of the best rounds": {
            name: 100 * (min(taken[name]) / min(taken[base]) - 1) for name in ratios
        },
        "computed percent": {"on": 100 * on / min(taken["on"]), "trace": 100 * traced / min(taken["on"])},
        "cpu seconds": taken,
    }


def table(found: dict[str, dict[str, Any]]) -> str:
    """The result for people."""
    variants = list(next(iter(found.values()))["percent"])
    lines = [
        "# What counting costs",
        "",
        "CPU time beside that of the same loader without counters, in percent: the median of all rounds, and",
        f"in parentheses of the best rounds. Bars: counters {BARS['on']} %, trace {BARS['trace']} %.",
        "",
        f"| loader | us a batch | {' | '.join(variants)} | on, computed | trace, computed |",
        "| --- " * (4 + len(variants)) + "|",
    ]
    for kind, each in found.items():
        best = each["percent of the best rounds"]
        cells = [f"{value:+.2f} ({best[name]:+.2f})" for name, value in each["percent"].items()]
        cells += [f"{each['computed percent'][name]:.2f}" for name in ("on", "trace")]
        lines.append(f"| {kind} | {each['microseconds a batch']:.0f} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, print and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--before")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "counters")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        child(*given.child)
        return
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder))
        found = {kind: measure(Path(folder), kind, given.rounds, given.before) for kind in KINDS}
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "counters.json").write_text(json.dumps(found, indent=1) + "\n")
    (given.out / "counters.md").write_text(table(found))
    print(table(found))


if __name__ == "__main__":
    main()
