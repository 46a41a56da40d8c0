"""Hugging Face's Trainer: DDP, and its own checkpoints."""

from __future__ import annotations

from tests.frameworks.contract import SharedData


class TestTransformers(SharedData):
    script = "transformers_loop"
