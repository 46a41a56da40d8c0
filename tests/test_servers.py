"""The test servers do what the fault tests rely on."""

from __future__ import annotations

import http.client
import urllib.error
import urllib.request

import pytest

DATA = bytes(range(256)) * 4096


@pytest.fixture
def proxy(nginx, proxy_to):
    (nginx.root / "servers.bin").write_bytes(DATA)
    return proxy_to(nginx)


def get(proxy, timeout=60.0, **headers):
    request = urllib.request.Request(f"{proxy.url}/servers.bin", headers=headers)
    with urllib.request.urlopen(request, timeout=timeout) as answer:
        return answer.status, answer.read()


def test_without_faults_everything_passes(proxy):
    assert get(proxy) == (200, DATA)
    assert get(proxy, Range="bytes=10-19") == (206, DATA[10:20])
    assert (proxy.counts.requests, proxy.counts.ranges) == (2, [("/servers.bin", "bytes=10-19")])
    assert proxy.counts.body_bytes == len(DATA) + 10


def test_flips_change_one_bit(proxy):
    proxy.set(flip=1.0)
    _, seen = get(proxy)
    assert sum((a ^ b).bit_count() for a, b in zip(seen, DATA, strict=True)) == 1


@pytest.mark.parametrize("faults", [{"cut": 1.0}, {"reset": 1.0}, {"extra": 5}])
def test_broken_answers_break(proxy, faults):
    proxy.set(**faults)
    try:
        _, seen = get(proxy)
    except (OSError, http.client.HTTPException):
        return
    assert seen == DATA + bytes(5)


def test_errors_carry_retry_after(proxy):
    proxy.set(status=(503,), share=1.0, retry_after="2")
    with pytest.raises(urllib.error.HTTPError) as caught:
        get(proxy)
    with caught.value as error:
        assert (error.code, error.headers["Retry-After"]) == (503, "2")
    assert proxy.counts.injected == {"503": 1}


def test_ranges_can_be_ignored(proxy):
    proxy.set(ignore_range=True)
    assert get(proxy, Range="bytes=10-19") == (200, DATA)


def test_a_stalled_and_a_dead_server_say_nothing(proxy):
    for faults in ({"stall": 1.0}, {"dead": True}):
        proxy.set(**faults)
        with pytest.raises(TimeoutError):
            get(proxy, timeout=0.3)


def test_a_server_that_is_down_comes_back(proxy):
    proxy.down()
    with pytest.raises(urllib.error.URLError, match="refused"):
        get(proxy)
    proxy.up()
    assert get(proxy) == (200, DATA)
