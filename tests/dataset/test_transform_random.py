"""Random numbers of transforms: the same for any threads, workers, engine, ranks and restart."""

from __future__ import annotations

import functools
import pickle
import random
import threading
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import shardstream as ss
from shardstream.dataset.transforms import wants_rng
from shardstream.order.generators import Generators
from tests.corpora import pack_rows

pytestmark = [
    pytest.mark.filterwarnings("ignore:This DataLoader will create"),
    pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning"),
]

Draws = dict[str, float]


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = ({"id": number, "text": f"row {number}"} for number in range(96))
    return pack_rows(tmp_path_factory.mktemp("random"), rows, frame_size="256B", shard_size="1KiB")


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = ({"id": number, "text": f"row {number} " * 5} for number in range(60))
    return pack_rows(tmp_path_factory.mktemp("tokens"), rows, frame_size="256B", tokenizer="bytes", eos=256)


def own(sample: dict[str, Any], *, rng: np.random.Generator) -> dict[str, Any]:
    """Takes its time, so that threads overtake each other."""
    time.sleep(0.0005 * (int(sample["__key__"]) % 3))
    return {"__key__": sample["__key__"], "draw": rng.random()}


def as_torchvision(sample: dict[str, Any]) -> dict[str, Any]:
    """Draws as torchvision's v2 transforms do, and from the other global generators, too."""
    time.sleep(0.0005 * (int(sample["__key__"]) % 3))
    draw = (
        torch.rand(1).item() + torch.randint(0, 100, size=(1,)).item() + torch.empty(1).uniform_(0, 1).item()
    )
    draw += int(torch.randperm(50)[0]) + torch.randn(3).sum().item()
    return {"__key__": sample["__key__"], "draw": draw + np.random.normal() + random.random()}


TRANSFORMS = {"rng": own, "seeded": ss.seeded(as_torchvision)}


def dataset(url: Path, transform: Any, rank: int = 0, size: int = 1, seed: int = 5) -> ss.StreamingDataset:
    shuffle = ss.Shuffle(seed=seed, lanes=4)
    return ss.StreamingDataset(url, shuffle=shuffle, topology=ss.Topology(rank, size), transform=transform)


def drawn(batches: Any) -> Draws:
    return {
        key: float(draw)
        for batch in batches
        for key, draw in zip(batch["__key__"], batch["draw"], strict=True)
    }


@pytest.fixture(scope="module", params=list(TRANSFORMS))
def transform(request: pytest.FixtureRequest) -> Any:
    return TRANSFORMS[request.param]


@pytest.fixture
def wanted(packed: Path, transform: Any) -> Draws:
    """The draws of the first epoch, as one thread makes them."""
    found = drawn(ss.StreamingLoader(dataset(packed, transform), 8, threads=1))
    assert len(set(found.values())) == 96
    return found


def test_any_number_of_threads_and_any_batch(packed: Path, transform: Any, wanted: Draws) -> None:
    for threads, size, prefetch in ((4, 8, "1KiB"), (3, 5, "64MiB")):
        loader = ss.StreamingLoader(
            dataset(packed, transform), size, last="short", threads=threads, prefetch=prefetch
        )
        assert drawn(loader) == wanted
    assert {one["__key__"]: one["draw"] for one in dataset(packed, transform)} == wanted


def test_any_number_of_ranks_and_a_restart_with_another(packed: Path, transform: Any, wanted: Draws) -> None:
    state, found = None, {}
    for size, count in ((1, 3), (4, 1), (2, 100)):
        states = []
        for rank in range(size):
            loader = ss.StreamingLoader(dataset(packed, transform, rank, size), 8, last="short")
            if state is not None:
                loader.load_state_dict(state)
            found |= drawn(islice(loader, count))
            states.append(loader.state_dict())
        state = states[0]
    assert found == wanted


def test_in_processes_of_their_own(packed: Path, transform: Any, wanted: Draws) -> None:
    assert drawn(ss.StreamingLoader(dataset(packed, transform), 8, engine="process")) == wanted
    loader = DataLoader(dataset(packed, transform), batch_size=4, num_workers=2)
    assert drawn(loader) == wanted


