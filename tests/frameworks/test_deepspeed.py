"""DeepSpeed's engine: ZeRO-1, bf16, gloo."""

from __future__ import annotations

from typing import ClassVar

from tests.frameworks.contract import Saves, SharedData


class TestDeepSpeed(SharedData, Saves):
    script = "deepspeed_loop"
    env: ClassVar[dict[str, str]] = {"DS_ACCELERATOR": "cpu"}
