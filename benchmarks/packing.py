"""How fast is packing, beside what its parts alone can do and the peers' writers?

    python -m benchmarks.packing [--only QUESTION]... [--text FILE.jsonl] [--images DIR] [--peers PYTHON]
                                 [--tokenizer FILE] [--runs 5] [--out DIR]

The questions are jsonl, parquet (the same rows, in row groups of 64 MB), tokens (with the tokenizer of a
.json file), writer-text and writer-jpeg (one process writes samples that it has in memory), and plan (a
plan over 100,000 small files). Lines have the keys id, text and bytes.

Everything runs in turn (A B C A B C ...) after one warm-up round, with as many processes as cores except
for the writers. The rows are medians with the spread; ratios are taken within each round. CPU time is that
of all processes, divided by the bytes of the samples. `--peers` is the Python of an environment with
benchmarks/requirements-peers.txt. JSON and a Markdown table are written to DIR.
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
from typing import Any

import zstandard

CHUNK = 64 << 20
FRAME = 1 << 20
SMALL_FILES = 100_000
# (source, dest, workers) -> seconds, CPU seconds, samples stored; 0 if nothing is stored
Run = Callable[[str, Path, int], "tuple[float, float, int]"]


def ours(question: str, *arguments: str) -> Run:
    """The package's own function with its defaults, process starts and fsync included."""
    command = [sys.executable, "-m", "benchmarks.ours_pack", question]
    return lambda source, dest, workers: _timed([*command, source, str(dest), str(workers), *arguments])


def peer(name: str, question: str, python: str) -> Run:
    """The writer of a peer, by peers_pack.py in the peers' environment."""
    script = str(Path(__file__).with_name("peers_pack.py"))
    return lambda source, dest, workers: _timed(
        [python, script, name, question, source, str(dest), str(workers)]
    )


def _timed(command: list[str]) -> tuple[float, float, int]:
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    seconds, cpu, stored = json.loads(done.stdout.strip().splitlines()[-1])
    return seconds, cpu, stored


def pooled(function: Callable[[Any], object], jobs: Callable[[str], list[Any]]) -> Run:
    """A ceiling: a function over all jobs, in as many processes as there are workers."""

    def run(source: str, _dest: Path, workers: int) -> tuple[float, float, int]:
        todo = jobs(source)
        started, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
        pool = multiprocessing.get_context("spawn").Pool(workers)
        pool.map(function, todo, chunksize=1)
        seconds = time.perf_counter() - started
        pool.close()
        pool.join()
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 0

    return run


def chunks(source: str) -> list[tuple[str, int]]:
    return [(source, start) for start in range(0, os.path.getsize(source), CHUNK)]


def compress(job: tuple[str, int]) -> int:
    """zstd 3 on a part of a file in frames of 1 MiB; the result is dropped."""
    source, start = job
    with open(source, "rb") as file:
        file.seek(start)
        return _frames(file.read(CHUNK))


def _frames(data: bytes) -> int:
    compressor, view = zstandard.ZstdCompressor(level=3, write_checksum=True), memoryview(data)
    return sum(len(compressor.compress(view[at : at + FRAME])) for at in range(0, len(view), FRAME))


def groups(source: str) -> list[tuple[str, int]]:
    import pyarrow.parquet

    return [(source, number) for number in range(pyarrow.parquet.ParquetFile(source).num_row_groups)]


def scan(job: tuple[str, int]) -> int:
    """pyarrow's read of a row group, and zstd 3 on the bytes of its columns."""
    import pyarrow.parquet

    source, number = job
    table = pyarrow.parquet.ParquetFile(source).read_row_group(number, use_threads=False)
    buffers = [
        buffer for column in table.columns for chunk in column.chunks for buffer in chunk.buffers() if buffer
    ]
    return sum(_frames(buffer.to_pybytes()) for buffer in buffers)


