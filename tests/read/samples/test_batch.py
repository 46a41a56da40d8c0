"""Batches: ragged fields, and the samples in them."""

from __future__ import annotations

import copy
import datetime
import decimal
import enum
import fractions
import pickle
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils import _pytree
from torch.utils.data import DataLoader, IterableDataset, default_convert
from torch.utils.data._utils.pin_memory import pin_memory

from shardstream.errors import OptionError
from shardstream.read.handoff.device import check_device, moved, pinned
from shardstream.read.samples.batch import Batch, Ragged, collate, column


@given(st.lists(st.none() | st.binary(max_size=20), max_size=8))
def test_ragged_gives_back_what_was_gathered(values: list[bytes | None]) -> None:
    ragged = Ragged.gather([None if value is None else memoryview(value) for value in values])
    assert list(ragged) == values
    assert [ragged[number] for number in range(len(ragged))] == values
    assert ragged[::2] == values[::2]
    assert ragged == values
    assert ragged.data.numpy().tobytes() == b"".join(value or b"" for value in values)
    assert ragged.offsets.tolist()[-1] == sum(len(value or b"") for value in values)


def test_a_tensor_as_an_index_stays_as_it_is() -> None:
    ragged = Ragged.gather([memoryview(b"ab"), memoryview(b"c")])
    for index in (torch.tensor(-1), np.array(-1), np.int64(-1)):
        assert ragged[index] == b"c"  # type: ignore[index]
        assert index == -1
    with pytest.raises(TypeError):
        ragged[1.0]  # type: ignore[call-overload]


def test_ragged_has_ends_and_views() -> None:
    ragged = Ragged.gather([memoryview(b"ab"), None, memoryview(b"")])
    assert ragged[-1] == b""
    assert ragged.view(1) is None
    view = ragged.view(0)
    assert view is not None
    view[0] = ord("x")
    assert ragged[0] == b"xb"
    with pytest.raises(IndexError):
        ragged[3]


def test_a_batch_gives_its_samples() -> None:
    samples = [{"__key__": "a", "n": 1, "t": "x"}, {"__key__": "b", "n": 2}]
    batch = collate(samples)
    assert isinstance(batch, Batch)
    assert batch["n"].dtype == torch.int64
    assert batch.size == 2
    assert list(batch.samples()) == samples


def test_moving_reaches_every_tensor() -> None:
    batch = Batch(a=torch.ones(2), b=Ragged.gather([memoryview(b"ab")]), c=[torch.zeros(1), "x"], d=("y",))
    there = next(moved(iter([batch]), check_device(pin=False, device="meta")))
    assert type(there) is Batch
    assert there["a"].device.type == there["b"].data.device.type == there["c"][0].device.type == "meta"
    assert there["c"][1:] + list(there["d"]) == ["x", "y"]
    with pytest.raises(OptionError, match="nonsense"):
        check_device(pin=False, device="nonsense")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, so that pinning works")
def test_pinning_without_a_gpu_is_refused() -> None:
    with pytest.raises(OptionError, match="pin=True"):
        check_device(pin=True, device=None)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_pinned_batches_arrive_whole_on_the_gpu() -> None:
    batches = [Batch(a=torch.full((1 << 20,), number)) for number in range(20)]
    device = check_device(pin=True, device="cuda")
    arrived = list(moved(map(pinned, batches), device))
    assert [batch["a"].sum().item() >> 20 for batch in arrived] == list(range(20))


def test_wide_integers_stay_a_list() -> None:
    assert collate([{"n": 2**70}, {"n": 1}])["n"] == [2**70, 1]
    assert np.asarray(collate([{"n": True}])["n"]).dtype == np.bool_


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Share(float, enum.Enum):
    HALF = 0.5


class Word(str, enum.Enum):
    A = "a"


WHOLE = [1, np.int32(1), np.uint8(1), Level.LOW]
REAL = [0.5, np.float64(0.5), np.float32(0.5), np.float16(0.5), Share.HALF]


