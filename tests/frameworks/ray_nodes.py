"""Clusters of Ray on this machine, and packs in processes of their own, for the tests."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from shardstream.packing.spilled import FOLDER
from shardstream.storage.store import Store
from tests.servers import KEY, SECRET
from tests.test_docs import ROOT

SMALL: dict[str, Any] = {"shard_size": "8KiB", "frame_size": "2KiB"}
SECONDS = 200.0  # after which a pack is killed
STORE = 80 << 20  # bytes of the object store of a node
ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": KEY,
    "AWS_SECRET_ACCESS_KEY": SECRET,
    "PYTHONPATH": str(ROOT),
    "RAY_AUTH_MODE": "disabled",  # the nodes listen on the loopback alone
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # else they listen on the machine's address
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_gcs_rpc_server_reconnect_timeout_s": "10",  # a driver waits for a new head: by default 60 s
}


def files(folder: Path) -> dict[str, str]:
    """The SHA-256 of every file."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def objects(url: str, options: dict[str, Any]) -> dict[str, str]:
    """The SHA-256 of every object of a dataset in a store. SeaweedFS keeps a folder that has become empty."""
    store = Store.open(url, options)
    names = [name for name in store.list() if name != FOLDER or store.list(FOLDER)]
    return {name: hashlib.sha256(store.read(name)).hexdigest() for name in names}


def family(pid: int) -> list[int]:
    """A process, and all that it and its children have started."""
    found = [pid]
    for each in found:
        with contextlib.suppress(OSError):
            found += map(int, Path(f"/proc/{each}/task/{each}/children").read_text().split())
    return found


class Nodes:
    """A cluster: a head without CPUs, and nodes of one CPU each."""

    def __init__(self, count: int) -> None:
        from ray.cluster_utils import Cluster

        head = {"num_cpus": 0, "object_store_memory": STORE, "include_dashboard": False}
        self.nodes: list[Any] = []
        self.cluster = Cluster()
        try:
            self.cluster.add_node(**head)
            for _ in range(count):
                self.nodes.append(self.add())
        except BaseException:
            self.shutdown()
            raise
        self.address: str = self.cluster.address

    def add(self, **more: Any) -> Any:
        for attempt in range(3):  # Ray gives a node 30 s, which a busy machine may need
            with contextlib.suppress(Exception if attempt < 2 else ()):
                return self.cluster.add_node(num_cpus=1, object_store_memory=STORE, **more)
            for late in set(self.cluster.worker_nodes) - set(self.nodes):  # it could still join
                with contextlib.suppress(Exception):
                    self.cluster.remove_node(late, allow_graceful=False)
        raise AssertionError

    def shutdown(self) -> None:
        with contextlib.suppress(Exception):  # a process may be dead, or slow to end
            self.cluster.shutdown()

    def freeze_one(self) -> list[int]:
        """Stop a node with all its processes, as if its machine had lost the network; returns them."""
        node = self.nodes.pop(0)
        roots = [each.process.pid for some in node.all_processes.values() for each in some]
        processes = [each for root in roots for each in family(root)]
        for each in processes:
            os.kill(each, signal.SIGSTOP)
        return processes

    def kill_one(self) -> None:
        """Kill a node with all its processes, and start another one."""
        self.cluster.remove_node(self.nodes.pop(0), allow_graceful=False)
        self.nodes.append(self.add())


def started(count: int) -> Nodes:
    """A cluster. It is tried twice: a busy machine may take too long for a head."""
    with contextlib.suppress(Exception):
        return Nodes(count)
    return Nodes(count)


class Pack:
    """A pack in a process of its own."""

    def __init__(self, dest: Path | str, address: str, **options: Any) -> None:
        self.mark = uuid.uuid4().hex
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed by kill
        arguments = [str(dest), address, json.dumps({**SMALL, **options})]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.frameworks.ray_pack", *arguments],
            stdout=subprocess.PIPE, stderr=self.errors, text=True, env={**os.environ, "MARK": self.mark},
            cwd=ROOT,
        )  # fmt: skip
        self._deadline = threading.Timer(SECONDS, self.process.kill)
        self._deadline.start()

    def rows(self) -> Iterator[list[int]]:
        """[done tasks, all tasks, nodes, retried, lost], as they are told."""
        assert self.process.stdout
        for line in self.process.stdout:
            if line.startswith("["):
                yield json.loads(line)

    def end(self) -> tuple[int, list[int], str]:
        """(the exit code, the last row, what it wrote to stderr)"""
        rows = [[0] * 5, *self.rows()]
        code = self.process.wait()
        self.errors.seek(0)
        return code, rows[-1], self.errors.read()

    def kill(self) -> None:
        """End it, if it has not ended."""
        self._deadline.cancel()
        self.process.kill()
        self.process.communicate()
        self.errors.close()

    def left(self) -> list[str]:
        """The processes that this pack has started, and that are still there after a while."""
        found: list[str] = []
        deadline = time.monotonic() + 150  # Ray's agents look for a head that is gone for a minute
        while time.monotonic() < deadline:
            found = [line for pid in os.listdir("/proc") if pid.isdigit() and (line := self._ours(pid))]
            if not found:
                break
            time.sleep(0.5)
        return found

    def _ours(self, pid: str) -> str:
        with contextlib.suppress(OSError):
            if f"MARK={self.mark}".encode() in Path(f"/proc/{pid}/environ").read_bytes():
                return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
        return ""
