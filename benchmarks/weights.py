"""How fast do weights become tensors: from a local file, from an object store 20 ms away, a rank's slice?

    python -m benchmarks.weights [--peers PYTHON] [--next PYTHON] [--only local] [--out DIR]

A bfloat16 model is made, shaped like Llama: of 2 GB for local files, of 0.2 GB for the store. Every load is a
process of its own; rounds go through all contenders in turn, until the question's time is up. Time runs from
the call to the last tensor; imports are not in it. Every contender tells a checksum of what it has loaded,
which must be the same. Memory is the peak above that of a process with everything imported. `--peers` is a
Python with runai-model-streamer, fastsafetensors and s3torchconnector, `--next` one with safetensors 0.9;
both have torch. A contender that fails is shown as failed. It takes four minutes, and 7 GB of disk meanwhile.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.processes import ROOT
from benchmarks.weights_contenders import RANKS, child, make_model

LATENCY = 0.02
LOCAL_GB, STORE_GB = 2.0, 0.19
SECONDS = {"local": 75.0, "cold": 60.0, "store": 55.0}  # after which no other round begins
ROUNDS = 7  # at most
PEERS = ("runai", "fastsafetensors", "s3torchconnector")
NEXT = "safetensors 0.9 pread"
LOCAL = (
    "raw preadv", "ours", "ours, checksums", "safetensors 0.8 + copy", NEXT, "torch.load", "runai",
    "fastsafetensors",
)  # fmt: skip
STORE = ("bare obstore", "ours", "ours, checksums", "fetch + safetensors", "runai", "s3torchconnector")
PRELOAD = (
    "numpy", "torch", "safetensors.torch", "fsspec.asyn", "shardstream.weights.fetch",
    "shardstream.weights.load", "shardstream.weights.tensors",
)  # fmt: skip


def run(python: str, name: str, folder: Path, where: dict[str, Any]) -> dict[str, Any]:
    """One load in a process of its own; of ours a fork of one that has imported everything."""
    if python == sys.executable:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(list(PRELOAD))
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=_forked, args=(sender, name, str(folder), where))
        process.start()
        sender.close()
        try:
            return receiver.recv()  # type: ignore[no-any-return]
        except EOFError:
            return {"failed": "it has ended without an answer"}
        finally:
            process.join()
    arguments = json.dumps({"name": name, "folder": str(folder), "where": where})
    done = subprocess.run(
        [python, "-m", "benchmarks.weights", "--child", arguments], cwd=ROOT, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=300, check=False,
    )  # fmt: skip
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not lines:
        return {"failed": (done.stderr.strip().splitlines() or ["no answer"])[-1][:200]}
    found: dict[str, Any] = json.loads(lines[-1])
    return found


def _forked(sender: Any, name: str, folder: str, where: dict[str, Any]) -> None:
    try:
        sender.send(child(name, folder, where))
    except Exception as error:  # noqa: BLE001 - it is shown in the table
        sender.send({"failed": f"{type(error).__name__}: {error}"[:200]})


def make_cold(folder: Path) -> None:
    """Drop the files from the page cache."""
    for path in folder.iterdir():
        file = os.open(path, os.O_RDONLY)
        os.fsync(file)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(file)


def table(title: str, rounds: list[dict[str, dict[str, Any]]], size: int, ceiling: str) -> list[str]:
    """Medians with the least and the largest; ratios are taken within rounds."""
    lines = [
        f"### {title}", "", f"| | s | x {ceiling} | CPU s/GB | memory x model |",
        "| --- | --- | --- | --- | --- |",
    ]  # fmt: skip
    for name in rounds[0]:
        good = [each for each in rounds if "failed" not in each[name]]
        if not good:
            lines.append(f"| {name} | failed: {rounds[0][name]['failed']} | | | |")
            continue
        seconds = [each[name]["seconds"] for each in good]
        ratios = [each[name]["seconds"] / each[ceiling]["seconds"] for each in good]
        cpu = statistics.median(each[name]["cpu"] for each in good) / size * 1e9
        memory = statistics.median(each[name]["memory"] for each in good) / size
        lines.append(f"| {name} | {_spread(seconds)} | {_spread(ratios)} | {cpu:.2f} | {memory:.2f} |")
    return [*lines, ""]


def _spread(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f}-{max(values):.2f})"


class Benchmark:
    """The questions that are asked, and what is known so far."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.only: list[str] = options.only or ["local", "cold", "store", "slice", "machine"]
        self.folder = folder
        self.pythons = {**dict.fromkeys(PEERS, options.peers), NEXT: options.next}
        self.results: dict[str, Any] = {}
        self.lines: list[str] = []

    def model(self, size: float) -> tuple[Path, int]:
        """A model and the bytes of its file."""
        place = self.folder / f"model-{size}"
        if not place.exists():
            make_model(place, size)
        return place, (place / "model.safetensors").stat().st_size

    def turns(
        self, key: str, title: str, names: tuple[str, ...], size: float, before: Callable[[], dict[str, Any]]
    ) -> None:
        """Rounds in which each contender loads once."""
        place, total = self.model(size)
        names = tuple(name for name in names if self.pythons.get(name, sys.executable))
        rounds: list[dict[str, dict[str, Any]]] = []
        end = time.monotonic() + SECONDS[key]
        while not rounds or (time.monotonic() < end and len(rounds) < ROUNDS):
            found = {
                name: run(self.pythons.get(name) or sys.executable, name, place, before()) for name in names
            }
            sums = {each["sum"] for each in found.values() if each.get("sum")}
            assert len(sums) <= 1, f"contenders have loaded other numbers: {found}"
            rounds.append(found)
            print(
                key, len(rounds), {name: round(each.get("seconds", -1), 3) for name, each in found.items()},
                flush=True,
            )  # fmt: skip
        self.results[key] = {"bytes": total, "rounds": rounds}
        title = f"{title}: {total / 1e9:.2f} GB, {len(rounds)} rounds"
        self.lines += table(title, rounds, total, names[0])

    def local(self) -> None:
        """From a file."""
        if "local" in self.only:
            run(sys.executable, "raw preadv", self.model(LOCAL_GB)[0], {})  # into the page cache
            self.turns("local", "A local file in the page cache", LOCAL, LOCAL_GB, dict)

        def cold() -> dict[str, Any]:
            make_cold(self.model(LOCAL_GB)[0])
            return {}

        if "cold" in self.only:
            self.turns("cold", "A local file that is not in the page cache", LOCAL, LOCAL_GB, cold)

    def store(self) -> None:
        """From an object store."""
        if not {"store", "slice", "machine"} & set(self.only):
            return
        from benchmarks.store import Remote

        place, size = self.model(STORE_GB)
        with Remote(Path(tempfile.mkdtemp(prefix="store-", dir=self.folder))) as remote:

            def ready() -> dict[str, Any]:
                return remote.ready(str(place), LATENCY)

            if "store" in self.only:
                run(
                    sys.executable, "bare obstore", place, ready()
                )  # the server's caches are warm from here on
                self.turns("store", f"S3, {LATENCY * 1000:.0f} ms", STORE, STORE_GB, ready)
            if "slice" in self.only:
                found = run(sys.executable, "slice", place, ready())
                self._bytes("slice", f"Rank 3 of {RANKS}, Shard(0)", size, found, remote.passed())
            if "machine" in self.only:
                where = ready()
                arguments = json.dumps({"name": "fetch + safetensors", "folder": str(place), "where": where})
                command = [sys.executable, "-m", "benchmarks.weights", "--child", arguments]
                started = time.perf_counter()
                ranks = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL) for _ in range(RANKS)]
                codes = [rank.wait(600) for rank in ranks]
                found = {"seconds": time.perf_counter() - started, "codes": codes}
                self._bytes("machine", f"{RANKS} processes of a machine", size, found, remote.passed())

    def _bytes(self, key: str, title: str, size: int, found: dict[str, Any], passed: dict[str, Any]) -> None:
        self.results[key] = found | passed
        share = passed["body_bytes"] / size
        self.lines += [f"{title}: {share:.4f} of the file's bytes came, in {found['seconds']:.2f} s.", ""]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "weights")
    parser.add_argument("--only", action="append", choices=["local", "cold", "store", "slice", "machine"])
    parser.add_argument("--peers", metavar="PYTHON", help="with the peers")
    parser.add_argument("--next", metavar="PYTHON", help="with safetensors 0.9")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(child(**json.loads(options.child))))
        return
    folder = Path(tempfile.mkdtemp(prefix="weights-"))
    try:
        benchmark = Benchmark(options, folder)
        benchmark.local()
        benchmark.store()
    finally:
        shutil.rmtree(folder)
    load = f"load average {os.getloadavg()[0]:.1f}; {time.strftime('%Y-%m-%d')}"
    lines = [f"{os.cpu_count()} processors, Linux {platform.release()}; {load}.", "", *benchmark.lines]
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "weights.json").write_text(json.dumps(benchmark.results, indent=1) + "\n")
    (options.out / "weights.md").write_text("\n".join(lines).rstrip() + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
