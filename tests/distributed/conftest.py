"""Datasets that the tests of several ranks share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.distributed.training import pack


@pytest.fixture(scope="module", params=["samples", "tokens"])
def packed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A packed dataset of each kind."""
    return pack(tmp_path_factory.mktemp("packed"), request.param)
