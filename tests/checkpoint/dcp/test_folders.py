"""Checkpoints that torch's own writers made are read: whole, in slices, no wrong byte without a word."""

from __future__ import annotations

import contextlib
import os
import pickle
import random
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import FileSystemWriter
from torch.distributed.checkpoint._fsspec_filesystem import FsspecWriter
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import MetadataIndex

import shardstream as ss
from shardstream.checkpoint.dcp.folders import TorchFolder
from shardstream.checkpoint.dcp.pickles import read_metadata
from shardstream.checkpoint.dcp.requests import Request
from shardstream.storage.local_store import LocalStore
from tests.checkpoint.dcp.states import assert_equal, emptied, odd_state

# torch warns of one process, and of every checkpoint that it replaces.
pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is:UserWarning")

WRITERS: dict[str, Any] = {
    "files": lambda folder: FileSystemWriter(folder),
    "threads": lambda folder: FileSystemWriter(folder, thread_count=3),
    "file per item": lambda folder: FileSystemWriter(folder, single_file_per_rank=False),
    "fsspec": lambda folder: FsspecWriter(f"file://{folder}", thread_count=2),
}


def save(folder: Path, state: dict[str, Any], writer: str = "files") -> None:
    dcp.save(state, storage_writer=WRITERS[writer](folder), no_dist=True)


def load(folder: Path | str, state: dict[str, Any], **options: Any) -> dict[str, Any]:
    found = emptied(state)
    dcp.load(found, storage_reader=ss.dcp.Reader(folder, **options), no_dist=True)
    return found


def failure(error: CheckpointException) -> BaseException:
    """What a rank raised: torch wraps it."""
    return error.failures[0][0]


@pytest.mark.parametrize("writer", WRITERS)
def test_what_torch_saved_is_loaded(tmp_path: Path, writer: str) -> None:
    state = odd_state()
    save(tmp_path, state, writer)
    assert_equal(load(tmp_path, state), state)


def test_a_store_is_read_as_a_folder_is(tmp_path: Path, nginx: Any) -> None:
    state = odd_state()
    save(nginx.root / "old-dcp", state)
    assert_equal(load(f"{nginx.url}/old-dcp", state), state)


def test_metadata_of_each_rank(tmp_path: Path) -> None:
    state = {"w": torch.arange(10.0)}
    dcp.save(state, storage_writer=FileSystemWriter(tmp_path), no_dist=True, use_collectives=False)
    assert not (tmp_path / ".metadata").exists()
    assert_equal(load(tmp_path, state), state)


def test_keys_can_be_chosen(tmp_path: Path) -> None:
    from torch.distributed.checkpoint.state_dict_loader import _load_state_dict_from_keys

    state = odd_state()
    save(tmp_path, state)
    found = _load_state_dict_from_keys({"nested"}, storage_reader=ss.dcp.Reader(tmp_path))
    assert_equal(found["nested"]["list"], state["nested"]["list"])


def test_boxes_of_large_tensors_read_their_bytes_alone(tmp_path: Path) -> None:
    state = {"w": torch.randn(2048, 512), "v": torch.randn(2048, 512)}
    save(tmp_path, state)
    store = CountedStore(str(tmp_path))
    folder = TorchFolder(store, verify=True)
    store.count = 0
    rows = torch.zeros(256, 512)
    folder.fill([request("w", (256, 0), (256, 512), rows)])
    assert torch.equal(rows, state["w"][256:512])
    assert store.count <= rows.nbytes + 2 * (16 << 10)
    columns = torch.zeros(2048, 256)
    folder.fill([request("v", (0, 128), (2048, 256), columns)])
    assert torch.equal(columns, state["v"][:, 128:384])


class CountedStore(LocalStore):
    """Counts the bytes that are read."""

    count = 0

    def read_into(self, path: str, parts: Any) -> None:
        self.count += sum(len(view) for _, view in parts)
        super().read_into(path, parts)

    def read_range(self, path: str, start: int, size: int) -> Any:
        self.count += size
        return super().read_range(path, start, size)


def request(name: str, offsets: tuple[int, ...], lengths: tuple[int, ...], target: torch.Tensor) -> Request:
    index = MetadataIndex(name, (0, 0))
    return Request(
        index, torch.Size((2048, 512)), torch.float32, torch.Size(offsets), torch.Size(lengths), target
    )


def test_flipped_bits_are_never_loaded_without_a_word(tmp_path: Path) -> None:
    """torch's reader loads 196 of 200 with wrong values: the CRC-32 is there, and is not compared."""
    numbers = random.Random(0)
    state = {f"w{n}": torch.randn(20_000) for n in range(4)}
    save(tmp_path, state)
    file = tmp_path / "__0_0.distcp"
    good = file.read_bytes()
    raised = same = 0
    for _ in range(200):
        bad = bytearray(good)
        bad[numbers.randrange(len(bad))] ^= 1 << numbers.randrange(8)
        file.write_bytes(bad)
        error = None
        try:
            found = load(tmp_path, state)
        except CheckpointException as caught:
            error = failure(caught)
        if error is None:
            assert_equal(found, state)  # padding, or a field that says nothing
            same += 1
        else:
            assert isinstance(error, (ss.CorruptionError, ss.SourceError)), error
            assert "__0_0.distcp: w" in str(error)
            raised += 1
    assert raised > 190
    assert raised + same == 200


