"""The pages of docs/moving run with the libraries that they lead away from, and lose nothing."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

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
