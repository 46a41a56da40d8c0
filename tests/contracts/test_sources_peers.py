"""The sources of other loaders' datasets keep the contract, with files that those loaders wrote."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import msgspec
import numpy as np
import pytest
from PIL import Image

from shardstream.packing.sources import Source, SourceOptions, make_source
from shardstream.testing import SourceContract
from shardstream.testing.sources import Samples
from tests.data.foreign import make

FOREIGN = Path(make.__file__).parent


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


class TestMds(SourceContract):
    @pytest.fixture(params=[name.partition(":")[0] or "plain" for name in make.MDS_COMPRESSIONS])
    def inputs(self, request: pytest.FixtureRequest, tmp_path: Path) -> Path:
        shutil.copytree(FOREIGN / "mds" / request.param, tmp_path / "in")
        return tmp_path / "in"

    @pytest.fixture
    def source(self) -> Source:
        columns = ("image", "raw", "any", "ints", "fixed", "pil", "decimal", "text")
        kept = ("n", "half", "meta")
        return make_source("mds", SourceOptions(column=tuple(zip(columns, columns, strict=True)), keep=kept))

    @pytest.fixture
    def expected(self) -> Samples:
        samples = []
        for n, row in enumerate(make.rows()):
            buffer = io.BytesIO()
            Image.new("RGB", (3, 2), (n, 0, 9)).save(buffer, "png")
            fields = {
                "image": row["image"], "raw": row["raw"], "any": npy(np.full((n + 1, 2), n / 3)),
                "ints": npy(np.arange(n + 1, dtype=np.int32)), "fixed": npy(np.full((2, 3), n, np.uint8)),
                "pil": buffer.getvalue(), "decimal": str(n / 8 if n else 0).removesuffix(".0").encode(),
                "text": row["text"].encode(),
                "json": msgspec.json.encode({name: row[name] for name in ("n", "half", "meta")}),
            }  # fmt: skip
            samples.append((f"row%2E{n}", fields))
        return samples


class TestLitdata(SourceContract):
    @pytest.fixture(params=make.LITDATA)
    def inputs(self, request: pytest.FixtureRequest, tmp_path: Path) -> Path:
        shutil.copytree(FOREIGN / "litdata" / request.param, tmp_path / "in")
        return tmp_path / "in"

    @pytest.fixture
    def source(self) -> Source:
        columns = [(name, name) for name in ("image", "raw", "text")]
        more = ("any", "ints", "tensor", "ids", "photo", "pil")
        columns += [(f"more.{name}", f"more.{name}") for name in more]
        return make_source("litdata", SourceOptions(column=tuple(columns), keep=("n", "half", "more.flag")))

    @pytest.fixture
    def expected(self) -> Samples:
        samples = []
        for n, row in enumerate(make.rows()):
            buffer = io.BytesIO()
            Image.new("RGB", (3, 2), (n, 0, 9)).save(buffer, "png")
            fields = {
                "image": row["image"], "raw": row["raw"], "text": row["text"].encode(),
                "more.any": npy(np.full((n + 1, 2), n / 3)),
                "more.ints": npy(np.arange(n + 1, dtype=np.int32)), "more.tensor": npy(np.full((2, 3), n)),
                "more.ids": npy(np.arange(n + 1)), "more.photo": row["image"], "more.pil": buffer.getvalue(),
                "json": msgspec.json.encode({"n": row["n"], "half": row["half"], "more.flag": n % 2 == 0}),
            }  # fmt: skip
            samples.append((f"row%2E{n}", fields))
        return samples


class TestTfrecord(SourceContract):
    @pytest.fixture(params=["rows", "rowsgzip", "rowszlib"])
    def inputs(self, request: pytest.FixtureRequest, tmp_path: Path) -> Path:
        shutil.copy(FOREIGN / "tfrecord" / f"{request.param}.tfrecord", tmp_path)
        return tmp_path / f"{request.param}.tfrecord"

    @pytest.fixture
    def source(self) -> Source:
        return make_source("tfrecord", SourceOptions(keep=("n", "half", "none")))

    @pytest.fixture
    def expected(self) -> Samples:
        return [
            (
                f"row%2E{n}",
                {
                    "txt": row["text"].encode(), "png": row["image"],
                    "json": msgspec.json.encode({"n": [row["n"], 1 << 40], "half": row["half"], "none": []}),
                },
            )
            for n, row in enumerate(make.rows())
        ]  # fmt: skip