def test_epochs_and_seeds_differ(packed: Path, transform: Any, wanted: Draws) -> None:
    loader = ss.StreamingLoader(dataset(packed, transform), 8)
    loader.set_epoch(1)
    second = drawn(loader)
    assert not set(second.values()) & set(wanted.values())
    loader.set_epoch(1)
    assert drawn(loader) == second
    other = drawn(ss.StreamingLoader(dataset(packed, transform, seed=6), 8))
    assert not set(other.values()) & set(wanted.values())


def test_a_sample_by_its_number_has_draws_of_its_own(packed: Path, transform: Any, wanted: Draws) -> None:
    ds = dataset(packed, transform)
    found = {ds[number]["__key__"]: ds[number]["draw"] for number in range(96)}
    assert found == {ds[number - 96]["__key__"]: ds[number - 96]["draw"] for number in range(96)}
    assert len(set(found.values()) | set(wanted.values())) == 2 * 96


def token_draw(block: dict[str, Any], rng: np.random.Generator | None = None) -> dict[str, Any]:
    assert rng is not None
    return {"__key__": str(block["tokens"].tolist()), "draw": rng.random()}


def test_blocks_of_tokens(tokens: Path) -> None:
    def blocks(threads: int) -> ss.StreamingLoader:
        ds = ss.TokenDataset(tokens, 16, shuffle=ss.Shuffle(seed=3), transform=token_draw)
        return ss.StreamingLoader(ds, 4, threads=threads)

    whole = [float(draw) for batch in blocks(1) for draw in batch["draw"]]
    assert len(set(whole)) == len(whole) > 50
    loader = blocks(3)
    first = [float(draw) for batch in islice(loader, 5) for draw in batch["draw"]]
    again = blocks(2)
    again.load_state_dict(loader.state_dict())
    assert first + [float(draw) for batch in again for draw in batch["draw"]] == whole
    ds = loader.ds
    assert isinstance(ds, ss.TokenDataset)
    assert ds[3]["draw"] == ds[3]["draw"] != ds[4]["draw"]