@pytest.mark.parametrize("value", WHOLE)
def test_whole_numbers_are_int64(value: Any) -> None:
    for values in ([value], [value, 2], [2, value], [value, np.int64(2), Level.HIGH], [value, True]):
        made = column(values)
        assert made.dtype == torch.int64
        assert made.tolist() == [int(one) for one in values]


@pytest.mark.parametrize("value", REAL)
def test_a_fraction_among_numbers_makes_float64(value: Any) -> None:
    for values in ([value], [1, value, 2], [value, True], [Level.HIGH, value], [value, np.uint8(3)]):
        made = column(values)
        assert made.dtype == torch.float64
        assert made.tolist() == [float(one) for one in values]


def test_what_meets_does_not_decide_whether_numbers_are_a_tensor() -> None:
    numbers = [*WHOLE, *REAL, True, np.bool_(False), 1j, np.complex64(1), float("nan")]
    for one in numbers:
        for other in numbers:
            assert isinstance(column([one, other]), torch.Tensor)
    assert column([True, np.bool_(False)]).dtype == torch.bool
    assert column([1, 1j]).dtype == torch.complex128


def test_numbers_that_would_be_changed_stay_a_list() -> None:
    for wide in (2**63, -(2**63) - 1, np.uint64(2**63)):
        for values in ([wide], [wide, 1], [0.5, wide], [wide, 1j]):
            assert column(values) is values
    assert column([2**63 - 1, -(2**63)]).tolist() == [2**63 - 1, -(2**63)]


@pytest.mark.parametrize(
    "values",
    [
        ["a", "b"],
        [Word.A, "b"],
        [None, 1],
        [1, None],
        [1, "a"],
        [b"a", b"b"],
        [np.str_("a"), np.str_("b")],
        [np.datetime64(1, "s"), np.datetime64(2, "s")],
        [np.timedelta64(1, "s"), np.timedelta64(2, "s")],
        [datetime.date(2026, 1, 1)],
        [decimal.Decimal(1), 1],
        [fractions.Fraction(1, 2), 0.5],
        [{"a": 1}, {"a": 2}],
        [[1], [2]],
        [(1, 2), (3, 4)],
        [np.ones(2), np.ones(3)],
        [np.ones(2), np.ones(2, np.float32)],
        [np.array(1.0), 1.0],
        [1.0, np.array(1.0)],
        [torch.tensor(1.0), 1.0],
        [1.0, torch.tensor(1.0)],
        [torch.ones(2), np.ones(2)],
        [torch.ones(2), torch.ones(2, dtype=torch.float64)],
        [torch.ones(2), torch.ones(2, device="meta")],
        [np.ma.masked_array([1, 2], [True, False])],
        [np.array(["a"]), np.array(["b"])],
    ],
)
def test_all_else_stays_the_list_that_it_is(values: list[Any]) -> None:
    assert column(values) is values


def test_arrays_and_tensors_keep_their_dtype() -> None:
    for dtype in (np.float16, np.float32, np.uint8, np.int32, np.bool_):
        for shape in ((), (2,), (2, 3)):
            made = column([np.ones(shape, dtype), np.ones(shape, dtype)])
            assert made.shape == (2, *shape)
            assert made.numpy().dtype == dtype
    assert column([torch.ones(2, dtype=torch.bfloat16)] * 3).dtype == torch.bfloat16


RAGGED = st.lists(st.none() | st.binary(max_size=20), max_size=8).map(
    lambda values: Ragged.gather([None if value is None else memoryview(value) for value in values])
)


def some_batch() -> Batch:
    """A field of each kind, and a sample that lacks its bytes."""
    ragged = Ragged.gather([memoryview(b"abc"), None, memoryview(b"")])
    return Batch(__key__=["a", "b", "c"], image=torch.arange(6.0).reshape(3, 2), raw=ragged)


