"""Jax, as its script trains with it."""

from __future__ import annotations

from tests.frameworks.contract import SharedData


class TestJax(SharedData):
    script = "jax_loop"