@pytest.mark.parametrize("stop", ["first", "all", "never"])
def test_in_a_mixture_the_number_of_the_dataset_counts(packed: Path, stop: str) -> None:
    def transform(sample: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        return {"__key__": sample["__key__"], "draw": rng.random()}

    def mixture() -> ss.StreamingLoader:
        # The same samples in the same order twice: only the number tells them apart.
        parts = [(dataset(packed, transform), 1.0), (dataset(packed, transform), 1.0)]
        return ss.StreamingLoader(ss.Mixture(parts, stop=stop), 8)

    def rows(batches: Iterator[Any]) -> list[tuple[str, int, float]]:
        return [
            row
            for batch in batches
            for row in zip(
                batch["__key__"], batch["__source__"].tolist(), batch["draw"].tolist(), strict=True
            )
        ]

    whole = rows(islice(mixture(), 30))
    assert len({draw for _, _, draw in whole}) == len(whole)
    loader = mixture()
    first = rows(islice(loader, 11))
    again = mixture()
    again.load_state_dict(loader.state_dict())
    assert first + rows(islice(again, 30 - 11)) == whole[: 8 * 30]


class Taking:
    def __call__(self, sample: Any, rng: Any) -> Any:
        return rng

    def method(self, sample: Any, *, rng: Any = None) -> Any:
        return rng

    @classmethod
    def of_class(cls, sample: Any, rng: Any) -> Any:
        return rng

    @staticmethod
    def static(sample: Any, rng: Any) -> Any:
        return rng


def passing(call: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(call)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return call(*args, **kwargs)

    return wrapper


def dropping(call: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(call)
    def wrapper(sample: Any) -> Any:
        return call(sample, rng=None)

    return wrapper


class Module(torch.nn.Module):
    def forward(self, sample: Any, rng: Any = None) -> Any:
        return rng


def positional(sample: Any, rng: Any, /) -> Any:
    raise AssertionError


@pytest.mark.parametrize(
    "transform",
    [
        lambda sample, rng: rng,
        lambda sample, rng=None: rng,
        Taking(),
        Taking().method,
        Taking.of_class,
        Taking.static,
        functools.partial(Taking().method),
        functools.partial(Taking().method, rng=None),
        functools.partial(lambda scale, sample, rng: rng, 2),
        passing(Taking().method),
        passing(passing(Taking())),
        Module(),
    ],
)
def test_who_takes_random_numbers(packed: Path, transform: Any) -> None:
    assert wants_rng(transform)
    ds = ss.StreamingDataset(packed, transform=transform)
    assert isinstance(ds[0], np.random.Generator)


@pytest.mark.parametrize(
    "transform",
    [
        lambda sample: None,
        lambda sample, **others: others.get("rng"),
        lambda sample, *rng: None,
        lambda sample, **rng: rng.get("rng"),
        lambda rng: None,
        lambda sample, generator=None: generator,
        functools.partial(lambda rng, sample: None, 1),
        dropping(Taking()),
        functools.partial(Taking().method, rng=False),
        torch.nn.Identity(),
        dict,
    ],
)
def test_who_takes_none(packed: Path, transform: Any) -> None:
    assert not wants_rng(transform)
    made = ss.StreamingDataset(packed, transform=transform)[0]
    assert not isinstance(made, np.random.Generator)


def test_a_generator_that_is_kept_disturbs_nobody(packed: Path) -> None:
    kept: list[np.random.Generator] = []

    def keep(sample: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        kept.append(rng)
        for other in kept:
            other.random(3)
        return own(sample, rng=rng.spawn(1)[0])

    found = drawn(ss.StreamingLoader(dataset(packed, keep), 8, threads=4))
    kept.clear()
    assert drawn(ss.StreamingLoader(dataset(packed, keep), 8, threads=1)) == found


def test_a_generator_is_the_philox_that_its_key_names() -> None:
    generators = Generators(3, 1, 2, np.array([7, 9], np.int64))
    named = np.random.Generator(np.random.Philox(key=[3, 1], counter=[0, 9, 2, 17]))
    mine = generators[1:].generator(0)
    assert mine.integers(1 << 60, size=4).tolist() == named.integers(1 << 60, size=4).tolist()
    assert pickle.loads(pickle.dumps(mine)).random() == mine.random()
    spawned = [one.random() for _ in range(2) for one in generators.generator(0).spawn(2)]
    assert spawned[:2] == spawned[2:]
    first = generators.generator(0)
    assert first.spawn(1)[0].random() != first.spawn(1)[0].random()


def test_seeding_leaves_the_global_generators_as_they_were(packed: Path) -> None:
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    np.random.normal()  # half of a pair: the other is kept
    before = random.getstate(), np.random.get_state(legacy=False), torch.get_rng_state()
    drawn(ss.StreamingLoader(dataset(packed, TRANSFORMS["seeded"]), 8, threads=3))

    def failing(sample: dict[str, Any]) -> None:
        as_torchvision(sample)
        raise KeyError(sample["__key__"])

    with pytest.raises(KeyError):
        dataset(packed, ss.seeded(failing))[0]
    assert random.getstate() == before[0]
    np.testing.assert_equal(np.random.get_state(legacy=False), before[1])
    assert torch.equal(torch.get_rng_state(), before[2])


def test_a_seeded_transform_may_be_called_by_hand_and_take_numbers_of_its_own() -> None:
    both = ss.seeded(lambda sample, rng=None: (sample, rng, torch.rand(1).item()))
    assert both(3)[:2] == (3, None)
    rng = np.random.default_rng(0)
    assert both(3, rng=rng)[1] is rng
    assert both(3, rng=np.random.default_rng(1))[2] == both(3, rng=np.random.default_rng(1))[2]
    nested = ss.seeded(both)
    assert nested(3, rng=np.random.default_rng(1))[2] == nested(3, rng=np.random.default_rng(1))[2]


GLOBAL = {
    "Python": lambda sample: sample | {"draw": random.random()},
    "numpy": lambda sample: sample | {"draw": np.random.rand()},
    "torch": lambda sample: sample | {"draw": torch.rand(1).item()},
}


@pytest.mark.parametrize("whose", list(GLOBAL))
def test_a_transform_that_moves_a_global_generator_is_told_once(packed: Path, whose: str) -> None:
    ds = dataset(packed, GLOBAL[whose])

    def epochs() -> None:
        for _ in range(2):
            for _ in ss.StreamingLoader(ds, 8):
                pass
            list(ds)

    with pytest.warns(UserWarning, match=f"global generator of {whose}") as told:
        epochs()
    assert len(told) == 1
    assert told[0].filename == __file__


def test_in_a_mixture_it_is_told_of_the_dataset(tmp_path: Path) -> None:
    # Of datasets that no other test was told of.
    urls = []
    for name in ("quiet", "loud"):
        (tmp_path / name).mkdir()
        urls.append(pack_rows(tmp_path / name, [{"id": number, "text": "x"} for number in range(50)]))
    mix = ss.Mixture([(dataset(urls[0], own), 1), (dataset(urls[1], GLOBAL["torch"]), 1)])
    with pytest.warns(UserWarning, match="generator"):
        list(ss.StreamingLoader(mix, 8))


def test_a_training_loop_that_draws_is_not_taken_for_the_transform(packed: Path) -> None:
    def slow(sample: dict[str, Any]) -> dict[str, Any]:
        time.sleep(0.002)
        return sample

    def draw(seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            torch.rand(10)
            np.random.rand(10)
            random.random()

    for make in (
        lambda: ss.StreamingLoader(dataset(packed, slow), 4, threads=2),
        lambda: dataset(packed, slow),
    ):
        for _ in range(4):  # the transform of each dataset is watched anew
            for _ in islice(make(), 12):
                draw(0.004)
    # Two at a time, and one that another thread iterates.
    for _ in zip(
        ss.StreamingLoader(dataset(packed, slow), 8),
        ss.StreamingLoader(dataset(packed, slow), 8),
        strict=True,
    ):
        draw(0.002)
    thread = threading.Thread(target=lambda: list(ss.StreamingLoader(dataset(packed, slow), 4)))
    thread.start()
    while thread.is_alive():
        draw(0.002)


def test_a_loop_that_draws_beside_seeded_transforms_is_told(packed: Path) -> None:
    def epochs() -> None:
        for _ in range(3):
            for _ in ss.StreamingLoader(dataset(packed, TRANSFORMS["seeded"]), 4, threads=2, prefetch="1B"):
                torch.rand(1)

    with pytest.warns(UserWarning, match="engine='process'") as told:
        epochs()
    assert len(told) == 1


def test_draws_between_epochs_do_no_harm(packed: Path) -> None:
    for _ in range(6):
        torch.rand(1)
        list(ss.StreamingLoader(dataset(packed, TRANSFORMS["seeded"]), 32))
        dataset(packed, TRANSFORMS["seeded"])[3]


def test_torchvision(packed: Path) -> None:
    # Not importorskip: beside a torch that it was not built for, it raises RuntimeError.
    try:
        from torchvision.transforms import v2  # type: ignore[import-not-found,unused-ignore]
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"torchvision cannot be imported: {error}")
    change = v2.Compose(
        [v2.RandomResizedCrop(16), v2.RandomHorizontalFlip(), v2.ColorJitter(0.4, 0.4), v2.RandAugment()]
    )

    def augment(sample: dict[str, Any]) -> dict[str, Any]:
        time.sleep(0.0005 * (int(sample["__key__"]) % 3))
        image = torch.arange(3 * 32 * 32, dtype=torch.int64).reshape(3, 32, 32).remainder(251).to(torch.uint8)
        return {"__key__": sample["__key__"], "draw": change(image).double().mean().item()}

    def loader(transform: Any, threads: int) -> ss.StreamingLoader:
        return ss.StreamingLoader(dataset(packed, transform), 8, threads=threads)

    whole = drawn(loader(ss.seeded(augment), 1))
    assert len(set(whole.values())) > 80
    half = loader(ss.seeded(augment), 4)
    found = drawn(islice(half, 5))
    again = loader(ss.seeded(augment), 3)
    again.load_state_dict(half.state_dict())
    assert found | drawn(again) == whole
    with pytest.warns(UserWarning, match="generator of torch"):
        drawn(loader(augment, 2))
