"""The nodes of Ray: they are checked, get batches of tasks, and may be lost."""

from __future__ import annotations

import contextlib
import logging
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from shardstream.errors import OptionError, StorageError, require
from shardstream.packing.engines.attempts import WorkerLostError
from shardstream.packing.engines.batch import Answer, Setup, run_batch
from shardstream.packing.engines.dispatch import dispatched
from shardstream.packing.engines.engine import Counts, Needs
from shardstream.packing.engines.nodes import Expected, problems
from shardstream.packing.engines.sealed import Sealer

__all__ = ["RayCluster", "said"]

_SURVEY_TIMEOUT = 120.0  # seconds: a node starts a Python process and imports numpy
_END_TIMEOUT = 10.0
_LOOK = 2.0  # seconds between looks at the nodes
_PATIENCE = 60.0  # seconds without the end of a batch, after which it is told what may be the cause
log = logging.getLogger("shardstream.packing")
_NODE = "ray.io/node-id"  # the label that Ray gives to each node


def said(error: BaseException) -> str:
    """An error of Ray on one line, with its kind."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


@dataclass
class RayCluster:
    """The nodes of Ray. See `Workers` and `Crew`.

    Args:
        ray: The module, connected.
        cpus: How many CPUs a batch takes.
        retries: How often a task is tried again if a store fails in it.
        needs: What the pack needs.
        sealer: Pickles what is sent.
        expected: What each node must have.
        grows: Whether nodes may join. Ray that is started for one pack never has others.
    """

    ray: Any
    cpus: float
    retries: int
    needs: Needs
    sealer: Sealer
    expected: Expected
    grows: bool = True
    counts: Counts = field(default_factory=Counts)
    _remote: Any = None
    _setup: Any = None  # a reference to it
    _nodes: list[Mapping[str, Any]] = field(default_factory=list)
    _avoiding: dict[Any, Sequence[str]] = field(default_factory=dict)
    _looked: float = 0.0
    _idle_since: float | None = None  # None: a batch has ended, or it is told

    def check_nodes(self) -> None:
        """Ask each node whether it can do the job.

        Raises:
            OptionError: A node cannot, or none has room for a task and none can join.
            StorageError: A node does not answer.
        """
        if why := self.lacks():
            if not self.grows:
                raise OptionError(f"{why}; make shard_size smaller, or cpus of the engine")
            log.warning("%s: waiting for a node with more", why)
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
                why = said(error.cause or error)
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
            num_cpus=self.cpus, memory=self.needs.memory, max_retries=0, retry_exceptions=False
        )(_on_node)
        self._idle_since = time.monotonic()
        return dispatched(self, tasks, self.needs.workers, self.retries, self.counts)

    def capacity(self) -> int:
        nodes = self._usable()
        self.counts.nodes = len(nodes)
        return sum(self._slots(node) for node in nodes)

    def spare(self) -> int:
        with contextlib.suppress(self.ray.exceptions.RayError):  # the cluster may be gone, as others see
            free = self.ray.available_resources()
            return max(0, self._slots({"Resources": free}))
        return 0

    def lacks(self) -> str:
        nodes = [node["Resources"] for node in self.ray.nodes() if node["Alive"]]
        if not nodes or self._usable(0.0):
            return ""
        memory = [node.get("memory", 0) for node in nodes if node.get("CPU", 0) >= self.cpus]
        if not memory:
            most = max(node.get("CPU", 0) for node in nodes)
            return f"a task needs {_cpus(self.cpus)}; the largest node has {most:g}"
        return f"a task needs {_gib(self.needs.memory)}; the largest node has {_gib(max(memory))}"

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
        if ended:
            self._idle_since = None
        elif self._idle_since is not None and time.monotonic() - self._idle_since > _PATIENCE:
            self._idle_since = None
            if (free := self.ray.available_resources().get("CPU", 0)) < self.cpus:
                log.warning(
                    "waiting for %s: no batch has ended for %.0f s, and %g are free. Either others have "
                    "them, or tasks take longer", _cpus(self.cpus), _PATIENCE, free,
                )  # fmt: skip
        return ended

    def answer(self, handle: Any) -> Answer:
        errors = self.ray.exceptions
        self._avoiding.pop(handle, None)
        try:
            answer: Answer = self.ray.get(handle)
        except errors.RayTaskError as error:  # what a batch raises is in its answer
            raise OptionError(f"a node cannot run shardstream: {said(error.cause or error)}") from error
        except errors.RayError as error:
            self._nodes = []  # look again
            # A cancelled one has lost all nodes that it could go to.
            kinds = (errors.NodeDiedError, errors.ObjectLostError, errors.TaskCancelledError)
            lost = isinstance(error, kinds)
            raise WorkerLostError(said(error), with_node=lost) from error
        for node in self._nodes:
            if answer.problems and node["NodeID"] == answer.node:
                answer.node = _name(node)
        return answer

    def drop(self, handle: Any) -> None:
        self._avoiding.pop(handle, None)
        with contextlib.suppress(self.ray.exceptions.RayError):
            self.ray.cancel(handle, force=True)

    def cancel(self, handles: Sequence[Any]) -> None:
        with contextlib.suppress(self.ray.exceptions.RayError):  # the cluster may be gone
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
        slots = has.get("CPU", 0) / self.cpus
        if self.needs.memory:
            slots = min(slots, has.get("memory", 0) / self.needs.memory)
        return int(slots)


def _cpus(cpus: float) -> str:
    """1 CPU, 0.5 CPUs."""
    return f"{cpus:g} CPU{'' if cpus == 1 else 's'}"


def _gib(size: float) -> str:
    return f"{size / (1 << 30):.1f} GiB"


def _name(node: Mapping[str, Any]) -> str:
    """A node for people. Several nodes may have one address in a test, or one name."""
    return f"{node['NodeName']} ({node['NodeManagerHostname']}, {node['NodeID'][:8]})"


def _on_node(setup: Setup, tasks: bytes, attempt: str) -> Answer:
    node = require("ray", "ray").get_runtime_context().get_node_id()
    return run_batch(setup, tasks, attempt, node)
