"""How Ray is started and its nodes are judged, over a module that does as it is told."""

from __future__ import annotations

import logging
import os
import signal
import sys
import types
from collections.abc import Callable
from typing import Any

import pytest

import shardstream as ss
from shardstream.packing.engines import Needs, ray_cluster
from shardstream.packing.engines.nodes import Expected, versions
from shardstream.packing.engines.ray import Ray, _connection
from shardstream.packing.engines.ray_cluster import RayCluster
from shardstream.packing.engines.sealed import Sealer

VARIABLE = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
GIB = 1 << 30


class Module(types.ModuleType):
    """What is used of Ray, which the program has imported already."""

    def __init__(self, starts: Callable[[], None] = lambda: None, **resources: float) -> None:
        super().__init__("ray")
        self._private = types.SimpleNamespace(ray_constants=types.SimpleNamespace(ENABLE_RAY_CLUSTER=True))
        self.starts, self.resources, self.calls = starts, resources, []
        self.seen: list[Any] = []

    def is_initialized(self) -> bool:
        return False

    def init(self, **options: Any) -> None:
        self.calls.append("init")
        self.seen = [self._private.ray_constants.ENABLE_RAY_CLUSTER, os.environ.get(VARIABLE)]
        self.starts()

    def shutdown(self) -> None:
        self.calls.append("shutdown")

    def nodes(self) -> list[dict[str, Any]]:
        return [{"Alive": True, "NodeID": "n1", "Resources": self.resources}]

    def available_resources(self) -> dict[str, float]:
        return {}

    def wait(self, handles: list[Any], **options: Any) -> tuple[list[Any], list[Any]]:
        return [], handles


def cluster(module: Module, grows: bool = True, cpus: float = 1, memory: int = 0) -> RayCluster:
    needs = Needs(memory=memory)
    return RayCluster(module, cpus, 5, needs, Sealer(None), Expected(versions()), grows)


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Module:
    made = Module()
    monkeypatch.setitem(sys.modules, "ray", made)
    monkeypatch.delenv(VARIABLE, raising=False)
    return made


def test_ray_that_was_imported_before_listens_on_the_loopback(module: Module) -> None:
    with _connection(Ray(), 1):
        assert module.seen == [False, "0"]
        assert module._private.ray_constants.ENABLE_RAY_CLUSTER is True
    assert VARIABLE not in os.environ
    with pytest.raises(ss.StorageError, match="no Ray cluster"), _connection(Ray("127.0.0.1:1"), 1):
        pass
    with _connection(Ray("auto"), 1):
        assert module.seen == [True, None]


def test_what_the_user_has_set_for_ray_stays(module: Module, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "1")
    with _connection(Ray(), 1):
        assert module.seen == [True, "1"]


@pytest.mark.parametrize("fails", [False, True])
def test_an_interrupt_while_ray_starts_ends_all_of_it(module: Module, fails: bool) -> None:
    done: list[str] = []

    def starts() -> None:
        signal.raise_signal(signal.SIGINT)
        done.append("started")
        if fails:
            raise RuntimeError("a process is missing")

    module.starts = starts
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), _connection(Ray(), 1):
        raise AssertionError
    assert done == ["started"]  # once: it is not tried again
    assert module.calls[-1] == "shutdown"
    assert signal.getsignal(signal.SIGINT) is before


def test_the_second_interrupt_is_not_put_off(module: Module) -> None:
    def starts() -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        raise AssertionError

    module.starts = starts
    with pytest.raises(KeyboardInterrupt), _connection(Ray(), 1):
        pass


@pytest.mark.parametrize(
    ("resources", "cpus", "memory", "said"),
    [
        ({"CPU": 8, "memory": 3.1 * GIB}, 1, int(4.2 * GIB), "needs 4.2 GiB; the largest node has 3.1 GiB"),
        ({"CPU": 8, "memory": GIB}, 16, 1, "needs 16 CPUs; the largest node has 8"),
        ({"CPU": 8, "memory": GIB}, 1, GIB, ""),
    ],
)
def test_a_task_that_no_node_has_room_for_is_told_at_once(
    resources: dict[str, float], cpus: float, memory: int, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    module = Module(**resources)
    assert cluster(module, True, cpus, memory).lacks() == (said and f"a task {said}")
    if said:
        with pytest.raises(ss.OptionError, match=said):
            cluster(module, False, cpus, memory).check_nodes()


def test_a_cluster_that_others_hold_is_waited_for_and_told_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(ray_cluster, "_PATIENCE", -1.0)
    crew = cluster(Module(CPU=2), cpus=2)
    crew._idle_since = 0.0
    with caplog.at_level(logging.WARNING, "shardstream.packing"):
        assert crew.wait(["batch"], 0.0) == crew.wait(["batch"], 0.0) == []
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith("waiting for 2 CPUs: ")
