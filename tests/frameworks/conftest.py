"""The jobs of a framework, shared by the tests of its class, and the data that they train on."""

from __future__ import annotations

import pytest

import shardstream as ss
from tests.distributed.training import name
from tests.frameworks.contract import Jobs
from tests.frameworks.loop import SEQ_LEN


@pytest.fixture(scope="class")
def jobs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Jobs:
    cls = request.cls
    folder = tmp_path_factory.mktemp(cls.script)
    return Jobs(f"tests.frameworks.{cls.script}", cls.processes, cls.env, folder)


@pytest.fixture(scope="class")
def everything(jobs: Jobs) -> list[str]:
    ds = ss.TokenDataset(jobs.data, SEQ_LEN, topology=ss.Topology())
    found = sorted(map(name, ds))
    assert len(found) == len(set(found))
    assert len(found) % 8 == 1, len(found)
    return found
