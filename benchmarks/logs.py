"""What does a row of a log cost the training loop, and which rows are there after a kill?

    python -m benchmarks.logs [--rounds 5] [--seconds 4] [--out DIR]

Each contender is a process of its own, and rounds go through all of them in turn. A row has five numbers.

- cost: microseconds of a call, one row each millisecond.
- slow: the same where each write of the sink takes 20 ms, as on a network disk: how many rows were taken,
  and the longest call. "never answers": neither the store nor a sink ever returns.
- killed: SIGKILL after row 1,000: how many rows can be read afterwards. For ours, after the next start.
- memory: how much a process has grown after 200,000 rows, one after another, with the slow sink.

loguru and tensorboard have to be installed for their rows: requirements-peers.txt.
"""

from __future__ import annotations

import argparse
import json
import logging
import logging.handlers
import os
import platform
import queue
import resource
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROWS = 1000
FLOOD = 200_000
SLOW = 0.02  # seconds

Write = Callable[[int], None]


def fields(step: int) -> dict[str, float]:
    """A row."""
    return {"step": step, "loss": 2.5 / (step + 1), "lr": 3e-4, "norm": 1.25, "tokens": 524288 * step}


class SlowFile:
    """A file, each write of which takes 20 ms."""

    def __init__(self, path: str, slow: bool) -> None:
        self._file, self._slow = open(path, "ab", buffering=0), slow  # noqa: SIM115 - open to the end

    def write(self, text: str | bytes) -> int:
        if self._slow:
            time.sleep(SLOW)
        return self._file.write(text if isinstance(text, bytes) else text.encode())

    def flush(self) -> None:
        """Nothing is held back."""

    def close(self) -> None:
        self._file.close()


