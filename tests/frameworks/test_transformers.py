"""Hugging Face's Trainer: DDP, and its own checkpoints."""

from __future__ import annotations

from tests.frameworks.contract import GivenDirectly, SharedData


class TestTransformers(SharedData, GivenDirectly):
    script = "transformers_loop"
