"""Jobs that are killed at any request to a store, and stores whose answers are lost or stop half-way."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import shardstream as ss
from tests.checkpoint.loop import state

STEPS = 3


def job(weed: Any, proxy: Any, at: int, arrives: bool) -> tuple[str, int, bool]:
    """A job that saves steps 1 and 2 and is killed at its `at`-th request that changes the store.

    Args:
        arrives: Whether the request still comes to the store.

    Returns:
        The URL, the newest step whose save the job has seen committed, and whether it was killed.
    """
    url = f"{weed.bucket()}/run"
    before = ss.Checkpoints(url, storage_options=weed.options())
    before.save(0, state(0))
    before.wait()
    count = itertools.count(1)
    process: list[subprocess.Popen[str]] = []

    def hit(method: str, path: str) -> bool:
        if method not in ("PUT", "POST", "DELETE") or next(count) != at:
            return False
        process[0].send_signal(signal.SIGKILL)
        return not arrives

    proxy.set(dead=True, only=hit)
    command = [sys.executable, "-m", "tests.checkpoint.loop", url, "1", str(STEPS)]
    command += ["--options", json.dumps(weed.options(proxy.url))]
    process.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=dict(os.environ)))
    out, _ = process[0].communicate(timeout=60)
    killed = process[0].returncode == -signal.SIGKILL
    assert killed or process[0].returncode == 0
    steps = [int(line) for line in out.split() if line.isdigit()]
    return url, max(steps, default=1) - 1 if killed else STEPS - 1, killed


def sound(saves: ss.Checkpoints, least: int) -> int:
    """The newest checkpoint, which loads and is as it was saved."""
    loaded: dict[str, Any] = {"w": None, "step": None, "more": {}}
    step = saves.load(loaded)
    assert step is not None
    assert step >= least
    assert saves.skipped == []
    assert np.array_equal(loaded["w"], state(step)["w"])
    assert loaded["step"] == step
    return step


@pytest.mark.parametrize("arrives", [False, True])
@pytest.mark.parametrize("every", [5, pytest.param(1, marks=pytest.mark.long)])
def test_a_job_that_is_killed_at_any_request_leaves_the_last_checkpoint(
    weed: Any, proxy_to: Callable[..., Any], arrives: bool, every: int
) -> None:
    proxy = proxy_to(weed)
    for at in itertools.count(3, every):
        url, least, killed = job(weed, proxy, at, arrives)
        saves = ss.Checkpoints(url, keep=1, storage_options=weed.options())
        newest = sound(saves, least)
        # The next job saves the next step, or the one that was begun.
        assert saves.save(newest + 1, state(newest + 1))
        saves.wait()
        assert sound(saves, newest + 1) == newest + 1
        assert saves.steps() == [newest + 1]
        if not killed:
            break
    assert at > 8


@pytest.mark.parametrize("faults", [{"slow": 0.1, "slow_by": 2.0}, {"stall": 0.1}])
def test_answers_that_come_too_late_or_stop_are_asked_for_again(
    weed: Any, proxy_to: Callable[..., Any], faults: dict[str, float]
) -> None:
    # A request whose answer is lost was done: an object that is "there already" may be one's own.
    proxy = proxy_to(weed, seed=4, status=(503,), share=0.05, reset=0.05, only=lambda *_: True, **faults)
    timeouts = {"connect": 1.0, "read": 0.5, "slowest": "64MiB"}
    options = weed.options(proxy.url) | {"timeouts": timeouts, "retry": {"attempts": 30, "pause": 0.01}}
    saves = ss.Checkpoints(f"{weed.bucket()}/run", keep=2, storage_options=options)
    for step in range(6):
        assert saves.save(step, state(step), busy="wait")
    assert saves.wait()
    assert saves.steps() == [4, 5]
    assert sound(saves, 5) == 5
    assert proxy.counts.injected[next(iter(faults))] > 0
