"""Sinks: what they write, and that nobody waits for one that fails, is slow, or never answers."""

from __future__ import annotations

import csv
import math
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shardstream import logs
from shardstream.errors import MissingExtraError, OptionError
from shardstream.logs import CSV, Log, TensorBoard, Wandb
from shardstream.logs.feeding import Feed
from shardstream.logs.sinks import RowsError
from tests.logs.conftest import Rows
from tests.watch import ended, threads

Maker = Callable[..., Log]


def test_sinks_get_the_rows_in_order_and_are_closed(made: Maker) -> None:
    first, second = Rows(), Rows()
    with made(sinks=[first, second]) as log:
        for number in range(100):
            log.write(step=number, loss=float("inf"))
    assert first.rows == second.rows
    assert [row["step"] for row in first.rows] == list(range(100))
    assert first.rows[0]["loss"] == math.inf
    assert first.closed
    assert second.closed
    assert log.stats()["sinks"] == [{"sink": "Rows", "rows": 100, "failed": 0, "dropped": 0}] * 2


def test_a_sink_that_raises_is_counted_and_told_once(made: Maker, caplog: pytest.LogCaptureFixture) -> None:
    bad, good = Rows(ValueError("no")), Rows()
    log = made(sinks=[bad, good])
    log.write(step=1)
    assert ended(lambda: bad.entered.is_set())
    log.write(step=2)
    assert not log.close()  # a sink has not taken all rows
    assert log.stats()["sinks"][0] == {"sink": "Rows", "rows": 0, "failed": 2, "dropped": 0}
    assert len(good.rows) == 2
    assert [record.message for record in caplog.records] == [
        "the sink Rows raised ValueError: no. The log itself has the rows"
    ]
    assert [row["step"] for row in logs.read(log._stream.where)] == [1, 2]


def test_a_sink_that_never_answers_holds_nobody_up(made: Maker, caplog: pytest.LogCaptureFixture) -> None:
    sink = Rows()
    sink.gate.clear()
    log = made(sinks=[sink])
    log.write(step=0)
    assert sink.entered.wait(30)
    text = "x" * 10_000
    for number in range(2000):
        log.write(step=number, text=text)
    assert log.flush()
    assert not log.close(timeout=0.2)
    assert not sink.closed
    sink.gate.set()
    assert ended(lambda: not threads())
    stats = log.stats()["sinks"][0]
    assert stats["dropped"] > 1000
    assert stats["dropped"] + stats["rows"] == 2001
    assert "is too slow" in caplog.text
    assert log.dropped == 0


def test_rows_that_wait_for_a_sink_are_bounded() -> None:
    feed = Feed(Rows())
    for _ in range(100):
        feed.put(b"x" * (1 << 20))
    assert feed.dropped == 92


