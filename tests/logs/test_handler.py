"""The handler: records of logging as rows."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from shardstream.logs import Log, read

Maker = Callable[..., Log]


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    found = logging.getLogger("tests.logs.handler")
    found.setLevel(logging.DEBUG)
    found.propagate = False
    yield found
    found.handlers.clear()


def test_records_are_rows(made: Maker, tmp_path: Path, logger: logging.Logger) -> None:
    log = made(rank=2)
    logger.addHandler(log.handler())
    logger.info("step %d of %s", 3, "ten", extra={"step": 3, "where": Path("/x")})
    try:
        raise KeyError("lost")
    except KeyError:
        logger.exception("failed")
    logger.warning("here", stack_info=True)
    log.close()
    first, second, third = read(str(tmp_path / "log"))
    assert list(first) == ["time", "rank", "level", "logger", "message", "step", "where"]
    assert (first["level"], first["logger"], first["message"]) == ("INFO", logger.name, "step 3 of ten")
    assert (first["rank"], first["step"], first["where"]) == (2, 3, "/x")
    assert second["exc_info"].startswith("Traceback")
    assert "KeyError: 'lost'" in second["exc_info"]
    assert "test_records_are_rows" in third["stack_info"]
    assert first["time"] <= second["time"] <= third["time"]


def test_levels_and_formatters_are_those_of_logging(
    made: Maker, tmp_path: Path, logger: logging.Logger
) -> None:
    log = made()
    handler = log.handler("WARNING")
    handler.setFormatter(logging.Formatter("<%(message)s>"))
    logger.addHandler(handler)
    logger.info("no")
    logger.error("yes")
    log.close()
    assert [row["message"] for row in read(str(tmp_path / "log"))] == ["<yes>"]


def test_a_wrong_record_ends_nothing(made: Maker, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = made()
    handler = log.handler()
    for text in ("%d", "%s"):  # not by a logger: pytest's own handler raises what ours reports
        handler.handle(logging.LogRecord("x", logging.INFO, "", 0, text, ("next",), None))
    log.close()
    assert "--- Logging error ---" in capsys.readouterr().err
    assert [row["message"] for row in read(str(tmp_path / "log"))] == ["%d % ('next',)", "next"]


def test_what_extra_has_does_not_cost_the_record(made: Maker, tmp_path: Path, logger: logging.Logger) -> None:
    log = made()
    logger.addHandler(log.handler())
    inside: list[object] = []
    inside.append(inside)
    logger.error("on fire", extra={"dtype": int, "inside": inside, "shardstream": "mine"})
    log.close()
    [row] = read(str(tmp_path / "log"))
    assert (row["message"], row["dtype"], row["inside"]) == ("on fire", "<class 'int'>", "[[...]]")
    assert (row["shardstream_"], "shardstream" in row) == ("mine", False)


def test_what_an_upload_logs_makes_no_new_rows(made: Maker, tmp_path: Path) -> None:
    log = made()
    handler = log.handler()
    for name, level in [("botocore.endpoint", 10), ("fsspec", 20), ("urllib3", 30), ("shardstream", 10)]:
        handler.handle(logging.LogRecord(name, level, "", 0, name, (), None))
    log.close()
    assert [row["logger"] for row in read(str(tmp_path / "log"))] == ["urllib3", "shardstream"]
