"""Real ranks beside the simulation: processes that read from SeaweedFS behind a link of a given rate."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.processes import ROOT

__all__ = ["LANES", "WINDOW", "Ranks", "busy", "make"]

SAMPLES, SIZE = 16_384, 16 << 10  # bytes of a sample
LANES, WINDOW = 16, 2
_HASHED = bytes(2 << 20)


def make(folder: Path) -> Path:
    """The dataset: random bytes, which do not compress."""
    import shardstream as ss

    draw = np.random.default_rng(0)

    def samples() -> Iterator[dict[str, Any]]:
        for number in range(SAMPLES):
            yield {"__key__": f"{number:06d}", "bin": draw.bytes(SIZE)}

    ss.pack(samples(), folder / "data", shard_size="8MiB", frame_size="256KiB", workers=2)
    return folder / "data"


def work(sample: dict[str, Any]) -> dict[str, Any]:
    """A transform that takes a core for some milliseconds, and does not hold Python's lock."""
    hashlib.sha256(_HASHED).digest()
    return sample


def rank() -> None:
    """One rank: `ready`; at a line on stdin it opens the dataset, and at each line more it takes a batch."""
    import shardstream as ss

    told = json.loads(sys.stdin.readline())

    def loader(endpoint: str) -> ss.StreamingLoader[Any]:
        ds = ss.StreamingDataset(
            told["url"], decode=False, shuffle=ss.Shuffle(0, LANES, WINDOW),
            topology=ss.Topology(told["rank"], told["ranks"]), transform=work if told["transform"] else None,
            storage_options=told["options"] | {"endpoint_url": endpoint},
        )  # fmt: skip
        return ss.StreamingLoader(ds, told["batch"], prefetch=told["prefetch"], threads=told["threads"])

    # Imports and threads of the client, past the link: its own connections are opened later.
    for _ in zip(range(2), loader(told["past"]), strict=False):
        pass
    print("ready", flush=True)
    sys.stdin.readline()
    began, cpu = time.monotonic(), time.process_time()
    taken = loader(told["link"])
    batches, times, asked = iter(taken), [], [began]
    for number in range(told["steps"]):
        next(batches)
        times.append(time.monotonic())
        print(flush=True)
        if number + 1 < told["steps"]:
            sys.stdin.readline()
            time.sleep(told["step"])
            asked.append(time.monotonic())
    stats, cpu = taken.stats(), time.process_time() - cpu
    print(json.dumps({"asked": asked, "times": times, "cpu": cpu, "requests": stats["requests"]}), flush=True)
    batches.close()  # type: ignore[attr-defined]


class Ranks(contextlib.AbstractContextManager["Ranks"]):
    """Processes of ranks.

    Args:
        told: What all of them are told; see `rank`.
        ranks: How many there are.
    """

    def __init__(self, told: dict[str, Any], ranks: int) -> None:
        self._steps = told["steps"]
        self._all = [
            subprocess.Popen(
                [sys.executable, "-m", "benchmarks.simulate_real"], cwd=ROOT, text=True,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": str(ROOT)},
            )
            for _ in range(ranks)
        ]  # fmt: skip
        for number, one in enumerate(self._all):
            self._tell(one, json.dumps(told | {"rank": number, "ranks": ranks}))
        self._hear("ready\n")

    def run(self) -> list[dict[str, Any]]:
        """Let them begin at the same time, and take all steps in step; returns what each one has seen."""
        for _ in range(self._steps):
            for one in self._all:
                self._tell(one, "")
            self._hear("\n")
        return [json.loads(self._line(one)) for one in self._all]

    def _tell(self, one: subprocess.Popen[str], text: str) -> None:
        assert one.stdin is not None
        one.stdin.write(text + "\n")
        one.stdin.flush()

    def _line(self, one: subprocess.Popen[str]) -> str:
        assert one.stdout is not None
        return one.stdout.readline()

    def _hear(self, expected: str) -> None:
        for one in self._all:
            line = self._line(one)
            if line != expected:
                raise RuntimeError(f"a rank said {line!r}")

    def __exit__(self, *error: object) -> None:
        for one in self._all:
            if error[0] is not None:
                one.kill()
            assert one.stdin is not None
            with contextlib.suppress(OSError):
                one.stdin.close()
            one.wait(60)


def busy() -> float:
    """Seconds of cores that this machine has worked."""
    fields = Path("/proc/stat").read_text().splitlines()[0].split()[1:]
    numbers = [int(field) for field in fields[:8]]
    return (sum(numbers) - numbers[3] - numbers[4]) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    rank()
