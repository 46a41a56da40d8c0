"""How fast is packing JSONL, beside zstd alone and the peers' writers?

    python -m benchmarks.packing CORPUS.jsonl [--peers PYTHON] [--runs 5] [--out DIR]

Everything runs in turn (A B C A B C ...), with as many processes as cores, after one warm-up round.
The rows are the medians with the spread; ratios are taken within each round. `--peers` is the Python of an
environment with benchmarks/requirements-peers.txt. JSON and a Markdown table are written to DIR.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import zstandard

CHUNK = 64 << 20
FRAME = 1 << 20


def _compress(job: tuple[str, int]) -> int:
    source, start = job
    compressor = zstandard.ZstdCompressor(level=3, write_checksum=True)
    with open(source, "rb") as file:
        file.seek(start)
        data = memoryview(file.read(CHUNK))
    return sum(len(compressor.compress(data[at : at + FRAME])) for at in range(0, len(data), FRAME))


def ceiling(source: str, _dest: Path, workers: int) -> float:
    """zstd level 3 on the corpus in frames of 1 MiB, result dropped; reading included."""
    started = time.perf_counter()
    with multiprocessing.get_context("fork").Pool(workers) as pool:
        jobs = [(source, start) for start in range(0, os.path.getsize(source), CHUNK)]
        pool.map(_compress, jobs, chunksize=1)
    return time.perf_counter() - started


def shardstream(source: str, dest: Path, workers: int) -> float:
    """`shardstream.pack` with its defaults, process starts and fsync included."""
    code = (
        "import sys, time, shardstream as ss; ss.pack; started = time.perf_counter();"
        "ss.pack(sys.argv[1], sys.argv[2], format='jsonl', workers=int(sys.argv[3]));"
        "print(time.perf_counter() - started)"
    )
    return _timed([sys.executable, "-c", code, source, str(dest), str(workers)])


def peer(name: str, python: str) -> Callable[[str, Path, int], float]:
    """The writer of a peer, by peers_pack.py in the peers' environment."""
    script = str(Path(__file__).with_name("peers_pack.py"))
    return lambda source, dest, workers: _timed([python, script, name, source, str(dest), str(workers)])


def _timed(command: list[str]) -> float:
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(done.stdout.strip().splitlines()[-1])


def measure(source: str, peers: str | None, runs: int, workers: int) -> dict[str, list[float]]:
    """Seconds of each contender in each round, the warm-up left out."""
    contenders = {"zstd alone": ceiling, "shardstream": shardstream}
    if peers:
        contenders |= {"MDSWriter, zstd": peer("mds", peers), "wds.ShardWriter, zstd": peer("wds", peers)}
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for round_number in range(runs + 1):
        for name, run in contenders.items():
            with tempfile.TemporaryDirectory() as folder:
                taken = run(source, Path(folder) / "out", workers)
            if round_number:
                seconds[name].append(taken)
            print(f"round {round_number}: {name}: {taken:.2f} s", file=sys.stderr)
    return seconds


def table(seconds: dict[str, list[float]], size: int) -> str:
    """The figures as Markdown."""
    ours = seconds["shardstream"]
    lines = [
        "| | MB/s, median (min to max) | shardstream is faster by, median (min to max) |",
        "| --- | --- | --- |",
    ]
    for name, taken in seconds.items():
        rates = sorted(size / value / 1e6 for value in taken)
        ratios = sorted(other / own for other, own in zip(taken, ours, strict=True))
        lines.append(
            f"| {name} | {statistics.median(rates):.0f} ({rates[0]:.0f} to {rates[-1]:.0f}) "
            f"| {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}) |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("corpus")
    parser.add_argument("--peers", help="Python of an environment with the peers")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    size = os.path.getsize(options.corpus)
    seconds = measure(options.corpus, options.peers, options.runs, options.workers)
    facts = {
        "corpus_bytes": size,
        "workers": options.workers,
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "versions": {name: version(name) for name in ("shardstream", "zstandard", "msgspec", "numpy")},
        "peers": _peer_versions(options.peers),
        "peak_rss_mib": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024,
        "seconds": seconds,
    }
    print(table(seconds, size))
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "packing.json").write_text(json.dumps(facts, indent=1) + "\n")
        (options.out / "packing.md").write_text(table(seconds, size))


def _peer_versions(python: str | None) -> dict[str, str]:
    if not python:
        return {}
    code = "import importlib.metadata as m; print(m.version('mosaicml-streaming'), m.version('webdataset'))"
    mosaic, webdataset = subprocess.run(
        [python, "-c", code], check=True, capture_output=True, text=True
    ).stdout.split()
    return {"mosaicml-streaming": mosaic, "webdataset": webdataset}


if __name__ == "__main__":
    main()
