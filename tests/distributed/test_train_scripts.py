"""The scripts of tools/train/: killed and continued, on meshes, with mixed precision, under torchrun."""

from __future__ import annotations

import importlib
import json
import os
import random
import re
import runpy
import sys
import types
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.distributed.run import get_args_parser

import shardstream as ss
from tests.distributed import launch
from tests.distributed.training import pack

TOOLS = Path(__file__).resolve().parents[2] / "tools" / "train"
BATCH, LENGTH = 8, 32
SMALL = ["--batch", str(BATCH), "--seq-len", str(LENGTH), "--width", "16", "--layers", "1"]


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack(tmp_path_factory.mktemp("tokens"), "tokens", documents=200)


def script(name: str, port: int, arguments: list[str]) -> None:
    """Run a script as torchrun does, in a process that has torch already."""
    assert launch._PLACE is not None
    rank, size, _ = launch._PLACE
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    sys.argv = [name, *arguments]
    sys.path.insert(0, str(TOOLS))
    runpy.run_path(str(TOOLS / name), run_name="__main__")


def start(name: str, size: int, url: Path, out: Path, steps: int, *options: str) -> launch.Ranks:
    """A job of a script; fp32, since CPUs without bfloat16 are slow in it."""
    arguments = ["--data", str(url), "--out", str(out), "--steps", str(steps), *SMALL]
    arguments += ["--precision", "fp32", *options]
    return launch.call(script, size, out / "ranks", name, launch._free_port(), arguments)


def finished(name: str, size: int, url: Path, out: Path, steps: int, *options: str) -> list[Any]:
    """The log of a job that has run to its end."""
    with start(name, size, url, out, steps, *options) as ranks:
        ranks.results()
    return log(out)


def log(out: Path) -> list[Any]:
    """The lines of a log that are whole."""
    path = out / "log.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def curve(rows: list[Any]) -> list[Any]:
    """What must be the same whenever a run was killed."""
    return [(row["step"], row["loss"], row["batches"]) for row in rows]


