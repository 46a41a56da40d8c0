"""shardstream weights"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    save_file(
        {"w": torch.ones(3, 4), "b": torch.ones(2).bfloat16()}, folder / "model.safetensors", {"format": "pt"}
    )
    return folder


def test_info(model: Path, run: Run) -> None:
    code, out, _ = run("weights", model, "--tensors")
    assert code == 0
    for part in ("2 tensors, 52 B", "F32: 48 B", "without checksums", "w       F32    3 x 4"):
        assert part in out
    facts = json.loads(run("weights", model, "info", "--json")[1])
    assert (facts["bytes"], facts["metadata"], facts["index"]) == (52, {"format": "pt"}, None)
    assert [each["name"] for each in facts["tensors"]] == ["w", "b"]


def test_fetch(model: Path, tmp_path: Path, run: Run) -> None:
    code, out, _ = run("weights", model, "fetch", "--cache", tmp_path / "cache")
    assert code == 0
    assert (Path(out.strip()) / "model.safetensors").exists()
    assert (
        json.loads(run("weights", model, "fetch", "--cache", tmp_path / "cache", "--json")[1])["path"]
        == out.strip()
    )


def test_verify(model: Path, run: Run) -> None:
    code, out, _ = run("weights", model, "verify", "--record")
    assert code == 0
    assert "0 of 1 file verified by checksums" in out
    assert run("weights", model, "verify")[1].count("1 of 1 file verified by checksums") == 1
    facts = json.loads(run("weights", model, "verify", "--json")[1])
    assert (len(facts["checked"]), facts["unchecked"]) == (1, [])
    data = bytearray((model / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (model / "model.safetensors").write_bytes(data)
    code, _, errors = run("weights", model, "verify")
    assert code == 1
    assert "damaged" in errors


@pytest.mark.parametrize(
    "arguments",
    [("fetch",), ("info", "--cache", "x"), ("verify", "--tensors"), ("info", "--record"), ("nonsense",)],
)
def test_wrong_usage(model: Path, run: Run, arguments: tuple[str, ...]) -> None:
    assert run("weights", model, *arguments)[0] == 2


def test_it_needs_no_torch(model: Path, tmp_path: Path) -> None:
    program = (
        "import sys; sys.modules['torch'] = None\n"
        "from shardstream.cli.app import run\n"
        "calls = ['info'], ['verify'], ['fetch', '--cache', sys.argv[2]]\n"
        "codes = [run(['weights', sys.argv[1], *more]) for more in calls]\n"
        "assert codes == [0, 0, 0], codes\n"
    )
    arguments = [sys.executable, "-c", program, str(model), str(tmp_path / "cache")]
    subprocess.run(arguments, check=True, timeout=60)
