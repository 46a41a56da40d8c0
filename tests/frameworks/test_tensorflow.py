"""TensorFlow, as its script trains with it."""

from __future__ import annotations

from tests.frameworks.contract import Contract


class TestTensorFlow(Contract):
    script = "tensorflow_loop"
    processes = False
