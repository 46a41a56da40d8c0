"""Log: what users see of it, with stores that take rows and stores that do not."""

from __future__ import annotations

import gc
import logging
import os
import pickle
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import shardstream as ss
from shardstream.logs import Log, read
from shardstream.logs.spool import folders_for
from tests.logs.conftest import files
from tests.proxy import Proxy
from tests.servers import Weed
from tests.watch import descriptors, ended, threads

Maker = Callable[..., Log]
ONE_TRY = {"retry": ss.Retry(attempts=1, deadline=2.0), "timeouts": ss.Timeouts(connect=1.0, read=1.0)}


def steps(url: object, **options: Any) -> list[int]:
    return [row["step"] for row in read(str(url), **options) if "step" in row]


def test_rows_become_one_object_and_leave_nothing_behind(made: Maker, tmp_path: Path, spool: Path) -> None:
    before = descriptors()
    log = made()
    for number in range(1000):
        log.write(step=number, loss=1 / (number + 1))
    assert len(files(spool)) == 1
    assert log.close()
    assert log.close()
    assert files(spool) == []
    assert ended(lambda: descriptors() == before)
    assert ended(lambda: not threads())
    assert [path.relative_to(tmp_path / "log").as_posix() for path in files(tmp_path / "log")] == [
        "rank-0/000000.jsonl.zst"
    ]
    rows = list(read(str(tmp_path / "log")))
    assert [row["step"] for row in rows] == list(range(1000))
    assert rows[1]["loss"] == 0.5
    assert all(row["rank"] == 0 and abs(row["time"] - time.time()) < 600 for row in rows)


def test_a_segment_has_at_most_its_size_and_objects_are_in_order(made: Maker, tmp_path: Path) -> None:
    with made(segment="1KiB", spool_limit="1MiB") as log:
        for number in range(200):
            log.write(step=number)
    objects = files(tmp_path / "log")
    assert len(objects) > 5
    assert [path.name for path in objects] == [f"{number:06d}.jsonl.zst" for number in range(len(objects))]
    assert steps(tmp_path / "log") == list(range(200))


def test_rows_are_uploaded_by_their_age(made: Maker, tmp_path: Path) -> None:
    with made(seconds=0.05) as log:
        log.write(step=1)
        assert ended(lambda: log.stats()["uploaded_segments"] == 1)
        assert steps(tmp_path / "log") == [1]


def test_flush_uploads_and_the_log_goes_on(made: Maker, tmp_path: Path) -> None:
    log = made()
    log.write(step=1)
    assert log.flush()
    assert steps(tmp_path / "log") == [1]
    assert log.flush()
    log.write(step=2)
    log.close()
    assert steps(tmp_path / "log") == [1, 2]


def test_given_fields_count_more_than_those_that_are_added(made: Maker, tmp_path: Path) -> None:
    with made() as log:
        log.write(time=5.0, rank=7, self=1, **{"loss/train": 2})
    assert list(read(str(tmp_path / "log"))) == [{"time": 5.0, "rank": 7, "self": 1, "loss/train": 2}]


def test_the_name_of_the_logs_own_rows_is_reserved(made: Maker) -> None:
    with made() as log, pytest.raises(ss.OptionError, match="'shardstream' is reserved"):
        log.write(step=1, shardstream="v2")


def test_a_closed_log_takes_no_rows(made: Maker) -> None:
    log = made()
    handler = log.handler()
    log.close()
    with pytest.raises(ss.StateError, match="is closed"):
        log.write(step=1)
    handler.handle(logging.makeLogRecord({"msg": "late", "levelno": logging.WARNING}))


