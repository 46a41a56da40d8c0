"""Each of our sources keeps the contract."""

from __future__ import annotations

import gzip
import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard
from PIL import Image

from shardstream.packing.resize import Resize
from shardstream.packing.sources import Source, SourceOptions, make_source
from shardstream.testing import SourceContract
from shardstream.testing.sources import Samples

PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "": lambda data: data, ".gz": gzip.compress,
    ".zst": zstandard.ZstdCompressor(write_checksum=True).compress,
}  # fmt: skip


class TestJsonl(SourceContract):
    @pytest.fixture(params=PACKERS)
    def suffix(self, request: pytest.FixtureRequest) -> str:
        return str(request.param)

    @pytest.fixture
    def source(self) -> Source:
        return make_source("jsonl", SourceOptions(text_key="body", keep=("n",)))

    @pytest.fixture
    def inputs(self, tmp_path: Path, suffix: str) -> list[Path]:
        lines = [b'{"id":"%d","body":"text %d","n":%d}\n' % (n, n, n) for n in range(30)]
        paths = [tmp_path / f"{name}.jsonl{suffix}" for name in ("one", "two")]
        for path, some in zip(paths, (lines[:20], [b"\n", *lines[20:]]), strict=True):
            path.write_bytes(PACKERS[suffix](b"".join(some)))
        return paths

    @pytest.fixture
    def expected(self) -> Samples:
        return [(f"{n}", {"txt": b"text %d" % n, "json": b'{"n":%d}' % n}) for n in range(30)]


class TestText(SourceContract):
    @pytest.fixture
    def source(self) -> Source:
        return make_source("text")

    @pytest.fixture
    def inputs(self, tmp_path: Path) -> Path:
        for name in ("a.txt", "b.py", "sub/c d.txt", "empty"):
            (tmp_path / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "tree" / name).write_text(name * 9 * (name != "empty"))
        return tmp_path / "tree"

    @pytest.fixture
    def expected(self) -> Samples:
        return [
            ("a%2Etxt", {"txt": b"a.txt" * 9}), ("b%2Epy", {"txt": b"b.py" * 9}),
            ("empty", {"txt": b""}), ("sub/c d%2Etxt", {"txt": b"sub/c d.txt" * 9}),
        ]  # fmt: skip


def picture(colour: int, side: int = 8) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), (colour, 0, 0)).save(buffer, "png")
    return buffer.getvalue()


class TestImages(SourceContract):
    """Classes by folder."""

    @pytest.fixture
    def source(self) -> Source:
        return make_source("images")

    @pytest.fixture
    def inputs(self, tmp_path: Path) -> Path:
        for number in range(6):
            path = tmp_path / "in" / "ab"[number % 2] / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(picture(number))
        return tmp_path / "in"

    @pytest.fixture
    def expected(self) -> Samples:
        numbers = [0, 2, 4, 1, 3, 5]
        return [
            (f"{'ab'[number % 2]}/{number}", {"png": picture(number), "cls": b"%d" % (number % 2)})
            for number in numbers
        ]


class TestResizedImages(SourceContract):
    """Captions beside them; large ones are made smaller."""

    @pytest.fixture
    def source(self) -> Source:
        return make_source("images", SourceOptions(resize=Resize(4)))

    @pytest.fixture
    def inputs(self, tmp_path: Path) -> Path:
        (tmp_path / "in").mkdir()
        for number in range(4):
            (tmp_path / "in" / f"{number}.png").write_bytes(picture(number))
            (tmp_path / "in" / f"{number}.txt").write_text(f"caption {number}")
        return tmp_path / "in"

    @pytest.fixture
    def expected(self) -> Samples:
        resize = Resize(4)
        made = [resize.apply("png", picture(number)) for number in range(4)]
        return [
            (f"{number}", {"png": one.data, "txt": b"caption %d" % number})
            for number, one in enumerate(made)
            if one is not None
        ]


class TestWebdataset(SourceContract):
    @pytest.fixture(params=PACKERS)
    def suffix(self, request: pytest.FixtureRequest) -> str:
        return str(request.param)

    @pytest.fixture
    def source(self) -> Source:
        return make_source("webdataset")

    @pytest.fixture
    def inputs(self, tmp_path: Path, suffix: str) -> list[Path]:
        paths = []
        for shard in range(3):
            buffer = io.BytesIO()
            with tarfile.open(fileobj=buffer, mode="w") as archive:
                for number in range(5):
                    for field, data in (("txt", b"%d/%d" % (shard, number)), ("bin", bytes(number * 99))):
                        info = tarfile.TarInfo(f"{shard}-{number}.{field}")
                        info.size = len(data)
                        archive.addfile(info, io.BytesIO(data))
            paths.append(tmp_path / f"in-{shard}.tar{suffix}")
            paths[-1].write_bytes(PACKERS[suffix](buffer.getvalue()))
        return paths

    @pytest.fixture
    def expected(self) -> Samples:
        return [
            (f"{shard}-{number}", {"txt": b"%d/%d" % (shard, number), "bin": bytes(number * 99)})
            for shard in range(3)
            for number in range(5)
        ]
