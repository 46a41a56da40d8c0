"""A proxy for HTTP that makes the faults of real networks, on request and by chance.

It understands just enough of HTTP/1.1 to know where a request and its answer begin and end. For
measurements run it as a process of its own: python -m tests.proxy --to 127.0.0.1:8333 --latency 0.02
It prints its URL. Each line that it then reads is JSON with faults to set, {"latency": 0.1}; it answers
with what passed since the line before, and ends with its input.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import errno
import json
import random
import sys
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

_CHUNK = 1 << 18


@dataclass
class Faults:
    """What goes wrong, changeable at any time; shares are of the requests that `only` admits."""

    latency: float = 0.0  # seconds per round trip: once per connection, once per request
    status: tuple[int, ...] = ()  # answers to send instead, one of them by chance
    share: float = 0.0  # the share of requests that get one of `status`
    retry_after: str | None = None  # a header of those answers
    reset: float = 0.0  # the share of answers ended by a reset in the middle of the body
    cut: float = 0.0  # the share of answers ended by a close in the middle of the body
    flip: float = 0.0  # the share of answers with one bit flipped in the body
    stall: float = 0.0  # the share of answers that stop in the middle and never go on
    slow: float = 0.0  # the share of answers that come `slow_by` seconds late
    slow_by: float = 1.0
    rate: float = 0.0  # bytes per second of all answers together, as a link gives them; 0 for no limit
    extra: int = 0  # bytes by which the body, and the length that announces it, are longer than right
    ignore_range: bool = False  # ask the server without Range: it sends the whole object
    dead: bool = False  # accept connections and requests, never answer
    only: Callable[[str, str], bool] = lambda method, path: method == "GET"


@dataclass
class Counts:
    """What passed. `paths` counts requests by method and path."""

    connections: int = 0
    requests: int = 0
    injected: Counter[str] = field(default_factory=Counter)
    paths: Counter[tuple[str, str]] = field(default_factory=Counter)
    ranges: list[tuple[str, str]] = field(default_factory=list)  # (path, Range header) of GETs
    body_bytes: int = 0  # of answers, sent to clients
    in_flight: int = 0
    most_in_flight: int = 0
    # The longest chain of requests each of which came after the answer to the one before: what a client
    # waits for in turn, whatever it asks for at once. New connections count like requests.
    depth: int = 0


class Proxy(contextlib.AbstractContextManager["Proxy"]):
    """Listens on a free port of 127.0.0.1 and passes requests on to `to` ("host:port")."""

    def __init__(self, to: str, port: int = 0, seed: int = 0, **faults: Any) -> None:
        host, _, upstream = to.rpartition("//")[2].rstrip("/").rpartition(":")
        self._to = (host, int(upstream))
        self.faults = Faults(**faults)
        self.counts = Counts()
        self._random = random.Random(seed)
        self._sent_until = 0.0  # when the link has sent all that was put on it, in the loop's time
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._thread.start()
        self.port = port
        if port:
            self.up()
        else:
            self._take_a_port()

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        self.close()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        return f"http://{self.address}"

    def reset_counts(self) -> None:
        self.counts = Counts()

    def set(self, **faults: Any) -> None:
        """Replace all faults by these."""
        self.faults = Faults(**faults)

    def _take_a_port(self) -> None:
        """Listen on a port below those that the system gives out by itself.

        Another program could get one of these while this is `down`; a client that tries it then could even
        be connected to itself.
        """
        for _ in range(100):
            self.port = random.SystemRandom().randrange(10_000, 32_000)
            try:
                return self.up()
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
        raise RuntimeError("no port is free")

    def up(self) -> None:
        """Listen again after `down`, on the same port."""

        async def listen() -> None:
            self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port, limit=1 << 20)
            self.port = self._server.sockets[0].getsockname()[1]

        self._call(listen())

    def down(self) -> None:
        """As if the server had died: connections are reset, new ones refused."""

        async def stop() -> None:
            if self._server is not None:
                # A closed server drops connections that it has just accepted, and never closes their sockets.
                for listening in self._server.sockets:
                    self._loop.remove_reader(listening.fileno())
                await rounds()  # what was just accepted becomes a task
                self._server.close()
            for task in list(self._tasks):
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            await rounds()  # and what was aborted is closed

        async def rounds() -> None:
            for _ in range(8):
                await asyncio.sleep(0)

        self._call(stop())

    def close(self) -> None:
        if not self._loop.is_closed():
            self.down()
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(60)
            self._loop.close()

    def _call(self, coroutine: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(60)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        counts, turn = self.counts, self.counts.depth + 1
        counts.connections += 1
        ends = [writer]
        try:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
                await asyncio.sleep(self.faults.latency)
                counts.depth = max(counts.depth, turn)
                source, upstream = await asyncio.open_connection(*self._to, limit=1 << 20)
                ends.append(upstream)
                while await self._exchange(reader, writer, source, upstream):
                    pass
            for end in ends:
                end.close()
            for end in ends:
                with contextlib.suppress(OSError):
                    await end.wait_closed()
        except asyncio.CancelledError:
            # Also while it waits for a client to take the rest: that may be for ever.
            for end in ends:
                end.transport.abort()
        finally:
            self._tasks.discard(task)

    async def _exchange(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter,
        source: asyncio.StreamReader, upstream: asyncio.StreamWriter,
    ) -> bool:  # fmt: skip
        """One request and its answer; whether the connection goes on."""
        head = await reader.readuntil(b"\r\n\r\n")
        counts, faults = self.counts, self.faults
        method, path, headers = _parse(head)
        path = path.partition("?")[0]
        turn = counts.depth + 1
        counts.requests += 1
        counts.paths[method, path] += 1
        if method == "GET" and "range" in headers:
            counts.ranges.append((path, headers["range"]))
        counts.in_flight += 1
        counts.most_in_flight = max(counts.most_in_flight, counts.in_flight)
        try:
            chosen = faults.only(method, path)
            await asyncio.sleep(faults.latency)
            if chosen and faults.dead:
                counts.injected["dead"] += 1
                await asyncio.Event().wait()
            if chosen and faults.status and self._random.random() < faults.share:
                await _pass_body(reader, None, headers)
                status = self._random.choice(faults.status)
                counts.injected[str(status)] += 1
                extra = f"Retry-After: {faults.retry_after}\r\n" if faults.retry_after else ""
                head = f"HTTP/1.1 {status} Injected\r\n{extra}Content-Length: 0\r\n\r\n".encode()
                await _send(writer, head)
                return True
            if chosen and faults.ignore_range and "range" in headers:
                counts.injected["ignore_range"] += 1
                lines = [line for line in head.split(b"\r\n") if not line.lower().startswith(b"range:")]
                head = b"\r\n".join(lines)
            upstream.write(head)
            # Both ways at once: a client may wait for "100 Continue" before it sends the body.
            sending = asyncio.ensure_future(_pass_body(reader, upstream, headers))
            try:
                return await self._answer(writer, source, method, chosen)
            finally:
                counts.depth = max(counts.depth, turn)
                sending.cancel()
                # Not awaited itself: whether it or this task was cancelled could not be told.
                await asyncio.wait([sending])
                if not sending.cancelled():
                    sending.exception()
        finally:
            counts.in_flight -= 1

    async def _answer(
        self, writer: asyncio.StreamWriter, source: asyncio.StreamReader, method: str, chosen: bool
    ) -> bool:
        faults, counts, draw = self.faults, self.counts, self._random.random
        while True:
            head = await source.readuntil(b"\r\n\r\n")
            _, status, headers = _parse(head)
            if status != "100":
                break
            writer.write(head)
        length = int(headers.get("content-length", 0))
        body = method != "HEAD" and status not in ("204", "304")
        if chosen and draw() < faults.slow:
            counts.injected["slow"] += 1
            await asyncio.sleep(faults.slow_by)
        if not (chosen and body and length and status in ("200", "206")):
            writer.write(head)
            if body:
                await _pass_body(source, writer, headers)
            await writer.drain()
            return "close" not in headers.get("connection", "")

        kinds = ("reset", "cut", "stall", "flip")
        fault = next((kind for kind in kinds if draw() < getattr(faults, kind)), "")
        if fault:
            counts.injected[fault] += 1
        if faults.extra:
            counts.injected["extra"] += 1
            head = head.replace(b"ength: %d\r" % length, b"ength: %d\r" % (length + faults.extra))
        writer.write(head)
        at, sent = self._random.randrange(length), 0
        async for data in _chunks(source, length):
            if sent <= at < sent + len(data) and fault:
                if fault == "flip":
                    changed = bytearray(data)
                    changed[at - sent] ^= 1 << self._random.randrange(8)
                    data = bytes(changed)
                else:
                    await _send(writer, data[: at - sent])
                    if fault == "stall":
                        await asyncio.Event().wait()
                    if fault == "reset":
                        writer.transport.abort()
                    return False
            sent += len(data)
            await self._link(len(data))
            counts.body_bytes += len(data)  # before the client can see the bytes, and count them
            await _send(writer, data)
        if faults.extra:
            await _send(writer, bytes(faults.extra))
        return "close" not in headers.get("connection", "")

    async def _link(self, size: int) -> None:
        """Wait until these bytes have passed the link, which all connections share."""
        if self.faults.rate:
            now = self._loop.time()
            self._sent_until = max(self._sent_until, now) + size / self.faults.rate
            await asyncio.sleep(self._sent_until - now)


def _parse(head: bytes) -> tuple[str, str, dict[str, str]]:
    first, *lines = head.decode("latin-1").split("\r\n")
    one, two = first.split(" ")[:2]
    pairs = (line.partition(":") for line in lines if line)
    return one, two, {name.lower(): value.strip() for name, _, value in pairs}


async def _send(sink: asyncio.StreamWriter, data: bytes) -> None:
    sink.write(data)
    await sink.drain()


async def _chunks(source: asyncio.StreamReader, length: int) -> AsyncIterator[bytes]:
    """So many bytes, as they come."""
    while length:
        data = await source.read(min(_CHUNK, length))
        if not data:
            raise OSError("it ended early")
        length -= len(data)
        yield data


async def _parts(source: asyncio.StreamReader, headers: dict[str, str]) -> AsyncIterator[bytes]:
    """A body as it comes, whether its length is announced or it comes in chunks."""
    if headers.get("transfer-encoding", "").lower() != "chunked":
        async for data in _chunks(source, int(headers.get("content-length", 0))):
            yield data
        return
    size = -1
    while size:
        line = await source.readuntil(b"\r\n")
        size = int(line.split(b";")[0], 16)
        yield line + await source.readexactly(size + 2)


async def _pass_body(
    source: asyncio.StreamReader, sink: asyncio.StreamWriter | None, headers: dict[str, str]
) -> None:
    """Send a body on, or nowhere."""
    async for data in _parts(source, headers):
        if sink is not None:
            await _send(sink, data)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--to", required=True)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--latency", type=float, default=0.0)
    options = parser.parse_args()
    proxy = Proxy(options.to, options.port, latency=options.latency)
    print(proxy.url, flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        for line in sys.stdin:
            counts = proxy.counts
            proxy.reset_counts()
            proxy.set(**json.loads(line))
            heads = sum(count for (method, _), count in counts.paths.items() if method == "HEAD")
            facts = {name: getattr(counts, name) for name in _REPORTED} | {"heads": heads}
            print(json.dumps(facts), flush=True)


_REPORTED = ("connections", "requests", "body_bytes", "most_in_flight", "depth")


if __name__ == "__main__":
    main()
