"""What is tried again, how often and how long; and how many requests are sent at once, or twice."""

from __future__ import annotations

import asyncio
import contextlib
import email.utils
import errno
import gc
import socket
import threading
import time

import aiohttp
import botocore.exceptions
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardstream.errors import StorageError
from shardstream.storage.cancellation import CancelScope, working_for
from shardstream.storage.options import RequestOptions, Retry, Timeouts
from shardstream.storage.transport.client import run
from shardstream.storage.transport.concurrency import AdaptiveLimit
from shardstream.storage.transport.failures import Failure, failure_of, of_status
from shardstream.storage.transport.hedging import HedgePolicy
from shardstream.storage.transport.retry import pause_after, retried

FAST = RequestOptions(
    Retry(attempts=6, deadline=5.0, pause=0.001, longest_pause=0.002, span=0.0), Timeouts(0.2, 0.2)
)


def boto(code: str, status: int) -> botocore.exceptions.ClientError:
    answer = {
        "Error": {"Code": code, "Message": "SECRET"},
        "ResponseMetadata": {"HTTPStatusCode": status, "HTTPHeaders": {"retry-after": "3"}},
    }
    return botocore.exceptions.ClientError(answer, "GetObject")


TRANSIENT = [
    *(of_status(status) for status in (408, 429, 500, 502, 503, 504)),
    boto("SlowDown", 503), boto("InternalError", 500), boto("RequestTimeout", 400),
    ConnectionResetError(errno.ECONNRESET, "SECRET"), ConnectionRefusedError(errno.ECONNREFUSED, "SECRET"),
    TimeoutError("SECRET"), asyncio.TimeoutError(), OSError(errno.ETIMEDOUT, "SECRET"),
    aiohttp.ClientPayloadError("SECRET"), aiohttp.ServerDisconnectedError("SECRET"),
    aiohttp.ServerTimeoutError("SECRET"), socket.gaierror(socket.EAI_AGAIN, "SECRET"),
    botocore.exceptions.ReadTimeoutError(endpoint_url="SECRET"),
    botocore.exceptions.EndpointConnectionError(endpoint_url="SECRET"),
    Failure("a short body", transient=True),
]  # fmt: skip
PERMANENT = [
    *(of_status(status) for status in (400, 401, 403, 404, 405, 410, 412, 501)),
    boto("NoSuchKey", 404), boto("SignatureDoesNotMatch", 403), boto("ExpiredToken", 400),
    botocore.exceptions.NoCredentialsError(), FileNotFoundError("SECRET"), PermissionError("SECRET"),
    socket.gaierror(socket.EAI_NONAME, "SECRET"), ValueError("SECRET"), KeyError("SECRET"),
]  # fmt: skip


@pytest.mark.parametrize("error", TRANSIENT, ids=repr)
def test_what_may_pass_is_tried_again(error):
    assert failure_of(error).transient


@pytest.mark.parametrize("error", PERMANENT, ids=repr)
def test_what_will_not_pass_is_not(error):
    assert not failure_of(error).transient


def test_no_word_of_another_package_is_repeated():
    for error in [*TRANSIENT, *PERMANENT]:
        wrapped = OSError("SECRET")
        wrapped.__cause__ = error
        assert "SECRET" not in f"{failure_of(error)} {failure_of(wrapped)}"


@pytest.mark.parametrize(
    ("code", "status", "said"),
    [
        ("NoSuchBucket", 404, "no such bucket"),
        ("ExpiredToken", 400, "expired"),
        ("InvalidAccessKeyId", 403, "refused"),
        ("AccessDenied", 403, "denied"),
        ("PermanentRedirect", 301, "region"),
        ("RequestTimeTooSkewed", 403, "clock"),
    ],
)
def test_codes_are_explained(code, status, said):
    assert said in str(failure_of(boto(code, status)))
    assert code in str(failure_of(boto(code, status)))


def test_retry_after_is_seconds_or_a_date():
    assert of_status(503, headers={"Retry-After": "7"}).retry_after == 7
    assert boto("SlowDown", 503).response["ResponseMetadata"]["HTTPHeaders"]["retry-after"] == "3"
    assert failure_of(boto("SlowDown", 503)).retry_after == 3
    date = email.utils.formatdate(time.time() + 100, usegmt=True)
    assert 90 < of_status(503, headers={"retry-after": date}).retry_after <= 100
    for nonsense in ("", "soon", "-1", "1e9", "9" * 30):
        assert of_status(503, headers={"retry-after": nonsense}).retry_after is None
    assert of_status(503).retry_after is None


RETRIES = st.builds(
    Retry,
    attempts=st.integers(2, 6),
    deadline=st.floats(10, 100),
    pause=st.floats(0.01, 5),
    longest_pause=st.floats(0.1, 20),
    span=st.floats(0, 10),
)


@given(RETRIES, st.floats(0, 50), st.none() | st.floats(0, 100))
def test_pauses_are_bounded_and_never_shorter_than_asked(retry, elapsed, retry_after):
    for attempt in range(1, retry.attempts):
        pause = pause_after(RequestOptions(retry), attempt, elapsed, retry_after)
        most = min(retry.longest_pause, retry.pause * 2**attempt)
        if attempt == retry.attempts - 1:
            assert elapsed + pause >= retry.span - 1e-9
            most = max(most, retry.span - elapsed)
        assert (retry_after or 0) <= pause <= max(most, retry_after or 0)


