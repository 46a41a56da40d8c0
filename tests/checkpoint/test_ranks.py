"""Several ranks save as one and load as one, whatever shards their tensors and however many they are."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

import shardstream as ss
from shardstream.checkpoint.layout import byte_size
from tests.checkpoint import jobs
from tests.distributed import launch

MODES = {
    1: ["ddp"], 2: ["fsdp", "tp", "ddp"], 3: ["fsdp", "tp"], 4: ["fsdp-tp", "hsdp", "fsdp"],
    8: ["fsdp-tp", "fsdp"],
}  # fmt: skip
PAIRS = [
    (2, "fsdp", 1, "ddp"), (2, "tp", 3, "fsdp"), (3, "fsdp", 4, "fsdp-tp"), (4, "fsdp-tp", 2, "ddp"),
]  # fmt: skip
ALL = [(a, m, b, n) for a, b in itertools.product(MODES, MODES) for m in MODES[a] for n in MODES[b]]
LONG = [pytest.param(*each, marks=pytest.mark.long) for each in ALL if each not in PAIRS]


@pytest.mark.parametrize(("before", "mode", "after", "other"), [*PAIRS, *LONG])
def test_any_number_of_ranks_loads_what_any_number_saved(
    tmp_path: Path, before: int, mode: str, after: int, other: str
) -> None:
    url = str(tmp_path / "run")
    assert launch.run(jobs.save, before, tmp_path / "save", url, mode, 5) == [True] * before
    found = launch.run(jobs.load, after, tmp_path / "load", url, other)
    assert found == [{"step": 5, "extra": {"n": 3}}] * after
    manifest = ss.Checkpoints(url).manifest(5)
    assert manifest.world == before
    # Nothing is stored twice.
    sizes = [byte_size(tensor.dtype, tensor.shape) for tensor in manifest.tensors.values()]
    assert manifest.bytes - sum(sizes) < 6000 * len(manifest.files)


def test_ranks_refuse_and_skip_together(tmp_path: Path) -> None:
    found = launch.run(jobs.disagreeing, 2, tmp_path / "job", str(tmp_path / "run"))
    assert found[0]["pickle"].startswith(
        f"StateError: {tmp_path}/run: rank 1 cannot save step 1: StateError: x: a"
    )
    assert found[1]["pickle"].startswith("StateError: x: a builtins.object")
    for key in ("step", "busy"):
        other = f"OptionError: {tmp_path}/run: rank 1 cannot save: OptionError: Checkpoints"
        assert found[0][key].startswith(other), found[0][key]
        assert found[1][key].startswith("OptionError: Checkpoints")
    for each in found:
        assert "rank 1 saves step 1, and rank 0 step 0" in each["steps"]
        assert each["values"].startswith("StateError: x/y differs between the ranks")
        assert each["tensors"].startswith("StateError: rng differs between the ranks")
        assert each["shapes"].startswith("StateError: x")
        assert (each["saved"], each["loaded"], each["own"]) == ("done", "done", "True")
        assert "step 1 is committed already" in each["again"]


def test_an_error_of_one_rank_is_raised_on_all(tmp_path: Path) -> None:
    found = launch.run(jobs.failing, 2, tmp_path / "job", str(tmp_path / "run"))
    assert not (tmp_path / "run" / "step-3").exists()
    for each in found:
        assert (each["first"], each["second"], each["fourth"]) == ("done", "done", "done")
        assert each["third"].startswith("StorageError"), each
        assert "a save has failed on rank" in each["third"]
        assert each["steps"] == "[1, 4]"


def test_a_rank_that_dies_in_mid_save_leaves_the_last_checkpoint(tmp_path: Path) -> None:
    url = str(tmp_path / "run")
    with launch.call(jobs.dying, 3, tmp_path / "job", url) as ranks:
        codes = ranks.wait()
    assert codes[2] == -9
    assert ss.Checkpoints(url).steps() == [1]
    assert [each["step"] for each in launch.run(jobs.resumed, 2, tmp_path / "again", url)] == [1, 1]


def test_all_ranks_load_the_same_step_if_one_finds_damage(tmp_path: Path) -> None:
    url = str(tmp_path / "run")
    launch.run(jobs.failing, 2, tmp_path / "job", url)
    path = next(Path(ss.Checkpoints(url).folder(4)).glob("state-00001-*.safetensors"))
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    found = launch.run(jobs.resumed, 2, tmp_path / "again", url, 4)
    assert [each["step"] for each in found] == [1, 1]
    assert all(each["skipped"][0][0] == 4 for each in found)
