"""Values of Arrow that Python does not have: one form each, whatever the batch and the machine."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest

import shardstream as ss
from shardstream.packing.sources.arrow_values import NoValue, values

NS = 1_000_000_000
ZONED = pa.timestamp("ns", "Europe/Paris")
DAY, DAY_Z = "1970-01-02T00:00:00.000000000", "1970-01-02T00:00:00.000000000Z"
COUNT = 86_400 * NS


@pytest.mark.parametrize(
    ("type_", "found", "expected"),
    [
        (pa.timestamp("ns"), [COUNT, None, -1], [DAY, None, "1969-12-31T23:59:59.999999999"]),
        (ZONED, [COUNT, COUNT + 1], [DAY_Z, "1970-01-02T00:00:00.000000001Z"]),
        (pa.duration("ns"), [-3 * NS // 2, 0, 7], ["-PT1.500000000S", "PT0.000000000S", "PT0.000000007S"]),
        (pa.time64("ns"), [1, 3600 * NS], ["00:00:00.000000001", "01:00:00.000000000"]),
    ],
)
def test_nanoseconds_are_texts(type_: pa.DataType, found: list[Any], expected: list[Any]) -> None:
    column = pa.array(found, pa.int64()).view(type_)
    assert values(column) == expected
    assert values(column.slice(1)) == expected[1:]
    assert values(column.dictionary_encode()) == expected


@pytest.mark.parametrize(
    ("plain", "type_", "found", "expected"),
    [
        (pa.list_(pa.int64()), pa.list_(ZONED), [[COUNT, None], None, []], [[DAY_Z, None], None, []]),
        (pa.list_(pa.int64(), 1), pa.list_(ZONED, 1), [[COUNT], None], [[DAY_Z], None]),
        (pa.large_list(pa.int64()), pa.large_list(ZONED), [[COUNT]], [[DAY_Z]]),
        (pa.list_view(pa.int64()), pa.list_view(ZONED), [[COUNT]], [[DAY_Z]]),
        (
            pa.map_(pa.string(), pa.int64()),
            pa.map_(pa.string(), ZONED),
            [[("a", COUNT)], None],
            [[("a", DAY_Z)], None],
        ),
        (
            pa.struct([("a", pa.list_(pa.int64())), ("b", pa.string())]),
            pa.struct([("a", pa.list_(ZONED)), ("b", pa.string())]),
            [{"a": [COUNT], "b": "x"}, None, {"a": None, "b": "y"}],
            [{"a": [DAY_Z], "b": "x"}, None, {"a": None, "b": "y"}],
        ),
    ],
)
def test_nanoseconds_inside_of_others(plain: Any, type_: Any, found: list[Any], expected: list[Any]) -> None:
    column = pa.array(found, plain).view(type_)
    assert values(column) == expected
    assert values(column.slice(1)) == expected[1:]


@pytest.mark.parametrize("nothing", [False, True])
def test_a_dictionary_or_nothing_beside_nanoseconds(nothing: bool) -> None:
    texts = pa.nulls(2) if nothing else pa.array(["x", "y"]).dictionary_encode()
    column = pa.StructArray.from_arrays([pa.array([COUNT, 0]).view(ZONED), texts], ["at", "d"])
    assert values(column)[0] == {"at": DAY_Z, "d": None if nothing else "x"}


def test_a_value_that_python_cannot_hold_stands_for_itself() -> None:
    found = values(pa.array([0, 1 << 50, None], pa.timestamp("s")))
    assert isinstance(found[1], NoValue)
    assert found[0].year == 1970
    assert found[2] is None


def test_such_a_value_rejects_its_row_alone(tmp_path: Path) -> None:
    table = pa.table({"text": ["t"] * 40, "at": pa.array([0] * 39 + [1 << 59], pa.timestamp("us"))})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    manifest = ss.pack(tmp_path / "a.parquet", tmp_path / "out", workers=1, on_error="skip")
    assert manifest.samples == 39
    (line,) = (tmp_path / "out" / "rejects.jsonl").read_text().splitlines()
    assert "row 39" in line
    assert "column 'at' has a value that Python cannot hold" in json.loads(line)["reason"]


PACK = """
import sys
from importlib.abc import MetaPathFinder

class NoPandas(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "pandas":
            raise ModuleNotFoundError("hidden", name="pandas")

if sys.argv[1] == "hidden":
    sys.meta_path.insert(0, NoPandas())
import shardstream as ss
if __name__ == "__main__":
    for keep in (None, ["at", "note"]):
        ss.pack(sys.argv[2], f"{sys.argv[3]}-{keep is None}", workers=1, keep=keep, on_error="skip")
"""


def test_the_bytes_are_the_same_without_pandas(tmp_path: Path) -> None:
    count = 20_000
    times = [n * NS + (n == count - 1) for n in range(count)]  # only the last is no whole microsecond
    numbers = pa.array(times, pa.int64())
    columns = {
        "text": ["t"] * count,
        "at": numbers.view(ZONED),
        "note": numbers.view(pa.timestamp("ns")),
        "took": numbers.view(pa.duration("ns")),
        "all": pa.array([[n] for n in times]).view(pa.list_(pa.timestamp("ns"))),
    }
    pyarrow.parquet.write_table(pa.table(columns), tmp_path / "a.parquet", row_group_size=5000)
    for name in ("hidden", "there"):
        command = [sys.executable, "-c", PACK, name, str(tmp_path / "a.parquet"), str(tmp_path / name)]
        subprocess.run(command, check=True, timeout=120)
    for kept in (True, False):
        one, other = tmp_path / f"hidden-{kept}", tmp_path / f"there-{kept}"
        names = sorted(path.name for path in one.iterdir())
        assert names == sorted(path.name for path in other.iterdir())
        for name in names:
            assert (one / name).read_bytes() == (other / name).read_bytes()
        ds = ss.StreamingDataset(str(one), shuffle=False)
        assert len(ds) == count
        assert ds[1]["json"]["at"] == "1970-01-01T00:00:01.000000000Z"
        assert ds[count - 1]["json"]["note"].endswith(".000000001")
