"""Lightning's Trainer: DDP, and its own checkpoints."""

from __future__ import annotations

from tests.frameworks.contract import SharedData


class TestLightning(SharedData):
    script = "lightning_loop"
