"""Contenders as child processes: commands go in turn, and memory and threads are looked at from outside."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import threading
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


class Child:
    """One contender's process, which is killed when a command takes longer than `limit` seconds."""

    def __init__(self, python: str, adapter: str, log: Path, limit: float = 600.0) -> None:
        environment = os.environ | {
            "PYTHONPATH": str(ROOT),
            "HF_HUB_OFFLINE": "1",
            "PYTHONWARNINGS": "ignore",
        }
        log.parent.mkdir(parents=True, exist_ok=True)
        self._log, self._limit = log, limit
        with log.open("a") as errors:
            self._process = subprocess.Popen(
                [python, "-m", "benchmarks.contender", adapter],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment,
                cwd=log.parent,
            )  # fmt: skip

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """The answer to a command; raises RuntimeError for its error."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        late = threading.Event()

        def end() -> None:
            late.set()
            # Its children hold its end of the pipe, too.
            for member in reversed(tree(self._process.pid)):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(member, signal.SIGKILL)

        timer = threading.Timer(self._limit, end)
        timer.start()
        try:
            self._process.stdin.write(json.dumps({"do": do} | arguments) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        finally:
            timer.cancel()
        ended = f"no answer after {self._limit:g} s" if late.is_set() else "the process ended"
        answer = json.loads(line) if line else {"error": ended}
        if "error" in answer:
            raise RuntimeError(f"{do}: {answer['error']} (see {self._log})")
        return answer  # type: ignore[no-any-return]

    def watched(self, do: str, **arguments: Any) -> tuple[dict[str, Any], dict[str, int]]:
        """The same, and the peaks of memory and threads meanwhile."""
        peaks = {"pss": 0, "private": 0, "threads": 0}
        done = threading.Event()
        watcher = threading.Thread(target=_watch, args=(self._process.pid, done, peaks))
        watcher.start()
        try:
            return self.ask(do, **arguments), peaks
        finally:
            done.set()
            watcher.join()

    def close(self) -> None:
        """End the process, and kill it if it does not."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()


def _watch(pid: int, done: threading.Event, peaks: dict[str, int]) -> None:
    ended = False
    while not ended:
        # Once more at the end: short commands are over before the first wait is.
        ended = done.wait(0.1)
        now = {"pss": 0, "private": 0, "threads": 0}
        for member in tree(pid):
            with contextlib.suppress(OSError, ValueError):
                rollup = rollup_fields(f"/proc/{member}/smaps_rollup")
                now["pss"] += rollup["Pss"] << 10
                now["private"] += (rollup["Pss_Anon"] + rollup["Pss_Shmem"]) << 10
                now["threads"] += len(os.listdir(f"/proc/{member}/task"))
        for name, value in now.items():
            peaks[name] = max(peaks[name], value)


def private_bytes(pid: int) -> tuple[int, int]:
    """The memory of a process and its children that is no file's, and the number of processes.

    Pages that processes share are counted in parts.
    """
    total = count = 0
    for member in tree(pid):
        with contextlib.suppress(OSError, ValueError):
            rollup = rollup_fields(f"/proc/{member}/smaps_rollup")
            total += (rollup["Pss_Anon"] + rollup["Pss_Shmem"]) << 10
            count += 1
    return total, count


def tree(pid: int) -> list[int]:
    """A process and those that it started, and so on."""
    found = [pid]
    for member in found:
        with contextlib.suppress(OSError):
            for task in os.listdir(f"/proc/{member}/task"):
                found += map(int, Path(f"/proc/{member}/task/{task}/children").read_text().split())
    return found


def rollup_fields(path: str) -> dict[str, int]:
    """The numbers of a file of /proc, in KiB, by name."""
    rows = (line.split() for line in Path(path).read_text().splitlines()[1:])
    return {row[0].rstrip(":"): int(row[1]) for row in rows}
