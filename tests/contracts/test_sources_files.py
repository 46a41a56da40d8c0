"""The source of any files keeps the contract."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from shardstream.packing.sources import Source, SourceOptions, make_source
from shardstream.testing import SourceContract
from shardstream.testing.sources import Samples


class TestFiles(SourceContract):
    """Audio with text, images with masks, names with dots, folders of the same names."""

    @pytest.fixture
    def source(self) -> Source:
        return make_source("files")

    @pytest.fixture
    def inputs(self, tmp_path: Path) -> list[Path]:
        names = ["a.wav", "a.txt", "b.jpg", "b.mask.png", "b.jpg.txt", "v1.2.json", "v1.2.MP4", "sub/a.npz"]
        for name in names:
            for root in "xy":
                (tmp_path / root / name).parent.mkdir(parents=True, exist_ok=True)
                (tmp_path / root / name).write_bytes(f"{root} {name}".encode())
        return [tmp_path / "x", tmp_path / "y"]

    @pytest.fixture
    def expected(self) -> Samples:
        return [
            (key + "~2" * (root == "y"), {field: f"{root} {name}".encode() for field, name in files.items()})
            for root in "xy"
            for key, files in {
                "a": {"txt": "a.txt", "wav": "a.wav"},
                "b": {"jpg": "b.jpg", "jpg.txt": "b.jpg.txt", "mask.png": "b.mask.png"},
                "v1%2E2": {"mp4": "v1.2.MP4", "json": "v1.2.json"},
                "sub/a": {"npz": "sub/a.npz"},
            }.items()
        ]


class TestMetadata(SourceContract):
    """Rows in JSONL and CSV; columns as fields and as the key."""

    @pytest.fixture
    def source(self) -> Source:
        options = SourceOptions(column=(("jpg", "jpg"), ("txt", "text")), key="id", keep=("n",))
        return make_source("files", options)

    @pytest.fixture
    def inputs(self, tmp_path: Path) -> Path:
        for number in range(8):
            path = tmp_path / "in" / ("csv" if number % 2 else "jsonl") / f"{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"jpg %d" % number)
        rows = [{"file_name": f"./{n}.jpg", "id": f"i.{n}", "text": f'"é\n{n}', "n": n} for n in range(8)]
        lines = [json.dumps(row) + "\r\n\n" for row in reversed(rows[::2])]
        (tmp_path / "in" / "jsonl" / "metadata.jsonl").write_text("\n" + "".join(lines))
        cells = ["file_name,id,text,n\r\n", *(f'{n}.jpg,i.{n},"""é\n{n}",{n}\r\n' for n in (7, 3, 1, 5))]
        (tmp_path / "in" / "csv" / "metadata.csv").write_bytes("".join(cells).encode("utf-8-sig"))
        return tmp_path / "in"

    @pytest.fixture
    def expected(self) -> Samples:
        def kept(n: int) -> bytes:
            return json.dumps({"n": str(n) if n % 2 else n}, separators=(",", ":")).encode()

        return [
            (f"i%2E{n}", {"jpg": b"jpg %d" % n, "txt": f'"é\n{n}'.encode(), "json": kept(n)})
            for n in (1, 3, 5, 7, 0, 2, 4, 6)
        ]
