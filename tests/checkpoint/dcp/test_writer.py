"""`ss.dcp.Writer` and `ss.dcp.Reader` in one process: what is saved is loaded, at once and behind."""

from __future__ import annotations

import gc
import os
import pickle
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.staging import AsyncStager

import shardstream as ss
from shardstream.checkpoint.commit import read_manifest
from shardstream.storage.store import Store
from tests.checkpoint.dcp.states import assert_equal, emptied, odd_state, tensors_of

# torch warns of one process.
pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is:UserWarning")


def save(url: Any, state: dict[str, Any], writer: Any = None, **options: Any) -> None:
    dcp.save(state, storage_writer=writer or ss.dcp.Writer(url), no_dist=True, **options)


def load(url: Any, state: dict[str, Any], planner: Any = None, **options: Any) -> dict[str, Any]:
    found = emptied(state)
    dcp.load(found, storage_reader=ss.dcp.Reader(url, **options), planner=planner, no_dist=True)
    return found


def failure(call: Any) -> BaseException:
    """What a rank raises in a call of torch, which wraps it."""
    with pytest.raises(CheckpointException) as caught:
        call()
    return caught.value.failures[0][0]


def zero(state: dict[str, Any]) -> None:
    for tensor in tensors_of(state):
        tensor.zero_() if tensor.dtype != torch.bool else tensor.logical_not_()


@pytest.mark.parametrize("prefix", ["", "file://"])
def test_what_is_saved_is_loaded(tmp_path: Path, prefix: str) -> None:
    state = odd_state()
    save(f"{prefix}{tmp_path}/step-5", state)
    assert_equal(load(f"{prefix}{tmp_path}/step-5", state), state)
    manifest = read_manifest(Store.open(str(tmp_path / "step-5")))
    assert manifest is not None
    assert manifest.step == 5


