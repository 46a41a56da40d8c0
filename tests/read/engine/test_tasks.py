"""Threads of one iterator end, whatever comes between."""

from __future__ import annotations

import sys
from types import FrameType
from typing import Any

import pytest

from shardstream.read.engine import pipeline, tasks
from shardstream.read.engine.pipeline import stream
from tests.read.engine.test_pipeline import Frames, units
from tests.watch import ended, settled, threads

CLOSING = {"batches", "end", "give_up"}
FILES = {pipeline.__file__, tasks.__file__}


class Interrupt:
    """Raises KeyboardInterrupt in front of one of the bytecodes that close an iteration."""

    def __init__(self, at: int) -> None:
        self.left = at

    def __call__(self, frame: FrameType, event: str, arg: object) -> Any:
        if frame.f_code.co_filename not in FILES or frame.f_code.co_name not in CLOSING:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            if self.left == 0:
                sys.settrace(None)
                raise KeyboardInterrupt
            self.left -= 1
        return self


@pytest.mark.filterwarnings("ignore:Exception ignored in:pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("step", [3, pytest.param(1, marks=pytest.mark.long)])
def test_threads_end_if_an_interrupt_comes_anywhere_while_an_iteration_is_dropped(step: int) -> None:
    before, hit = sys.gettrace(), 0
    while True:
        batches = stream(Frames(), units(600), list)
        assert next(batches) == [0, 1]
        interrupt = Interrupt(hit)
        # The frame of the generator is there already: it is traced from its next event on.
        batches.gi_frame.f_trace = interrupt
        batches.gi_frame.f_trace_opcodes = True
        sys.settrace(interrupt)
        try:
            batches.close()
        except KeyboardInterrupt:
            pass
        finally:
            sys.settrace(before)
        del batches
        assert ended(lambda: not threads(), 0.05) or settled(), f"after an interrupt at step {hit}"
        if interrupt.left > 0:
            break
        hit += step
    assert hit > 50
