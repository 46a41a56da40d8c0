"""What is kept, and what is not forgotten: steps after going back, damage, other folders, odd states."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import shardstream as ss
from shardstream.checkpoint.retention import Run, prune, sweep
from shardstream.cli.app import run


def saved(folder: Path, *steps: int, **options: Any) -> ss.Checkpoints:
    saves = ss.Checkpoints(str(folder), **options)
    for step in steps:
        assert saves.save(step, {"x": torch.full((100,), step)}, busy="wait")
    assert saves.wait()
    return saves


def damage(saves: ss.Checkpoints, step: int) -> None:
    file = next(Path(saves.folder(step)).glob("*.safetensors"))
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


def test_a_job_that_went_back_keeps_what_it_saves(tmp_path: Path) -> None:
    saved(tmp_path, 500, 700, 800, 900)
    saves = ss.Checkpoints(str(tmp_path), keep=2)
    assert saves.load({"x": torch.zeros(100, dtype=torch.int64)}, step=500) == 500
    for step in (550, 560):
        assert saves.save(step, {"x": torch.ones(3)}, busy="wait")
    assert saves.wait()
    assert saves.steps() == [550, 560, 700, 800, 900]


def test_a_step_that_was_found_damaged_is_saved_again(tmp_path: Path) -> None:
    damage(saved(tmp_path, 100, 200), 200)
    saves = ss.Checkpoints(str(tmp_path))
    state = {"x": torch.zeros(100, dtype=torch.int64)}
    with pytest.warns(RuntimeWarning, match="step 200 is skipped"):
        assert saves.load(state) == 100
    before = saves.manifest(200)
    with pytest.raises(ss.StateError, match="x: a"):
        saves.save(200, {"x": object()})
    assert saves.manifest(200) == before  # it makes room for a new one alone
    assert saves.save(200, {"x": torch.full((100,), 7)})
    assert saves.wait()
    assert sorted(path.name for path in (tmp_path / "step-200").iterdir()) == sorted(
        ["manifest.json", saves.manifest(200).attempt]
    )
    assert ss.Checkpoints(str(tmp_path)).load(state) == 200
    assert state["x"].eq(7).all()
    for step in (100, 200):  # 200 is sound now
        with pytest.raises(ss.StateError, match="committed already"):
            saves.save(step, state)


def test_a_damaged_step_that_another_job_has_saved_again_stays(tmp_path: Path) -> None:
    damage(saved(tmp_path, 100, 200), 200)
    jobs = [ss.Checkpoints(str(tmp_path)) for _ in range(2)]
    state = {"x": torch.zeros(100, dtype=torch.int64)}
    for job in jobs:
        with pytest.warns(RuntimeWarning, match="step 200 is skipped"):
            job.load(state)
    assert jobs[0].save(200, {"x": torch.full((100,), 7)})
    assert jobs[0].wait()
    jobs[1].save(200, {"x": torch.full((100,), 8)})
    with pytest.raises(ss.StateError, match="committed already"):
        jobs[1].wait()
    assert jobs[0].load(state) == 200
    assert state["x"].eq(7).all()


def test_a_manifest_that_is_gone_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saves = saved(tmp_path, 100)
    manifest = tmp_path / "step-100" / "manifest.json"
    kept = manifest.read_bytes()
    monkeypatch.setattr("shardstream.checkpoint.loading.read_manifest", lambda _: None)
    with pytest.raises(ss.CorruptionError, match="no longer there"):
        saves.load({"x": torch.zeros(100, dtype=torch.int64)}, step=100)
    with pytest.raises(ss.StateError, match="committed already"):
        saves.save(100, {"x": 1})
    assert manifest.read_bytes() == kept


def test_damaged_manifests_do_not_count_among_those_that_stay(tmp_path: Path) -> None:
    saved(tmp_path, 5, 6)
    (tmp_path / "step-6" / "manifest.json").write_bytes(b"{")
    assert prune(Run(str(tmp_path)), 1) == []
    assert run(["checkpoint", str(tmp_path), "prune", "--keep", "1"]) == 0
    assert (tmp_path / "step-5" / "manifest.json").exists()


def test_a_local_disk_with_checkpoints_of_another_job(tmp_path: Path) -> None:
    before = saved(tmp_path / "disk", 1, 2, 3, 900)
    saved(tmp_path / "store", 6, 7, 8, local=str(tmp_path / "disk"))
    state = {"x": torch.zeros(100, dtype=torch.int64)}
    for step in (1, 2, 3, 900):
        assert before.load(state, step=step) == step
    with pytest.raises(ss.OptionError, match="the folder of the checkpoints itself"):
        ss.Checkpoints(str(tmp_path / "store"), local=str(tmp_path / "disk" / ".." / "store"))


def test_folders_of_users_stay(tmp_path: Path) -> None:
    saved(tmp_path, 1)
    mine = tmp_path / "step-1" / "hf"
    (mine / "deeper").mkdir(parents=True)
    (mine / "config.json").write_text("{}")
    for now in (0.0, 1e6, 2e6):
        assert sweep(Run(str(tmp_path)), now=now) == []
    assert (mine / "config.json").exists()


def test_the_working_directory_may_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    saves = ss.Checkpoints("run")
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert saves.save(1, {"x": torch.ones(3)})
    assert saves.wait()
    assert saves.steps() == [1]
    assert (tmp_path / "run" / "step-1" / "manifest.json").exists()


def test_objects_in_tuples_are_filled(tmp_path: Path) -> None:
    model = torch.nn.Linear(3, 3)
    optim = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optim.step()
    saves = ss.Checkpoints(str(tmp_path))
    assert saves.save(1, {"model": model, "pair": (optim, 5)})
    assert saves.wait()
    fresh = torch.nn.Linear(3, 3)
    new = torch.optim.AdamW(fresh.parameters())
    state = {"model": fresh, "pair": (new, 0)}
    assert saves.load(state) == 1
    assert state["pair"] == (new, 5)
    assert len(new.state) == 2


@pytest.mark.parametrize("wrap", [lambda optim: {"a": 1, "o": optim}, lambda optim: [1, optim]])
def test_an_object_for_which_nothing_was_saved_is_named(tmp_path: Path, wrap: Any) -> None:
    model = torch.nn.Linear(3, 3)
    saves = ss.Checkpoints(str(tmp_path))
    assert saves.save(1, {"rest": {"a": 1} if isinstance(wrap(0), dict) else [1]})
    assert saves.wait()
    with pytest.raises(ss.StateError, match="for which the checkpoint has nothing"):
        saves.load({"rest": wrap(torch.optim.SGD(model.parameters()))})


def test_a_buffer_that_is_persistent_under_one_name_alone(tmp_path: Path) -> None:
    class Shared(torch.nn.Module):
        def __init__(self, value: float) -> None:
            super().__init__()
            self.a, self.b = torch.nn.Module(), torch.nn.Module()
            buffer = torch.full((3,), value)
            self.a.register_buffer("f", buffer, persistent=False)
            self.b.register_buffer("f", buffer)

    saves = ss.Checkpoints(str(tmp_path))
    assert saves.save(1, {"model": Shared(2.0)})
    assert saves.wait()
    fresh = Shared(0.0)
    assert saves.load({"model": fresh}) == 1
    assert fresh.b.f.eq(2).all()


@pytest.mark.parametrize("value", [{torch.ones(2)}, {b"q" * 5000}])
def test_sets_of_what_lies_in_files_are_refused(tmp_path: Path, value: object) -> None:
    with pytest.raises(ss.StateError, match="x: a set of tensors, arrays or long bytes"):
        ss.Checkpoints(str(tmp_path)).save(1, {"x": value})


def test_verify_of_all_of_nothing_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["checkpoint", str(tmp_path), "verify", "--all"]) == 1
    assert "no checkpoint is committed here" in capsys.readouterr().err


def test_what_killed_writers_leave_is_swept_after_a_day(tmp_path: Path) -> None:
    saves = saved(tmp_path, 1)
    dead = tmp_path / "step-2" / ("dead" * 4)
    dead.mkdir(parents=True)
    left = [tmp_path, tmp_path / "step-1", Path(saves.folder(1)), dead]
    files = [folder / ".tmp-0123456789abcdef" for folder in left] + [tmp_path / ".probe-0123456789abcdef"]
    for file in files:
        file.write_bytes(b"x")
    now = files[0].stat().st_mtime
    day = 24 * 3600
    for time in (now, now + day - 10):
        assert sweep(Run(str(tmp_path)), now=time) == []
        assert all(file.exists() for file in files)
    assert sweep(Run(str(tmp_path)), now=now + day + 10) == [f"step-2/{dead.name}"]
    assert not any(file.exists() for file in files)
    assert not dead.exists()
    assert saves.load({"x": torch.zeros(100, dtype=torch.int64)}) == 1
