"""The command line: what is there, what is in it, whether it is sound, and folders that others load."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import shardstream as ss
from shardstream.checkpoint.layout import MANIFEST
from shardstream.cli.app import run
from tests.checkpoint import jobs
from tests.checkpoint.models import trained
from tests.distributed import launch


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    found = str(tmp_path_factory.mktemp("checkpoints") / "run")
    saves = ss.Checkpoints(found)
    for step in (10, 20, 30):
        model, optim = trained(step)
        saves.save(step, {"model": model, "optim": optim, "lr": 0.5}, busy="wait")
    saves.wait()
    return found


def told(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    """What a command prints for machines."""
    capsys.readouterr()
    code = run(["checkpoint", *arguments, "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_list_and_show(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, found = told(capsys, url, "list")
    assert code == 0
    assert [each["step"] for each in found] == [10, 20, 30]
    _, shown = told(capsys, url, "show", "--step", "20")
    assert (shown["step"], shown["world"], shown["modules"]) == (20, 1, ["model"])
    assert shown["values"] == {"lr": 0.5}
    assert shown["tensors"]["model"]["BF16"] == 1
    assert run(["checkpoint", url]) == 0
    assert "  30  " in capsys.readouterr().out
    assert run(["checkpoint", url, "show"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("step 30, committed")
    assert "lr: 0.5" in out
    assert run(["checkpoint", url, "show", "--step", "7"]) == 1


def test_list_names_a_damaged_manifest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "step-7").mkdir()
    (tmp_path / "step-7" / MANIFEST).write_text("damaged")
    assert run(["checkpoint", str(tmp_path)]) == 0
    head, row = capsys.readouterr().out.splitlines()[:2]
    assert head.split()[-2:] == ["folder", "damage"]
    assert row[head.index("folder") :].split()[0].endswith("step-7")
    assert row[head.index("damage") :].strip()


def test_torch_is_not_needed(url: str) -> None:
    code = (
        "import sys; from shardstream.cli.app import run\n"
        f"assert run(['checkpoint', {url!r}, 'show']) == run(['checkpoint', {url!r}, 'verify']) == 0\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_verify_names_what_is_damaged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    url = str(tmp_path / "run")
    saves = ss.Checkpoints(url)
    for step in (1, 2):
        saves.save(step, {"w": torch.rand(100), "v": torch.rand(100)}, busy="wait")
    saves.wait()
    assert told(capsys, url, "verify", "--all") == (0, {"sound": True, "steps": {"1": [], "2": []}})
    path = next(Path(saves.folder(1)).glob("*.safetensors"))
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    code, found = told(capsys, url, "verify", "--step", "1")
    assert code == 1
    assert path.name in found["steps"]["1"][0]
    assert "tensors in them: v, w" in found["steps"]["1"][0]
    path.unlink()
    code, found = told(capsys, url, "verify", "--all")
    assert code == 1
    assert found["steps"]["2"] == []
    assert path.name in found["steps"]["1"][0]


@pytest.mark.parametrize("mode", ["plain", "fsdp"])
def test_export_joins_shards_into_what_others_load(
    tmp_path: Path, mode: str, capsys: pytest.CaptureFixture[str]
) -> None:
    url = str(tmp_path / "run")
    launch.run(jobs.save, 3 if mode == "fsdp" else 1, tmp_path / "job", url, mode, 4)
    dest = tmp_path / "exported"
    code, found = told(capsys, url, "export", str(dest), "--file-size", "1KiB")
    assert code == 0
    assert len(found["files"]) > 1
    index = json.loads((dest / "model.safetensors.index.json").read_text())
    loaded: dict[str, torch.Tensor] = {}
    for name in found["files"]:
        loaded |= load_file(dest / name)
    assert set(loaded) == set(index["weight_map"])
    model = jobs.Net()
    model.load_state_dict(loaded)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor.float(), jobs.values(name, tensor.shape))
    assert run(["checkpoint", url, "export", str(dest)]) == 2
    assert run(["checkpoint", url, "export", str(tmp_path / "x"), "--module", "ema"]) == 2


def test_prune(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    url = str(tmp_path / "run")
    saves = ss.Checkpoints(url)
    for step in (1, 2, 3):
        saves.save(step, {"w": torch.rand(10)}, busy="wait")
    saves.wait()
    assert told(capsys, url, "prune", "--keep", "2") == (0, {"steps": [1], "attempts": []})
    assert ss.Checkpoints(url).steps() == [2, 3]
    assert run(["checkpoint", url, "prune"]) == 2
    assert run(["checkpoint", url, "prune", "--keep", "0"]) == 2


@pytest.mark.parametrize(
    "arguments",
    [
        ["verify", "--step", "10", "--all"], ["show", "elsewhere"], ["list", "--step", "10"],
        ["show", "--all"], ["verify", "--keep", "2"], ["prune", "--keep", "2", "--module", "x"], ["export"],
        ["list", "--local", "x"],
    ],
)  # fmt: skip
def test_options_that_would_be_ignored_are_refused(
    url: str, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["checkpoint", url, *arguments]) == 2
    assert len(ss.Checkpoints(url).steps()) == 3
    assert "--" in capsys.readouterr().err or arguments[0] in ("show", "export")


def test_values_are_shown_as_people_write_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saves = ss.Checkpoints(str(tmp_path / "run"))
    saves.save(
        1, {"a": (1, "x", float("nan")), "b": {3: [b"ab", None]}, "c": {2}, "d": torch.float16, "e": 1 << 70}
    )
    saves.wait()
    assert run(["checkpoint", str(tmp_path / "run"), "show"]) == 0
    out = capsys.readouterr().out
    assert "$" not in out
    for text in (
        "a: (1, 'x', nan)",
        "b: {3: [2 bytes, None]}",
        "c: {2}",
        "d: float16",
        f"e: {1 << 70}",
        ", 1 rank",
    ):
        assert text in out
    assert run(["checkpoint", str(tmp_path / "run")]) == 0
    assert capsys.readouterr().out.endswith("\n1 checkpoint\n")
