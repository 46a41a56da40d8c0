"""One of the ranks that share data reads for the others: the same batches, states, ends and errors."""

from __future__ import annotations

import multiprocessing
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import shardstream as ss
from shardstream.errors import OptionError, SourceError, StorageError
from tests.distributed import launch
from tests.distributed.training import dataset, everything, name, names, pack


def plain(batch: dict[str, Any]) -> Any:
    """A batch in a form that JSON can hold."""
    return {key: value.tolist() if hasattr(value, "tolist") else list(value) for key, value in batch.items()}


def opened() -> bool:
    """Whether this process has threads that read."""
    return any(thread.name.startswith("shardstream") for thread in threading.enumerate())


def grid(url: Path, engine: str, broadcast: str | None, state: dict[str, Any] | None) -> Any:
    """Two epochs on a mesh of 2 x 2, or what is left of one."""
    from torch.distributed.device_mesh import init_device_mesh

    # The launcher's processes may otherwise not start the loader's.
    multiprocessing.current_process()._config["daemon"] = False  # type: ignore[attr-defined]
    with launch.group() as dist:
        mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
        ds = dataset(url, topology=ss.Topology.from_mesh(mesh))
        loader = ss.StreamingLoader(ds, 6, last="short", engine=engine, broadcast=broadcast)
        if state is not None:
            loader.load_state_dict(state)
        seen, states, read = [], [], False
        for _ in range(2):
            for batch in loader:
                seen.append(plain(batch))
                states.append(loader.state_dict())
                read = read or opened()
        stats = loader.stats()
        # Left in its midst, the next iteration is another epoch.
        epoch = loader.state_dict()["epoch"]
        for number, _ in enumerate(loader):
            if number:
                break
        first = names(next(iter(loader)))
        assert loader.state_dict()["epoch"] == epoch + 1
        return {
            "rank": dist.get_rank(), "seen": seen, "states": states, "read": read,
            "counts": [stats["batches"], stats["samples"]], "first": first,
        }  # fmt: skip


def test_peers_get_the_batches_that_they_would_have_read(packed: Path, tmp_path: Path) -> None:
    reading = launch.run(grid, 4, tmp_path / "reading", packed, "thread", None, None)
    shared = launch.run(grid, 4, tmp_path / "shared", packed, "thread", "tp", None)
    wanted = everything(packed)
    for one, other in zip(reading, shared, strict=True):
        assert one["seen"] == other["seen"]
        assert one["states"] == other["states"] == reading[0]["states"]
        assert one["counts"] == other["counts"]
        assert one["first"] == other["first"]
    assert [one["read"] for one in shared] == [True, False, True, False]
    assert shared[0]["seen"] == shared[1]["seen"] != shared[2]["seen"] == shared[3]["seen"]
    steps = len(shared[0]["seen"]) // 2
    for epoch in range(2):
        part = slice(epoch * steps, (epoch + 1) * steps)
        found: list[str] = []
        for one in (shared[0], shared[2]):
            for batch in one["seen"][part]:
                rows = batch.get("__key__") or [name({"tokens": row}) for row in map(_row, batch["tokens"])]
                found += [row for row, pad in zip(rows, batch["__pad__"], strict=True) if not pad]
        assert sorted(found) == wanted

    if packed.name == "tokens":
        return
    # Any rank's state serves: the job goes on where it was, with a process that reads for it.
    again = launch.run(grid, 4, tmp_path / "again", packed, "process", "tp", shared[3]["states"][2])
    for before, after in zip(shared, again, strict=True):
        assert after["seen"][: steps * 2 - 3] == before["seen"][3:]


def _row(values: list[int]) -> Any:
    return np.asarray(values, np.int64)


def broken(sample: dict[str, Any]) -> dict[str, Any]:
    """Fails at one sample, with an error of the user's or of ours."""
    if sample["__key__"] == "00007":
        raise ValueError("no good") if os.environ["KIND"] == "theirs" else SourceError("no good")
    return sample


def failing(url: Path, kind: str) -> Any:
    """The whole world shares data; the reader meets an error, and all go on together after it."""
    os.environ["KIND"] = kind
    with launch.group() as dist:
        ds = ss.StreamingDataset(url, topology=ss.Topology(), transform=broken)
        loader = ss.StreamingLoader(ds, 4, broadcast=dist.group.WORLD)
        seen: list[list[str]] = []
        with pytest.raises((ValueError, SourceError), match="no good") as caught:
            seen.extend(names(batch) for batch in loader)
        os.environ["KIND"] = "none"
        return {"seen": seen, "type": caught.type.__name__, "notes": getattr(caught.value, "__notes__", [])}