def raw(folder: str, slow: bool, tmpfs: bool = False) -> Write:
    """os.write of a line of JSON: what is least."""
    place = tempfile.mkdtemp(dir="/dev/shm") if tmpfs else folder
    file = os.open(f"{place}/rows", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    (Path(folder) / "where").write_text(f"{place}/rows")

    def write(step: int) -> None:
        if slow:
            time.sleep(SLOW)
        os.write(file, json.dumps(fields(step)).encode() + b"\n")

    return write


def _logger(handler: logging.Handler) -> Write:
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    logger = logging.getLogger("bench")
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    return lambda step: logger.info("%s", json.dumps(fields(step)))


def file_handler(folder: str, slow: bool) -> Write:
    """logging.FileHandler; with a stream of the same kind if it is slow."""
    handler: logging.Handler = logging.FileHandler(f"{folder}/rows")
    return _logger(logging.StreamHandler(SlowFile(f"{folder}/rows", True)) if slow else handler)


def queue_handler(folder: str, slow: bool) -> Write:
    """QueueHandler and QueueListener, without a bound."""
    rows: queue.Queue[Any] = queue.Queue()
    listener = logging.handlers.QueueListener(rows, logging.StreamHandler(SlowFile(f"{folder}/rows", slow)))
    listener.start()
    return _logger(logging.handlers.QueueHandler(rows))


def loguru(folder: str, slow: bool, enqueue: bool = False) -> Write:
    """loguru with a file."""
    from loguru import logger

    logger.remove()
    file = SlowFile(f"{folder}/rows", slow)
    logger.add(file if slow else f"{folder}/rows", format="{time} {message}", enqueue=enqueue)
    return lambda step: logger.info(json.dumps(fields(step)))


def tensorboard(folder: str, slow: bool) -> Write:
    """SummaryWriter of torch: five scalars for a row."""
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(folder)
    if slow:
        file = writer._get_file_writer().event_writer._async_writer._writer  # noqa: SLF001
        whole = file._writer.write  # noqa: SLF001

        def late(data: bytes) -> Any:
            time.sleep(SLOW)
            return whole(data)

        file._writer.write = late  # noqa: SLF001

    def write(step: int) -> None:
        for name, value in fields(step).items():
            writer.add_scalar(name, value, step)

    return write


class SlowSink:
    """A sink of ours; `seconds` for each row, or never an answer."""

    def __init__(self, seconds: float | None) -> None:
        self._seconds = seconds

    def write(self, rows: Sequence[Any]) -> None:
        while self._seconds is None:
            time.sleep(1000)
        time.sleep(self._seconds * len(rows))

    def close(self) -> None:
        """Nothing is open."""


def ours(folder: str, slow: bool, dead: bool = False) -> Write:
    """ss.Log, to a folder or to a store that accepts connections and never answers."""
    import shardstream as ss

    sinks = [SlowSink(None if dead else SLOW)] if slow else []
    url, options = f"{folder}/log", {}
    if dead:
        listener = socket.create_server(("127.0.0.1", 0), backlog=1000)
        globals()["_held"] = listener
        url = f"s3://bucket/{os.path.basename(folder)}"
        endpoint = f"http://127.0.0.1:{listener.getsockname()[1]}"
        options = {"key": "k", "secret": "s", "endpoint_url": endpoint}
    log = ss.Log(url, rank=0, sinks=sinks, storage_options=options, seconds=1, timeout=0.1)
    return lambda step: log.write(**fields(step))


CONTENDERS: dict[str, tuple[Callable[..., Write], dict[str, Any]]] = {
    "os.write to ext4": (raw, {}),
    "os.write to tmpfs": (raw, {"tmpfs": True}),
    "ss.Log": (ours, {}),
    "ss.Log, never answers": (ours, {"dead": True}),
    "logging FileHandler": (file_handler, {}),
    "logging QueueHandler": (queue_handler, {}),
    "loguru": (loguru, {}),
    "loguru, enqueue": (loguru, {"enqueue": True}),
    "TensorBoard": (tensorboard, {}),
}


def paced(write: Write, seconds: float) -> dict[str, Any]:
    """One row each millisecond, as far as calls return in time."""
    for step in range(20):
        write(step)
    took: list[float] = []
    started = time.perf_counter()
    while time.perf_counter() < started + seconds:
        begun = time.perf_counter_ns()
        write(len(took))
        took.append((time.perf_counter_ns() - begun) / 1000)
        time.sleep(max(0.0, started + len(took) / 1000 - time.perf_counter()))
    took.sort()
    return {
        "rows": len(took), "p50": took[len(took) // 2], "p99": took[len(took) * 99 // 100],
        "p99.9": took[len(took) * 999 // 1000], "worst": took[-1],
    }  # fmt: skip


def flood(write: Write, seconds: float) -> dict[str, Any]:
    """How much memory is taken by many rows, or by those that were taken in time."""
    before, limit, step = 0, time.monotonic() + 2 * seconds, 0
    while step < FLOOD and time.monotonic() < limit:
        write(step)
        step += 1
        if step == 10:
            before = _resident()
    return {"rows": step, "grown": (_resident() - before) / 2**20}


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def child(name: str, task: str, folder: str, seconds: float) -> None:
    """One contender, one task; prints what it found as JSON."""
    make, options = CONTENDERS[name]
    slow = task in ("slow", "flood") or options.get("dead", False)
    write = make(folder, slow, **options)
    if task == "killed":
        for step in range(ROWS):
            write(step)
        os.kill(os.getpid(), signal.SIGKILL)
    found = flood(write, seconds) if task == "flood" else paced(write, seconds)
    print(json.dumps(found), flush=True)
    os._exit(0)


def after_kill(name: str, folder: str) -> int:
    """How many rows can be read."""
    if name.startswith("ss.Log"):
        import shardstream as ss
        from shardstream.logs import read

        url = f"{folder}/log"
        ss.Log(url, rank=0).close()
        return sum("step" in row for row in read(url))
    if name == "TensorBoard":
        from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

        [path] = Path(folder).glob("events*")
        return sum(bool(event.summary.value) for event in EventFileLoader(str(path)).Load()) // 5
    where = Path(folder) / "where"
    path = Path(where.read_text() if where.exists() else f"{folder}/rows")
    return path.read_bytes().count(b"\n") if path.exists() else 0


def once(name: str, task: str, seconds: float) -> dict[str, Any] | None:
    """The figures of one contender in one round; None if it cannot run."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        command = [sys.executable, "-m", "benchmarks.logs", "--child", name, task, folder, str(seconds)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        except subprocess.TimeoutExpired:
            return None
        if task == "killed" and done.returncode == -signal.SIGKILL:
            return {"rows": after_kill(name, folder)}
        if done.returncode:
            print(done.stderr.strip().splitlines()[-1:], file=sys.stderr)
            return None
        return json.loads(done.stdout)  # type: ignore[no-any-return]


def spread(found: list[dict[str, Any]], key: str) -> str:
    """Median (least to most) of the rounds."""
    values = [each[key] for each in found]
    if not values:
        return "-"
    return f"{statistics.median(values):,.3g} ({min(values):,.3g} to {max(values):,.3g})".replace(",", " ")


def table(results: dict[str, dict[str, list[dict[str, Any]]]]) -> str:
    """The report as Markdown."""
    columns = {
        "cost: p50, us": ("cost", "p50"),
        "p99.9, us": ("cost", "p99.9"),
        "slow: rows taken": ("slow", "rows"),
        "longest call, us": ("slow", "worst"),
        "rows after SIGKILL": ("killed", "rows"),
        "memory, MiB": ("flood", "grown"),
    }
    lines = [f"| | {' | '.join(columns)} |", "| --- |" + " ---: |" * len(columns)]
    for name, tasks in results.items():
        cells = [spread(tasks[task], key) for task, key in columns.values()]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure and write."""
    if "--child" in sys.argv:
        name, task, folder, seconds = sys.argv[2:]
        child(name, task, folder, float(seconds))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "logs")
    options = parser.parse_args()
    results: dict[str, dict[str, list[dict[str, Any]]]] = {
        name: {task: [] for task in ("cost", "slow", "killed", "flood")} for name in CONTENDERS
    }
    loads = []
    for _ in range(options.rounds):
        for task in ("cost", "slow", "killed", "flood"):
            for name in CONTENDERS:
                if task == "killed" and name == "ss.Log, never answers":
                    continue  # the next start would need the store
                found = once(name, task, options.seconds)
                loads.append(os.getloadavg()[0])
                if found is not None:
                    results[name][task].append(found)
    options.out.mkdir(parents=True, exist_ok=True)
    facts = {
        "command": f"python -m benchmarks.logs --rounds {options.rounds} --seconds {options.seconds:g}",
        "python": platform.python_version(),
        "machine": f"{os.cpu_count()} cores, Linux {platform.release()}",
        "load": f"{statistics.median(loads):.1f} ({min(loads):.1f} to {max(loads):.1f})",
        "date": time.strftime("%Y-%m-%d"),
    }
    text = (
        f"`{facts['command']}`: median (least to most) of {options.rounds} rounds in turn; "
        f"Python {facts['python']}, {facts['machine']}, load {facts['load']}, {facts['date']}.\n\n"
    )
    text += table(results)
    everything = {"facts": facts, "results": results}
    (options.out / "results.json").write_text(json.dumps(everything, indent=1) + "\n")
    (options.out / "results.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
