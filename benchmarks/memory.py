"""Memory as one number: what a process that reads holds at most, beside the sum of the limits it was given.

    python -m benchmarks.memory [--ram 64MB] [--prefetch 32MB] [--epochs 3] [--only NAME]... [--out DIR]

Each case is a process of its own that reads epochs of a dataset larger than its limits. Its memory is
Pss_Anon + Pss_Shmem of it and its children, looked at every few milliseconds, less what each of these
processes has with torch and shardstream imported. The bar: at most the sum of `Cache(ram=)`, once for each
dataset, and of `prefetch=`, and 150 MB. The peak of each epoch is told, too: memory must not grow with them.
Mapped files, such as those of a disk cache, are pages that the system takes back, and do not count.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.processes import ROOT, private_bytes
from shardstream.format.sizes import parse_size

MB = 10**6
BAR = 150 * MB
_LOOK = 0.01  # seconds between looks


def _texts(path: Path, size: int, seed: int) -> Path:
    """Documents of some KB each, that compress to about a third."""
    random = np.random.default_rng(seed)
    words = [bytes(random.integers(97, 123, n, np.uint8)).decode() for n in random.integers(2, 10, 5000)]
    made = 0
    with path.open("w") as file:
        while made < size:
            text = " ".join(
                [words[n] for n in random.integers(0, len(words), int(random.integers(50, 3000)))]
            )
            made += file.write(json.dumps({"text": text}) + "\n")
    return path


def _pictures(folder: Path, size: int) -> Path:
    from PIL import Image

    folder.mkdir()
    random = np.random.default_rng(3)
    made = number = 0
    while made < size:
        small = Image.fromarray(random.integers(0, 256, (60, 80, 3), np.uint8))
        path = folder / f"{number:06}.jpg"
        small.resize((640, 480), Image.Resampling.BICUBIC).save(path, "JPEG", quality=92)
        made += path.stat().st_size
        number += 1
    return folder


def _make(folder: Path, size: int) -> dict[str, Path]:
    """The datasets: `size` bytes of texts each before compression, as tokens twice as many; and pictures."""
    import shardstream as ss

    def pack(source: Path, name: str, **options: Any) -> Path:
        ss.pack(source, folder / name, shard_size="16MiB", frame_size="512KiB", **options)
        return folder / name

    small: dict[str, Any] = {"compression": "zstd", "level": 1}
    texts = [_texts(folder / f"{seed}.jsonl", size // 2, seed) for seed in range(2)]
    made = {"images": pack(_pictures(folder / "pictures", size // 2), "images", format="images")}
    for source, name in zip(texts, ("tokens", "more-tokens"), strict=True):
        made[name] = pack(source, name, tokenizer="bytes", eos=256, **small)
    both = _texts(folder / "all.jsonl", size, 5)
    return made | {"samples": pack(both, "samples", **small)}


def _loader(case: str, where: dict[str, str], ram: int, prefetch: int) -> Any:
    """What a case iterates."""
    import shardstream as ss
    from shardstream.decode import images

    def tokens(name: str) -> ss.TokenDataset:
        return ss.TokenDataset(where[name], seq_len=2048, shuffle=True, cache=ss.Cache(ram=ram))

    def samples(name: str, disk: str | None = None, **options: Any) -> ss.StreamingDataset:
        return ss.StreamingDataset(where[name], shuffle=True, cache=ss.Cache(disk, ram=ram), **options)

    made: dict[str, Callable[[], Any]] = {
        "samples": lambda: samples("samples"),
        "tokens": lambda: tokens("tokens"),
        "mixture": lambda: ss.Mixture([(tokens("tokens"), 2), (tokens("more-tokens"), 1)]),
        "images": lambda: samples("images", decode=images.Train(224)),
        "remote": lambda: samples("remote"),
        "remote, disk cache": lambda: samples("remote", where["disk"]),
        "remote tokens": lambda: tokens("remote-tokens"),
        "remote images": lambda: samples("remote-images", decode=images.Train(224)),
        "process engine": lambda: samples("samples"),
    }
    engine = "process" if case == "process engine" else "thread"
    return ss.StreamingLoader(made[case](), 32, prefetch=prefetch, engine=engine)


REMOTE = {"remote": "samples", "remote-tokens": "tokens", "remote-images": "images"}
CASES = (
    "samples", "tokens", "mixture", "images", "process engine",
    "remote", "remote tokens", "remote images", "remote, disk cache",
)  # fmt: skip


def read(case: str, where: dict[str, str], ram: int, prefetch: int, epochs: int) -> None:
    """One case, in a process of its own: it waits for a line before it begins, and says what it had."""
    import torch  # noqa: F401

    import shardstream as ss  # noqa: F401

    print("ready", flush=True)
    sys.stdin.readline()
    loader = _loader(case, where, ram, prefetch)
    batches, begin = 0, time.monotonic()
    most: dict[str, int] = {}
    for _ in range(epochs):
        print("epoch", flush=True)
        for _ in loader:
            batches += 1
            if batches % 16 == 0:
                memory = loader.stats()["memory"]
                for name, held in memory.items():
                    now = sum(size for what, size in held.items() if what != "limit")
                    most[name] = max(most.get(name, 0), now)
    found = {
        "batches": batches,
        "seconds": time.monotonic() - begin,
        "cpu": time.process_time(),
        "told": most,
    }
    print(json.dumps(found | {"memory": loader.stats()["memory"]}), flush=True)
    sys.stdin.readline()


def _watched(case: str, where: dict[str, str], ram: int, prefetch: int, epochs: int) -> dict[str, Any]:
    """What a case had at most, in all and in each epoch."""
    asked = json.dumps([case, where, ram, prefetch, epochs])
    child = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.memory", "--read", asked],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
    )  # fmt: skip
    assert child.stdin is not None
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    before, _ = private_bytes(child.pid)
    peaks, done = [0], threading.Event()

    def look() -> None:
        while not done.wait(_LOOK):
            total, processes = private_bytes(child.pid)
            peaks[-1] = max(peaks[-1], total - before * processes)

    watcher = threading.Thread(target=look)
    watcher.start()
    child.stdin.write("go\n")
    child.stdin.flush()
    while (line := child.stdout.readline()) == "epoch\n":
        peaks.append(0)
    answer = json.loads(line or "{}")
    done.set()
    watcher.join()
    child.communicate("end\n")
    if not answer:
        raise RuntimeError(f"{case}: the process ended")
    return answer | {"interpreter": before, "peak": max(peaks), "peaks of epochs": peaks[1:]}


def measure(only: list[str], ram: int, prefetch: int, size: int, epochs: int) -> list[dict[str, Any]]:
    """A row for each case."""
    from tests.servers import Nginx

    rows = []
    with tempfile.TemporaryDirectory(prefix="shardstream-memory-") as folder, Nginx() as server:
        where = {name: str(path) for name, path in _make(Path(folder), size).items()}
        for name, path in REMOTE.items():
            (server.root / name).symlink_to(where[path])
            where[name] = f"http://127.0.0.1:{server.port}/{name}"
        where["disk"] = str(Path(folder) / "cache")
        for case in only or CASES:
            stated = ram * (2 if case == "mixture" else 1) + prefetch
            row = {"case": case, "stated": stated} | _watched(case, where, ram, prefetch, epochs)
            rows.append(row)
            print(json.dumps(row), file=sys.stderr, flush=True)
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown."""
    lines = [
        "| case | stated sum | peak | by `stats()` | epochs 1, 2, last | s | peak <= stated + 150 MB |",
        "| --- | --: | --: | --: | --: | --: | --- |",
    ]
    for row in rows:
        told = sum(row["told"].values())
        good = "yes" if row["peak"] <= row["stated"] + BAR else "NO"
        sizes = " | ".join(f"{size // MB} MB" for size in (row["stated"], row["peak"], told))
        peaks = row["peaks of epochs"]
        shown = ", ".join(f"{peak // MB}" for peak in [*peaks[:2], *peaks[-1:]])
        lines.append(f"| {row['case']} | {sizes} | {shown} MB | {row['seconds']:.0f} | {good} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--read")
    parser.add_argument("--only", action="append", default=[], choices=CASES)
    parser.add_argument("--ram", default="64MB")
    parser.add_argument("--prefetch", default="32MB")
    parser.add_argument("--size", default="192MB", help="of each dataset, before compression")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.read:
        read(*json.loads(options.read))
        return 0
    ram, prefetch = parse_size(options.ram, "ram"), parse_size(options.prefetch, "prefetch")
    rows = measure(options.only, ram, prefetch, parse_size(options.size, "size"), options.epochs)
    found = table(rows)
    print(found)
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        name = f"memory-{options.ram}-{options.prefetch}"
        (options.out / f"{name}.json").write_text(json.dumps(rows, indent=1) + "\n")
        (options.out / f"{name}.md").write_text(found)
    return 0 if all(row["peak"] <= row["stated"] + BAR for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
