"""The sources of token ids keep the contract."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shardstream.packing.sources import Source, SourceOptions, make_source
from shardstream.packing.sources.base import prepared
from shardstream.storage.inputs import FileInfo
from shardstream.testing import SourceContract
from shardstream.testing.sources import Samples
from tests.data.foreign import make

DOCUMENTS = [[*range(n, n + n * 3 % 11), 999] for n in range(1, 9)]


def packed(ids: list[int], dtype: str) -> dict[str, Any]:
    return {"tokens": np.array(ids, f"<{np.dtype(dtype).str[1:]}").tobytes()}


class TestNanogpt(SourceContract):
    """Ids alone, documents that end with an id; the last one is cut off, as in a validation split."""

    @pytest.fixture
    def source(self) -> Source:
        return make_source("bin", SourceOptions(eos=999))

    @pytest.fixture
    def inputs(self, tmp_path: Path) -> Path:
        np.array([*itertools.chain(*DOCUMENTS), 5, 6], np.uint16).tofile(tmp_path / "train.bin")
        return tmp_path / "train.bin"

    @pytest.fixture
    def expected(self) -> Samples:
        documents = [*DOCUMENTS, [5, 6]]
        starts = np.cumsum([0, *map(len, documents)]) * 2
        return [
            (f"train-{start:012d}", packed(ids, "uint16"))
            for start, ids in zip(starts, documents, strict=False)
        ]


class TestLlmC(SourceContract):
    """The header of llm.c, ids of 32 bits, no end of documents: pieces."""

    @pytest.fixture
    def source(self, files: list[FileInfo]) -> Source:
        return prepared(make_source("bin"), files)

    @pytest.fixture
    def inputs(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        monkeypatch.setattr("shardstream.packing.sources.bin._PIECE", 7)
        header = np.zeros(256, np.int32)
        header[:3] = 20240801, 7, 100
        (tmp_path / "x.bin").write_bytes(header.tobytes() + np.arange(70_000, 70_100, dtype="<u4").tobytes())
        return tmp_path

    @pytest.fixture
    def expected(self) -> Samples:
        ids = [*range(70_000, 70_100)]
        return [(f"x-{1024 + at * 4:012d}", packed(ids[at : at + 7], "uint32")) for at in range(0, 100, 7)]


class TestMegatron(SourceContract):
    """The real tool's .bin and .idx: an empty document, and one of two sequences."""

    @pytest.fixture
    def source(self, files: list[FileInfo]) -> Source:
        return prepared(make_source("bin"), files)

    @pytest.fixture
    def inputs(self, tmp_path: Path) -> Path:
        shutil.copytree(Path(make.__file__).parent / "megatron", tmp_path / "in")
        return tmp_path / "in"

    @pytest.fixture
    def expected(self) -> Samples:
        return [(f"ids-{n:012d}", packed(ids, "uint32")) for n, ids in enumerate(make.documents())]