def tokenize(job: tuple[str, int, str]) -> int:
    """The tokenizer alone, on the texts of a part of a file, in batches of 64."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    import msgspec
    import tokenizers

    source, start, name = job
    model = tokenizers.Tokenizer.from_file(name)
    with open(source, "rb") as file:
        if start:
            file.seek(start - 1)
            file.readline()
        texts, count = [], 0
        while file.tell() < start + CHUNK and (line := file.readline()):
            texts.append(msgspec.json.decode(line)["text"])
            if len(texts) == 64:
                count += sum(len(one.ids) for one in model.encode_batch(texts, add_special_tokens=False))
                texts = []
    return count + sum(len(one.ids) for one in model.encode_batch(texts, add_special_tokens=False))


def make_parquet(source: str, folder: Path) -> str:
    """The rows of a JSONL file as Parquet, with pyarrow's defaults and row groups of about 64 MB."""
    import msgspec
    import pyarrow as pa
    import pyarrow.parquet

    dest, schema = (
        folder / "rows.parquet",
        pa.schema({"id": pa.string(), "text": pa.string(), "bytes": pa.int64()}),
    )
    with pyarrow.parquet.ParquetWriter(dest, schema) as out, open(source, "rb") as file:
        rows, size = [], 0
        for line in file:
            rows.append(msgspec.json.decode(line))
            size += len(line)
            if size >= CHUNK:
                out.write_table(pa.Table.from_pylist(rows, schema))
                rows, size = [], 0
        if rows:
            out.write_table(pa.Table.from_pylist(rows, schema))
    return str(dest)


def make_small_files(folder: Path) -> str:
    root = folder / "small"
    for number in range(SMALL_FILES):
        if number % 1000 == 0:
            (root / f"{number // 1000:03d}").mkdir(parents=True)
        (root / f"{number // 1000:03d}" / f"{number:06d}.txt").write_text("small")
    return str(root)


def questions(options: argparse.Namespace, folder: Path) -> dict[str, tuple[str, dict[str, Run]]]:
    """Of each question its source, and who is measured; the package is called shardstream."""
    peers, wanted = options.peers, options.only
    found: dict[str, tuple[str, dict[str, Run]]] = {}

    def among(question: str, **names: str) -> dict[str, Run]:
        return {label: peer(name, question, peers) for name, label in names.items()} if peers else {}

    if "jsonl" in wanted:
        found["jsonl"] = (
            options.text,
            {
                "zstd alone": pooled(compress, chunks),
                "shardstream": ours("jsonl"),
                **among("jsonl", mds="MDSWriter, zstd", wds="wds.ShardWriter, zstd"),
            },
        )
    if "parquet" in wanted:
        found["parquet"] = (
            make_parquet(options.text, folder),
            {
                "pyarrow's scan and zstd": pooled(scan, groups),
                "shardstream": ours("parquet"),
                **among("parquet", mds="MDSWriter, zstd", litdata="litdata.optimize, zstd"),
            },
        )
    if "tokens" in wanted and options.tokenizer:
        found["tokens"] = (
            options.text,
            {
                "the tokenizer alone": pooled(
                    tokenize, lambda source: [(*chunk, options.tokenizer) for chunk in chunks(source)]
                ),
                "shardstream": ours("tokens", options.tokenizer),
            },
        )
    for name, source in (("writer-text", options.text), ("writer-jpeg", options.images)):
        if name in wanted and source:
            found[name] = (
                source,
                {
                    "shardstream": ours("writer"),
                    **among("writer", mds="MDSWriter", wds="wds.ShardWriter"),
                },
            )
    if "plan" in wanted:
        found["plan"] = make_small_files(folder), {"shardstream": ours("plan")}
    return found


def measure(
    name: str, source: str, contenders: dict[str, Run], runs: int, workers: int, count: int
) -> dict[str, Any]:
    """Seconds and CPU seconds of each contender in each round, the warm-up left out.

    Whoever stores samples has to store `count` of them in each round.
    """
    taken: dict[str, Any] = {contender: [] for contender in contenders}
    for number in range(runs + 1):
        for contender, run in contenders.items():
            with tempfile.TemporaryDirectory() as folder:
                seconds, cpu, stored = run(source, Path(folder) / "out", workers)
            if stored not in (0, count):
                raise SystemExit(f"{name}: {contender} stored {stored} samples of {count}")
            if number:
                taken[contender].append((seconds, cpu))
            print(f"{name}, round {number}: {contender}: {seconds:.2f} s, CPU {cpu:.2f} s", file=sys.stderr)
    return taken


