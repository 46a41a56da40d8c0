"""Reading a log: by our reader, and by tools that know nothing of it."""

from __future__ import annotations

import gc
import json
import math
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

import shardstream as ss
from shardstream.logs import Log, read
from shardstream.logs.objects import Objects
from shardstream.logs.segments import Segment
from tests.logs.conftest import files
from tests.watch import ended, threads

Maker = Callable[..., Log]


@pytest.fixture
def written(made: Maker, tmp_path: Path) -> Path:
    """The folder of a log of two ranks, 300 rows each, in several objects."""
    for rank in range(2):
        with made(rank=rank, segment="4KiB", spool_limit="4MiB") as log:
            for number in range(300):
                log.write(step=number, loss=float("nan") if number == 7 else 1.0, time=float(number))
    return tmp_path / "log"


def test_two_ranks(written: Path) -> None:
    rows = list(read(str(written)))
    assert [(row["step"], row["rank"]) for row in rows] == [
        (n, rank) for n in range(300) for rank in range(2)
    ]
    assert [row["step"] for row in rows if math.isnan(row["loss"])] == [7, 7]


def test_a_reader_that_is_dropped_leaves_nothing(written: Path) -> None:
    rows = read(str(written))
    next(rows)
    del rows
    gc.collect()
    assert ended(lambda: not threads())


def test_there_is_no_log(written: Path, tmp_path: Path) -> None:
    with pytest.raises(ss.SourceError, match="elsewhere: no log is here"):
        read(str(tmp_path / "elsewhere"))
    with pytest.raises(ss.SourceError, match="no log of rank 2 is here"):
        read(str(written), rank=2)
    with pytest.raises(ss.OptionError, match="rank"):
        read(str(written), rank=-1)


def test_a_damaged_object_is_named_and_gives_no_row(written: Path) -> None:
    second = files(written / "rank-0")[1]
    whole = second.read_bytes()
    first = [row["step"] for row in read(str(written), rank=0)].index(0)
    for place in range(0, len(whole), 7):
        second.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        rows = []
        with pytest.raises(ss.CorruptionError, match=r"rank-0/000001.jsonl.zst is damaged"):
            rows += read(str(written), rank=0)
    second.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ss.CorruptionError, match="is damaged"):
        list(read(str(written), rank=0))
    assert first == 0


def test_a_bomb_is_refused(written: Path) -> None:
    packer = zstandard.ZstdCompressor().compressobj(size=(1 << 30) + 1)
    bomb = packer.compress(b"\n" * 1000) + packer.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)
    files(written / "rank-0")[0].write_bytes(bomb)
    with pytest.raises(ss.CorruptionError, match="are allowed"):
        list(read(str(written), rank=0))


def test_other_files_do_not_disturb(written: Path) -> None:
    (written / "notes.txt").write_text("x")
    (written / "rank-0" / "notes.jsonl.zst").write_text("x")
    (written / "rank-x").mkdir()
    assert len(list(read(str(written)))) == 600


def test_numbers_of_more_digits_are_in_order(made: Maker, tmp_path: Path) -> None:
    with made() as log:
        log.write(step=0)
    (tmp_path / "log/rank-0/000000.jsonl.zst").rename(tmp_path / "log/rank-0/999999.jsonl.zst")
    with made() as log:
        log.write(step=1)
    assert (tmp_path / "log/rank-0/1000000.jsonl.zst").exists()
    assert [row["step"] for row in read(str(tmp_path / "log"))] == [0, 1]


def segment_of(folder: Path, *rows: bytes) -> Segment:
    segment = Segment.create(str(folder), 0)
    for row in rows:
        segment.append(row)
    return segment


def test_an_upload_whose_end_nobody_saw_is_not_repeated(tmp_path: Path) -> None:
    objects = Objects(str(tmp_path / "log"), None)
    segment = segment_of(tmp_path, b'{"step":1}\n')
    objects.write(segment)
    segment.close()  # and the process is killed before it deletes the file
    again = Segment.adopt(str(tmp_path), Path(segment.path).name)
    assert again is not None
    assert again.target == 0
    # The next process may have another zstd, which makes other bytes.
    data = zstandard.ZstdCompressor(level=19).compress(b'{"step":1}\n')
    [path] = files(tmp_path / "log")
    path.write_bytes(data)
    Objects(str(tmp_path / "log"), None).write(again)
    assert files(tmp_path / "log") == [path]
    assert path.read_bytes() == data


def test_a_number_that_is_taken_is_never_written_again(tmp_path: Path) -> None:
    objects = Objects(str(tmp_path / "log"), None)
    objects.write(segment_of(tmp_path, b'{"step":0}\n'))
    Objects(str(tmp_path / "log"), None).write(segment_of(tmp_path, b'{"step":1}\n'))
    objects.write(segment_of(tmp_path, b'{"step":2}\n'))
    assert [row["step"] for row in read(str(tmp_path / "log"))] == [0, 1, 2]
    assert len(files(tmp_path / "log")) == 3


def test_zstd_and_json_read_it(written: Path) -> None:
    done = subprocess.run(
        ["zstd", "-dc", *map(str, files(written))], capture_output=True, check=True, timeout=60
    )
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(rows) == 600
    assert rows[7]["loss"] == "NaN"


def test_duckdb_reads_it(written: Path) -> None:
    duckdb = pytest.importorskip("duckdb")
    counts = "count(*), sum(step), count(*) filter (isnan(loss::double))"
    query = f"select rank, {counts} from '{written}/rank-*/*.jsonl.zst' group by rank order by rank"
    found = duckdb.sql(query).fetchall()
    assert found == [(0, 300, 44850, 1), (1, 300, 44850, 1)]


def test_pandas_reads_it(written: Path) -> None:
    pandas = pytest.importorskip("pandas")
    frames = [pandas.read_json(path, lines=True) for path in files(written)]
    found = pandas.concat(frames)
    assert len(found) == 600
    assert pandas.to_numeric(found["loss"]).isna().sum() == 2
