"""Real servers on 127.0.0.1: SeaweedFS for S3, nginx for HTTP. They end with the process that started them.

As fixtures of the test session: `weed` and `nginx`; `proxy_to` starts fault proxies (tests/proxy.py).
"""

from __future__ import annotations

import contextlib
import http.client
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest

from tests.proxy import Proxy

KEY, SECRET = "test-access-key", "test-secret-key"
_READY = 30.0


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on; they are free until somebody takes them."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


class Server(contextlib.AbstractContextManager["Server"]):
    """A child process that serves; a context manager."""

    port: int

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="server-"))
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Any:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def command(self) -> list[str]:
        """What runs, with ports chosen anew."""
        raise NotImplementedError

    def start(self) -> None:
        """Returns when it answers. Another process may take a port meanwhile: then it is tried again."""
        for _ in range(5):
            with (self.folder / "log").open("wb") as log:
                self._process = subprocess.Popen(
                    # The kernel ends it when this process dies, however it dies.
                    ["setpriv", "--pdeathsig", "KILL", "--", *self.command()],
                    env={**os.environ, "AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET},
                    stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
                )  # fmt: skip
            deadline = time.monotonic() + _READY
            while self._process.poll() is None and time.monotonic() < deadline:
                if self.answers():
                    return
                time.sleep(0.05)
            self.stop()
        raise RuntimeError(
            f"{type(self).__name__} does not start:\n{(self.folder / 'log').read_text()[-2000:]}"
        )

    def stop(self) -> None:
        """Kill it and wait; nothing is left of it but its data."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(10)
            self._process = None

    def answers(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=2)
        try:
            connection.request("GET", "/")
            return connection.getresponse().status < 500
        except OSError:
            return False
        finally:
            connection.close()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        return f"http://{self.address}"


class Weed(Server):
    """SeaweedFS as an S3 server. Buckets appear when they are written to."""

    def command(self) -> list[str]:
        names = ["master", "volume", "filer", "s3", "admin"]
        ports = iter(free_ports(2 * len(names)))
        options = []
        for name in names:
            port, grpc = next(ports), next(ports)
            options += [f"-{name}.port={port}", f"-{name}.port.grpc={grpc}"]
            if name == "s3":
                self.port = port
        program = Path(sys.executable).parent / "weed"
        return [
            str(program if program.exists() else "weed"), "mini", f"-dir={self.folder}", "-ip=127.0.0.1",
            "-ip.bind=127.0.0.1", "-master.telemetry=false", "-admin.ui=false", "-webdav=false",
            "-s3.port.iceberg=0", "-s3.port.lance=0", "-volume.max=100", *options,
        ]  # fmt: skip

    def options(self, endpoint: str | None = None) -> dict[str, Any]:
        """`storage_options` for it, or for a proxy in front of it."""
        return {"key": KEY, "secret": SECRET, "endpoint_url": endpoint or self.url}

    def bucket(self) -> str:
        """The URL of a new place to write to: in one bucket, for each takes volumes, and there are few."""
        return f"s3://bucket/{uuid.uuid4().hex[:12]}/root"


class Nginx(Server):
    """Serves the folder `root` by GET and HEAD; `extra` goes into the server block."""

    def __init__(self, extra: str = "") -> None:
        super().__init__()
        self.root = self.folder / "root"
        self.root.mkdir()
        self._extra = extra

    def command(self) -> list[str]:
        [self.port] = free_ports(1)
        config = self.folder / "nginx.conf"
        config.write_text(
            f"""
            worker_processes 1; daemon off; error_log stderr warn; pid {self.folder}/pid;
            events {{ worker_connections 512; }}
            http {{
                access_log off; sendfile on; autoindex on;
                client_body_temp_path {self.folder}/body; proxy_temp_path {self.folder}/proxy;
                fastcgi_temp_path {self.folder}/fastcgi; uwsgi_temp_path {self.folder}/uwsgi;
                scgi_temp_path {self.folder}/scgi;
                server {{ listen 127.0.0.1:{self.port}; root {self.root}; {self._extra} }}
            }}"""
        )
        # Files may be written by root and read by a worker that is not: let it stay root where it is.
        user = ["-g", "user root;"] if os.getuid() == 0 else []
        program = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
        return [program or "nginx", "-p", str(self.folder), "-c", str(config), "-e", "stderr", *user]


@pytest.fixture(scope="session")
def weed() -> Iterator[Weed]:
    with Weed() as server:
        yield server


@pytest.fixture(scope="session")
def nginx() -> Iterator[Nginx]:
    with Nginx() as server:
        yield server


@pytest.fixture
def proxy_to() -> Iterator[Callable[..., Proxy]]:
    """Starts a fault proxy: `proxy_to(weed, latency=0.02)`; all end with the test."""
    with contextlib.ExitStack() as stack:
        yield lambda server, **faults: stack.enter_context(Proxy(server.address, **faults))
