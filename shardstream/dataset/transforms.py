"""What a dataset's `transform` draws: from a generator of the sample's own, or from the global ones."""

from __future__ import annotations

import inspect
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from shardstream.counters.layout import stage
from shardstream.dataset.global_random import CHECKS, GLOBALS, watched
from shardstream.dataset.worker_epochs import current_worker
from shardstream.errors import noted
from shardstream.order.generators import Generators
from shardstream.storage.cancellation import current
from shardstream.storage.fetch.cancellable_map import cancellable_map

R = TypeVar("R")
_TRANSFORM = stage("transform")

__all__ = ["Seeded", "Transform", "seeded", "wants_rng"]


def wants_rng(transform: Callable[..., Any]) -> bool:
    """Whether a transform has a parameter named `rng` that may be given by keyword."""
    module = getattr(sys.modules.get("torch.nn"), "Module", None)
    if module is not None and isinstance(transform, module):
        transform = transform.forward
    if isinstance(transform, partial) and transform.keywords.get("rng") is not None:
        return False  # it has one of its own
    try:
        signature = inspect.signature(transform, follow_wrapped=False)
        signature.bind(None, rng=None)
    except (TypeError, ValueError):  # a builtin says nothing of its parameters
        return False
    if "rng" in signature.parameters:
        return signature.parameters["rng"].kind is not inspect.Parameter.VAR_KEYWORD
    # It takes any keyword, for what it wraps.
    wrapped = getattr(transform, "__wrapped__", None)
    return wrapped is not None and wants_rng(wrapped)


def seeded(transform: Callable[..., R]) -> Seeded[R]:
    """A transform whose draws from the global generators of torch, numpy and Python are the sample's own.

    While `transform` runs, these generators are seeded for its sample; afterwards they are what they were
    before. A process transforms one sample at a time. CUDA's generators are left alone. A transform that
    takes `rng` needs none of this.

    Code of another thread that draws from the same generators at that moment disturbs the transform, and is
    disturbed by it. If your training loop draws from them, let other processes make the samples:
    StreamingLoader(..., engine="process"), or the workers of a DataLoader.

    Args:
        transform: any callable that a dataset's `transform` may be.

    Returns:
        A callable to be given as `transform`, picklable if `transform` is.
    """
    return Seeded(transform)


class Seeded(Generic[R]):
    """A transform with the global generators seeded for each sample; see `seeded`."""

    def __init__(self, transform: Callable[..., R]) -> None:
        self.transform = transform
        self._random = wants_rng(transform)

    def __call__(self, sample: Any, *, rng: Generator | None = None) -> R:
        call = partial(self.transform, rng=rng) if self._random else self.transform
        if rng is None:
            return call(sample)
        # Raw output: it stays the same in all versions of numpy.
        with GLOBALS.seeded(rng.bit_generator.random_raw()):
            return call(sample)

    def __repr__(self) -> str:
        return f"seeded({self.transform!r})"


class Transform:
    """A dataset's way of calling its transform.

    Args:
        function: The user's function, or None: nothing is transformed.
        url: The dataset's, for messages.
        seed: Of the random numbers that the function asks for.
    """

    def __init__(self, function: Callable[..., Any] | None, url: str, seed: int) -> None:
        self.function = function
        self._url, self._seed = url, seed
        self._checks = CHECKS  # calls that are still to be watched

    def __bool__(self) -> bool:
        return self.function is not None

    def generators(
        self, epoch: int, source: int, positions: NDArray[np.int64], items: bool = False
    ) -> Generators | None:
        """The random numbers for the samples at these positions, if the function takes any.

        Args:
            epoch: Of the dataset.
            source: The number of the dataset in a mixture, or 0.
            positions: Positions of the order, int64 [n].
            items: The positions are numbers of samples.
        """
        if self.function is None or not wants_rng(self.function):
            return None
        return Generators(self._seed, epoch, source, positions, items)

    def of_each(
        self, samples: Sequence[Any], generators: Generators | None, name: Callable[[int], str]
    ) -> tuple[list[Any], Exception | None]:
        """What becomes of the samples in front of the first that fails, and the error of that one.

        Args:
            samples: Some samples.
            generators: The random numbers of each, or None.
            name: Gives the name of a sample, for its error.
        """
        made: list[Any] = []

        def one(row: int) -> Any:
            with noted(f"in the transform of {name(row)} of {self._url}"):
                return self._call(samples[row], generators, row)

        started = time.monotonic()
        try:
            cancellable_map(one, range(len(samples)), made)
        except Exception as error:  # noqa: BLE001 - raised behind what was made
            return made, error
        finally:
            current().recorder.span(_TRANSFORM, started, time.monotonic())
        return made, None

    def _call(self, sample: Any, generators: Generators | None, row: int) -> Any:
        assert self.function is not None
        call = partial(self.function, sample)
        if generators is not None:
            call.keywords["rng"] = generators.generator(row)
        if self._checks <= 0:
            return call()
        made, counted = watched(call, self._url)
        self._checks -= counted
        return made

    def watching(self) -> bool:
        """Whether it is still to be seen if the function draws from a global generator."""
        worker = current_worker()
        # Of a DataLoader's workers one says it.
        return self.function is not None and self._checks > 0 and (worker is None or not worker.number)