def failing(times, error):
    calls = []

    async def call():
        calls.append(1)
        if len(calls) <= times:
            raise error
        return "done"

    return calls, call


@pytest.mark.parametrize("times", range(8))
def test_at_most_six_attempts(times):
    calls, call = failing(times, ConnectionResetError("SECRET"))
    if times < 6:
        assert run("here", call, FAST) == "done"
        assert len(calls) == times + 1
        return
    with pytest.raises(
        StorageError, match=r"^here: the connection was lost .*\(tried 6 times in 0\.\d s\)"
    ) as caught:
        run("here", call, FAST)
    assert len(calls) == 6
    assert isinstance(caught.value.__cause__, ConnectionError)
    assert "SECRET" not in f"{caught.value} {caught.value.__cause__} {caught.value.__context__}"


def test_a_permanent_failure_is_tried_once():
    calls, call = failing(9, FileNotFoundError("SECRET"))
    with pytest.raises(StorageError, match=r"here: not found$"):
        run("here", call, FAST)
    assert len(calls) == 1


def test_a_wait_beyond_the_deadline_is_not_begun():
    calls, call = failing(9, of_status(503, headers={"retry-after": "60"}))
    with pytest.raises(StorageError, match="asks to wait 60 s"):
        run("here", call, FAST)
    assert len(calls) == 1


def test_an_attempt_that_says_nothing_ends_and_the_deadline_ends_them_all():
    calls = []

    async def call():
        calls.append(1)
        await asyncio.sleep(1000)

    options = RequestOptions(Retry(attempts=99, deadline=2.0, pause=0.001, span=0.0), Timeouts(0.2, 0.2))
    with pytest.raises(StorageError, match="no answer in time"):
        run("here", call, options)
    assert 2 <= len(calls) <= 10


def test_failures_are_told_as_they_come():
    told = []
    calls, call = failing(2, of_status(503))
    assert (
        asyncio.run(retried(call, FAST, failed=lambda failure, again: told.append((failure.status, again))))
        == "done"
    )
    assert told == [(503, True)] * 2
    assert len(calls) == 3


# How many at once


def simulate(limit: AdaptiveLimit, clock: list[float], best: int, periods: int) -> None:
    """A store whose throughput grows with requests in flight up to `best`."""
    for _ in range(periods):
        flying, now = limit.now, limit.now
        for _ in range(flying):
            limit.start()
        for _ in range(2 * now):
            clock[0] += 1.0 / min(flying, best)
            limit.start()
            limit.end(1 << 20)
        for _ in range(flying):
            limit.end(0)


def test_the_limit_grows_while_throughput_does():
    clock = [0.0]
    limit = AdaptiveLimit(lambda: clock[0])
    simulate(limit, clock, best=10_000, periods=60)
    assert limit.now == 192


def test_the_limit_stays_where_more_brings_nothing():
    clock = [0.0]
    limit = AdaptiveLimit(lambda: clock[0])
    simulate(limit, clock, best=32, periods=60)
    assert limit.now <= 81  # one step, which is taken back after a period


def test_the_limit_is_halved_once_for_all_in_flight_and_has_an_end():
    clock = [0.0]
    limit = AdaptiveLimit(lambda: clock[0])
    clock[0] = 10.0
    for _ in range(64):
        limit.slow_down()
    assert limit.now == 32
    for _ in range(10):
        clock[0] += 2.0
        limit.slow_down()
    assert limit.now == 4


@given(st.integers(0, 2000), st.integers(1, 1 << 30))
def test_hedges_are_at_most_two_percent(requests, size):
    hedge = HedgePolicy()
    for _ in range(requests):
        hedge.delay(size)
        hedge.take()
    assert hedge.sent == int(requests * 0.02)


def test_a_request_is_late_among_the_slowest_percent():
    hedge = HedgePolicy()
    assert hedge.delay(1000) is None
    for number in range(100):
        hedge.took(1000, 1 + number / 100)
    assert hedge.delay(1001) == pytest.approx(1.99)
    assert hedge.delay(100_000) is None


@pytest.mark.parametrize("late", [False, True])
def test_a_request_that_fails_while_it_is_given_up_is_no_noise(late, caplog):
    """As where an object is replaced under many requests: the first that hears of it ends them all."""

    def give_up(waits):
        begun = threading.Event()

        async def fail():
            begun.set()
            try:
                await asyncio.sleep(0.01 if late else 60)
            except asyncio.CancelledError:
                raise Failure("replaced") from None
            raise Failure("replaced")

        def ask():
            with working_for(waits), contextlib.suppress(StorageError):
                run("here", fail, FAST)

        asking = threading.Thread(target=ask)
        asking.start()
        assert begun.wait(90)
        time.sleep(0.01)
        waits.end()
        asking.join(90)

    for _ in range(30):
        give_up(CancelScope())
    for _ in range(3):
        run("here", _nothing, FAST)  # the loop has come so far
        gc.collect()
    assert [record.getMessage() for record in caplog.records] == []


async def _nothing():
    return None


def test_a_try_that_goes_on_when_it_is_cancelled_is_given_up():
    over = threading.Event()

    async def stubborn():
        while not over.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(0.02)

    ending = threading.Timer(90, over.set)
    ending.start()
    once = RequestOptions(Retry(attempts=1, deadline=0.2), Timeouts(0.1, 0.1))
    with pytest.raises(StorageError, match="no answer in time"):
        run("here", stubborn, once)
    assert not over.is_set()
    over.set()
    ending.cancel()
