"""Accelerate's own loop, and what its `prepare` would do to a DataLoader."""

from __future__ import annotations

from tests.frameworks.contract import SharedData


class TestAccelerate(SharedData):
    script = "accelerate_loop"
