"""Accelerate's own loop, and what its `prepare` would do to a DataLoader."""

from __future__ import annotations

from tests.frameworks.contract import GivenDirectly, Saves, SharedData


class TestAccelerate(SharedData, GivenDirectly, Saves):
    script = "accelerate_loop"