@given(RAGGED)
def test_a_batch_comes_back_from_its_leaves(ragged: Ragged) -> None:
    batch = Batch(n=torch.ones(2), raw=ragged, t=["x", "y"])
    leaves, spec = _pytree.tree_flatten(batch)
    assert leaves[1] is ragged.data
    assert leaves[2:] == ["x", "y"]
    again = _pytree.tree_unflatten(leaves, spec)
    assert type(again) is Batch
    assert again["raw"] == ragged
    assert again["raw"].offsets.dtype == np.int64
    # A structure is compared, and kept in files.
    assert _pytree.tree_flatten(again)[1] == spec
    assert _pytree.treespec_loads(_pytree.treespec_dumps(spec)).unflatten(leaves)["raw"] == ragged


def test_structures_of_different_lengths_differ() -> None:
    one, other = Ragged.gather([memoryview(b"ab"), None]), Ragged.gather([memoryview(b"a"), memoryview(b"b")])
    assert _pytree.tree_structure(one) != _pytree.tree_structure(other)
    with pytest.raises(ValueError, match="mismatch"):
        _pytree.tree_map(lambda a, b: a + b, one, other)


def test_tree_map_reaches_every_tensor() -> None:
    batch = some_batch()
    there = _pytree.tree_map_only(torch.Tensor, lambda tensor: tensor.to("meta"), batch)
    assert type(there) is Batch
    assert there["image"].device.type == there["raw"].data.device.type == "meta"
    assert there["__key__"] == ["a", "b", "c"]
    assert (len(there["raw"]), there["raw"].missing.tolist()) == (3, [False, True, False])
    paths = [_pytree.keystr(path) for path, _ in _pytree.tree_flatten_with_path(batch)[0]]
    assert paths[-2:] == ["['image']", "['raw'].data"]


def test_the_pytrees_of_c_plus_plus_know_a_batch() -> None:
    pytest.importorskip("optree", reason="torch's pytrees in C++ need optree")
    from torch.utils import _cxx_pytree

    batch = some_batch()
    leaves, spec = _cxx_pytree.tree_flatten(batch)
    assert leaves[-1] is batch["raw"].data
    again = _cxx_pytree.tree_unflatten(leaves, spec)
    assert type(again) is Batch
    assert again["raw"] == batch["raw"]
    assert hash(spec) == hash(_cxx_pytree.tree_structure(again))


def test_ragged_is_no_sequence() -> None:
    ragged = some_batch()["raw"]
    assert not isinstance(ragged, Sequence)
    assert (b"abc" in ragged, list(reversed(ragged))) == (True, [b"", None, b"abc"])
    assert ragged.to("meta", non_blocking=True).data.device.type == "meta"
    assert ragged.to(torch.device("cpu")) == ragged


def test_ragged_is_copied_and_pickled() -> None:
    batch = some_batch()
    for again in (pickle.loads(pickle.dumps(batch)), copy.deepcopy(batch)):
        assert type(again) is Batch
        assert again["raw"] == batch["raw"]
        again["raw"].view(0)[0] = ord("x")
    assert batch["raw"][0] == b"abc"


def test_default_convert_leaves_a_batch_as_it_is() -> None:
    batch = some_batch()
    there = default_convert(batch)
    assert type(there) is Batch
    assert there["raw"] is batch["raw"]


class Whole(IterableDataset[Batch]):
    """Gives whole batches."""

    def __iter__(self):  # type: ignore[no-untyped-def]
        return iter([some_batch(), some_batch()])


@pytest.mark.parametrize("workers", [0, 1])
def test_whole_batches_pass_a_dataloader(workers: int) -> None:
    found = list(DataLoader(Whole(), batch_size=None, num_workers=workers))
    assert [type(batch) for batch in found] == [Batch, Batch]
    assert all(list(batch["raw"]) == [b"abc", None, b""] for batch in found)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="pinning memory needs a GPU")
def test_a_dataloader_pins_every_tensor() -> None:
    batch = pin_memory(some_batch())
    assert type(batch) is Batch
    assert batch["image"].is_pinned()
    assert batch["raw"].data.is_pinned()
    there = batch["raw"].to("cuda", non_blocking=True)
    assert list(there) == [there[0], there[1], there[2]] == [b"abc", None, b""]
