"""Accelerate's own loop, and what its `prepare` would do to a DataLoader."""

from __future__ import annotations

from tests.frameworks.contract import GivenDirectly, SharedData


class TestAccelerate(SharedData, GivenDirectly):
    script = "accelerate_loop"
