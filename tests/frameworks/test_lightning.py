"""Lightning's Trainer: DDP, and its own checkpoints."""

from __future__ import annotations

from tests.frameworks.contract import GivenDirectly, Saves, SharedData


class TestLightning(SharedData, GivenDirectly, Saves):
    script = "lightning_loop"
    seq_len = 34
    padded = refuses = False
