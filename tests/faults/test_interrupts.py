"""Interrupts at random moments lose nothing and repeat nothing: what follows goes on from the state."""

from __future__ import annotations

import functools
import random
import signal
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import shardstream as ss
from tests.distributed.training import dataset, name, pack
from tests.watch import settled

# An interrupt in the midst of a finalizer is told on stderr and goes no further: that is Python's way.
pytestmark = pytest.mark.filterwarnings("ignore:Exception ignored in:pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("packed")
    for kind in ("samples", "tokens"):
        pack(made, kind, documents=203)
    return made


def same(item: Any) -> Any:
    return item


def samples(folder: Path, **options: Any) -> Any:
    return dataset(folder / "samples", **options)


KINDS: dict[str, Callable[[Path], Any]] = {
    "samples": samples,
    "transformed": lambda folder: samples(folder, transform=same),
    "tokens": lambda folder: dataset(folder / "tokens"),
    "mixture": lambda folder: ss.Mixture([(samples(folder), 2), (samples(folder, shuffle=False), 1)]),
    "tokens-mixture": lambda folder: ss.Mixture([(dataset(folder / "tokens"), 1)]),
}


def described(item: Any) -> Any:
    """What identifies an item or a batch, and says what pads."""
    if "__key__" in item:
        return item["__key__"], item.get("__pad__", item.get("__source__", 0)).__repr__()
    rows = item["tokens"]
    return [name({"tokens": row}) for row in rows] if rows.ndim == 2 else name(item)


def interrupted(take: Callable[[], object], after: float) -> bool:
    """Whether a signal that comes after some seconds, in whatever is then done, came before the end."""
    armed: list[bool] = []

    def raise_once(*_: Any) -> None:
        if armed:
            armed.clear()
            raise KeyboardInterrupt

    def shoot(main: int) -> None:
        if not over.wait(after):
            signal.pthread_kill(main, signal.SIGUSR1)

    over = threading.Event()
    before = signal.signal(signal.SIGUSR1, raise_once)
    thread = threading.Thread(target=shoot, args=(threading.get_ident(),))
    thread.start()
    try:
        armed.append(True)
        take()
        armed.clear()
    except KeyboardInterrupt:
        return True
    finally:
        over.set()
        thread.join()
        signal.signal(signal.SIGUSR1, before)
    return False


def check(make: Callable[[], Any], times: int, seed: int) -> None:
    """Iterate epochs, interrupted so many times, each time from the state on."""
    rng = random.Random(seed)
    expected = [described(item) for item in make()]
    hits, most = 0, 0.05
    while hits < times:
        # Nothing runs in the interpreter between what the iterator gives and the deque.
        found: deque[Any] = deque()
        state = None
        while state is None or (state["epoch"] == 0 and len(found) < len(expected)):
            one = make()
            if state is not None:
                one.load_state_dict(state)
            hit = interrupted(functools.partial(found.extend, one), rng.uniform(0, most))
            # Moments from the very beginning to the end of an epoch, on any machine.
            hits, most = hits + hit, min(1.0, max(0.001, most * (1.3 if hit else 0.6)))
            state = one.state_dict()
            del one
        assert [described(item) for item in found] == expected


def loaders(folder: Path, kind: str, last: str) -> Callable[[], Any]:
    return lambda: ss.StreamingLoader(KINDS[kind](folder), 8, last=last, threads=2)


@pytest.mark.parametrize("last", ["drop", "pad", "short"])
@pytest.mark.parametrize("kind", list(KINDS))
def test_a_loader_goes_on_exactly(folder: Path, kind: str, last: str, pytestconfig: pytest.Config) -> None:
    times = 100 if pytestconfig.getoption("--long") else 5
    check(loaders(folder, kind, last), times, seed=len(kind) * 7 + len(last))
    assert settled()


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_dataset_goes_on_exactly(folder: Path, kind: str, pytestconfig: pytest.Config) -> None:
    times = 100 if pytestconfig.getoption("--long") else 5
    check(lambda: KINDS[kind](folder), times, seed=len(kind))
    assert settled()


@pytest.mark.long
@pytest.mark.timeout(1800)  # a process is started after each interrupt
@pytest.mark.parametrize("kind", ["samples", "tokens", "mixture"])
def test_a_loader_with_another_process_goes_on_exactly(folder: Path, kind: str) -> None:
    check(lambda: ss.StreamingLoader(KINDS[kind](folder), 8, last="pad", engine="process"), 25, seed=3)