def test_files_are_safetensors(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    state = {"w": torch.randn(300, 7), "v": torch.arange(5)}
    save(tmp_path / "one", state)
    (file,) = tmp_path.glob("one/*/*.safetensors")
    assert_equal(load_file(file), state)


def test_memory_is_a_store(tmp_path: Path) -> None:
    state = odd_state()
    save("memory://dcp/step-1", state)
    assert_equal(load("memory://dcp/step-1", state), state)


def test_large_tensors_are_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from shardstream.checkpoint.dcp import parts

    monkeypatch.setattr(parts, "MAX_FILE", 2 << 20)
    state = {"w": torch.randn(1000, 1000), "v": torch.randn(1000, 10).t()}
    save(tmp_path / "one", state)
    manifest = read_manifest(Store.open(str(tmp_path / "one")))
    assert manifest is not None
    assert len(manifest.tensors["w"].chunks) == 4
    assert max(file.bytes for file in manifest.files) <= 2 << 20
    assert_equal(load(tmp_path / "one", state), state)


class Renames(DefaultSavePlanner):
    def set_up_planner(self, state_dict: Any, storage_meta: Any = None, is_coordinator: bool = False) -> None:
        renamed = {f"x_{name}": value for name, value in state_dict.items()}
        super().set_up_planner(renamed, storage_meta, is_coordinator)


class Converts(DefaultLoadPlanner):
    """Gives tensors of its own, as torch's documentation shows."""

    def resolve_tensor(self, read_item: Any) -> torch.Tensor:
        return torch.empty_like(super().resolve_tensor(read_item))

    def commit_tensor(self, read_item: Any, tensor: torch.Tensor) -> None:
        super().resolve_tensor(read_item).copy_(tensor)


def test_planners_of_users(tmp_path: Path) -> None:
    state = {"w": torch.randn(30, 4), "n": {"lr": 0.5}}
    save(tmp_path / "one", state, planner=Renames())
    renamed = {f"x_{name}": value for name, value in state.items()}
    assert_equal(load(tmp_path / "one", renamed, planner=Converts()), renamed)


def test_plans_that_are_cached(tmp_path: Path) -> None:
    writer = ss.dcp.Writer(tmp_path / "step-0")
    for step in range(3):
        state = {"w": torch.full((10,), float(step)), "step": step}
        planner = DefaultSavePlanner(enable_plan_caching=True)
        save(None, state, writer, planner=planner, checkpoint_id=tmp_path / f"step-{step}")
        assert_equal(load(tmp_path / f"step-{step}", state), state)
    error = failure(
        lambda: save(
            tmp_path / "new",
            {"w": torch.zeros(10), "step": 9},
            planner=DefaultSavePlanner(enable_plan_caching=True),
        )
    )
    assert isinstance(error, ss.OptionError)
    for name in (
        "_cached_save_plan",
        "_cached_final_save_plan",
        "_cached_all_plans",
        "_cached_global_plan",
        "_cached_metadata",
    ):
        getattr(dcp.SavePlanner, name).clear()


def test_a_checkpoint_is_never_overwritten(tmp_path: Path) -> None:
    old = {"w": torch.ones(5)}
    save(tmp_path / "one", old)
    error = failure(lambda: save(tmp_path / "one", {"w": torch.zeros(5)}))
    assert isinstance(error, ss.StateError)
    assert "never overwritten" in str(error)
    assert_equal(load(tmp_path / "one", old), old)
    dcp.save(old, checkpoint_id=tmp_path / "torch", no_dist=True)
    assert isinstance(failure(lambda: save(tmp_path / "torch", {"w": torch.zeros(5)})), ss.StateError)
    assert_equal(load(tmp_path / "torch", old), old)


def test_of_two_at_once_one_commits(tmp_path: Path) -> None:
    states = [{"w": torch.full((200_000,), float(number))} for number in range(4)]
    errors: list[Any] = [None] * 4
    start = threading.Barrier(4)

    def run(number: int) -> None:
        start.wait()
        try:
            save(tmp_path / "one", states[number])
        except CheckpointException as error:
            errors[number] = error.failures[0][0]

    threads = [threading.Thread(target=run, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (winner,) = [number for number, error in enumerate(errors) if error is None]
    assert all(isinstance(error, ss.StateError) for error in errors if error is not None)
    assert_equal(load(tmp_path / "one", states[0]), states[winner])


def test_a_writer_is_the_stager(tmp_path: Path) -> None:
    assert isinstance(ss.dcp.Writer(tmp_path / "one"), AsyncStager)


def test_parameters_may_change_after_async_save(tmp_path: Path) -> None:
    writer = ss.dcp.Writer(tmp_path / "step-0")
    for step in range(4):
        state, expected = odd_state(step), odd_state(step)
        done = dcp.async_save(
            state, checkpoint_id=tmp_path / f"step-{step}", storage_writer=writer, no_dist=True
        )
        zero(state)
        state["nested"]["names"].append("changed")
        done.result()
        assert_equal(load(tmp_path / f"step-{step}", expected), expected)


def test_saves_that_overlap(tmp_path: Path) -> None:
    """The future of a save is not waited for: the second copy takes memory of its own, the third waits."""
    writer = ss.dcp.Writer(tmp_path / "step-0")
    futures = []
    for step in range(6):
        state = {"w": torch.full((1_000_000,), float(step)), "step": step}
        futures.append(
            dcp.async_save(
                state, checkpoint_id=tmp_path / f"step-{step}", storage_writer=writer, no_dist=True
            )
        )
        zero(state)
    for step, future in enumerate(futures):
        future.result()
        expected = {"w": torch.full((1_000_000,), float(step)), "step": step}
        assert_equal(load(tmp_path / f"step-{step}", expected), expected)
    assert writer.memory_held <= 2 * 4_000_064 + (64 << 20)


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


def test_memory_is_flat_over_20_async_saves(tmp_path: Path) -> None:
    state = {f"w{number}": torch.ones(500_000) for number in range(4)}  # 8 MB
    writer = ss.dcp.Writer(tmp_path / "step-0")
    sizes = []
    for step in range(20):
        for tensor in state.values():
            tensor.fill_(step)
        dcp.async_save(
            state, checkpoint_id=tmp_path / f"step-{step}", storage_writer=writer, no_dist=True
        ).result()
        gc.collect()
        sizes.append((writer.memory_held, resident()))
    assert sizes[-1][0] == sizes[1][0] <= 8_000_000 + (64 << 20) + 1024
    assert sizes[-1][1] - sizes[4][1] < 16 << 20
    writer.close()
    assert writer.memory_held == 0


def test_memory_bounds_the_copy(tmp_path: Path) -> None:
    writer = ss.dcp.Writer(tmp_path / "one", memory="1MB")
    with pytest.raises(ss.OptionError, match=r"the state has 3\.8 MiB"):
        dcp.async_save({"w": torch.zeros(1_000_000)}, storage_writer=writer, no_dist=True)
    dcp.async_save({"w": torch.zeros(10)}, storage_writer=writer, no_dist=True).result()


def test_memory_of_a_save_that_failed_is_used_again(tmp_path: Path) -> None:
    writer = ss.dcp.Writer(tmp_path / "one", memory="5MB")
    state = {"w": torch.ones(1_000_000)}
    dcp.async_save(state, storage_writer=writer, no_dist=True).result()
    for _ in range(2):
        future = dcp.async_save(state, storage_writer=writer, no_dist=True)
        with pytest.raises(CheckpointException, match="never overwritten"):
            future.result()
        del future
        gc.collect()  # the error holds the frames of the save
    dcp.async_save(state, checkpoint_id=tmp_path / "two", storage_writer=writer, no_dist=True).result()
    assert_equal(load(tmp_path / "two", state), state)


def test_copies_of_tied_weights_are_one(tmp_path: Path) -> None:
    weight = torch.randn(1000)
    writer = ss.dcp.Writer(tmp_path / "one")
    staged = writer.stage({"a": weight, "b": weight, "c": [weight[:500]]})
    assert staged["a"].data_ptr() == staged["b"].data_ptr()
    assert_equal(staged, {"a": weight, "b": weight, "c": [weight[:500]]})
    assert writer.memory_held == 4032 + 2048


def test_objects_that_cannot_be_copied_are_named(tmp_path: Path) -> None:
    writer = ss.dcp.Writer(tmp_path / "one")
    with pytest.raises(ss.StateError, match=r"state\.a\.1: a lock cannot be copied"):
        writer.stage({"a": [1, threading.Lock()]})


def test_local_first_and_the_store_behind(tmp_path: Path) -> None:
    state = odd_state()
    writer = ss.dcp.Writer("memory://run/step-3", local=tmp_path / "nvme")
    save(None, state, writer)
    (manifest,) = tmp_path.glob("nvme/step-3-*/manifest.json")
    assert_equal(load("memory://run/step-3", state, local=tmp_path / "nvme"), state)
    writer.wait()
    assert_equal(load("memory://run/step-3", state), state)
    for file in manifest.parent.glob("*/*.safetensors"):
        file.write_bytes(b"\0" * file.stat().st_size)
    assert_equal(load("memory://run/step-3", state, local=tmp_path / "nvme"), state)


def test_runs_with_one_local_folder(tmp_path: Path) -> None:
    """Their checkpoints have the same names."""
    for value in (1.0, 2.0):
        writer = ss.dcp.Writer(f"memory://run-{value}/step-4", local=tmp_path)
        save(None, {"w": torch.full((3,), value)}, writer)
        writer.wait()
    with pytest.raises(ss.StorageError, match="no checkpoint"):
        ss.dcp.Reader("memory://run-3.0/step-4", local=tmp_path).read_metadata()
    for value in (1.0, 2.0):
        found = {"w": torch.zeros(3)}
        reader = ss.dcp.Reader(f"memory://run-{value}/step-4/", local=tmp_path)
        dcp.load(found, storage_reader=reader, no_dist=True)
        assert found["w"].tolist() == [value] * 3


@pytest.mark.parametrize(("keep", "left"), [(2, [2, 3]), (0, []), (None, [0, 1, 2, 3])])
def test_old_local_checkpoints_are_deleted(tmp_path: Path, keep: int | None, left: list[int]) -> None:
    for other in (
        f"memory://other-{keep}/step-1",
        f"memory://kept-{keep}/step-900",
    ):  # another run; never committed
        writer = ss.dcp.Writer(other, local=tmp_path, keep_local=None)
        save(None, {"w": torch.ones(3)}, writer)
        writer.wait()
    Store.open(f"memory://kept-{keep}/step-900").delete("manifest.json")
    writer = ss.dcp.Writer(f"memory://kept-{keep}/step-0", local=tmp_path, keep_local=keep)
    for step in range(4):
        save(
            None,
            {"w": torch.full((3,), float(step))},
            writer,
            checkpoint_id=f"memory://kept-{keep}/step-{step}",
        )
        writer.wait()
    names = sorted(path.name.rpartition("-")[0] for path in tmp_path.iterdir())
    assert names == sorted(["step-1", "step-900", *(f"step-{step}" for step in left)])
    for step in range(4):
        found = load(f"memory://kept-{keep}/step-{step}", {"w": torch.ones(3)}, local=tmp_path)
        assert found["w"].tolist() == [float(step)] * 3


class Opaque:
    """An object that torch does not load without consent."""

    def __init__(self, value: int) -> None:
        self.value = value


def test_objects_need_consent(tmp_path: Path) -> None:
    save(tmp_path / "one", {"o": Opaque(3), "n": 1})
    error = failure(
        lambda: dcp.load({"o": None}, storage_reader=ss.dcp.Reader(tmp_path / "one"), no_dist=True)
    )
    assert isinstance(error, ss.SourceError)
    assert "o is an object" in str(error)
    found: dict[str, Any] = {"o": None, "n": None}
    dcp.load(found, storage_reader=ss.dcp.Reader(tmp_path / "one", weights_only=False), no_dist=True)
    assert (found["o"].value, found["n"]) == (3, 1)


def test_wrong_dtypes_shapes_and_keys_are_errors(tmp_path: Path) -> None:
    save(tmp_path / "one", {"w": torch.arange(6.0)})
    half = {"w": torch.zeros(6, dtype=torch.bfloat16)}
    error = failure(lambda: load(tmp_path / "one", half))
    assert isinstance(error, ss.StateError)
    assert "w is saved as torch.float32" in str(error)
    assert torch.equal(load(tmp_path / "one", half, convert=True)["w"], torch.arange(6.0).bfloat16())
    assert "Size mismatch" in str(failure(lambda: load(tmp_path / "one", {"w": torch.zeros(7)})))
    assert "Missing key" in str(failure(lambda: load(tmp_path / "one", {"v": torch.zeros(6)})))


def test_meta_tensors_are_refused(tmp_path: Path) -> None:
    error = failure(lambda: save(tmp_path / "one", {"w": torch.zeros(3, device="meta")}))
    assert isinstance(error, (ss.StateError, NotImplementedError))
    with pytest.raises(ss.StorageError, match="no checkpoint"):
        ss.dcp.Reader(tmp_path / "one").read_metadata()


def test_stores_that_overwrite_are_refused(tmp_path: Path, nginx: Any) -> None:
    error = failure(lambda: save(f"{nginx.url}/dcp-one", {"w": torch.zeros(3)}))
    assert isinstance(error, (ss.OptionError, ss.StorageError))


def test_writers_and_readers_go_to_other_processes(tmp_path: Path) -> None:
    writer = pickle.loads(pickle.dumps(ss.dcp.Writer(tmp_path / "one", memory="1GB")))
    save(None, {"w": torch.ones(3)}, writer)
    reader = pickle.loads(pickle.dumps(ss.dcp.Reader(tmp_path / "one")))
    found = {"w": torch.zeros(3)}
    dcp.load(found, storage_reader=reader, no_dist=True)
    assert_equal(found, {"w": torch.ones(3)})


def test_one_reader_for_many_checkpoints(tmp_path: Path) -> None:
    reader = ss.dcp.Reader(tmp_path / "step-0")
    for step in range(3):
        save(tmp_path / f"step-{step}", {"w": torch.full((4,), float(step))})
        found = {"w": torch.zeros(4)}
        dcp.load(found, checkpoint_id=tmp_path / f"step-{step}", storage_reader=reader, no_dist=True)
        assert_equal(found, {"w": torch.full((4,), float(step))})


def test_no_checkpoint_is_said(tmp_path: Path) -> None:
    with pytest.raises(
        ss.StorageError, match=r"there is no checkpoint: neither manifest\.json nor \.metadata"
    ):
        ss.dcp.Reader(tmp_path / "none").read_metadata()
    with pytest.raises(ss.OptionError, match="has no name"):
        ss.dcp.Writer("s3://")


def test_without_coordination_there_is_no_commit(tmp_path: Path) -> None:
    with pytest.raises(ss.OptionError, match="use_collectives=False"):
        dcp.save(
            {"w": torch.ones(3)},
            storage_writer=ss.dcp.Writer(tmp_path / "one"),
            no_dist=True,
            use_collectives=False,
        )
