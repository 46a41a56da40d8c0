"""The pages of docs/moving run with the libraries that they lead away from, and lose nothing."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import shardstream as ss
from tests.test_docs import ROOT, RUN, examples

PAGES = sorted(path for path in (ROOT / "docs" / "moving").glob("*.md") if path.name != "README.md")
# What each page makes: the dataset, and how many samples the other library wrote.
MADE = {
    "energon": ("captions", 120), "hf": ("corpus", 300), "litdata": ("corpus", 200), "megatron": ("web", 3),
    "mosaicml": ("corpus", 300), "webdataset": ("cc", 200),
}  # fmt: skip
# MosaicML imports torchvision, whose builds do not load beside this torch: the benchmarks have a stand-in.
STAND_IN = "import benchmarks.peers.mosaic\n"


def test_every_page_is_tried() -> None:
    assert {page.stem for page in PAGES} == set(MADE)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_page(page: Path, tmp_path: Path) -> None:
    needs = {"energon": "webdataset", "hf": "datasets", "megatron": "megatron.core", "mosaicml": "streaming"}
    assert importlib.util.find_spec(needs.get(page.stem, page.stem)) is not None
    program = STAND_IN if page.stem == "mosaicml" else ""
    done = subprocess.run(
        [sys.executable, "-c", program + RUN],
        input=json.dumps([str(page), examples(page.read_text(encoding="utf-8"))]),
        cwd=tmp_path,
        env=os.environ | {
            "PATH": os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]]),
            "PYTHONPATH": str(ROOT),
            "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1",
        },
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    name, samples = MADE[page.stem]
    if page.stem == "megatron":
        assert len(ss.TokenDataset(tmp_path / name, seq_len=128)) == (700 + 900 + 500 - 1) // 128
    else:
        found = ss.StreamingDataset(tmp_path / name)
        assert len(found) == samples
        assert len({sample["__key__"] for sample in found}) == samples


def test_datasets_of_hugging_face_in_memory(tmp_path: Path) -> None:
    import datasets
    import numpy as np
    from PIL import Image

    pictures = [Image.fromarray(np.full((8, 9, 3), n, np.uint8)) for n in range(20)]
    columns = {
        "id": [f"row.{n}" for n in range(20)], "text": [f"text {n}" for n in range(20)], "label": [0, 1] * 10,
        "image": pictures, "ids": [[n] * (n % 3) for n in range(20)],
        "deep": [{"a": n, "b": [{"c": "x"}]} for n in range(20)],
    }  # fmt: skip
    table = datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image())
    table = table.cast_column("label", datasets.ClassLabel(names=["no", "yes"]))
    ways = {
        "table": table, "iterable": table.to_iterable_dataset(num_shards=3),
        "mapped": table.to_iterable_dataset().map(lambda row: {"text": row["text"]}, features=table.features),
        "arrays": table.with_format("numpy"),
    }  # fmt: skip
    for name, given in ways.items():
        ss.pack(given, tmp_path / name, workers=1)
        found = list(ss.StreamingDataset(tmp_path / name))
        assert [sample["__key__"] for sample in found] == [f"row%2E{n}" for n in range(20)], name
        for n, sample in enumerate(found):
            assert sample["txt"] == f"text {n}"
            assert (np.asarray(sample["png"]) == n).all()
            assert sample["json"]["ids"] == [n] * (n % 3)
            assert sample["json"]["deep"] == {"a": n, "b": [{"c": "x"}]}
            assert sample["json"]["label"] == n % 2
    with pytest.raises(ss.OptionError, match="pack each of them"):
        ss.pack(datasets.DatasetDict(train=table), tmp_path / "splits")  # type: ignore[call-overload]


def test_chunks_of_litdata_with_nested_values_and_images(tmp_path: Path) -> None:
    import litdata
    import numpy as np

    for compression in (None, "zstd"):
        made, packed = str(tmp_path / f"made-{compression}"), tmp_path / f"packed-{compression}"
        litdata.optimize(
            nested_rows, [0, 10], made, chunk_bytes="2KB", num_workers=1, start_method="fork", verbose=False,
            compression=compression,
        )  # fmt: skip
        ss.pack(made, packed, format="litdata", key="id", workers=1)
        found = {sample["__key__"]: sample for sample in ss.StreamingDataset(packed)}
        for row in (*nested_rows(0), *nested_rows(10)):
            sample = found[row["id"]]
            assert sample["json"] == {"id": row["id"], "more": row["more"], "list": row["list"]}
            assert np.array_equal(sample["npy"], row["values"])


def nested_rows(start: int) -> Any:
    """Rows that LitData does not put into Arrow's format, as they have arrays."""
    import numpy as np

    for n in range(start, start + 10):
        mixed = [n, "x", None, {"q": [1.5]}]
        yield {
            "id": f"row-{n}",
            "values": np.arange(n + 2) / 2,
            "more": [{"a": n, "b": "\xe4"}],
            "list": mixed,
        }


def test_images_and_arrays_of_mosaicml(tmp_path: Path) -> None:
    program = (
        STAND_IN
        + """
import numpy as np
from PIL import Image
from streaming import MDSWriter
columns = {"id": "str", "scan": "jpeg", "values": "ndarray:float32:2,3", "any": "pkl"}
with MDSWriter(out="mds", columns=columns, compression="zstd:7", size_limit=1 << 14) as out:
    for n in range(30):
        picture = np.full((16, 24, 3), n, np.uint8)
        row = {"id": f"row-{n}", "scan": Image.fromarray(picture)}
        out.write(row | {"values": np.full((2, 3), n, np.float32), "any": {n}})
"""
    )
    subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=True, timeout=300,
    )  # fmt: skip
    with pytest.raises(ss.SourceError, match=r"column 'any' holds pickles.*--keep"):
        ss.pack(tmp_path / "mds", tmp_path / "refused", format="mds", workers=1)
    ss.pack(tmp_path / "mds", tmp_path / "packed", format="mds", key="id", keep=[], workers=1)
    found = {sample["__key__"]: sample for sample in ss.StreamingDataset(tmp_path / "packed")}
    assert len(found) == 30
    for n in range(30):
        sample = found[f"row-{n}"]
        assert sample["scan.jpg"].shape == (16, 24, 3)
        assert (sample["values.npy"] == n).all()
