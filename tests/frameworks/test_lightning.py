"""Lightning's Trainer: DDP, and its own checkpoints."""

from __future__ import annotations

from tests.frameworks.contract import GivenDirectly, SharedData


class TestLightning(SharedData, GivenDirectly):
    script = "lightning_loop"
    seq_len = 34
    padded = refuses = False
