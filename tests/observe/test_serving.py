"""The endpoint, asked as Prometheus asks: what it serves, where it listens, and how it ends."""

from __future__ import annotations

import os
import signal
import socket
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.error import HTTPError

import pytest
from prometheus_client.parser import text_string_to_metric_families as parsed

from shardstream.errors import OptionError
from shardstream.observe import serve
from tests.observe.children import counting


def get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=30) as answer:
        assert answer.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
        return answer.read().decode()


def test_it_shows_all_processes_of_the_node(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SHARDSTREAM_COUNTERS", str(tmp_path))
    with counting(3, tmp_path, samples=50), serve(0) as endpoint, ThreadPoolExecutor(4) as several:
        for text in several.map(get, [endpoint.url] * 8):
            found = {family.name: family for family in parsed(text)}
            samples = {sample.labels["rank"]: sample.value for sample in found["shardstream_samples"].samples}
            assert samples == {"0": 50, "1": 50, "2": 50}
        with pytest.raises(HTTPError) as missing:
            get(endpoint.url.replace("metrics", "nothing"))
        missing.value.close()
        assert missing.value.code == 404
    with serve(0) as endpoint:
        assert "shardstream_processes 0" in get(endpoint.url)


def test_it_listens_on_this_machine_alone_unless_it_is_told_to() -> None:
    with serve(0) as endpoint:
        assert endpoint.host == "127.0.0.1"
        with pytest.raises(OSError, match="refused"):
            socket.create_connection(("127.0.0.2", endpoint.port), timeout=10)
    with serve(0, host="0.0.0.0") as endpoint:
        socket.create_connection(("127.0.0.2", endpoint.port), timeout=10).close()


def test_a_port_that_is_used_and_options_that_cannot_be() -> None:
    with (
        serve(0) as endpoint,
        pytest.raises(OptionError, match=f"port {endpoint.port} .* is in use; .* local rank 0"),
    ):
        serve(endpoint.port)
    for port in (-1, 65536, True, "9464"):
        with pytest.raises(OptionError, match="port="):
            serve(port)
    with pytest.raises(OptionError, match=r"cannot listen at 203\.0\.113\.9:0"):
        serve(0, host="203.0.113.9")


def test_close_frees_the_port_also_with_a_client_that_says_nothing() -> None:
    endpoint = serve(0)
    with socket.create_connection(("127.0.0.1", endpoint.port)):
        endpoint.close()
        endpoint.close()
    serve(endpoint.port).close()
    assert "closed" in repr(endpoint)


@pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning")
def test_a_forked_child_does_not_hold_the_port() -> None:
    endpoint = serve(0)
    ready, ready_for = os.pipe()
    child = os.fork()
    if child == 0:
        signal.alarm(200)  # it does not outlive a test that is killed
        os.write(ready_for, b"x")
        signal.pause()
    try:
        os.read(ready, 1)
        endpoint.close()
        serve(endpoint.port).close()
    finally:
        os.kill(child, signal.SIGKILL)
        assert os.waitpid(child, 0)[1] == signal.SIGKILL  # it was there to the end
        os.close(ready)
        os.close(ready_for)
