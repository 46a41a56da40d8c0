"""Checkpoints in a store of S3: with faults on the way, with a careless store, and in flat memory."""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import fsspec.implementations.memory
import numpy as np
import pytest
import torch

import shardstream as ss
from shardstream.checkpoint.files import Files
from shardstream.checkpoint.reading import read, requests_of
from shardstream.errors import CorruptionError, OptionError, StateError, StorageError
from shardstream.storage.store import Store
from tests.checkpoint.models import equal, stepped, trained

FAST = {"retry": {"pause": 0.01, "attempts": 20}}


@pytest.mark.parametrize("local", [False, True])
def test_a_job_goes_on_from_a_store_that_fails_now_and_then(
    tmp_path: Path, weed: Any, proxy_to: Callable[..., Any], local: bool
) -> None:
    proxy = proxy_to(weed)
    proxy.set(
        status=(503, 500),
        share=0.05,
        reset=0.02,
        cut=0.02,
        flip=0.05,
        only=lambda method, path: method != "HEAD",
    )
    options = weed.options(proxy.url) | FAST
    url = f"{weed.bucket()}/run"
    disk = str(tmp_path / "local") if local else None
    saves = ss.Checkpoints(url, local=disk, keep=2, memory="64MiB", storage_options=options)
    model, optim = trained()
    big = torch.rand(3 << 20)  # 12 MiB: two blocks
    for step in range(5):
        assert saves.save(step, {"model": model, "optim": optim, "big": big}, busy="wait")
        before = {name: value.clone() for name, value in model.state_dict().items()}
        stepped(model, optim, 1, step)
        big += 1
    assert saves.wait()
    assert saves.steps() == [3, 4]
    fresh, new = trained(9)
    state = {"model": fresh, "optim": new, "big": torch.zeros(3 << 20)}
    assert ss.Checkpoints(url, storage_options=options).load(state) == 4
    assert equal(before, dict(fresh.state_dict()))
    assert torch.equal(state["big"] + 1, big)
    assert sum(proxy.counts.injected.values()) > 0
    with pytest.raises(StateError, match="committed already"):
        ss.Checkpoints(url, storage_options=options).save(4, {"x": 1})


def test_a_slice_fetches_its_part_of_the_object(weed: Any, proxy_to: Callable[..., Any]) -> None:
    proxy = proxy_to(weed)
    options = weed.options(proxy.url)
    url = f"{weed.bucket()}/run"
    whole = torch.arange(8 << 20, dtype=torch.float32).reshape(8 << 10, 1 << 10)  # 32 MiB
    saves = ss.Checkpoints(url, memory="64MiB", storage_options=options)
    saves.save(1, {"w": whole})
    saves.wait()
    manifest = saves.manifest(1)
    proxy.reset_counts()
    rows = whole.shape[0] // 8
    out = np.zeros((rows, 1 << 10), np.float32)
    into = out.reshape(-1).view(np.uint8).data
    files = Files(Store.open(f"{url}/step-1", options), manifest)
    read(files, requests_of("w", manifest.tensors["w"], (3 * rows, 0), out.shape, into))
    assert np.array_equal(out, whole[3 * rows : 4 * rows].numpy())
    assert proxy.counts.body_bytes <= 0.13 * whole.nbytes


