"""A look at the first batch, or item, does not count as an epoch."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
from torch.utils.data import DataLoader

import shardstream as ss
from tests.distributed.training import dataset, name, pack

pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")

KINDS = ["dataset", "mixture", "loader", "beside"]
# Each iteration of it starts a process, which takes seconds.
OFTEN = ["dataset", "mixture", "loader", pytest.param("beside", marks=pytest.mark.long)]


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack(tmp_path_factory.mktemp("packed"), "samples", documents=40)


def made(packed: Path, kind: str) -> Any:
    ds = dataset(packed, transform=key)
    if kind == "dataset":
        return ds
    if kind == "mixture":
        return ss.Mixture([(ds, 1)])
    return ss.StreamingLoader(ds, 5, collate=list, engine="process" if kind == "beside" else "thread")


def key(sample: dict[str, Any]) -> dict[str, Any]:
    return {"__key__": sample["__key__"]}


def some(what: Any, count: int | None = None) -> list[str]:
    iterator = iter(what)
    items = list(iterator if count is None else itertools.islice(iterator, count))
    return [name(sample) for item in items for sample in (item if isinstance(item, list) else [item])]


@pytest.mark.parametrize("kind", OFTEN)
def test_looks_cost_nothing(packed: Path, kind: str) -> None:
    plain = made(packed, kind)
    epochs = [some(plain) for _ in range(3)]
    what = made(packed, kind)
    looked = next(iter(what))
    assert some(what, 1) == epochs[0][: len(some([looked]))]
    assert some(what, 0) == []
    assert some(what) == epochs[0]
    assert some(what, 1) == epochs[1][: len(some([looked]))]
    # Two batches are more than a look.
    assert some(what, 2) == epochs[1][: 2 * len(some([looked]))]
    assert some(what) == epochs[2]


@pytest.mark.parametrize("kind", OFTEN)
def test_a_look_after_a_resume_keeps_the_rest(packed: Path, kind: str) -> None:
    plain = made(packed, kind)
    epochs = [some(plain) for _ in range(2)]
    one, two = made(packed, kind), made(packed, kind)
    seen = some(one, 3)
    two.load_state_dict(one.state_dict())
    for _ in range(2):
        next(iter(two))
    two.set_epoch(0)
    assert seen + some(two) == epochs[0]
    assert some(two) == epochs[1]


@pytest.mark.parametrize("kind", KINDS)
def test_a_state_after_one_batch_goes_on_behind_it(packed: Path, kind: str) -> None:
    whole = some(made(packed, kind))
    one, two = made(packed, kind), made(packed, kind)
    seen = some(one, 1)
    two.load_state_dict(one.state_dict())
    assert seen + some(two) == whole
    # Where it was taken, the epoch begins anew, as if nobody had looked.
    assert some(one) == whole


def test_two_at_once_are_two_epochs(packed: Path) -> None:
    plain = made(packed, "loader")
    epochs = [some(plain) for _ in range(3)]
    loader = made(packed, "loader")
    left, right = zip(*zip(loader, loader, strict=True), strict=True)
    assert [some(left), some(right)] == epochs[:2]
    for _ in zip(loader, loader, strict=True):
        break
    assert some(loader) == epochs[2]


def test_a_closed_iterator_that_is_still_held_was_a_look(packed: Path) -> None:
    loader = made(packed, "loader")
    whole = some(made(packed, "loader"))
    iterator = iter(loader)
    next(iterator)
    iterator.close()
    assert some(loader) == whole
    # One that is still open is an iteration.
    other = iter(loader)
    next(other)
    assert loader.state_dict()["epoch"] == 1
    assert some(loader) != whole
    assert loader.state_dict()["epoch"] == 3


def test_a_batch_that_fails_first_is_tried_again(packed: Path) -> None:
    fails = [True]

    def collate(samples: list[Any]) -> Any:
        if fails.pop() if fails else False:
            raise ValueError("not now")
        return samples

    loader = ss.StreamingLoader(dataset(packed), 5, collate=collate, threads=1)
    with pytest.raises(ValueError, match="not now"):
        some(loader)
    assert some(loader) == some(made(packed, "loader"))


def test_workers_start_where_their_owner_looked(packed: Path) -> None:
    epochs = [some(plain) for plain in itertools.repeat(made(packed, "dataset"), 3)]
    ds = made(packed, "dataset")
    loader = DataLoader(ds, batch_size=None, num_workers=2)
    for epoch in epochs:
        next(iter(ds))
        assert some(loader) == epoch