def test_csv_has_a_column_for_each_field(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    sink = CSV(path)
    sink.write([{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.25}])
    sink.write([{"step": 3, "text": 'a "quoted",\nline'}, {"logger": "x", "message": "left out"}])
    sink.close()
    again = CSV(path)  # the next run
    again.write([{"step": 4, "loss": 1}, {"shardstream": "dropped", "rows": 3}])
    with path.open(newline="") as file:
        found = list(csv.DictReader(file))
    assert list(found[0]) == ["step", "loss", "text"]
    assert [row["step"] for row in found] == ["1", "2", "3", "4"]
    assert found[0]["text"] == ""
    assert found[2]["text"] == 'a "quoted",\nline'
    assert sorted(os.listdir(tmp_path)) == ["rows.csv"]


def test_csv_with_fields_has_these_alone(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    CSV(path, ["step", "loss"]).write([{"step": 1, "other": 2}, {"message": "m", "logger": "l"}])
    assert path.read_text() == "step,loss\n1,\n,\n"
    CSV(path, ["step", "loss"]).write([{"step": 2}])
    assert path.read_text() == "step,loss\n1,\n,\n2,\n"
    with pytest.raises(OptionError, match="its columns are"):
        CSV(path, ["step"]).write([{"step": 3}])
    with pytest.raises(OptionError, match="list of names"):
        CSV(path, "step")


def test_csv_after_a_kill_begins_a_new_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(b"step,loss\r\n1,0.5\r\n2,0.")
    CSV(path).write([{"step": 3, "loss": 1.0}])
    with path.open(newline="") as file:
        assert [row["step"] for row in csv.DictReader(file)] == ["1", "2", "3"]


def test_csv_gets_a_new_column_after_a_long_text(tmp_path: Path) -> None:
    path, limit = tmp_path / "rows.csv", csv.field_size_limit()
    sink = CSV(path)
    sink.write([{"a": 1, "text": "x" * 200_000}])
    sink.write([{"a": 2, "b": 3}])
    assert csv.field_size_limit() == limit
    assert path.read_text().splitlines()[0] == "a,text,b"
    assert path.read_text().splitlines()[2] == "2,,3"


def test_csv_that_cannot_be_written_anew_stays_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    sink = CSV(path)
    sink.write([{"a": 1}])
    path.write_bytes(b"a\r\n\xff\r\n")  # somebody has damaged it
    for _ in range(2):
        with pytest.raises(UnicodeDecodeError):
            sink.write([{"a": 2, "b": 3}])
        assert sorted(os.listdir(tmp_path)) == ["rows.csv"]
    sink.write([{"a": 4}])
    assert path.read_bytes() == b"a\r\n\xff\r\n4\r\n"


def scalars(folder: Path) -> list[tuple[str, float, int, float]]:
    """(name, value, step, time) of all scalars in the event files of a folder."""
    event_pb2 = pytest.importorskip("tensorboardX.proto.event_pb2")
    found = []
    for path in sorted(folder.iterdir()):
        data, place = path.read_bytes(), 0
        while place < len(data):
            # https://www.tensorflow.org/tutorials/load_data/tfrecord#tfrecords_format_details
            (size,) = struct.unpack_from("<Q", data, place)
            event = event_pb2.Event.FromString(data[place + 12 : place + 12 + size])
            place += 16 + size
            found += [(v.tag, v.simple_value, event.step, event.wall_time) for v in event.summary.value]
    return found


def test_tensorboard(made: Maker, tmp_path: Path) -> None:
    pytest.importorskip("tensorboardX")
    with made(sinks=[TensorBoard(tmp_path / "events")]) as log:
        log.write(step=1, time=5.0, loss=0.5, ok=True, text="no number")
        log.write(step=2, time=6.0, loss=float("nan"))
        log.write(text="nothing")
    found = scalars(tmp_path / "events")
    assert found[:2] == [("loss", 0.5, 1, 5.0), ("ok", 1.0, 1, 5.0)]
    assert found[2][0] == "loss"
    assert math.isnan(found[2][1])
    assert len(found) == 3


def test_tensorboard_is_an_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("tensorboardX", "torch.utils.tensorboard"):
        monkeypatch.setitem(__import__("sys").modules, name, None)
    with pytest.raises(MissingExtraError, match=r"shardstream\[tensorboard\]"):
        TensorBoard(tmp_path)


class Run:
    """A run of wandb, as far as the sink knows it."""

    def __init__(self) -> None:
        self.logged: list[tuple[dict[str, Any], int | None]] = []
        self.finished = False

    def log(self, data: dict[str, Any], step: int | None = None) -> None:
        self.logged.append((data, step))

    def finish(self) -> None:
        self.finished = True


def test_wandb_gets_numbers_and_steps(made: Maker) -> None:
    run = Run()
    with made(sinks=[Wandb(run)]) as log:
        log.write(step=1, loss=0.5, text="no number")
        log.write(lr=0.1)
        log.write(text="nothing")
    assert run.logged == [({"loss": 0.5}, 1), ({"lr": 0.1}, None)]
    assert run.finished
    with pytest.raises(OptionError, match="is no run"):
        Wandb(None)


class Picky(Run):
    """It refuses one number."""

    def log(self, data: dict[str, Any], step: int | None = None) -> None:
        if data.get("loss") == 13:
            raise OverflowError("too big")
        super().log(data, step)


def test_a_row_that_cannot_be_taken_does_not_cost_the_others(
    made: Maker, caplog: pytest.LogCaptureFixture
) -> None:
    run = Picky()
    with made(sinks=[Wandb(run)]) as log:
        log.write(step=1, loss=1)
        log.write(step=2, loss=13)
        log._stream._feeds[0].put(b"damaged\n")
        for step in (float("nan"), float("inf"), "three", 4.0, 10**400):
            log.write(step=step, loss=2)
    assert [step for _, step in run.logged] == [1, None, None, None, 4, 10**400]
    assert log.stats()["sinks"] == [{"sink": "Wandb", "rows": 6, "failed": 2, "dropped": 0}]
    assert "raised OverflowError: too big" in caplog.text
    assert "cannot be read" in caplog.text


def test_csv_leaves_out_a_row_that_has_no_text(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    with pytest.raises(RowsError, match="ValueError") as caught:
        CSV(path).write([{"a": 1}, {"a": 10**5000}, {"a": 2}])
    assert caught.value.rows == 1
    assert path.read_text().split() == ["a", "1", "2"]


@pytest.mark.long
def test_a_run_of_wandb_without_network(made: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    run = wandb.init(project="test", mode="offline", dir=str(tmp_path))
    with made(sinks=[Wandb(run)], timeout=60) as log:
        for number in range(10):
            log.write(step=number, loss=1 / (number + 1))
    assert log.stats()["sinks"][0]["rows"] == 10
    assert any(path.suffix == ".wandb" and path.stat().st_size for path in tmp_path.rglob("*"))
