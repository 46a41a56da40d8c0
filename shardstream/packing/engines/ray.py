"""The engine that runs tasks on Ray: on a cluster, or on Ray that is started on this machine for one pack."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from shardstream.cores import cores
from shardstream.counters.page import job_name
from shardstream.errors import OptionError, StorageError, require
from shardstream.format.numbers import whole_number
from shardstream.packing.engines.engine import Needs
from shardstream.packing.engines.nodes import Expected, marked, versions
from shardstream.packing.engines.ray_cluster import RayCluster, said
from shardstream.packing.engines.sealed import Sealer

__all__ = ["Ray"]

_STARTS = 3  # Ray gives a node 30 s to start, which a busy machine may need
_CONNECT_TIMEOUT = 10.0
_OBJECTS = 128 << 20  # bytes of the object store of a Ray that is started here: only results lie there
# Ray on Linux listens on the address of the machine, even if it is told to use the loopback. Without
# clusters it does not. It reads the variable when it is imported, which the program may have done.
_CLUSTERS, _CONSTANT = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "ENABLE_RAY_CLUSTER"


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
        if self.address is not None and self.address.startswith("ray://"):
            raise OptionError(
                f"address={self.address!r}: Ray Client is not supported; give the cluster's host:port"
            )
        whole_number("retries", self.retries, 0)

    @property
    def shared(self) -> bool:
        """Whether tasks may run on other machines."""
        return self.address is not None or _connected()

    @contextlib.contextmanager
    def started(self, needs: Needs) -> Iterator[RayCluster]:
        """See `Engine.started`. Each node is checked before the first task."""
        sealer = Sealer(needs.storage_options)
        grows = self.shared  # before the start, after which this program has connected
        with marked(needs.folders) as marks, _connection(self, needs.workers) as ray:
            expected = Expected(versions(), marks, needs.files, sealer.variables)
            cluster = RayCluster(ray, self.cpus, self.retries, needs, sealer, expected, grows)
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
        ray = require("ray", "ray")
        if not ray.is_initialized():
            at_end.enter_context(_same_sigterm())
            at_end.callback(ray.shutdown)
            with _start_settings(ray, engine), _quietly(), _late_sigint() as stop:
                _connect(ray, engine, workers, stop)
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
def _late_sigint() -> Iterator[threading.Event]:
    """Put off Ctrl-C to the end of this context: Ray that was interrupted as it starts leaves processes.

    Yields:
        Set once there was one. The second one is not put off.
    """
    stop = threading.Event()
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield stop
        return

    def note(number: int, frame: Any) -> None:
        if stop.is_set():
            before(number, frame)
        stop.set()

    signal.signal(signal.SIGINT, note)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)
        if stop.is_set():
            signal.raise_signal(signal.SIGINT)


@contextlib.contextmanager
def _start_settings(ray: Any, engine: Ray) -> Iterator[None]:
    """Settings of the environment, and of Ray, while it starts."""
    settings = {"RAY_USAGE_STATS_ENABLED": "0"}
    if engine.address is None:
        settings |= {_CLUSTERS: "0", "SHARDSTREAM_JOB": job_name()}  # `shardstream top` shows one job
    ours = {name: value for name, value in settings.items() if name not in os.environ}
    constants = getattr(getattr(ray, "_private", None), "ray_constants", None)
    before = getattr(constants, _CONSTANT, None)
    os.environ.update(ours)
    if _CLUSTERS in ours and before is not None:
        setattr(constants, _CONSTANT, False)
    try:
        yield
    finally:
        if _CLUSTERS in ours and before is not None:
            setattr(constants, _CONSTANT, before)
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


def _check_listens(address: str) -> None:
    """Raise OSError if nobody listens at host:port. Ray would go on trying for minutes."""
    host, _, port = address.rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), _CONNECT_TIMEOUT).close()


def _connect(ray: Any, engine: Ray, workers: int | None, stop: threading.Event) -> None:
    common: dict[str, Any] = {"log_to_driver": False, "configure_logging": False}
    if engine.address is not None:
        try:
            _check_listens(engine.address)
            ray.init(address=engine.address, **common)
        except Exception as error:
            raise StorageError(f"no Ray cluster at {engine.address}: {said(error)}") from error
        return
    slots = workers or max(1, int(cores() // engine.cpus))
    cpus = math.ceil(slots * engine.cpus)
    for attempt in range(_STARTS):
        try:
            more = {"num_cpus": cpus, "include_dashboard": False, "object_store_memory": _OBJECTS}
            ray.init(address="local", **more, **common)
            return
        except Exception as error:
            ray.shutdown()
            if attempt == _STARTS - 1 or stop.is_set():
                raise StorageError(f"Ray does not start on this machine: {said(error)}") from error
