"""The logs that benchmarks/logs.py compares: each is a function that makes a function, which writes a row."""

from __future__ import annotations

import json
import logging
import logging.handlers
import os
import queue
import socket
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

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
