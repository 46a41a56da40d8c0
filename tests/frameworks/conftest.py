"""The jobs of a framework, shared by the tests of its class, and the clusters of Ray."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import shardstream as ss
from tests.frameworks import ray_calls
from tests.frameworks.contract import Jobs
from tests.frameworks.ray_nodes import ENVIRONMENT, SMALL, Nodes, Pack, files, started


@pytest.fixture(scope="class")
def jobs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Jobs:
    cls = request.cls
    folder = tmp_path_factory.mktemp(cls.script)
    return Jobs(f"tests.frameworks.{cls.script}", cls.processes, cls.env, folder, cls.launcher)


@pytest.fixture(scope="class")
def everything(jobs: Jobs) -> list[str]:
    return jobs.everything()


@pytest.fixture(scope="session")
def ray_environment() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        yield


@pytest.fixture(scope="session")
def cluster(ray_environment: None) -> Iterator[Nodes]:
    """A head and two nodes."""
    nodes = started(2)
    yield nodes
    nodes.shutdown()


@pytest.fixture(scope="session")
def wanted(tmp_path_factory: pytest.TempPathFactory) -> dict[int | None, dict[str, str]]:
    """The files that a pack on this machine makes, plain and shuffled."""
    folder = tmp_path_factory.mktemp("wanted")
    for shuffle in (None, 7):
        ss.pack(ray_calls.slow(0.0), folder / str(shuffle), workers=4, shuffle=shuffle, **SMALL)
    return {shuffle: files(folder / str(shuffle)) for shuffle in (None, 7)}


@pytest.fixture
def start(ray_environment: None) -> Iterator[Callable[..., Pack]]:
    """Start packs, which are killed in the end."""
    with contextlib.ExitStack() as at_end:

        def begin(dest: Path | str, address: str, **options: Any) -> Pack:
            pack = Pack(dest, address, **options)
            at_end.callback(pack.kill)
            return pack

        yield begin
