"""Values through shared memory: equal, writable, and their segments used again."""

from __future__ import annotations

import gc
import os
from collections import deque
from typing import Any

import numpy as np
import pytest
import torch

from shardstream.read.handoff.shared_memory import Message, Reader, Writer


def through(writer: Writer, reader: Reader, value: Any) -> tuple[Any, Message]:
    message, file = writer.put(value)
    return reader.get(Message.from_bytes(message.to_bytes()), file), message


def test_tensors_and_anything_else_arrive_equal() -> None:
    writer, reader = Writer(256 << 20), Reader()
    value = {
        "small": torch.arange(3, dtype=torch.int32),
        "large": torch.arange(5000).reshape(50, 100).t(),
        "half": torch.ones(3000, dtype=torch.bfloat16),
        "array": np.arange(3000, dtype=np.float32),
        "none": np.empty((0, 4)),
        "rest": ["text", None, {"a": b"bytes" * 1000}],
    }
    found, _ = through(writer, reader, value)
    assert found["rest"] == value["rest"]
    for name in ("small", "large", "half"):
        assert torch.equal(found[name], value[name])
        assert found[name].dtype == value[name].dtype
    assert np.array_equal(found["array"], value["array"])
    found["large"][0, 0] = 7
    assert found["none"].shape == (0, 4)


def test_more_buffers_than_are_sent_apart() -> None:
    value = [np.full(2000, number, np.uint16) for number in range(600)]
    found, message = through(Writer(256 << 20), Reader(), value)
    assert len(message.spans) == 512
    assert all(np.array_equal(a, b) for a, b in zip(found, value, strict=True))


def test_segments_are_used_again_when_nothing_refers_to_them() -> None:
    writer, reader = Writer(256 << 20), Reader()
    gc.collect()  # what earlier tests left open would be closed in between
    files = len(os.listdir("/proc/self/fd"))
    kept, first = through(writer, reader, torch.zeros(10_000))
    part = kept[5:]
    del kept
    second = through(writer, reader, torch.ones(10_000))[1]
    assert first.segment != second.segment
    assert set(reader.freed) == {second.segment}
    assert not part.any()
    del part
    gc.collect()
    while reader.freed:
        writer.give_back(reader.freed.popleft())
    for _ in range(20):
        message = through(writer, reader, torch.ones(10_000))[1]
        assert message.segment < 2
        writer.give_back(reader.freed.popleft())
    assert len(os.listdir("/proc/self/fd")) <= files + 2 * 2  # a descriptor for each map of each side


def test_who_keeps_many_batches_gets_copies_and_runs_out_of_no_files() -> None:
    writer, reader = Writer(256 << 20), Reader()
    gc.collect()
    files, kept = len(os.listdir("/proc/self/fd")), []
    for number in range(200):
        kept.append(through(writer, reader, torch.full((2000,), number))[0])
        while reader.freed:
            writer.give_back(reader.freed.popleft())
    assert len(os.listdir("/proc/self/fd")) < files + 150
    assert all(int(tensor.min()) == int(tensor.max()) == number for number, tensor in enumerate(kept))


def shared_bytes(reader: Reader) -> int:
    return sum(len(memory) for memory in reader._maps.values())


@pytest.mark.parametrize(
    "sizes",
    [
        [50_000 * (1 + number) for number in range(150)],
        [50_000 * (150 - number) for number in range(150)],
        [7_000_000 if number % 2 else 100_000 for number in range(150)],
    ],
    ids=["growing", "shrinking", "alternating"],
)
def test_memory_and_descriptors_stay_flat_whatever_the_sizes(sizes: list[int]) -> None:
    writer, reader = Writer(256 << 20), Reader()
    gc.collect()
    files = len(os.listdir("/proc/self/fd"))
    kept: deque[Any] = deque(maxlen=3)
    for number, size in enumerate(sizes):
        kept.append(through(writer, reader, np.full(size, number % 256, np.uint8))[0])
        assert all(int(array.min()) == int(array.max()) for array in kept)
        while reader.freed:
            writer.give_back(reader.freed.popleft())
        # Three that are held, one on its way, four idle and one or two of which the reader is not told.
        assert len(reader._maps) <= 10
        largest = max(sizes[max(0, number - 40) : number + 1])
        assert shared_bytes(reader) <= 10 * max(4 * largest, 1 << 20)
    assert len(os.listdir("/proc/self/fd")) <= files + 2 * 10