def test_a_second_close_says_what_the_first_one_said(made: Maker, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    log = made(str(tmp_path / "file" / "log"))
    log.write(step=1)
    assert not log.close(timeout=0.1)
    assert not log.close()


def test_close_says_that_rows_were_dropped(made: Maker) -> None:
    log = made(segment="1KiB")
    log.write(text="x" * 2000)
    log.write(step=1)
    assert not log.close()
    assert log.dropped == 1


def test_threads_share_a_log(made: Maker, tmp_path: Path) -> None:
    with made(segment="4KiB", spool_limit="8MiB") as log:

        def work(first: int) -> None:
            for number in range(first, first + 500):
                log.write(step=number)

        workers = [threading.Thread(target=work, args=(500 * number,)) for number in range(4)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    found = steps(tmp_path / "log")
    assert sorted(found) == list(range(2000))
    for first in range(0, 2000, 500):  # each thread's rows are in its order
        assert [step for step in found if first <= step < first + 500] == list(range(first, first + 500))


def test_two_logs_of_one_rank_overwrite_nothing(made: Maker, tmp_path: Path) -> None:
    logs = [made(segment="1KiB", spool_limit="1MiB") for _ in range(2)]
    for number in range(200):
        logs[number % 2].write(step=number)
    for log in logs:
        assert log.close()
    assert sorted(steps(tmp_path / "log")) == list(range(200))


def test_ranks_are_merged_by_time(made: Maker, tmp_path: Path) -> None:
    logs = [made(rank=rank) for rank in (0, 3, 11)]
    for number in range(30):
        logs[number % 3].write(step=number, time=float(number))
    for log in logs:
        log.close()
    assert steps(tmp_path / "log") == list(range(30))
    assert steps(tmp_path / "log", rank=3) == list(range(1, 30, 3))


def test_the_rank_is_that_of_the_launcher(made: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "5")
    monkeypatch.setenv("WORLD_SIZE", "8")
    with made(rank=None) as log:
        assert "rank=5" in repr(log)
    monkeypatch.delenv("WORLD_SIZE")
    with pytest.raises(ss.OptionError, match=r"give the log its rank: ss.Log\(url, rank=...\)"):
        made(rank=None)


def test_a_store_that_refuses_keeps_rows_on_this_machine(
    made: Maker, tmp_path: Path, spool: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "log").write_text("a file, where the log wants a folder")
    log = made()
    log.write(step=1)
    assert not log.flush(timeout=0.1)
    assert ended(lambda: log.stats()["error"])
    log.write(step=2)
    assert not log.close(timeout=0.2)
    assert [record.message for record in caplog.records if "tried again" in record.message]
    assert "2 rows are not uploaded" in caplog.text
    assert ended(lambda: not threads())
    assert len(files(spool)) == 2
    (tmp_path / "log").unlink()
    assert made().close()
    assert steps(tmp_path / "log") == [1, 2]
    assert files(spool) == []


def test_a_full_spool_drops_the_oldest_and_says_so(made: Maker, tmp_path: Path, spool: Path) -> None:
    (tmp_path / "log").write_text("in the way")
    log = made(segment="4KiB", spool_limit="16KiB")
    for number in range(2000):
        log.write(step=number)
    dropped = log.dropped
    assert dropped > 500
    assert sum(path.stat().st_size for path in files(spool)) <= 20 << 10
    (tmp_path / "log").unlink()
    assert not log.close(timeout=30)  # rows were dropped
    assert log.stats()["waiting"]["rows"] == 0
    rows = list(read(str(tmp_path / "log")))
    kept = [row["step"] for row in rows if "step" in row]
    said = [row for row in rows if "shardstream" in row]
    # The rows that say what is missing may be dropped, too: then they count like any other.
    assert kept[-1] == 1999
    assert said[-1]["shardstream"] == "dropped"
    assert said[-1]["reason"] == "the spool is full"
    assert said[-1]["total"] == log.dropped
    assert log.dropped - (2000 - len(kept)) in range(200)


def test_a_row_that_is_too_long_is_dropped(made: Maker, tmp_path: Path) -> None:
    log = made(segment="1KiB", spool_limit="1MiB")
    log.write(text="x" * 2000)
    log.write(step=1)
    log.close()
    assert log.dropped == 1
    [said, row] = read(str(tmp_path / "log"))
    assert (said["rows"], row["step"]) == (1, 1)
    assert "1024 are allowed" in said["reason"]


def test_without_the_spool_rows_go_to_the_temporary_folder(
    made: Maker, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    blocked = tmp_path / "blocked"
    blocked.write_text("")
    log = made(spool=blocked)
    log.write(step=1)
    assert len(files(tmp_path / "temporary")) == 1
    assert log.close()
    assert "go to another folder" in caplog.text
    assert steps(tmp_path / "log") == [1]


def test_without_any_folder_there_is_no_log(
    made: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocked = tmp_path / "blocked"
    blocked.write_text("")
    monkeypatch.setattr("tempfile.tempdir", str(blocked))
    with pytest.raises(ss.StorageError, match=r"File exists.*Give another one"):
        made(spool=blocked)


def test_a_spool_of_somebody_else_is_not_used(made: Maker, tmp_path: Path, spool: Path) -> None:
    folder = spool / f"shardstream-logs-{os.geteuid()}"
    folder.mkdir(mode=0o777)
    folder.chmod(0o777)
    with made() as log:
        log.write(step=1)
        assert files(spool) == []
        [segment] = files(tmp_path / "temporary")
        assert stat.S_IMODE(segment.stat().st_mode) == 0o600
        assert stat.S_IMODE(segment.parent.stat().st_mode) == 0o700


def test_credentials_are_in_no_name_and_no_message(made: Maker, spool: Path) -> None:
    log = made("memory://user:secret-word@host/log")
    assert "secret-word" not in repr(log)
    assert log.close()
    assert folders_for("s3://u:p@b/log", "/x") == folders_for("s3://b/log", "/x")


@pytest.mark.parametrize(
    "options",
    [
        {"rank": -1}, {"segment": 100}, {"segment": "1GiB"}, {"spool_limit": "5MiB"}, {"seconds": 0},
        {"timeout": float("inf")}, {"seconds": "1"}, {"segment": "x"}, {"storage_options": {"retry": 3}},
    ],
)  # fmt: skip
def test_options_are_checked(made: Maker, options: dict[str, Any], spool: Path) -> None:
    with pytest.raises(ss.OptionError):
        made(**options)
    assert files(spool) == []


def test_a_log_that_is_dropped_uploads_its_rows_and_ends(made: Maker, tmp_path: Path) -> None:
    log = made()
    log.write(step=1)
    del log
    gc.collect()
    assert ended(lambda: not threads())
    assert steps(tmp_path / "log") == [1]


def test_a_log_goes_to_other_processes_by_pickle(made: Maker, tmp_path: Path) -> None:
    with made() as log, pickle.loads(pickle.dumps(log)) as other:
        log.write(step=1)
        other.write(step=2)
    assert sorted(steps(tmp_path / "log")) == [1, 2]


def test_it_works_without_torch(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['torch'] = None; import shardstream as ss\n"
        f"log = ss.Log({str(tmp_path / 'log')!r}, spool={str(tmp_path)!r}); log.write(step=1); log.close()\n"
        "assert 'numpy' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert steps(tmp_path / "log") == [1]


def test_a_bucket(made: Maker, weed: Weed) -> None:
    url, options = weed.bucket(), weed.options()
    logs = [made(url, storage_options=options, rank=0, segment="1KiB", spool_limit="1MiB") for _ in range(2)]
    for number in range(100):
        logs[number % 2].write(step=number)
    for log in logs:
        assert log.close(timeout=60)
    assert sorted(steps(url, storage_options=options)) == list(range(100))


def test_a_bucket_behind_a_bad_network(made: Maker, weed: Weed, proxy_to: Callable[..., Proxy]) -> None:
    proxy = proxy_to(weed, status=(503,), share=0.1, reset=0.1, seed=3, only=lambda *_: True)
    url, options = weed.bucket(), weed.options(proxy.url)
    log = made(url, storage_options=options, segment="1KiB", spool_limit="1MiB")
    for number in range(400):
        log.write(step=number)
    assert log.close(timeout=120)
    assert steps(url, storage_options=weed.options()) == list(range(400))


def test_a_store_that_never_answers_makes_nobody_wait(
    made: Maker, weed: Weed, proxy_to: Callable[..., Proxy]
) -> None:
    proxy = proxy_to(weed, dead=True, only=lambda *_: True)
    url = weed.bucket()
    log = made(url, storage_options=weed.options(proxy.url) | ONE_TRY, segment="4KiB", spool_limit="16KiB")
    for number in range(3000):
        log.write(step=number)
    assert log.dropped
    assert not log.close(timeout=0.1)
    assert ended(lambda: "shardstream-log" not in threads())  # it gives the request up
    assert made(url, storage_options=weed.options()).close(timeout=60)
    assert steps(url, storage_options=weed.options())[-1] == 2999
