"""The bytes that batches hold."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from shardstream.read.engine.sizes import Sizes, memory_of
from shardstream.read.samples.batch import Batch, Ragged

MIB = 1 << 20


class Odd:
    """An object of the user's, whose attributes may raise."""

    def __init__(self) -> None:
        self.inner = {"x": np.zeros(MIB, np.uint8)}

    @property
    def base(self) -> Any:
        raise RuntimeError("not now")


class Plain:
    def __init__(self) -> None:
        self.inner = [np.zeros(MIB, np.uint8)]


class Slots:
    __slots__ = ("inner",)

    def __init__(self) -> None:
        self.inner = np.zeros(MIB, np.uint8)


whole = np.zeros(MIB, np.uint8)


@pytest.mark.parametrize(
    "value",
    [
        bytes(MIB),
        bytearray(MIB),
        memoryview(bytes(MIB)),
        "x" * MIB,
        whole,
        whole[:10],
        [whole, whole, whole[3:], {"again": whole}],
        torch.zeros(MIB, dtype=torch.uint8),
        [torch.from_numpy(whole), whole],
        list(torch.zeros(4, MIB // 4, dtype=torch.uint8)),
        Batch(x=Ragged(torch.zeros(MIB, dtype=torch.uint8), np.zeros(3, np.int64), None)),
        ({"a": [(whole,)]},),
        Plain(),
        Slots(),
        ["y" * 1000 + str(n) for n in range(1000)],
        np.array([bytes(MIB // 2), bytes(MIB // 2)], object),
    ],
)
def test_values_are_as_large_as_what_they_keep(value: Any) -> None:
    assert 0.9 * MIB < memory_of(value) < 1.2 * MIB


def test_images_and_objects_that_refuse_are_measured_as_far_as_possible() -> None:
    image = pytest.importorskip("PIL.Image").new("RGB", (1000, 700))
    assert 2_100_000 <= memory_of(image) < 2_200_000
    assert memory_of([Odd(), whole]) >= MIB
    loop: list[Any] = [whole]
    loop.append(loop)
    assert memory_of(loop) < 1.2 * MIB


def test_a_batch_of_very_many_values_costs_little_to_measure() -> None:
    assert memory_of([{"n": number} for number in range(300_000)]) > 10_000


def test_what_is_expected_is_the_largest_of_late() -> None:
    sizes = Sizes()
    assert sizes.expected is None
    for count in (1, 5, 2):
        sizes.of(bytes(count * MIB), 0)
    assert sizes.expected is not None
    assert 5 * MIB <= sizes.expected < 5.1 * MIB
    for _ in range(32):
        sizes.of(b"", 0)
    assert sizes.expected < 1000
