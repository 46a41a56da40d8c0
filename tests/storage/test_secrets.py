"""What of other packages' records is changed: secrets, and nothing else."""

from __future__ import annotations

import logging
import os
import sys
import threading
import uuid
from collections.abc import Iterator

import pytest

from shardstream.storage import secrets
from shardstream.storage.secrets import guard_logs, guard_secrets

SECRET = "s3cr3t-canary"
URL = "s3://bucket/x"


@pytest.fixture(autouse=True)
def opened() -> Iterator[None]:
    # Other tests of the process have told theirs, which may be words of these records.
    before, secrets._filter.secrets = secrets._filter.secrets, ()
    logging.getLogger("azure.one"), logging.getLogger("botocore.auth"), logging.getLogger("mine")
    guard_logs(URL, {"secret": SECRET})
    yield
    secrets._filter.secrets = before


def fail(name: str, text: str) -> None:
    try:
        raise ValueError(text)
    except ValueError:
        logging.getLogger(name).exception("it failed, %d times, with %s", 3, text, stack_info=True)


@pytest.mark.parametrize("name", ["asyncio", "azure.one", "botocore.auth", "mine"])
def test_a_record_without_a_secret_stays_as_it_is(name: str, caplog: pytest.LogCaptureFixture) -> None:
    fail(name, "nothing")
    [record] = caplog.records
    assert record.exc_info is not None
    assert record.exc_info[0] is ValueError
    assert record.args == (3, "nothing")
    assert "Traceback" in caplog.text
    assert "in fail" in caplog.text


@pytest.mark.parametrize("name", ["asyncio", "azure.one", "botocore.auth"])
def test_a_traceback_keeps_all_but_the_secret(name: str, caplog: pytest.LogCaptureFixture) -> None:
    fail(name, f"https://host/?sig={SECRET}")
    assert SECRET not in caplog.text
    assert SECRET not in repr([vars(record) for record in caplog.records])
    assert "it failed, 3 times, with https://host/?sig=***" in caplog.text
    assert "ValueError: https://host/?sig=***" in caplog.text
    assert "Traceback" in caplog.text
    assert "in fail" in caplog.text


@pytest.mark.parametrize("name", ["mine", "googleplex", "azureus", "fsspec_of_mine"])
def test_records_of_others_are_not_looked_at(name: str, caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger(name)
    guard_logs(URL, {"secret": SECRET})
    fail(name, SECRET)
    assert SECRET in caplog.text


@pytest.mark.parametrize("name", ["X-Api-Key", "SSECustomerKey", "accessKey", "passphrase", "pat", "pwd"])
def test_options_and_headers_that_name_a_secret_are_known(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    guard_logs(URL, {"headers": {name: "another-canary", "User-Agent": "an-agent", "path": "a-path"}})
    logging.getLogger("asyncio").warning("another-canary of an-agent at a-path")
    assert caplog.messages == ["*** of an-agent at a-path"]


def test_a_secret_within_another_leaves_nothing_of_it(caplog: pytest.LogCaptureFixture) -> None:
    guard_logs(URL, {"token": SECRET + "-longer"})
    logging.getLogger("asyncio").warning("with %s-longer", SECRET)
    assert caplog.messages == ["with ***"]


def test_secrets_that_a_package_found_by_itself_are_hidden(caplog: pytest.LogCaptureFixture) -> None:
    guard_secrets("of-a-role-0123", None, "", "short")
    logging.getLogger("botocore.auth").warning("of-a-role-0123 is short")
    assert caplog.messages == ["*** is short"]


def test_a_record_that_cannot_be_formatted_is_the_handlers_business(
    capsys: pytest.CaptureFixture[str],
) -> None:
    logger = logging.getLogger("asyncio")
    handler = logging.StreamHandler(sys.stderr)
    logger.addHandler(handler)
    logger.propagate = False
    try:
        logger.warning("%d", "x")
    finally:
        logger.removeHandler(handler)
        logger.propagate = True
    assert "Logging error" in capsys.readouterr().err


def test_stores_that_are_opened_while_threads_log_disturb_nobody() -> None:
    log, stop, bad = logging.getLogger("asyncio"), threading.Event(), []
    interval, level = sys.getswitchinterval(), log.level

    def talk() -> None:
        while not stop.is_set():
            try:
                log.debug("hello %s", "x")
            except Exception as error:
                bad.append(error)

    def open_many(number: int) -> None:
        for turn in range(400):
            guard_logs(URL, {"secret": f"secret-{number}-{turn}"})

    log.setLevel(logging.DEBUG)
    sys.setswitchinterval(1e-6)
    threads = [
        threading.Thread(target=talk),
        *(threading.Thread(target=open_many, args=(n,)) for n in range(3)),
    ]
    try:
        for thread in threads:
            thread.start()
        for thread in threads[1:]:
            thread.join(200)
    finally:
        stop.set()
        threads[0].join(90)
        sys.setswitchinterval(interval)
        log.setLevel(level)
    assert bad == []
    assert log.filters.count(secrets._filter) == 1


def test_nothing_grows_with_the_stores_that_are_opened(caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(3000):
        guard_logs(URL, {"secret": uuid.uuid4().hex})
        guard_logs(URL, {"secret": SECRET})  # one that is in use is not forgotten
    assert len(secrets._filter.secrets) <= 1024
    assert len(logging.getLogger("asyncio").filters) == 1
    logging.getLogger("asyncio").warning(SECRET)
    assert caplog.messages == ["***"]


def test_a_fork_does_not_inherit_a_lock() -> None:
    with secrets._filter.lock:
        child = os.fork()
        if not child:
            guard_logs(URL, {"secret": "another-one"})
            os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
