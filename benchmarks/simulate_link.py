"""The fault proxy behind a link of a given rate: python -m benchmarks.simulate_link --to 127.0.0.1:8333

As `tests.proxy`, it prints its URL, and each line that it reads is JSON with faults, and the `rate` of all
answers together, in bytes per second. It answers with what passed since the line before.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import subprocess
import sys
from typing import Any

from benchmarks.processes import ROOT
from tests.proxy import Proxy

__all__ = ["Link"]

_PIECE = 32 << 10  # bytes for which a connection waits at a time: it decides how fair the link is
_CREDIT = 0.005  # seconds that the loop may wake too late without a loss of rate


class _Limited(Proxy):
    """A proxy whose connections share a link: each waits for its turn, piece by piece."""

    rate = 0.0  # bytes per second; 0 is no limit
    _free = 0.0  # when the link has sent all that it was given, by the clock of the loop

    async def turn(self, size: int) -> None:
        """Wait until so many bytes have passed the link."""
        if self.rate:
            now = asyncio.get_running_loop().time()
            self._free = max(now - _CREDIT, self._free) + size / self.rate
            if self._free > now:
                await asyncio.sleep(self._free - now)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await super()._accept(reader, _Slowly(writer, self))  # type: ignore[arg-type]


class _Slowly:
    """A writer whose bytes pass a link."""

    def __init__(self, writer: asyncio.StreamWriter, link: _Limited) -> None:
        self._writer, self._link, self._parts = writer, link, bytearray()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._writer, name)

    def write(self, data: bytes) -> None:
        self._parts += data

    async def drain(self) -> None:
        parts, self._parts = self._parts, bytearray()
        for at in range(0, len(parts), _PIECE):
            piece = parts[at : at + _PIECE]
            await self._link.turn(len(piece))
            self._writer.write(piece)
        await self._writer.drain()


class Link(contextlib.AbstractContextManager["Link"]):
    """A limited proxy, in a process of its own.

    Args:
        to: "host:port" of the store.

    Attributes:
        url: Where it listens.
        pid: Of its process.
    """

    def __init__(self, to: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.simulate_link", "--to", to],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
        )  # fmt: skip
        assert self._process.stdout is not None
        self.url, self.pid = self._process.stdout.readline().strip(), self._process.pid

    def __exit__(self, *error: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(20)

    def set(self, rate: float = 0.0, **faults: Any) -> dict[str, Any]:
        """Set faults and a rate; returns what has passed since the last call."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"rate": rate, **faults}) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())  # type: ignore[no-any-return]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--to", required=True)
    proxy = _Limited(parser.parse_args().to)
    print(proxy.url, flush=True)
    for line in sys.stdin:
        counts = proxy.counts
        proxy.reset_counts()
        told = json.loads(line)
        proxy.rate = told.pop("rate")
        proxy.set(**told)
        facts = {"connections": counts.connections, "requests": counts.requests, "bytes": counts.body_bytes}
        print(json.dumps(facts | {"injected": dict(counts.injected), "ranges": counts.ranges}), flush=True)
    proxy.close()


if __name__ == "__main__":
    main()
