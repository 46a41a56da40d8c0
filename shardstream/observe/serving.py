"""An HTTP endpoint of this node that Prometheus reads: what all processes of this user count."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import threading
import weakref
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import TYPE_CHECKING, Any

from shardstream.errors import OptionError
from shardstream.format.numbers import whole_number
from shardstream.observe.exposition import CONTENT_TYPE, render
from shardstream.observe.metrics import families
from shardstream.version import __version__

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Endpoint", "serve"]

_LOOPBACK = "127.0.0.1"
_PATIENCE = 10.0  # seconds for a client to send its request, and to take each part of the answer
_LOOK = 0.1  # seconds until the thread sees that it is to end
_PAGE = b"<html><title>shardstream</title><a href='/metrics'>/metrics</a></html>\n"


def serve(port: int, *, host: str = _LOOPBACK) -> Endpoint:
    """Serve what all processes of this user on this node count, for Prometheus.

    The address is `http://host:port/metrics`. The numbers are read from the counter files at each request. So
    one process of a node is enough: it shows all others, too, and those that hang. A thread of its own
    answers, until `close` or the end of the program.

    Args:
        port: The port; 0 takes a free one, which is `Endpoint.port`.
        host: The address to listen at. By default only programs on this machine can connect. The endpoint
            has no password: "0.0.0.0" or "::" lets everybody in the network read names and rates.

    Returns:
        The endpoint, which is also a context manager.

    Raises:
        OptionError: The port or the host cannot be used, such as a port that another program uses.
    """
    return Endpoint(host, whole_number("port", port, 0, 65535))


class Endpoint:
    """A running endpoint. Made by `serve`.

    Attributes:
        host: The address that it listens at.
        port: The port, in numbers, also if 0 was asked for.
    """

    def __init__(self, host: str, port: int) -> None:
        self._server = _listen(host, port)
        self.host, self.port = host, int(self._server.server_address[1])
        self._closed = False
        _open.add(self)
        # A daemon: an endpoint that is open keeps no program from ending.
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(_LOOK,), name="shardstream-metrics", daemon=True
        )
        self._thread.start()

    @property
    def url(self) -> str:
        """The address for Prometheus."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}/metrics"

    def close(self) -> None:
        """Stop to listen, and free the port. May be called again."""
        if self._closed:
            return
        self._closed = True
        _open.discard(self)
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def wait(self) -> None:
        """Wait until it is closed."""
        self._thread.join()

    def close_inherited(self) -> None:
        """Free the port in a forked child, where no thread answers."""
        self._closed = True
        self._server.socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Endpoint({self.url}{', closed' if self._closed else ''})"


# The port would else stay in use for as long as any child of a program lives.
_open: weakref.WeakSet[Endpoint] = weakref.WeakSet()


def _after_fork() -> None:
    for endpoint in list(_open):
        endpoint.close_inherited()
    _open.clear()


os.register_at_fork(after_in_child=_after_fork)


def _listen(host: str, port: int) -> _Server:
    try:
        return _Server((host, port), _Handler)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise OptionError(
                f"port {port} of {host} is in use; choose another one, or leave it: one endpoint shows "
                f"all processes of a node (so only local rank 0 should serve)"
            ) from error
        raise OptionError(f"cannot listen at {host}:{port}: {error.strerror or error}") from error


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False  # a client that says nothing must not hold up `close`

    def __init__(self, address: tuple[str, int], handler: Callable[..., BaseHTTPRequestHandler]) -> None:
        if ":" in address[0]:
            self.address_family = socket.AF_INET6
        super().__init__(address, handler)

    def server_bind(self) -> None:
        # Not HTTPServer's: it asks the name server for the name of this host, which can take seconds.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        host, self.server_port = self.server_address[:2]
        self.server_name = str(host)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that leaves in the middle is nothing that a training job should print."""


def _metrics() -> tuple[int, str, bytes]:
    try:
        return 200, CONTENT_TYPE, render(families())
    except Exception as error:  # noqa: BLE001 - whoever reads must hear of it, and the endpoint goes on
        return 500, "text/plain; charset=utf-8", f"{type(error).__name__}: {error}\n".encode()


class _Handler(BaseHTTPRequestHandler):
    server_version = f"shardstream/{__version__}"
    sys_version = ""
    protocol_version = "HTTP/1.1"
    timeout = _PATIENCE

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path == "/metrics":
            self._answer(*_metrics())
        elif path == "/":
            self._answer(200, "text/html; charset=utf-8", _PAGE)
        else:
            self._answer(404, "text/plain; charset=utf-8", b"the metrics are at /metrics\n")

    def do_HEAD(self) -> None:
        self.do_GET()

    def _answer(self, status: int, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            with contextlib.suppress(OSError):
                self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are not logged: they come every few seconds."""
