"""Weights as tensors: the bits that safetensors gives, from anywhere, through faults, in bounded memory."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save, save_file

import shardstream as ss
from shardstream.errors import CorruptionError, OptionError, StateError, StorageError
from shardstream.storage.store import Store
from shardstream.weights.check import verify_weights
from tests.proxy import Proxy
from tests.weights.models import of_all_kinds, raw, same, save_sharded


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    return of_all_kinds()


@pytest.fixture
def folder(tmp_path: Path, state: dict[str, torch.Tensor]) -> Path:
    save_sharded(state, tmp_path / "model")
    return tmp_path / "model"


def test_all_bits_are_those_of_safetensors(folder: Path, state: dict[str, torch.Tensor]) -> None:
    found = ss.load_weights(folder)
    assert same(found, state)
    assert same(
        found,
        {name: value for file in folder.glob("*.safetensors") for name, value in load_file(file).items()},
    )
    found["layer.weight"].add_(1)  # memory of its own
    model = torch.nn.Linear(1025, 3000, bias=False)
    model.load_state_dict({"weight": found["layer.weight"]}, assign=True)
    assert model.weight.data_ptr() == found["layer.weight"].data_ptr()


@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_dtypes_are_converted(
    folder: Path, state: dict[str, torch.Tensor], dtype: torch.dtype, recorded: bool
) -> None:
    if recorded:
        verify_weights(str(folder), record=True)
    numbers = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
    expected = {name: each.to(dtype) if each.dtype in numbers else each for name, each in state.items()}
    assert same(ss.load_weights(folder, dtype=dtype), expected)


def test_conversion_of_bytes_that_lie_at_odd_places(tmp_path: Path) -> None:
    values = torch.randn(5_000_000)  # more than two blocks
    file = tmp_path / "model.safetensors"
    text = json.dumps(
        {
            "a": {"dtype": "U8", "shape": [3], "data_offsets": [0, 3]},
            "w": {"dtype": "F32", "shape": [5_000_000], "data_offsets": [3, 20_000_003]},
        }
    ).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + b"abc" + raw(values))
    for _ in range(2):
        assert torch.equal(ss.load_weights(file)["w"], values)
        assert torch.equal(ss.load_weights(tmp_path, dtype=torch.bfloat16)["w"], values.bfloat16())
        verify_weights(str(tmp_path), record=True)


def test_options_that_cannot_be(folder: Path) -> None:
    with pytest.raises(OptionError, match=r"dtype=torch\.int8 must be"):
        ss.load_weights(folder, dtype=torch.int8)
    with pytest.raises(OptionError, match=r"dtype='float16' must be .* torch\.float16"):
        ss.load_weights(folder, dtype="float16")  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="meta"):
        ss.load_weights(folder, device="meta")
    with pytest.raises(OptionError, match="no tensor 'x'"):
        ss.stream_weights(folder, names=["x"])  # at the call, before anything is taken


def test_a_dtype_that_torch_has_not(tmp_path: Path) -> None:
    text = b'{"six": {"dtype": "F6_E2M3", "shape": [4], "data_offsets": [0, 3]}}'
    (tmp_path / "m.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + b"abc")
    with pytest.raises(OptionError, match=r"tensor 'six' is F6_E2M3, which torch .* has not"):
        ss.load_weights(tmp_path)
    text = b'{"four": {"dtype": "F4", "shape": [2, 4], "data_offsets": [0, 4]}}'
    (tmp_path / "m.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + b"abcd")
    if hasattr(torch, "float4_e2m1fn_x2"):
        found = ss.load_weights(tmp_path)["four"]
        assert (found.shape, raw(found)) == ((2, 2), b"abcd")


@pytest.mark.parametrize("memory", ["1KiB", "30MB", 1 << 40])
def test_streaming(folder: Path, state: dict[str, torch.Tensor], memory: str | int) -> None:
    assert same(dict(ss.stream_weights(folder, memory=memory)), state)
    first = ss.stream_weights(folder, memory=memory)
    next(first)
    del first  # left half-way
    assert same(dict(ss.stream_weights(folder, names=["number"])), {"number": state["number"]})


def test_streaming_is_bounded(tmp_path: Path) -> None:
    save_file(
        {f"w{number:02}": torch.full((1 << 18,), number) for number in range(64)}, tmp_path / "m.safetensors"
    )
    made = 0
    for number, (name, tensor) in enumerate(ss.stream_weights(tmp_path, memory="4MiB")):
        assert tensor[-1] == int(name[1:])
        made = number
    assert made == 63


def test_many_flipped_bits_are_many_named_errors(tmp_path: Path) -> None:
    save_file({f"w{number}": torch.randn(1 << 16) for number in range(40)}, tmp_path / "model.safetensors")
    verify_weights(str(tmp_path), record=True)
    file = tmp_path / "model.safetensors"
    size, draw = file.stat().st_size, random.Random(0)
    for _ in range(60):
        place, bit = draw.randrange(size), 1 << draw.randrange(8)
        with file.open("r+b") as opened:
            opened.seek(place)
            [before] = opened.read(1)
            opened.seek(place)
            opened.write(bytes([before ^ bit]))
        with pytest.raises(CorruptionError, match=r"model\.safetensors"):
            ss.load_weights(tmp_path)
        with file.open("r+b") as opened:
            opened.seek(place)
            opened.write(bytes([before]))
    assert len(ss.load_weights(tmp_path)) == 40


def test_every_block_is_checked_whatever_is_planned_together(tmp_path: Path) -> None:
    tensors = {f"w{number:02}": torch.zeros(1_600_000) for number in range(24)}  # 154 MB, 6.4 MB each
    save_file(tensors, tmp_path / "model.safetensors")
    verify_weights(str(tmp_path), record=True)
    file = tmp_path / "model.safetensors"
    for place in range(5_000_000, file.stat().st_size, 9_000_000):
        with file.open("r+b") as opened:
            opened.seek(place)
            opened.write(b"\1")
            opened.flush()
            with pytest.raises(CorruptionError, match="damaged"):
                for _ in ss.stream_weights(tmp_path, memory="1KiB"):
                    pass
            opened.seek(place)
            opened.write(b"\0")
    assert len(ss.load_weights(tmp_path, names=["w03"])) == 1


def test_bits_that_flip_on_their_way_are_read_again(
    weed: Any, proxy_to: Callable[..., Proxy], folder: Path, state: dict[str, torch.Tensor]
) -> None:
    url = weed.bucket()
    store = Store.open(url, weed.options())
    verify_weights(str(folder), record=True)
    for file in folder.iterdir():
        store.write(file.name, file.read_bytes())
    proxy = proxy_to(weed)
    seen = 0

    def once(method: str, path: str) -> bool:
        nonlocal seen
        seen += method == "GET" and "00001-of" in path
        return method == "GET" and "00001-of" in path and seen == 2  # its header comes first

    proxy.set(flip=1.0, only=once)
    assert same(ss.load_weights(url, storage_options=weed.options(proxy.url)), state)
    assert proxy.counts.injected["flip"] == 1


@pytest.mark.parametrize("by_fsspec", [False, True])
def test_through_faults(
    weed: Any, proxy_to: Callable[..., Proxy], folder: Path, state: dict[str, torch.Tensor], by_fsspec: bool
) -> None:
    url = weed.bucket()
    store = Store.open(url, weed.options())
    for file in folder.iterdir():
        store.write(file.name, file.read_bytes())
    proxy = proxy_to(weed, status=(503,), share=0.05, reset=0.05, cut=0.05, latency=0.005)
    options = weed.options(proxy.url) | ({"config_kwargs": {}} if by_fsspec else {})
    for _ in range(4):
        assert same(ss.load_weights(url, storage_options=options), state)
    assert proxy.counts.injected.total()


@pytest.mark.parametrize("ignore", [False, True])
def test_web_servers_with_and_without_ranges(
    nginx: Any, proxy_to: Callable[..., Proxy], folder: Path, state: dict[str, torch.Tensor], ignore: bool
) -> None:
    proxy = proxy_to(nginx, ignore_range=ignore, latency=0.002)
    target = nginx.root / f"model-{ignore}"
    target.mkdir()
    for file in folder.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    assert same(ss.load_weights(f"{proxy.url}/{target.name}"), state)
    [part] = target.glob("*00001-of*")
    assert ss.load_weights(f"{proxy.url}/{target.name}/{part.name}?token=x").keys() < state.keys()
    # A file that comes whole comes for its header, and once more for its blocks, however many there are.
    save_file({"long": torch.arange(8 << 20)}, target / "long.safetensors")
    proxy.reset_counts()
    found = ss.load_weights(f"{proxy.url}/{target.name}/long.safetensors")["long"]
    assert torch.equal(found, torch.arange(8 << 20))
    assert proxy.counts.requests == (2 if ignore else 10)


def test_a_file_that_comes_whole_and_damaged_comes_again(nginx: Any, proxy_to: Callable[..., Proxy]) -> None:
    long = torch.arange(3 << 20)
    target = nginx.root / "whole-weights"
    target.mkdir()
    save_file({"long": long}, target / "model.safetensors")
    verify_weights(str(target), record=True)
    proxy = proxy_to(nginx)
    gets = 0

    def second(method: str, path: str) -> bool:
        nonlocal gets
        gets += path.endswith("model.safetensors")
        proxy.faults.flip = float(gets == 2)  # its header comes first
        return True

    def check(load: Callable[[], object], expected: int) -> None:
        nonlocal gets
        gets = 0
        proxy.reset_counts()
        proxy.set(ignore_range=True, only=second)
        assert load()
        assert (gets, proxy.counts.injected["flip"]) == (expected, 1)

    url = f"{proxy.url}/{target.name}"
    # What was sent whole is not kept: the block that differs is asked for again.
    check(lambda: same(ss.load_weights(url), {"long": long}), 3)
    check(lambda: verify_weights(url), 3)


def test_memory_stores_and_missing_ones(state: dict[str, torch.Tensor]) -> None:
    Store.open("memory://weights-test/m").write("model.safetensors", save(state))
    assert same(ss.load_weights("memory://weights-test/m"), state)
    with pytest.raises(StorageError):
        ss.load_weights("memory://weights-test/none")


def test_a_file_that_is_replaced_while_it_is_read(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    save_file({f"w{number}": torch.zeros(1 << 20) for number in range(40)}, file)
    found = ss.stream_weights(file, memory="1MiB")
    next(found)
    save_file({f"w{number}": torch.ones(1 << 20) for number in range(40)}, file)
    with pytest.raises(StorageError, match="it was replaced while it was read"):
        list(found)


def test_a_program_may_end_in_the_midst(folder: Path) -> None:
    program = (
        "import sys, torch, shardstream as ss\n"
        "found = ss.stream_weights(sys.argv[1], memory='1KiB')\n"
        "next(found)\n"
        "other = ss.load_weights(sys.argv[1], dtype=torch.bfloat16)\n"
        "print('done')\n"
    )
    for _ in range(3):
        done = subprocess.run(
            [sys.executable, "-c", program, str(folder)], capture_output=True, text=True, timeout=60
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")


def test_a_forked_process_loads_by_itself(folder: Path, state: dict[str, torch.Tensor]) -> None:
    begun = ss.stream_weights(folder, memory="1KiB")
    next(begun)
    child = os.fork()
    if not child:
        status = 1
        try:
            status = 0 if same(ss.load_weights(folder), state) else 2
            del begun
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    assert len(list(begun)) == len(state) - 1


def test_a_forked_process_cannot_go_on_with_what_its_parent_began(folder: Path) -> None:
    begun = ss.stream_weights(folder, memory="1KiB")
    next(begun)
    child = os.fork()
    if not child:
        try:
            next(begun)
        except StateError as error:
            os._exit(0 if "call stream_weights again" in str(error) else 2)
        finally:
            os._exit(1)
    assert os.waitpid(child, 0)[1] == 0


def test_memory_is_that_of_the_model(tmp_path: Path) -> None:
    save_file(
        {f"w{number}": torch.ones(1 << 22) for number in range(24)}, tmp_path / "m.safetensors"
    )  # 400 MB
    program = (
        "import sys, torch, numpy, shardstream as ss, shardstream.weights.load, shardstream.weights.tensors\n"
        "def peak():\n"
        "    return next(int(l.split()[1]) << 10 for l in open('/proc/self/status') if 'VmHWM' in l)\n"
        "before = peak()\n"
        "found = ss.load_weights(sys.argv[1])\n"
        "print((peak() - before) / sum(each.nbytes for each in found.values()))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True, timeout=60
    )
    assert float(done.stdout) < 1.04  # 16 MB of 400 are allowed to be constant