def table(name: str, taken: dict[str, Any], size: int) -> str:
    """The figures of one question as Markdown."""
    if name == "plan":
        (runs,) = taken.values()
        seconds = sorted(one for one, _ in runs)
        spread = f"{statistics.median(seconds):.2f} s ({seconds[0]:.2f} to {seconds[-1]:.2f})"
        return f"## plan\n\nA plan over {SMALL_FILES:,} small files takes {spread}.\n"
    lines = [
        f"## {name}\n",
        "| | MB/s, median (min to max) | CPU s/GB | shardstream is faster by, median (min to max) |",
        "| --- | --- | --- | --- |",
    ]
    own = [seconds for seconds, _ in taken["shardstream"]]
    for contender, runs in taken.items():
        rates = sorted(size / seconds / 1e6 for seconds, _ in runs)
        ratios = sorted(seconds / mine for (seconds, _), mine in zip(runs, own, strict=True))
        lines.append(
            f"| {contender} | {statistics.median(rates):.0f} ({rates[0]:.0f} to {rates[-1]:.0f}) "
            f"| {statistics.median(cpu for _, cpu in runs) / size * 1e9:.1f} "
            f"| {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}) |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = ("jsonl", "parquet", "tokens", "writer-text", "writer-jpeg", "plan")
    parser.add_argument("--only", action="append", choices=names, help="repeatable; all by default")
    parser.add_argument("--text", required=True, help="a JSONL file with id, text and bytes")
    parser.add_argument("--images", help="a folder of JPEGs")
    parser.add_argument("--tokenizer", help="a .json file of the package tokenizers")
    parser.add_argument("--peers", help="Python of an environment with the peers")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    options.only = options.only or names
    taken, tables = {}, []
    with tempfile.TemporaryDirectory() as folder:
        for name, (source, contenders) in questions(options, Path(folder)).items():
            corpus = options.images if name == "writer-jpeg" else options.text
            taken[name] = measure(name, source, contenders, options.runs, options.workers, _count(corpus))
            tables.append(table(name, taken[name], _bytes(corpus)))
            write(options, taken, tables)  # after each question, since all take long
    print("\n".join(tables))


def write(options: argparse.Namespace, taken: dict[str, Any], tables: list[str]) -> None:
    """Write the figures so far."""
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        facts = {
            "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
            "corpus_bytes": _bytes(options.text),
            "bytes": {
                name: _bytes(options.images if name == "writer-jpeg" else options.text) for name in taken
            },
            "corpus_samples": _count(options.text),
            "workers": options.workers,
            "python": platform.python_version(),
            "machine": f"{platform.machine()}, {os.cpu_count()} cores",
            "versions": {name: version(name) for name in ("shardstream", "zstandard", "msgspec", "numpy")},
            "peers": _peer_versions(options.peers),
            "seconds": taken,
        }
        (options.out / "packing.json").write_text(json.dumps(facts, indent=1) + "\n")
        (options.out / "packing.md").write_text("\n".join(tables))


def _bytes(source: str) -> int:
    """The bytes of a file, or of the JPEGs in a folder."""
    if os.path.isdir(source):
        return sum(path.stat().st_size for path in Path(source).rglob("*.jpg"))
    return os.path.getsize(source)


def _count(source: str) -> int:
    """The lines of a file, or the JPEGs in a folder."""
    if os.path.isdir(source):
        return sum(1 for _ in Path(source).rglob("*.jpg"))
    with open(source, "rb") as file:
        return sum(1 for _ in file)


def _peer_versions(python: str | None) -> dict[str, str]:
    if not python:
        return {}
    names = ("mosaicml-streaming", "webdataset", "litdata", "pyarrow")
    code = f"import importlib.metadata as m; print(*map(m.version, {names!r}))"
    done = subprocess.run([python, "-c", code], check=True, capture_output=True, text=True)
    return dict(zip(names, done.stdout.split(), strict=True))


if __name__ == "__main__":
    main()