@pytest.mark.parametrize("kind", ["theirs", "ours"])
def test_an_error_of_the_reader_is_raised_on_all(tmp_path: Path, kind: str) -> None:
    url = pack(tmp_path / "packed", "samples", documents=40)
    one, other = launch.run(failing, 2, tmp_path / "run", url, kind)
    assert one["seen"] == other["seen"] == [["00000", "00001", "00002", "00003"]]
    assert one["type"] == other["type"] == ("ValueError" if kind == "theirs" else "SourceError")
    if kind == "theirs":
        assert "in the transform of sample '00007'" in one["notes"][0]
        assert other["notes"] == [*one["notes"], "on rank 0, which reads for this one"]


def apart(url: Path) -> Any:
    """Ranks that do not share data are told so, all of them; so are wrong groups."""
    with launch.group() as dist:
        rank, world = dist.get_rank(), dist.group.WORLD
        loader = ss.StreamingLoader(dataset(url, topology=ss.Topology(rank, 2)), 4, broadcast=world)
        with pytest.raises(OptionError, match=r"ranks 1 and 0 .* do not share data: rank 1 and 0"):
            next(iter(loader))
        ds = dataset(url, topology=ss.Topology())
        loader = ss.StreamingLoader(ds, 4, broadcast=world)
        if rank:
            loader.set_epoch(3)
        with pytest.raises(OptionError, match="epoch 3 and 0"):
            next(iter(loader))
        with pytest.raises(OptionError, match="'tp' is a dimension of a mesh, and the topology has none"):
            ss.StreamingLoader(ds, 4, broadcast="tp")
        with pytest.raises(OptionError, match="nor a ProcessGroup"):
            ss.StreamingLoader(ds, 4, broadcast=dist.GroupMember.NON_GROUP_MEMBER)


def test_ranks_that_do_not_share_data_are_refused(packed: Path, tmp_path: Path) -> None:
    launch.run(apart, 2, tmp_path, packed)


def deserted(url: Path, folder: Path) -> Any:
    """The reader ends in the midst of an epoch."""
    with launch.group() as dist:
        loader = ss.StreamingLoader(dataset(url, topology=ss.Topology()), 4, broadcast=dist.group.WORLD)
        batches = iter(loader)
        next(batches)
        if dist.get_rank() == 0:
            os._exit(0)
        with pytest.raises(StorageError, match="did not all take part"):
            list(batches)
        (folder / "told").touch()
        os._exit(0)


def test_a_reader_that_is_gone_is_no_hang(packed: Path, tmp_path: Path) -> None:
    with launch.call(deserted, 2, tmp_path / "run", packed, tmp_path) as ranks:
        assert ranks.wait() == [0, 0]
    assert (tmp_path / "told").exists()


def grown(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """Batches of very different sizes, with every kind of value."""
    number = int(samples[0]["__key__"])
    wide = torch.arange(1 + (number * 7919) % 200_000, dtype=torch.int32)
    return {"wide": wide, "half": wide[:5].to(torch.bfloat16), "keys": [s["__key__"] for s in samples]}


def sized(url: Path) -> Any:
    """Sums of what came."""
    with launch.group() as dist:
        ds = ss.StreamingDataset(url, topology=ss.Topology())
        loader = ss.StreamingLoader(ds, 4, collate=grown, broadcast=dist.group.WORLD)
        seen = []
        for batch in loader:
            # What came is the receiver's own, to be changed at will.
            batch["wide"] += 1
            seen.append([len(batch["wide"]), int(batch["wide"].sum()), batch["half"].tolist(), batch["keys"]])
        return seen


def test_batches_of_any_size_and_kind(tmp_path: Path) -> None:
    url = pack(tmp_path / "packed", "samples", documents=60)
    one, other = launch.run(sized, 2, tmp_path / "run", url)
    assert one == other
    sizes = [row[0] for row in one]
    assert len(sizes) == 15
    assert all(total == size * (size + 1) // 2 for size, total, *_ in one)
    assert max(sizes) > 10 * min(sizes)
