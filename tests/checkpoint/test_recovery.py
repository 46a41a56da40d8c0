"""What a job that was killed has left on local disks: the next one commits it, or leaves and deletes it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import shardstream as ss
from shardstream.checkpoint.holds import Hold
from shardstream.checkpoint.ranks import Ranks
from shardstream.checkpoint.recovery import recover
from shardstream.cli.app import run
from shardstream.errors import StorageError
from tests.checkpoint import jobs
from tests.distributed import launch


def left(tmp_path: Path, step: int, value: float = 1.0, name: str = "run") -> ss.Checkpoints:
    """A step that is whole on the local disk alone, since the store has failed while it was sent."""
    blocked = tmp_path / name / f"step-{step}"
    blocked.parent.mkdir(exist_ok=True)
    blocked.write_text("a file where a folder should be")
    saves = ss.Checkpoints(str(tmp_path / name), local=str(tmp_path / "local"))
    assert saves.save(step, {"x": torch.full((1000,), value)})
    with pytest.raises(StorageError):
        saves.wait()
    blocked.unlink()
    return saves


def again(tmp_path: Path, name: str = "run") -> ss.Checkpoints:
    return ss.Checkpoints(str(tmp_path / name), local=str(tmp_path / "local"))


def loaded(saves: ss.Checkpoints) -> tuple[int | None, float]:
    state = {"x": torch.zeros(1000)}
    return saves.load(state), float(state["x"][0])


def attempts(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "local").glob("*/step-*/*"))


def die(tmp_path: Path, weed: Any, proxy: Any, size: int, local: str) -> tuple[str, dict[str, Any]]:
    """Ranks that are killed when step 2 is on their disks, and nothing of it in the store."""
    url, options = f"{weed.bucket()}/run", weed.options(proxy.url)
    ready = [Path(f"{local.format(rank='')}-ready-{rank}") for rank in range(size)]
    with launch.call(jobs.killed, size, tmp_path / "job", url, local, options, [1, 2]) as ranks:
        limit = time.monotonic() + 60
        while not all(path.exists() for path in ready):
            assert time.monotonic() < limit, ranks.logs()
            time.sleep(0.02)
        proxy.set(dead=True, only=lambda method, path: method == "PUT" and "step-2" in path)
        Path(f"{local.format(rank='')}-go").touch()
        assert -signal.SIGKILL in ranks.wait(), ranks.logs()
    proxy.set()
    assert ss.Checkpoints(url, storage_options=weed.options()).steps() == [1]
    return url, weed.options()


@pytest.mark.parametrize("size", [1, 3])
def test_ranks_that_were_killed_before_they_sent_are_finished_by_any_number(
    tmp_path: Path, weed: Any, proxy_to: Callable[..., Any], size: int
) -> None:
    local = str(tmp_path / "disk")
    url, options = die(tmp_path, weed, proxy_to(weed), 2, local)
    found = launch.run(jobs.goes_on, size, tmp_path / "again", url, local, options)
    assert found == [{"step": 2, "steps": [1, 2], "own": rank if rank < 2 else None} for rank in range(size)]
    assert not list(tmp_path.glob("disk/*/*/*/pending.json"))


@pytest.mark.parametrize(
    ("lost", "step"),
    [
        (1, None), (1, 2), pytest.param(0, None, marks=pytest.mark.long),
        pytest.param(None, 2, marks=pytest.mark.long),
    ],
)  # fmt: skip
def test_without_the_disk_of_another_machine_it_is_left_and_can_be_saved_again(
    tmp_path: Path, weed: Any, proxy_to: Callable[..., Any], lost: int | None, step: int | None
) -> None:
    local = str(tmp_path / "disk{rank}")
    url, options = die(tmp_path, weed, proxy_to(weed), 2, local)
    before = {path.name for path in tmp_path.glob("disk*/*/step-2/*")}
    if lost is not None:
        shutil.rmtree(local.format(rank=lost))
    found = launch.run(jobs.goes_on, 2, tmp_path / "again", url, local, options, step)
    steps = [1] if step is None else [1, 2]
    assert [(each["step"], each["steps"]) for each in found] == [(steps[-1], steps)] * 2
    assert len(before) == 1
    assert not before & {path.name for path in tmp_path.glob("disk*/*/step-2/*")}


def test_the_next_load_and_the_next_save_finish_what_is_left(tmp_path: Path) -> None:
    left(tmp_path, 5)
    assert loaded(again(tmp_path)) == (5, 1.0)
    left(tmp_path, 6, 2.0)
    saves = again(tmp_path)
    assert saves.save(7, {"x": torch.full((1000,), 3.0)})
    assert saves.wait()
    assert saves.steps() == [5, 6, 7]
    same = left(tmp_path, 8, 4.0)  # and the job that goes on
    assert loaded(same) == (8, 4.0)
    with pytest.raises(ss.StateError, match="step 8 is committed already"):
        same.save(8, {"x": 1})


def test_a_step_that_is_left_can_be_saved_again(tmp_path: Path) -> None:
    same = left(tmp_path, 5)
    assert same.save(5, {"x": torch.full((1000,), 2.0)})
    assert same.wait()
    left(tmp_path, 6)
    saves = again(tmp_path)
    assert saves.save(6, {"x": torch.full((1000,), 3.0)})
    assert saves.wait()
    with pytest.raises(ss.StateError, match="step 6 is committed already"):
        saves.save(6, {"x": 1})
    assert loaded(again(tmp_path)) == (6, 3.0)
    assert len(attempts(tmp_path)) == 2


def test_what_is_not_whole_or_damaged_is_deleted_and_said(tmp_path: Path, caplog: Any) -> None:
    left(tmp_path, 5)
    (file,) = (tmp_path / "local").glob("*/step-5/*/*.safetensors")
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    assert again(tmp_path).load({"x": 0}) is None
    assert "its bytes are not those that were written" in caplog.text
    left(tmp_path, 6)
    (file,) = (tmp_path / "local").glob("*/step-6/*/rank-00000.json")
    file.write_bytes(file.read_bytes()[:-9])
    assert again(tmp_path).load({"x": 0}) is None
    assert attempts(tmp_path) == []
    assert "the parts of ranks [0] are neither here nor in the store" in caplog.text


def test_a_store_that_still_fails_loses_nothing(tmp_path: Path) -> None:
    left(tmp_path, 5)
    (tmp_path / "run" / "step-5").write_text("a file where a folder should be")
    with pytest.raises(StorageError):
        again(tmp_path).load({"x": 0})
    (tmp_path / "run" / "step-5").unlink()
    assert loaded(again(tmp_path)) == (5, 1.0)


def test_runs_with_one_local_folder_do_not_meet(tmp_path: Path) -> None:
    left(tmp_path, 5, 1.0, "run1")
    left(tmp_path, 5, 2.0, "run2")
    assert again(tmp_path, "run3").load({"x": 0}) is None
    assert loaded(again(tmp_path, "run2")) == (5, 2.0)
    assert loaded(again(tmp_path, "run1")) == (5, 1.0)
    assert len(attempts(tmp_path)) == 2


def test_what_a_living_process_writes_is_left_alone(
    tmp_path: Path, weed: Any, proxy_to: Callable[..., Any]
) -> None:
    proxy = proxy_to(weed)
    url, local = f"{weed.bucket()}/run", str(tmp_path / "local")
    timeouts = {"connect": 1.0, "read": 1.0, "slowest": "64MiB"}
    options = weed.options(proxy.url) | {"timeouts": timeouts, "retry": {"attempts": 50, "pause": 0.1}}
    saves = ss.Checkpoints(url, local=local, storage_options=options)
    proxy.set(dead=True, only=lambda method, path: method == "PUT" and "state-" in path)
    assert saves.save(1, {"x": torch.ones(1000)})
    assert saves._saver.flight is not None
    assert saves._saver.flight.writer.stored(30)
    other = ss.Checkpoints(url, local=local, storage_options=weed.options())
    assert other.load({"x": 0}) is None
    assert len(attempts(tmp_path)) == 1
    proxy.set()
    assert saves.wait()
    assert loaded(other) == (1, 1.0)


def test_a_store_that_is_away_does_not_fill_the_disk(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    saves = ss.Checkpoints(str(tmp_path / "run"), local=str(tmp_path / "local"), keep=3, errors="warn")
    for step in range(8):
        (tmp_path / "run" / f"step-{step}").write_text("a file where a folder should be")
    for step in range(8):
        assert saves.save(step, {"x": torch.full((1000,), step)})
        with pytest.warns(RuntimeWarning, match="a save has failed"):
            assert not saves.wait()
    assert [path.parent.name for path in attempts(tmp_path)] == ["step-5", "step-6", "step-7"]
    for step in range(8):
        (tmp_path / "run" / f"step-{step}").unlink()
    assert loaded(again(tmp_path)) == (7, 7.0)
    assert again(tmp_path).steps() == [5, 6, 7]


def test_the_command_sends_what_is_left(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    left(tmp_path, 5)
    url, local = str(tmp_path / "run"), str(tmp_path / "local")

    def told() -> Any:
        capsys.readouterr()
        assert run(["checkpoint", url, "upload", "--local", local, "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    found = told()
    assert [(each["step"], each["committed"]) for each in found] == [(5, True)]
    assert told() == []
    assert loaded(again(tmp_path)) == (5, 1.0)
    assert run(["checkpoint", url, "upload", "--local", local]) == 0
    assert "nothing is left to upload" in capsys.readouterr().out
    assert run(["checkpoint", url, "upload"]) == 2


def test_the_command_sends_the_parts_of_machines_in_turn(
    tmp_path: Path, weed: Any, proxy_to: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    local = str(tmp_path / "disk{rank}")
    url, options = die(tmp_path, weed, proxy_to(weed), 2, local)
    given = [
        word for key, value in options.items() for word in ("--storage-option", f"{key}={json.dumps(value)}")
    ]
    for rank, text in ((0, "the parts of ranks [1] are neither here"), (1, "step 2 is committed")):
        disk = local.format(rank=rank)
        assert run(["checkpoint", url, "upload", "--local", disk, *given]) == (1 if rank == 0 else 0)
        assert text in capsys.readouterr().out
    assert ss.Checkpoints(url, storage_options=options).steps() == [1, 2]


def test_a_damaged_leftover_in_the_store_is_repaired_or_ends_alone(tmp_path: Path, caplog: Any) -> None:
    left(tmp_path, 5)
    (copy,) = (tmp_path / "local").glob("*/step-5/*")
    there = tmp_path / "run" / "step-5" / copy.name
    shutil.copytree(copy, there)
    (file,) = there.glob("*.safetensors")
    file.write_bytes(b"short")
    (there / "pending.json").write_bytes(b"{")
    assert loaded(again(tmp_path)) == (5, 1.0)  # from the disk
    left(tmp_path, 6)
    (copy,) = (tmp_path / "local").glob("*/step-6/*")
    there = tmp_path / "run" / "step-6" / copy.name
    shutil.copytree(copy, there)
    (copy / "rank-00000.json").unlink()  # so that it cannot be sent again
    (file,) = there.glob("*.safetensors")
    file.write_bytes(b"short")
    assert loaded(again(tmp_path)) == (5, 1.0)
    assert "has 5 bytes" in caplog.text
    left(tmp_path, 7)
    (copy,) = (tmp_path / "local").glob("*/step-7/*")
    there = tmp_path / "run" / "step-7" / copy.name
    shutil.copytree(copy, there)
    (copy / "pending.json").unlink()
    (there / "pending.json").write_bytes(b"{")
    assert loaded(again(tmp_path)) == (5, 1.0)


def test_beside_an_unreadable_manifest_all_stays(tmp_path: Path) -> None:
    left(tmp_path, 5)
    (tmp_path / "run" / "step-5").mkdir()
    manifest = tmp_path / "run" / "step-5" / "manifest.json"
    manifest.write_bytes(b"{")
    with pytest.raises(ss.CorruptionError), pytest.warns(RuntimeWarning, match="step 5 is skipped"):
        again(tmp_path).load({"x": 0})
    manifest.unlink()
    assert loaded(again(tmp_path)) == (5, 1.0)


def test_ranks_keep_what_a_process_on_another_machine_still_writes(tmp_path: Path) -> None:
    left(tmp_path, 5)
    saves = again(tmp_path)
    assert saves._local is not None
    (copy,) = attempts(tmp_path)
    key = (5, copy.name)

    class Two(Ranks):
        """Another rank, whose machine has the attempt still in use."""

        def gather(self, value: Any) -> list[Any]:
            (failure, result) = value
            first = isinstance(result, tuple)
            return [value, (failure, ([], {key}) if first else result)]

    assert recover(saves._run, saves._local, Two(), lambda: True) == []
    assert attempts(tmp_path) == [copy]
    hold = Hold.shared(str(copy))
    assert Hold.alone(str(copy)) is None
    assert Hold.is_written(str(copy))
    hold.release()
    assert loaded(again(tmp_path)) == (5, 1.0)


def test_a_new_save_that_fails_does_not_cost_the_whole_copy_of_its_step(tmp_path: Path) -> None:
    left(tmp_path, 5)
    with pytest.raises(ss.StateError):
        again(tmp_path).save(5, {"x": object()})
    assert loaded(again(tmp_path)) == (5, 1.0)


@pytest.mark.parametrize("newer", [0, 1])
def test_of_two_whole_attempts_of_a_step_the_newest_is_committed(tmp_path: Path, newer: int) -> None:
    names: list[str] = []
    for value in (0.0, 1.0):
        left(tmp_path, 5, value)
        (copy,) = attempts(tmp_path)
        names.append(str(copy.rename(tmp_path / f"{value:.0f}-{copy.name}")))
    for number, name in enumerate(names):
        target = tmp_path / "local"
        (folder,) = target.glob("*")
        (folder / "step-5").mkdir(exist_ok=True)
        moved = Path(name).rename(folder / "step-5" / Path(name).name[2:])
        for file in moved.iterdir():
            os.utime(file, (1e9 + (number == newer),) * 2)
    assert loaded(again(tmp_path)) == (5, float(newer))


def test_a_step_that_was_deleted_in_the_store_is_not_committed_again(tmp_path: Path) -> None:
    left(tmp_path, 5)
    (copy,) = attempts(tmp_path)
    shutil.copytree(copy, tmp_path / "aside")
    saves = again(tmp_path)
    assert saves.save(6, {"x": torch.full((1000,), 2.0)})
    assert saves.wait()
    shutil.rmtree(tmp_path / "run" / "step-5")
    shutil.copytree(tmp_path / "aside", copy, dirs_exist_ok=True)
    other = again(tmp_path)
    assert loaded(other) == (6, 2.0)
    assert other.steps() == [6]
    assert copy.exists()
