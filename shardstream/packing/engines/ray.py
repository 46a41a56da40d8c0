"""The engine that runs tasks on Ray: on a cluster, or on Ray that is started on this machine for one pack."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import signal
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from shardstream.errors import OptionError, StorageError, require
from shardstream.format.numbers import whole_number
from shardstream.packing.engines.batch import Answer, Setup, run_batch
from shardstream.packing.engines.dispatch import WorkerLostError, dispatched
from shardstream.packing.engines.engine import Counts, Needs
from shardstream.packing.engines.nodes import Expected, marked, problems, versions
from shardstream.packing.engines.sealed import Sealer

__all__ = ["Ray"]

_SURVEY_TIMEOUT = 120.0  # seconds: a node starts a Python process and imports numpy
_END_TIMEOUT = 10.0
_STARTS = 3  # Ray gives a node 30 s to start, which a busy machine may need
_LOOK = 2.0  # seconds between looks at the nodes
_OBJECTS = 128 << 20  # bytes of the object store of a Ray that is started here: only results lie there
_NODE = "ray.io/node-id"  # the label that Ray gives to each node
# Ray on Linux listens on the address of the machine, even if it is told to use the loopback. Without
# clusters it does not. It reads this when it is imported.
_CLUSTERS = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"


@dataclass(frozen=True)
class Ray:
    """Tasks run on Ray.

    If the program has connected to Ray already, its connection is used. All nodes must have the same versions
    of shardstream, Python, numpy and zstandard as this process.

    Args:
        address: The address of a cluster; "auto" for that which this machine is a node of. None: Ray is
            started on this machine, and ended with the pack.
        cpus: How many CPUs of the cluster a task takes. It may be a part of one.
        retries: How often a task is tried again, on other nodes, if a store fails in it.

    Raises:
        OptionError: An argument is wrong.
    """

    address: str | None = None
    cpus: float = 1
    retries: int = 5

    def __post_init__(self) -> None:
        if isinstance(self.cpus, bool) or not isinstance(self.cpus, (int, float)) or not self.cpus > 0:
            raise OptionError(f"cpus={self.cpus!r} must be a number greater than 0")
        if self.address is not None and not (isinstance(self.address, str) and self.address):
            raise OptionError(f"address={self.address!r} must be the address of a cluster, 'auto' or None")
        whole_number("retries", self.retries, 0)

    @property
    def shared(self) -> bool:
        """Whether tasks may run on other machines."""
        return self.address is not None or _connected()

    @contextlib.contextmanager
    def started(self, needs: Needs) -> Iterator[_Cluster]:
        """See `Engine.started`. Each node is checked before the first task."""
        sealer = Sealer(needs.storage_options)
        with marked(needs.folders) as marks, _connection(self, needs.workers) as ray:
            cluster = _Cluster(ray, self, needs, sealer)
            cluster.expected = Expected(versions(), marks, needs.files, sealer.variables)
            cluster.check_nodes()
            yield cluster


def _connected() -> bool:
    """Whether this program has connected to Ray."""
    module = sys.modules.get("ray")
    return module is not None and bool(module.is_initialized())


@contextlib.contextmanager
def _connection(engine: Ray, workers: int | None) -> Iterator[Any]:
    """The module, connected to a cluster. What this has started or connected is ended with the context."""
    with contextlib.ExitStack() as at_end:
        with _start_settings(engine):
            ray = require("ray", "ray")
            if not ray.is_initialized():
                at_end.enter_context(_same_sigterm())
                at_end.callback(ray.shutdown)
                with _quietly():
                    _connect(ray, engine, workers)
        yield ray


@contextlib.contextmanager
def _same_sigterm() -> Iterator[None]:
    """Give back the handler of SIGTERM in the end. Ray's own ends the pack, and Ray, as Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _start_settings(engine: Ray) -> Iterator[None]:
    """Settings of the environment while Ray is imported and starts."""
    settings = {"RAY_USAGE_STATS_ENABLED": "0"}
    if engine.address is None:
        settings[_CLUSTERS] = "0"
    ours = {name: value for name, value in settings.items() if name not in os.environ}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name in ours:
            os.environ.pop(name, None)


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Without what Ray logs while it starts."""
    logger = logging.getLogger("ray")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _connect(ray: Any, engine: Ray, workers: int | None) -> None:
    common: dict[str, Any] = {"log_to_driver": False, "configure_logging": False}
    if engine.address is not None:
        try:
            ray.init(address=engine.address, **common)
        except Exception as error:
            raise StorageError(f"no Ray cluster at {engine.address}: {_said(error)}") from error
        return
    slots = workers or max(1, int((os.cpu_count() or 1) // engine.cpus))
    cpus = math.ceil(slots * engine.cpus)
    for attempt in range(_STARTS):
        try:
            more = {"num_cpus": cpus, "include_dashboard": False, "object_store_memory": _OBJECTS}
            ray.init(address="local", **more, **common)
            return
        except Exception as error:
            ray.shutdown()
            if attempt == _STARTS - 1:
                raise StorageError(f"Ray does not start on this machine: {_said(error)}") from error


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


@dataclass
class _Cluster:
    """The nodes of Ray. See `Workers` and `Crew`."""

    ray: Any
    engine: Ray
    needs: Needs
    sealer: Sealer
    expected: Expected = field(default_factory=lambda: Expected({}))
    counts: Counts = field(default_factory=Counts)
    _remote: Any = None
    _setup: Any = None  # a reference to it
    _nodes: list[Mapping[str, Any]] = field(default_factory=list)
    _avoiding: dict[Any, Sequence[str]] = field(default_factory=dict)
    _looked: float = 0.0

    def check_nodes(self) -> None:
        """Ask each node whether it can do the job.

        Raises:
            OptionError: A node cannot.
            StorageError: A node does not answer.
        """
        # It takes no CPU, so that a busy node answers, too.
        ask = self.ray.remote(num_cpus=0, max_retries=0)(problems)
        asked = {
            ask.options(label_selector={_NODE: node["NodeID"]}).remote(self.expected): node
            for node in self._usable()
        }
        if not asked:
            return
        ended, late = self.ray.wait(list(asked), num_returns=len(asked), timeout=_SURVEY_TIMEOUT)
        found = []
        for reference in ended:
            try:
                found += [f"{_name(asked[reference])}: {text}" for text in self.ray.get(reference)]
            except self.ray.exceptions.RayTaskError as error:
                why = _said(error.cause or error)
                found.append(f"{_name(asked[reference])}: it cannot run shardstream: {why}")
            except self.ray.exceptions.RayError:
                continue  # it has left; nodes that join are checked with their first task
        for reference in late:
            self.ray.cancel(reference, force=True)
        if found:
            raise OptionError(f"node {'; node '.join(found)}")
        alive = {node["NodeID"] for node in self._usable(0.0)}
        if silent := [asked[each] for each in late if asked[each]["NodeID"] in alive]:
            raise StorageError(f"node {_name(silent[0])} has not answered for {_SURVEY_TIMEOUT:.0f} s")

    def run(
        self,
        function: Callable[[Any, Any], Any],
        job: object,
        tasks: Sequence[Any],
        inherited: Sequence[int] = (),
    ) -> Iterator[Any]:
        del inherited  # the workers are no children of this process
        setup = Setup(uuid.uuid4().hex, self.expected, self.sealer.seal((function, job)))
        self._setup = self.ray.put(setup)
        # What is lost is tried again by us: Ray does not know which task was at fault.
        self._remote = self.ray.remote(
            num_cpus=self.engine.cpus, memory=self.needs.memory, max_retries=0, retry_exceptions=False
        )(_on_node)
        return dispatched(self, tasks, self.needs.workers, self.engine.retries, self.counts)

    def capacity(self) -> int:
        nodes = self._usable()
        self.counts.nodes = len(nodes)
        return sum(self._slots(node) for node in nodes)

    def submit(self, tasks: Sequence[Any], avoid: Sequence[str]) -> Any:
        remote = self._remote
        if avoided := self._others(avoid):
            remote = remote.options(label_selector={_NODE: f"!in({','.join(avoid)})"})
        handle = remote.remote(self._setup, self.sealer.seal(list(tasks)), uuid.uuid4().hex)
        if avoided:
            self._avoiding[handle] = avoid
        return handle

    def _others(self, avoid: Sequence[str]) -> bool:
        """Whether there are nodes to avoid, and others."""
        return bool(avoid) and any(node["NodeID"] not in avoid for node in self._usable())

    def wait(self, handles: Sequence[Any], seconds: float) -> list[Any]:
        if not handles:
            time.sleep(seconds)
            return []
        for handle, avoid in list(self._avoiding.items()):
            if not self._others(avoid):  # Ray would wait for ever for another node
                del self._avoiding[handle]
                self.ray.cancel(handle, force=True)
        ended: list[Any] = self.ray.wait(list(handles), num_returns=1, timeout=seconds)[0]
        return ended

    def answer(self, handle: Any) -> Answer:
        errors = self.ray.exceptions
        self._avoiding.pop(handle, None)
        try:
            answer: Answer = self.ray.get(handle)
        except errors.RayTaskError as error:  # what a batch raises is in its answer
            raise OptionError(f"a node cannot run shardstream: {_said(error.cause or error)}") from error
        except errors.RayError as error:
            self._nodes = []  # look again
            # A cancelled one has lost all nodes that it could go to.
            kinds = (errors.NodeDiedError, errors.ObjectLostError, errors.TaskCancelledError)
            lost = isinstance(error, kinds)
            raise WorkerLostError(_said(error), with_node=lost) from error
        for node in self._nodes:
            if answer.problems and node["NodeID"] == answer.node:
                answer.node = _name(node)
        return answer

    def cancel(self, handles: Sequence[Any]) -> None:
        for handle in handles:
            self.ray.cancel(handle, force=True)
        if handles:
            self.ray.wait(list(handles), num_returns=len(handles), timeout=_END_TIMEOUT)
        self._setup = None
        self._avoiding.clear()

    def _usable(self, age: float = _LOOK) -> list[Mapping[str, Any]]:
        """The nodes that can take a task, as they were at most so many seconds ago."""
        now = time.monotonic()
        if not self._nodes or now - self._looked > age:
            self._nodes = [node for node in self.ray.nodes() if node["Alive"] and self._slots(node)]
            self._looked = now
        return self._nodes

    def _slots(self, node: Mapping[str, Any]) -> int:
        has = node["Resources"]
        slots = has.get("CPU", 0) / self.engine.cpus
        if self.needs.memory:
            slots = min(slots, has.get("memory", 0) / self.needs.memory)
        return int(slots)


def _name(node: Mapping[str, Any]) -> str:
    """A node for people. Several nodes may have one address in a test, or one name."""
    return f"{node['NodeName']} ({node['NodeManagerHostname']}, {node['NodeID'][:8]})"


def _on_node(setup: Setup, tasks: bytes, attempt: str) -> Answer:
    node = require("ray", "ray").get_runtime_context().get_node_id()
    return run_batch(setup, tasks, attempt, node)
