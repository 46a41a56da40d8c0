"""Slices of tensors are read from any chunks, and every damaged block is an error that names it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shardstream.checkpoint import layout
from shardstream.checkpoint.commit import collect, commit, read_manifest
from shardstream.checkpoint.files import Files, verify_file
from shardstream.checkpoint.layout import Item, plan_files
from shardstream.checkpoint.manifest import Manifest
from shardstream.checkpoint.reading import read, requests_of
from shardstream.checkpoint.staging import BlockPool
from shardstream.checkpoint.writing import PartWriter
from shardstream.errors import CorruptionError, StateError
from shardstream.storage.store import Store


def item(
    tensor: str,
    array: np.ndarray[Any, Any],
    offsets: tuple[int, ...],
    whole: tuple[int, ...],
    lent: bool = False,
) -> Item:
    data = memoryview(np.ascontiguousarray(array).reshape(-1).view(np.uint8))

    def copy(start: int, into: memoryview) -> None:
        into[:] = data[start : start + len(into)]

    dtype = {"float32": "F32", "int16": "I16", "uint8": "U8", "complex128": "C128"}[str(array.dtype)]
    return Item(
        f"{tensor}{list(offsets)}", dtype, array.shape, copy, tensor, offsets, whole, data if lent else None
    )


def save(folder: Path, items: list[list[Item]], step: int = 1, limit: int = 1 << 20) -> Manifest:
    """A checkpoint that so many ranks have written."""
    store = Store.open(str(folder))
    writers = []
    for rank, mine in enumerate(items):
        writer = PartWriter(store, "attempt", rank, BlockPool(64 << 20))
        for plan in plan_files(mine, lambda number, rank=rank: f"r{rank}-{number}.safetensors", limit):
            writer.stage(plan)
        writer.close()
        writers.append(writer)
    for writer in writers:
        assert writer.wait(60)
        assert writer.error is None, writer.error
    inside = Store.open(f"{folder}/attempt")
    receipts = collect(store, inside, "attempt", len(items), lambda seconds: False, patience=5)
    return commit(store, step, "attempt", receipts)


def cut(size: int, parts: int) -> list[tuple[int, int]]:
    step = -(-size // parts)
    return [(min(n * step, size), min((n + 1) * step, size)) for n in range(parts)]


def fetched(folder: Path, name: str, offsets: tuple[int, ...], shape: tuple[int, ...], dtype: Any) -> Any:
    store = Store.open(str(folder))
    manifest = read_manifest(store)
    assert manifest is not None
    out = np.zeros(shape, dtype)
    memory = memoryview(out.reshape(-1).view(np.uint8))
    read(Files(store, manifest), requests_of(name, manifest.tensors[name], offsets, shape, memory))
    return out


@pytest.mark.parametrize("dtype", ["float32", "int16", "uint8", "complex128"])
@pytest.mark.parametrize("dim", [0, 1, 2])
def test_any_slice_comes_from_any_chunks(tmp_path: Path, dtype: str, dim: int) -> None:
    rng = np.random.default_rng(dim)
    whole = rng.integers(0, 200, (7, 6, 5)).astype(dtype)
    ranks = []
    for a, b in cut(whole.shape[dim], 3):
        place = tuple(slice(a, b) if d == dim else slice(None) for d in range(3))
        offsets = tuple(a if d == dim else 0 for d in range(3))
        ranks.append([item("w", whole[place], offsets, whole.shape)])
    save(tmp_path, ranks)
    for other in range(3):
        for a, b in cut(whole.shape[other], 4):
            place = tuple(slice(a, b) if d == other else slice(None) for d in range(3))
            offsets = tuple(a if d == other else 0 for d in range(3))
            assert np.array_equal(fetched(tmp_path, "w", offsets, whole[place].shape, dtype), whole[place])


@settings(deadline=None, max_examples=30)
@given(st.data())
def test_a_box_of_a_tensor_is_what_numpy_says(tmp_path_factory: Any, data: st.DataObject) -> None:
    shape = tuple(data.draw(st.lists(st.integers(1, 6), min_size=0, max_size=4)))
    whole = np.arange(int(np.prod(shape)), dtype=np.float32).reshape(shape)
    folder = tmp_path_factory.mktemp("box")
    if shape:
        at = data.draw(st.integers(0, shape[0]))
        rest = (0,) * (len(shape) - 1)
        items = [item("w", whole[:at], (0, *rest), shape), item("w", whole[at:], (at, *rest), shape)]
    else:
        items = [item("w", whole, (), ())]
    save(folder, [[each] for each in items])
    ends = [sorted((data.draw(st.integers(0, n)), data.draw(st.integers(0, n)))) for n in shape]
    place = tuple(slice(a, b) for a, b in ends)
    wanted = whole[place]
    assert np.array_equal(fetched(folder, "w", tuple(a for a, _ in ends), wanted.shape, "float32"), wanted)


def test_large_tensors_are_read_over_blocks_and_files_and_only_blocks_that_are_needed(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    big = rng.integers(0, 255, (20 << 10, 1 << 10)).astype(np.uint8)  # 20 MiB, three blocks
    small = [rng.standard_normal((100, 30)).astype(np.float32) for _ in range(20)]
    items = [item("big", big, (0, 0), big.shape)]
    items += [item(f"s{n}", each, (0, 0), each.shape) for n, each in enumerate(small)]
    manifest = save(tmp_path, [items], limit=64 << 20)
    assert [len(file.digests) for file in manifest.files] == [3]
    assert np.array_equal(fetched(tmp_path, "big", (0, 0), big.shape, "uint8"), big)
    assert np.array_equal(
        fetched(tmp_path, "big", (5, 7), (19 << 10, 9), "uint8"), big[5 : 5 + (19 << 10), 7:16]
    )
    for number, each in enumerate(small):
        assert np.array_equal(fetched(tmp_path, f"s{number}", (0, 0), each.shape, "float32"), each)
    store = Store.open(str(tmp_path))
    files = Files(store, manifest)
    out = memoryview(bytearray(1 << 10))
    read(files, requests_of("big", manifest.tensors["big"], (0, 0), (1, 1 << 10), out))
    # A cell of it, and the checksums of all cells.
    assert files.bytes_read <= layout.CELL + 8 * (22 << 20) // layout.CELL


def test_every_flipped_bit_is_an_error_that_names_file_and_tensor(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    tensors = {f"t{n}": rng.standard_normal((40, 50)).astype(np.float32) for n in range(6)}
    items = [item(name, array, (0, 0), array.shape) for name, array in tensors.items()]
    manifest = save(tmp_path, [items[:3], items[3:]], limit=20 << 10)
    store = Store.open(str(tmp_path))
    paths = [tmp_path / manifest.path(file) for file in manifest.files]
    for _ in range(30):
        number = int(rng.integers(len(paths)))
        sound = paths[number].read_bytes()
        damaged = bytearray(sound)
        damaged[rng.integers(len(sound))] ^= 1 << int(rng.integers(8))
        paths[number].write_bytes(damaged)
        with pytest.raises(CorruptionError) as caught:
            verify_file(Files(store, manifest), number)
        assert paths[number].name in str(caught.value)
        assert "t" in str(caught.value).rpartition("tensors in them: ")[2]
        paths[number].write_bytes(sound)
    path = tmp_path / "manifest.json"
    sound = path.read_bytes()
    for _ in range(60):
        damaged = bytearray(sound)
        damaged[rng.integers(len(sound))] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        with pytest.raises(CorruptionError, match=r"manifest\.json"):
            read_manifest(store)


def test_a_checkpoint_is_committed_once(tmp_path: Path) -> None:
    array = np.ones((3, 4), np.float32)
    save(tmp_path, [[item("w", array, (0, 0), array.shape)]])
    store, inside = Store.open(str(tmp_path)), Store.open(f"{tmp_path}/attempt")
    receipts = collect(store, inside, "attempt", 1, lambda seconds: False)
    assert commit(store, 1, "attempt", receipts).attempt == "attempt"  # as if the answer had been lost
    with pytest.raises(StateError, match="committed already"):
        commit(store, 1, "another", receipts)


def test_the_files_are_safetensors_and_tensors_are_aligned(tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    rng = np.random.default_rng(2)
    tensors = {f"t{n}": rng.standard_normal((n, 3)).astype(np.float32) for n in range(1, 40)}
    tensors["big"] = rng.standard_normal((64, 64)).astype(np.float32)
    manifest = save(tmp_path, [[item(n, array, (0, 0), array.shape) for n, array in tensors.items()]])
    loaded = load_file(tmp_path / manifest.path(manifest.files[0]))
    assert {name: array.tolist() for name, array in loaded.items()} == {
        f"{name}[0, 0]": array.tolist() for name, array in tensors.items()
    }
    assert manifest.tensors["big"].chunks[0].start % 64 == 0
    assert all(chunk.start % 4 == 0 for tensor in manifest.tensors.values() for chunk in tensor.chunks)


@pytest.mark.parametrize("damage", ["missing", "short", "flipped"])
def test_cells_whose_checksums_are_damaged_come_with_their_block(tmp_path: Path, damage: str) -> None:
    big = np.random.default_rng(0).integers(0, 255, (20 << 10, 1 << 10)).astype(np.uint8)
    save(tmp_path, [[item("big", big, (0, 0), big.shape)]], limit=64 << 20)
    (sums,) = tmp_path.glob("attempt/*.sums")
    good = sums.read_bytes()
    sums.write_bytes({"missing": b"", "short": good[:-1], "flipped": bytes(b ^ 1 for b in good)}[damage])
    if damage == "missing":
        sums.unlink()
    assert np.array_equal(fetched(tmp_path, "big", (9000, 0), (3, 1 << 10), "uint8"), big[9000:9003])


def test_a_damaged_cell_is_named(tmp_path: Path) -> None:
    big = np.random.default_rng(0).integers(0, 255, (20 << 10, 1 << 10)).astype(np.uint8)
    save(tmp_path, [[item("big", big, (0, 0), big.shape)]], limit=64 << 20)
    (file,) = tmp_path.glob("attempt/*.safetensors")
    data = bytearray(file.read_bytes())
    data[-100] ^= 4
    file.write_bytes(data)
    assert np.array_equal(fetched(tmp_path, "big", (9000, 0), (3, 1 << 10), "uint8"), big[9000:9003])
    with pytest.raises(CorruptionError, match="big"):
        fetched(tmp_path, "big", (big.shape[0] - 1, 0), (1, 1 << 10), "uint8")


@pytest.mark.parametrize("remote", [False, True])
@pytest.mark.parametrize("lent", ["none", "some", "all"])
def test_files_are_the_same_whether_bytes_are_copied_or_written_as_they_lie(
    tmp_path: Path, lent: str, remote: bool
) -> None:
    rng = np.random.default_rng(0)
    sizes = [*([7] * 100), 3 << 20, 1, 9 << 20, 100_003, 0, 65_536]
    arrays = [rng.integers(0, 255, size).astype(np.uint8) for size in sizes]
    items = [
        item(f"t{n}", array, (0,), array.shape, lent == "all" or (lent == "some" and n % 2 == 0))
        for n, array in enumerate(arrays)
    ]
    folder = f"memory://lent-{lent}" if remote else str(tmp_path)
    manifest = save(folder, [items], limit=64 << 20)  # type: ignore[arg-type]
    store = Store.open(folder)
    files = Files(store, manifest)
    for number in range(len(manifest.files)):
        verify_file(files, number)
    for n, array in enumerate(arrays):
        out = np.zeros(array.shape, np.uint8)
        read(files, requests_of(f"t{n}", manifest.tensors[f"t{n}"], (0,), array.shape, memoryview(out)))
        assert np.array_equal(out, array)
        if len(array) > 1000:  # by its cells
            out = np.zeros(5, np.uint8)
            read(files, requests_of(f"t{n}", manifest.tensors[f"t{n}"], (990,), (5,), memoryview(out)))
            assert np.array_equal(out, array[990:995])
