"""Arrays of .npy files: what `np.load` and `np.stack` give, with fewer copies."""

from __future__ import annotations

import io
import itertools
import tracemalloc
import warnings

import numpy as np
import pytest
import torch

import shardstream as ss
from shardstream.decode import arrays

SHAPES = [(), (1,), (0,), (3,), (2, 3), (2, 0), (4, 1, 5)]
DTYPES = ["<f4", ">f4", "<f2", "|b1", "|u1", "<i8", ">u2", "<c8", "<M8[ns]", "<U3", "V4"]


def stored(array: np.ndarray, version: tuple[int, int] | None = None) -> bytes:
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of version 2
        np.lib.format.write_array(file, array, version)
    return file.getvalue()


def filled(shape: tuple[int, ...], dtype: str, order: str = "C") -> np.ndarray:
    made = np.empty(shape, dtype, order=order)
    raw = np.random.default_rng(1).integers(0, 2, made.nbytes, np.uint8).tobytes()
    made[...] = np.frombuffer(raw, dtype).reshape(shape)
    return made


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_array_is_what_numpy_loads(dtype):
    for shape, order, version in itertools.product(SHAPES, "CF", [None, (2, 0), (3, 0)]):
        data = stored(filled(shape, dtype, order), version)
        for source in (data, memoryview(data + b"more")):
            found, wanted = arrays.decode(source), np.load(io.BytesIO(source), allow_pickle=False)
            assert found.dtype == wanted.dtype
            assert found.shape == wanted.shape
            assert found.tobytes() == wanted.tobytes()
            assert found.flags.writeable
            assert found.flags.f_contiguous == wanted.flags.f_contiguous
            assert not np.shares_memory(found, np.frombuffer(source, np.uint8))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_stack_is_what_numpy_stacks(dtype):
    for shape, order in itertools.product(SHAPES, "CF"):
        one, two = filled(shape, dtype, order), filled(shape, dtype, "C")
        found, wanted = arrays.stacked([stored(one), stored(two)], None), np.stack([one, two])
        if one.dtype.kind not in "biufc" or not one.size:
            assert found is None
            continue
        assert found is not None
        assert found.dtype == wanted.dtype
        assert found.shape == wanted.shape
        assert found.tobytes() == wanted.tobytes()


def test_what_differs_is_not_stacked():
    three, four = stored(np.zeros(3)), stored(np.zeros(4))
    assert arrays.stacked([three, four], None) is None
    assert arrays.stacked([three, stored(np.zeros(3, "f4"))], None) is None
    assert arrays.stacked([three, None], None) is None
    assert arrays.stacked([None, three], None) is None


def shaped(six: bytes, shape: bytes) -> bytes:
    """The file of six numbers with another shape in its header."""
    end = b"(6,), }" + 10 * b" "
    assert end in six
    return six.replace(end, (shape + b", }").ljust(len(end)))


def damaged() -> dict[str, bytes]:
    good = stored(np.arange(6.0))
    objects = io.BytesIO()
    np.save(objects, np.array([{}], object), allow_pickle=True)
    return {
        "cut": good[:-1], "header cut": good[:20], "no header": good[:8], "empty": b"",
        "other": b"\xff" * 200,
        "objects": objects.getvalue(),
        "odd header": good.replace(b"'fortran_order'", b"'fortran_odder'"),
        "no literal": good.replace(b"{'descr'", b"(('descr'"),
        "negative": good.replace(b"(6,)", b"(-6)"),
        "negative axis": shaped(good, b"(-6,)"),
        "two negative axes": shaped(good, b"(-2,-3)"),
        "too many axes": stored(np.zeros((1,) * 45)).replace(44 * b"1, ", 66 * b"1,"),
    }  # fmt: skip


@pytest.mark.parametrize("kind", damaged())
def test_damage_is_what_numpy_says(kind):
    data = damaged()[kind]
    with pytest.raises(Exception) as wanted:
        np.load(io.BytesIO(data), allow_pickle=False)
    with pytest.raises(type(wanted.value)) as found:
        arrays.decode(data)
    assert str(found.value) == str(wanted.value)
    assert arrays.viewed(data) is None
    assert arrays.stacked([data], None) is None


@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_batches_of_large_arrays(tmp_path, compression):
    made = np.random.default_rng(2).integers(0, 99, (8, 300, 1000), np.uint8)
    ss.pack(
        ({"__key__": str(n), "npy": one} for n, one in enumerate(made)),
        tmp_path / "d",
        compression=compression,
    )
    loader = ss.StreamingLoader(ss.StreamingDataset(str(tmp_path / "d")), 2, threads=2)
    for _ in range(2):
        held = list(loader)  # the memory of a batch is used again only when the batch is gone
        assert torch.equal(torch.cat([batch["npy"] for batch in held]), torch.from_numpy(made))
        held[0]["npy"][:] = 0  # it is the user's
        assert torch.equal(held[1]["npy"], torch.from_numpy(made[2:4]))
        del held
    assert np.array_equal(ss.StreamingDataset(str(tmp_path / "d"))[5]["npy"], made[5])


@pytest.mark.parametrize("damage", [lambda good: good[:-3], lambda good: shaped(good, b"(-2,-3)")])
def test_damage_names_its_sample(tmp_path, damage):
    good = stored(np.arange(6.0))
    rows = [{"__key__": "fine", "npy": good}, {"__key__": "torn", "npy": damage(good)}]
    ss.pack(rows, tmp_path / "d")
    with pytest.raises(ss.SourceError, match=r"'torn'.*'npy'"):
        list(ss.StreamingLoader(ss.StreamingDataset(str(tmp_path / "d")), 2))


def test_each_array_is_copied_once():
    data = stored(np.zeros(4 << 20, np.uint8))
    column = [data] * 4
    arrays.stacked(column[:1], None)
    tracemalloc.start()
    try:
        batch = arrays.stacked(column, None)
        assert tracemalloc.get_traced_memory()[1] < batch.nbytes * 1.1
    finally:
        tracemalloc.stop()