def test_bytes_that_a_store_has_lost_are_an_error_that_names_them(weed: Any) -> None:
    url = f"{weed.bucket()}/run"
    options = weed.options()
    saves = ss.Checkpoints(url, memory="64MiB", storage_options=options)
    for step in (1, 2):
        saves.save(step, {"w": torch.full((3000,), step), "v": torch.rand(2000)}, busy="wait")
    saves.wait()
    folder = Store.open(f"{url}/step-2", options)
    manifest = saves.manifest(2)
    path = manifest.path(manifest.files[0])
    data = bytearray(folder.read(path))
    data[len(data) // 2] ^= 4
    folder.write(path, bytes(data))
    state = {"w": torch.zeros(3000, dtype=torch.int64)}
    with pytest.raises(CorruptionError, match=rf"{manifest.files[0].name}.*tensors in them: .*w"):
        saves.load(state, step=2)
    with pytest.warns(RuntimeWarning, match="step 2 is skipped"):
        assert saves.load(state) == 1
    assert state["w"].eq(1).all()


def test_a_store_that_goes_away_is_no_damage(weed: Any, proxy_to: Callable[..., Any]) -> None:
    proxy = proxy_to(weed)
    options = weed.options(proxy.url) | {"retry": {"attempts": 1}}
    url = f"{weed.bucket()}/run"
    saves = ss.Checkpoints(url, storage_options=options)
    saves.save(1, {"w": torch.rand(10)})
    saves.wait()
    proxy.set(status=(503,), share=1.0, only=lambda method, path: "state-" in path)
    with pytest.raises(StorageError):
        saves.load({"w": torch.rand(10)})
    assert saves.save(2, {"w": torch.rand(10)})
    with pytest.raises(StorageError, match="step 2"):
        saves.wait()
    proxy.set()
    assert saves.save(2, {"w": torch.rand(10)})
    assert saves.wait()
    assert saves.load({"w": torch.rand(10)}) == 2


def test_a_save_while_one_is_on_its_way_is_skipped_refused_or_waits(
    weed: Any, proxy_to: Callable[..., Any]
) -> None:
    proxy = proxy_to(weed)
    timeouts = {"connect": 1.0, "read": 1.0, "slowest": "64MiB"}
    options = weed.options(proxy.url) | {"timeouts": timeouts, "retry": {"attempts": 50, "pause": 0.1}}
    saves = ss.Checkpoints(f"{weed.bucket()}/run", storage_options=options)
    proxy.set(dead=True, only=lambda method, path: "state-" in path)
    assert saves.save(1, {"w": torch.rand(1000)})
    assert not saves.wait(0.1)
    assert saves.save(2, {"w": torch.rand(1000)}) is False
    assert saves.skips == 1
    with pytest.raises(StateError, match="an earlier checkpoint is not committed yet"):
        saves.save(2, {"w": torch.rand(1000)}, busy="raise")
    proxy.set()
    assert saves.save(2, {"w": torch.rand(1000)}, busy="wait")
    assert saves.wait()
    assert saves.steps() == [1, 2]


class Careless(fsspec.implementations.memory.MemoryFileSystem):  # type: ignore[misc]
    """A store that cannot refuse to overwrite."""

    protocol = "careless"
    store: dict[str, Any] = {}  # noqa: RUF012 - as in fsspec

    def pipe_file(self, path: str, value: bytes) -> None:
        self.open(path, "wb", data=value)


def test_a_store_that_cannot_refuse_needs_a_single_writer() -> None:
    fsspec.register_implementation("careless", Careless, clobber=True)
    with pytest.raises(OptionError, match="single_writer=True"):
        ss.Checkpoints("careless://run").save(1, {"x": 1})
    saves = ss.Checkpoints("careless://run", single_writer=True)
    saves.save(1, {"x": 1})
    saves.wait()
    assert saves.load({"x": 0}) == 1
    with pytest.raises(StateError, match="committed already"):
        ss.Checkpoints("careless://run", single_writer=True).save(1, {"x": 1})


MEMORY = """
import resource, sys
import numpy as np
import shardstream as ss
saves = ss.Checkpoints(sys.argv[1], local=sys.argv[1] + "-local", keep=1, memory="32MiB")
state = {f"t{n}": np.random.rand(400_000) for n in range(20)}  # 64 MB
def held(): return int(open("/proc/self/statm").read().split()[1]) * 4096
for step in range(int(sys.argv[2])):
    saves.save(step, state, busy="wait")
    if step == 3:
        saves.wait(); first = held()
saves.wait()
print(held() - first)
"""


@pytest.mark.parametrize("saves", [12, pytest.param(100, marks=pytest.mark.long)])
def test_many_saves_hold_no_more_memory_than_few(tmp_path: Path, saves: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(tmp_path / "run"), str(saves)],
        capture_output=True, text=True, timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 16 << 20
    assert len(list((tmp_path / "run").glob("step-*"))) == 1
    assert len(list((tmp_path / "run-local").glob("*/step-*"))) == 1


@pytest.mark.parametrize("flips", [12, pytest.param(200, marks=pytest.mark.long)])
def test_every_flipped_bit_is_found_and_named(tmp_path: Path, flips: int) -> None:
    saves = ss.Checkpoints(str(tmp_path / "run"))
    state = {f"t{n}": torch.rand(5000) for n in range(8)}
    saves.save(1, state)
    saves.wait()
    rng = np.random.default_rng(0)
    folder = Path(saves.folder(1))
    files = [folder.parent / "manifest.json", *folder.glob("*.safetensors")]
    for _ in range(flips):
        path = files[rng.integers(len(files))]
        sound = path.read_bytes()
        data = bytearray(sound)
        place = int(rng.integers(len(data)))
        data[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(data)
        with pytest.raises(CorruptionError, match=path.name):
            saves.load({name: torch.zeros(5000) for name in state}, step=1)
        path.write_bytes(sound)
    assert saves.load(state) == 1


def test_a_limit_of_open_files_is_enough(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    saves = ss.Checkpoints(str(tmp_path / "run"), memory="16MiB")
    state = {f"t{n}": np.zeros(1 << 20) for n in range(40)}  # 40 files of 8 MiB
    saves.save(1, state)
    saves.wait()
    assert len(saves.manifest(1).files) > 30
    try:
        resource.setrlimit(
            resource.RLIMIT_NOFILE, (len(list(Path("/proc/self/fd").iterdir())) + 12, before[1])
        )
        assert saves.load(dict(state)) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