def test_a_checkpoint_that_lost_tensors_says_so(tmp_path: Path) -> None:
    """The error of a thread was lost when it was written: pytorch#191391."""
    save(tmp_path, {"w": torch.ones(3), "v": torch.ones(3)})
    meta = pickle.loads((tmp_path / ".metadata").read_bytes())
    meta.storage_data = {key: info for key, info in meta.storage_data.items() if key.fqn != "w"}
    (tmp_path / ".metadata").write_bytes(pickle.dumps(meta))
    with pytest.raises(CheckpointException) as caught:
        load(tmp_path, {"w": torch.ones(3), "v": torch.ones(3)})
    assert isinstance(failure(caught.value), ss.CorruptionError)
    assert "where w lies" in str(failure(caught.value))


class Runs:
    """Runs a program when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.file),)


def test_metadata_runs_nothing(tmp_path: Path) -> None:
    save(tmp_path, {"w": torch.ones(3)})
    meta = pickle.loads((tmp_path / ".metadata").read_bytes())
    meta.planner_data = Runs(tmp_path / "ran")
    (tmp_path / ".metadata").write_bytes(pickle.dumps(meta))
    with pytest.raises(ss.SourceError, match=r"posix\.mkdir"):
        ss.dcp.Reader(tmp_path).read_metadata()
    assert not (tmp_path / "ran").exists()


def test_objects_run_nothing_but_with_consent(tmp_path: Path) -> None:
    save(tmp_path, {"o": Runs(tmp_path / "ran")})
    with pytest.raises(CheckpointException) as caught:
        dcp.load({"o": None}, storage_reader=ss.dcp.Reader(tmp_path), no_dist=True)
    assert isinstance(failure(caught.value), ss.SourceError)
    assert "o is an object" in str(failure(caught.value))
    assert "mkdir" in str(failure(caught.value))
    assert not (tmp_path / "ran").exists()
    dcp.load({"o": None}, storage_reader=ss.dcp.Reader(tmp_path, weights_only=False), no_dist=True)
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize("path", ["/etc/passwd", "../x", "a/../../x", "a\\b", ""])
def test_files_outside_the_folder_are_refused(tmp_path: Path, path: str) -> None:
    save(tmp_path, {"w": torch.ones(3)})
    meta = pickle.loads((tmp_path / ".metadata").read_bytes())
    for info in meta.storage_data.values():
        info.relative_path = path
    with pytest.raises(ss.SourceError, match="outside the checkpoint's folder"):
        read_metadata(pickle.dumps(meta), "here")


def test_damaged_metadata_is_a_typed_error(tmp_path: Path) -> None:
    save(tmp_path, {"w": torch.ones(3), "n": {"a": [1, 2]}})
    good = (tmp_path / ".metadata").read_bytes()
    numbers = random.Random(1)
    damaged = [good[:cut] for cut in range(0, len(good), 7)]
    for _ in range(300):
        bad = bytearray(good)
        bad[numbers.randrange(len(bad))] ^= 1 << numbers.randrange(8)
        damaged.append(bytes(bad))
    for data in damaged:
        with contextlib.suppress(ss.CorruptionError, ss.SourceError):
            read_metadata(data, "here")  # anything else that is raised fails


def test_wrong_dtype_and_shape_are_errors(tmp_path: Path) -> None:
    save(tmp_path, {"w": torch.arange(6.0)})
    with pytest.raises(CheckpointException) as caught:
        load(tmp_path, {"w": torch.zeros(6, dtype=torch.bfloat16)})
    assert isinstance(failure(caught.value), ss.StateError)
    assert "torch.float32" in str(failure(caught.value))
    assert "convert=True" in str(failure(caught.value))
    found = load(tmp_path, {"w": torch.zeros(6, dtype=torch.bfloat16)}, convert=True)
    assert torch.equal(found["w"], torch.arange(6.0).bfloat16())
    with pytest.raises(CheckpointException, match="Size mismatch"):
        load(tmp_path, {"w": torch.zeros(7)})
    with pytest.raises(CheckpointException, match="Missing key"):
        load(tmp_path, {"other": torch.zeros(6)})


def test_no_checkpoint_is_said(tmp_path: Path) -> None:
    with pytest.raises(ss.StorageError, match=r"no checkpoint"):
        ss.dcp.Reader(tmp_path / "none").read_metadata()
