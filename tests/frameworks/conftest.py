"""The jobs of a framework, shared by the tests of its class, and the data that they train on."""

from __future__ import annotations

import pytest

from tests.frameworks.contract import Jobs


@pytest.fixture(scope="class")
def jobs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Jobs:
    cls = request.cls
    folder = tmp_path_factory.mktemp(cls.script)
    return Jobs(f"tests.frameworks.{cls.script}", cls.processes, cls.env, folder, cls.launcher)


@pytest.fixture(scope="class")
def everything(jobs: Jobs) -> list[str]:
    return jobs.everything()