def expected(url: Path, steps: int, size: int) -> list[list[int]]:
    """What `fingerprint` says of each step's batch on each of `size` data-parallel ranks."""
    ranks = []
    for rank in range(size):
        ds = ss.TokenDataset(url, LENGTH, shuffle=ss.Shuffle(seed=0), topology=ss.Topology(rank, size))
        loader = ss.StreamingLoader(ds, BATCH // size)
        found: list[int] = []
        while len(found) < steps:
            found += [zlib.crc32(batch["tokens"].numpy()) for batch in loader]
        ranks.append(found[:steps])
    return [list(row) for row in zip(*ranks, strict=True)]


def killed(url: Path, out: Path, steps: int, kills: int, seed: int) -> int:
    """Kill a rank at random moments, each time continued; how many kills it took to the last."""
    numbers = random.Random(seed)

    def place() -> int | None:
        # Each start makes the log anew, without the steps after its checkpoint.
        path = out / "log.jsonl"
        return path.stat().st_ino if path.exists() else None

    for number in range(kills):
        before = place()
        with start("ddp.py", 2, url, out, steps, "--save-every", "3") as ranks:
            # Mostly some steps after what is saved; now and then at any moment of the start.
            saved = max((int(path.parent.name[5:]) for path in out.glob("step-*/manifest.json")), default=0)
            reach = saved + numbers.randrange(1, 9)
            if numbers.random() < 0.8:

                def reached(before: int | None = before, reach: int = min(reach, steps)) -> bool:
                    return place() != before and len(log(out)) >= reach

                assert launch.ended(reached, 60), ranks.logs()
            launch.ended(lambda: False, numbers.random() * 0.05)
            ranks.kill(numbers.randrange(2))
            codes = ranks.wait()
            if codes == [0, 0]:
                return number  # it was at its end
            assert -9 in codes, ranks.logs()
    return kills


def test_killed_and_continued_is_the_same_run_bit_for_bit(tokens: Path, tmp_path: Path) -> None:
    steps = 18
    whole = finished("ddp.py", 2, tokens, tmp_path / "whole", steps)
    assert killed(tokens, tmp_path / "killed", steps, kills=2, seed=1) == 2
    again = finished("ddp.py", 2, tokens, tmp_path / "killed", steps, "--save-every", "3")
    assert curve(again) == curve(whole)
    assert [row["batches"] for row in whole] == expected(tokens, steps, 2)
    assert whole[-1]["loss"] < whole[0]["loss"]
    # Old checkpoints go, the log has each step once.
    assert len(list((tmp_path / "killed").glob("step-*/manifest.json"))) == 2


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_a_hundred_kills(tokens: Path, tmp_path: Path) -> None:
    steps = 1000
    whole = finished("ddp.py", 2, tokens, tmp_path / "whole", steps)
    done = killed(tokens, tmp_path / "killed", steps, kills=int(os.environ.get("KILLS", "100")), seed=2)
    again = finished("ddp.py", 2, tokens, tmp_path / "killed", steps, "--save-every", "3")
    print(f"{done} kills")
    assert done == int(os.environ.get("KILLS", "100"))
    assert curve(again) == curve(whole)
    assert [row["batches"] for row in whole] == expected(tokens, steps, 2)


def test_a_mesh_shares_batches_and_goes_on_with_another_world(tokens: Path, tmp_path: Path) -> None:
    whole = finished("tp.py", 4, tokens, tmp_path / "whole", 9)
    mine = expected(tokens, 9, 2)
    # The ranks of a row have one batch, the rows have each their own.
    assert [row["batches"] for row in whole] == [[a, a, b, b] for a, b in mine]
    assert all(a != b for a, b in mine)

    # One rank of a row reads: the very same run. Then with half of the processes, and one row.
    first = finished("tp.py", 4, tokens, tmp_path / "part", 6, "--broadcast")
    assert curve(first) == curve(whole[:6])
    rest = finished("tp.py", 2, tokens, tmp_path / "part", 9, "--broadcast")
    assert [row["batches"] for row in rest[6:]] == [[a, a] for (a,) in expected(tokens, 9, 1)[6:]]
    # Sums are taken in another order, of the same samples.
    np.testing.assert_allclose([row["loss"] for row in rest], [row["loss"] for row in whole], rtol=1e-4)
    assert curve(rest[:6]) == curve(first)


def test_mixed_precision_learns_much_the_same(tokens: Path, tmp_path: Path) -> None:
    plain = finished("ddp.py", 2, tokens, tmp_path / "fp32", 6)
    for precision in ("bf16", "fp16"):
        options = ["--precision", precision, "--plot", str(tmp_path / "plot.png")]
        mixed = finished("ddp.py", 2, tokens, tmp_path / precision, 6, *options)
        assert [row["batches"] for row in mixed] == [row["batches"] for row in plain]
        losses = [[row["loss"] for row in rows] for rows in (mixed, plain)]
        np.testing.assert_allclose(*losses, rtol=0.02)
        assert losses[0] != losses[1]
    with Image.open(tmp_path / "plot.png") as picture:
        assert picture.size == (640, 400)


def test_torchrun_leaves_the_options_to_the_scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    # torchrun takes what it could mean by an abbreviation, also behind the script's name.
    monkeypatch.syspath_prepend(str(TOOLS))
    parsers = importlib.import_module("loop")
    own = [*parsers.arguments("")._actions, *parsers.token_arguments("")._actions]
    mine = [*(name for action in own for name in action.option_strings), "--tp", "--broadcast"]
    mine += ["--test", "--decoder", "--image", "--size", "--classes"]
    mine = [name for name in mine if name not in ("-h", "--help")]
    parsed = get_args_parser().parse_args(["--standalone", "--nproc-per-node", "2", "ddp.py", *mine])
    assert parsed.training_script_args == mine


def test_dali_is_chosen_where_it_can_decode_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(TOOLS))
    chosen = importlib.import_module("vision").chosen
    package, module = types.ModuleType("nvidia"), types.ModuleType("nvidia.dali")
    monkeypatch.setitem(sys.modules, "nvidia", package)
    for gpu, there, found in ((True, module, "dali"), (True, None, "cpu"), (False, module, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda gpu=gpu: gpu)
        monkeypatch.setitem(sys.modules, "nvidia.dali", there)
        assert chosen("auto") == found
        assert chosen("cpu") == "cpu"


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for number in range(36):
        path = folder / "images" / f"class-{number % 2}" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        # One class is bright, the other dark.
        pixels = rng.integers(0, 128, (40 + number, 60, 3)) + 127 * (number % 2)
        Image.fromarray(pixels.astype(np.uint8)).save(path)
    ss.pack(folder / "images", folder / "packed", format="images", workers=1)
    return folder / "packed"


def vision(url: Path, out: Path, size: int, steps: int, *options: str) -> tuple[list[Any], str]:
    """The log of a job of the script, and what rank 0 printed."""
    arguments = ["--data", str(url), "--out", str(out), "--steps", str(steps), "--batch", "8"]
    arguments += ["--size", "16", "--classes", "2", *options]
    launch.run(script, size, out / "ranks", "vision.py", launch._free_port(), arguments)
    return log(out), (out / "ranks" / "rank-0.log").read_text()


@pytest.mark.parametrize("decoder", ["cpu", "dali"])
def test_images(photos: Path, tmp_path: Path, decoder: str) -> None:
    if decoder == "dali":
        pytest.importorskip("nvidia.dali", reason="nvidia-dali is an extra of several hundred MB")
    options = ["--decoder", decoder, "--precision", "bf16", "--lr", "0.02"]
    whole, told = vision(photos, tmp_path / "whole", 2, 12, *options, "--test", str(photos))
    assert "images/s, stall" in told
    assert whole[-1]["loss"] < whole[0]["loss"]
    # Every image is tested once: the last batch, of four, is padded for it.
    right = re.search(r"(\d+) of 36 test images right", told)
    assert right is not None
    assert int(right[1]) >= 30
    # The order is that of the bytes, whoever decodes; epochs of four steps, their last four images dropped.
    ranks = []
    for rank in range(2):
        ds = ss.StreamingDataset(
            photos, shuffle=ss.Shuffle(seed=0), topology=ss.Topology(rank, 2), decode=False
        )
        loader = ss.StreamingLoader(ds, 4)
        keys = [batch["__key__"] for _ in range(3) for batch in loader]
        ranks.append([zlib.crc32("\n".join(names).encode()) for names in keys])
    assert [row["batches"] for row in whole] == [list(row) for row in zip(*ranks, strict=True)]

    # Continued in the middle of the second epoch: the same crops, so the same losses.
    first, _ = vision(photos, tmp_path / "part", 2, 6, *options)
    again, told = vision(photos, tmp_path / "part", 2, 12, *options)
    assert "resumed at step 6" in told
    assert curve(first) == curve(whole[:6])
    assert curve(again) == curve(whole)
