"""Staging memory is bounded, kept, and gives up when it is told to."""

from __future__ import annotations

import threading

import pytest
import torch

import shardstream as ss
from shardstream.checkpoint.layout import BLOCK
from shardstream.checkpoint.staging import BlockPool


def test_blocks_are_used_again_and_never_more_than_the_limit() -> None:
    pool = BlockPool(3 * BLOCK + 1)
    blocks = [pool.take() for _ in range(3)]
    assert pool.empty
    assert pool.held == pool.limit == 3 * BLOCK
    assert len({id(block) for block in blocks}) == 3
    taken: list[memoryview | None] = []
    thread = threading.Thread(target=lambda: taken.append(pool.take()))
    thread.start()
    assert blocks[1] is not None
    pool.give(blocks[1])
    thread.join(30)
    assert taken[0] is blocks[1]
    pool.give(blocks[0])  # type: ignore[arg-type]
    pool.drop()
    assert pool.held == 2 * BLOCK


def test_a_thread_that_waits_can_be_told_to_give_up() -> None:
    pool = BlockPool(BLOCK)
    assert pool.take() is not None
    stop = threading.Event()
    taken: list[memoryview | None] = []
    thread = threading.Thread(target=lambda: taken.append(pool.take(stop.is_set)))
    thread.start()
    stop.set()
    pool.wake()
    thread.join(30)
    assert taken == [None]


def test_memory_that_cannot_be_had_is_no_block() -> None:
    def fail(size: int) -> memoryview:
        raise MemoryError

    pool = BlockPool(BLOCK, fail)
    for _ in range(2):
        with pytest.raises(MemoryError):
            pool.take()
    assert pool.held == 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_saves_and_loads(tmp_path: object) -> None:
    model = torch.nn.Linear(300, 500, device="cuda")
    optim = torch.optim.AdamW(model.parameters())
    model(torch.rand(4, 300, device="cuda")).sum().backward()
    optim.step()
    saves = ss.Checkpoints(f"{tmp_path}/run")
    saves.save(1, {"model": model, "optim": optim})
    saves.wait()
    other = torch.nn.Linear(300, 500, device="cuda")
    new = torch.optim.AdamW(other.parameters())
    assert saves.load({"model": other, "optim": new}) == 1
    assert torch.equal(model.weight, other.weight)
    assert new.state[other.weight]["exp_avg"].is_cuda
