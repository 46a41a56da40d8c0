"""Saving to and loading from a store that fails: SeaweedFS behind a proxy with 503, resets and flips."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException

import shardstream as ss
from shardstream.storage.options import Retry
from tests.checkpoint.dcp.states import assert_equal, emptied, odd_state

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is:UserWarning")


def everything(method: str, path: str) -> bool:
    return True


def large() -> dict[str, Any]:
    return {**odd_state(), "many": [torch.randn(64, 1024) for _ in range(40)], "big": torch.randn(3000, 2000)}


@pytest.mark.parametrize("local", [False, True])
def test_a_store_with_faults(tmp_path: Path, weed: Any, proxy_to: Any, local: bool) -> None:
    proxy = proxy_to(weed, status=(503,), share=0.05, only=everything)
    url, options = f"{weed.bucket()}/step-7", weed.options(proxy.url)
    state = large()
    near = tmp_path / "near" if local else None
    writer = ss.dcp.Writer(url, near, storage_options=options)
    dcp.save(state, storage_writer=writer, no_dist=True)
    writer.wait()
    proxy.set(share=0.05, reset=0.05, flip=0.02)
    for _ in range(3):
        found = emptied(state)
        dcp.load(found, storage_reader=ss.dcp.Reader(url, storage_options=options), no_dist=True)
        assert_equal(found, state)
    found = emptied(state)
    dcp.load(found, storage_reader=ss.dcp.Reader(url, near, storage_options=options), no_dist=True)
    assert_equal(found, state)


def test_async_saves_to_a_store_with_faults(weed: Any, proxy_to: Any) -> None:
    proxy = proxy_to(weed, status=(503,), share=0.05, only=everything)
    url, options = weed.bucket(), weed.options(proxy.url)
    writer = ss.dcp.Writer(f"{url}/step-0", storage_options=options)
    for step in range(3):
        state = {"w": torch.full((500_000,), float(step)), "step": step}
        future = dcp.async_save(
            state, checkpoint_id=f"{url}/step-{step}", storage_writer=writer, no_dist=True
        )
        state["w"].zero_()
        future.result()
    for step in range(3):
        found = {"w": torch.zeros(500_000), "step": None}
        reader = ss.dcp.Reader(f"{url}/step-{step}", storage_options=options)
        dcp.load(found, storage_reader=reader, no_dist=True)
        assert_equal(found, {"w": torch.full((500_000,), float(step)), "step": step})


def test_a_store_that_never_answers_is_an_error(weed: Any, proxy_to: Any) -> None:
    proxy = proxy_to(weed, status=(503,), share=1.0, only=everything)
    options = {**weed.options(proxy.url), "retry": Retry(attempts=2, deadline=2.0, pause=0.01)}
    writer = ss.dcp.Writer(f"{weed.bucket()}/step-0", storage_options=options)
    with pytest.raises(CheckpointException) as caught:
        dcp.save({"w": torch.zeros(10)}, storage_writer=writer, no_dist=True)
    assert isinstance(caught.value.failures[0][0], ss.StorageError)


def test_a_store_keeps_what_is_there(weed: Any) -> None:
    url, options = f"{weed.bucket()}/step-1", weed.options()
    old = {"w": torch.ones(1000)}
    dcp.save(old, storage_writer=ss.dcp.Writer(url, storage_options=options), no_dist=True)
    with pytest.raises(CheckpointException, match="never overwritten"):
        dcp.save(
            {"w": torch.zeros(1000)}, storage_writer=ss.dcp.Writer(url, storage_options=options), no_dist=True
        )
    found = emptied(old)
    dcp.load(found, storage_reader=ss.dcp.Reader(url, storage_options=options), no_dist=True)
    assert_equal(found, old)


def test_requests_of_a_load_are_few(weed: Any, proxy_to: Any) -> None:
    """Small tensors that lie together come together."""
    proxy = proxy_to(weed)
    url, options = f"{weed.bucket()}/step-1", weed.options(proxy.url)
    state = {f"w{number}": torch.randn(100) for number in range(300)}
    dcp.save(state, storage_writer=ss.dcp.Writer(url, storage_options=options), no_dist=True)
    proxy.reset_counts()
    found = emptied(state)
    dcp.load(found, storage_reader=ss.dcp.Reader(url, storage_options=options), no_dist=True)
    assert_equal(found, state)
    assert proxy.counts.requests <= 4
