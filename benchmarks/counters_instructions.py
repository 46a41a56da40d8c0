"""What counting costs, in instructions.

    python -m benchmarks.counters --instructions

needs valgrind. The copies of `counters_copies` read short epochs in turn in one process under callgrind,
which counts the instructions that each epoch takes, in all threads. The count does not depend on what else
the machine does. A tenth of what "eleven" takes more than "on" is what the counters take; on - off says the
same, and has the disturbance ten times.

What is shorter than some milliseconds is counted together with what follows. Under callgrind all takes about
a hundred times as long, so these limits are made as much longer.

Instructions are not time: one that waits for memory takes longer. Those of counters write to a page that is
in the cache of the processor.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.counters_copies import Copy
from benchmarks.processes import ROOT

__all__ = ["BAR", "COPIES", "child", "measure", "summary", "table"]

COPIES = {"off": 0, "on": 1, "eleven": 11}
SLOWER = 100  # about so many times slower is a program under callgrind
BAR = 0.3  # percent


def child(kinds: list[str], folder: str, compiled: str, rounds: int) -> None:
    """Read an epoch of each kind by each copy, round after round; a line is said before each, and awaited."""
    from benchmarks.counters import epoch, loader_of

    copies: dict[str, Copy] = {}
    loaders: dict[tuple[str, str], Any] = {}
    for name, times in COPIES.items():
        copies[name] = Copy(times, Path(compiled))
        copies[name].enter()
        _adapt()
        for kind in kinds:
            loaders[kind, name] = loader_of(copies[name].package, kind, str(Path(folder) / kind))
            epoch(loaders[kind, name])  # so that everything is imported, and adapted to its types
        copies[name].leave()
    for _ in range(rounds):
        for (kind, name), loader in loaders.items():
            _say({"next": [kind, name]})
            copies[name].enter()
            batches = epoch(loader)
            copies[name].leave()
            _say({"batches": batches})


def _adapt() -> None:
    """Let the package that is there count slow batches as seldom as it counts quick ones elsewhere.

    Batches and steps below some milliseconds are counted together.
    """
    from shardstream.read.engine import pipeline, timing

    timing._TELL *= SLOWER  # noqa: SLF001 - no user needs to change it
    pipeline.QUICK *= SLOWER  # type: ignore[misc]


def _say(row: dict[str, Any]) -> None:
    print(json.dumps(row), flush=True)
    sys.stdin.readline()


def measure(folder: Path, kinds: list[str], rounds: int) -> dict[str, Any]:
    """By kind: the instructions of each epoch by copy, batches of an epoch, and the summary.

    Args:
        folder: Of the datasets that `counters.make` makes.
        kinds: Which of them are read.
        rounds: Epochs of each copy.

    Raises:
        RuntimeError: valgrind is missing, or the process under it failed.
    """
    if shutil.which("callgrind_control") is None:
        raise RuntimeError("valgrind is missing: apt-get install valgrind")
    found: dict[str, Any] = {kind: {"instructions": {name: [] for name in COPIES}} for kind in kinds}
    with tempfile.TemporaryDirectory() as place:
        out = Path(place) / "out"
        command = [sys.executable, "-m", "benchmarks.counters", "--counted"]
        # Once as it is, so that everything is compiled.
        subprocess.run([*command, json.dumps([kinds, str(folder), place, 0])], cwd=ROOT, check=True)
        running = subprocess.Popen(
            ["valgrind", "-q", "--tool=callgrind", "--instr-atstart=no", f"--callgrind-out-file={out}",
             *command, json.dumps([kinds, str(folder), place, rounds])],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=ROOT,
            env=os.environ | {"PYTHONHASHSEED": "0"},
        )  # fmt: skip
        assert running.stdin is not None
        assert running.stdout is not None
        dumps, on = 0, False
        kind = name = ""
        for line in running.stdout:
            row = json.loads(line)
            if "next" in row:
                kind, name = row["next"]
                _control(running.pid, *(("-z",) if on else ("-i", "on")))
                on = True
            else:
                dumps += 1
                _control(running.pid, "-d")
                instructions = _total(Path(f"{out}.{dumps}"))
                found[kind]["instructions"][name].append(instructions)
                found[kind]["batches"] = row["batches"]
                print(f"{kind}, {name}: {instructions:,} instructions", file=sys.stderr, flush=True)
            running.stdin.write("go\n")
            running.stdin.flush()
        if running.wait():
            raise RuntimeError(f"the process under valgrind ended with {running.returncode}")
    return {kind: each | summary(each) for kind, each in found.items()}


def _control(pid: int, *arguments: str) -> None:
    subprocess.run(["callgrind_control", *arguments, str(pid)], check=True, capture_output=True)


def _total(dump: Path) -> int:
    """The instructions of one dump of callgrind."""
    found = re.search(r"^(?:summary|totals): (\d+)", dump.read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1])


def summary(each: dict[str, Any]) -> dict[str, Any]:
    """The cost in percent of the epoch without counters, by eleven and by taking away, of the medians.

    The least and the largest of "by eleven" are those of single rounds.
    """
    taken = each["instructions"]
    off, on, eleven = (statistics.median(taken[name]) for name in COPIES)
    more = COPIES["eleven"] - COPIES["on"]
    single = [
        100 * (high - low) / more / none
        for none, low, high in zip(taken["off"], taken["on"], taken["eleven"], strict=True)
    ]
    return {
        "percent by eleven": 100 * (eleven - on) / more / off,
        "of single rounds": [min(single), max(single)],
        "percent on - off": 100 * (on - off) / off,
        "instructions a batch": off / each["batches"],
        "of counters a batch": (eleven - on) / more / each["batches"],
    }


def table(found: dict[str, Any]) -> str:
    """The result for people."""
    lines = [
        "# What counting costs, in instructions",
        "",
        "`python -m benchmarks.counters --instructions`: callgrind counts the instructions of epochs, of",
        "copies of the package that count never, once and eleven times. By eleven: a tenth of what eleven",
        f"takes more than once, beside an epoch without counters. Bar: {BAR} %.",
        "",
        "| loader | instructions a batch | of counters | by eleven, % (single rounds) | on - off, % | met |",
        "| --- | --: | --: | --: | --: | --- |",
    ]
    for kind, each in found.items():
        low, high = each["of single rounds"]
        percent = each["percent by eleven"]
        lines.append(
            f"| {kind} | {each['instructions a batch']:,.0f} | {each['of counters a batch']:,.0f} "
            f"| {percent:.2f} ({low:.2f} to {high:.2f}) | {each['percent on - off']:.2f} "
            f"| {'yes' if percent <= BAR else 'no'} |"
        )
    return "\n".join(lines) + "\n"
