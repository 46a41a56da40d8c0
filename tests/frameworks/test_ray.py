"""Packs on Ray and on Dask: the bytes of one machine, whatever dies meanwhile.

Clusters are nodes on the loopback of this machine, each with processes of its own.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import shardstream as ss
from shardstream.packing.engines import Needs
from tests.frameworks import ray_calls
from tests.frameworks.ray_nodes import SMALL, Nodes, Pack, files, started
from tests.test_docs import ROOT
from tests.watch import ended

# What other packages warn of while they start and end servers is theirs.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize("shuffle", [None, 7])
def test_three_nodes_write_the_bytes_of_one_machine(
    cluster: Nodes,
    wanted: dict[int | None, dict[str, str]],
    shuffle: int | None,
    start: Callable[..., Pack],
    tmp_path: Path,
) -> None:
    code, last, errors = start(tmp_path, cluster.address, shuffle=shuffle).end()
    assert code == 0, errors
    assert last[2] >= 2  # a node that was slow to start may have joined
    assert files(tmp_path) == wanted[shuffle]


POINTS = [(None, 4), *(pytest.param(None, after, marks=pytest.mark.long) for after in (0, 8, 15))]


@pytest.mark.parametrize(("shuffle", "after"), POINTS)
def test_a_node_that_is_killed_changes_no_byte(
    cluster: Nodes,
    wanted: dict[int | None, dict[str, str]],
    shuffle: int | None,
    after: int,
    start: Callable[..., Pack],
    tmp_path: Path,
) -> None:
    pack = start(tmp_path, cluster.address, shuffle=shuffle)
    for number, _ in enumerate(pack.rows()):
        if number == after:
            cluster.kill_one()
            break
    code, last, errors = pack.end()
    assert code == 0, errors
    assert files(tmp_path) == wanted[shuffle]
    assert last[4] <= last[3] <= ray_calls.TASKS  # one loss, so no task was lost twice


@pytest.mark.parametrize("hang", ["sleeps", pytest.param("stops", marks=pytest.mark.long)])
def test_a_worker_that_hangs_does_not_keep_the_rest(
    cluster: Nodes, hang: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shardstream.packing.engines.pace._LEAST_SECONDS", 1.0)
    with ss.engines.Ray(cluster.address).started(Needs()) as workers:
        workers.counts.copies = True
        assert sorted(workers.run(ray_calls.hangs, (str(tmp_path), hang), range(6))) == list(range(6))
        assert workers.counts.retried >= 1
    hung = int((tmp_path / "hung").read_text())
    assert ended(lambda: not Path(f"/proc/{hung}").exists(), 60)


def test_a_task_that_kills_its_workers_is_named(cluster: Nodes, tmp_path: Path) -> None:
    with ss.engines.Ray(cluster.address).started(Needs()) as workers:
        with pytest.raises(ss.StorageError, match="3: 3 workers died in it"):
            list(workers.run(ray_calls.dies, str(tmp_path), range(6)))
        assert workers.counts.lost == len(list(tmp_path.iterdir())) == 3


def test_a_store_that_fails_on_one_node_is_tried_on_another(cluster: Nodes, tmp_path: Path) -> None:
    with ss.engines.Ray(cluster.address).started(Needs()) as workers:
        ended = dict(workers.run(ray_calls.fails, str(tmp_path), range(6)))
        assert sorted(ended) == list(range(6))
        assert ended[3] != (tmp_path / "node").read_text()
        assert workers.counts.retried in (1, 2)


def test_a_node_with_another_zstandard_is_refused(
    cluster: Nodes, start: Callable[..., Pack], tmp_path: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text("import zstandard\nzstandard.__version__ = '0.1.0'\n")
    path = f"{tmp_path}{os.pathsep}{ROOT}"
    node = cluster.add(node_name="old-one", env_vars={"PYTHONPATH": path})
    try:
        code, last, errors = start(tmp_path / "out", cluster.address).end()
    finally:
        cluster.cluster.remove_node(node, allow_graceful=False)
    assert code == 1
    assert last[0] == 0
    assert "OptionError: node old-one" in errors
    assert "it has zstandard 0.1.0" in errors
    assert not list((tmp_path / "out").glob("*.tar*"))


def test_a_secret_is_not_sent(cluster: Nodes, start: Callable[..., Pack], tmp_path: Path) -> None:
    options = {"secret": "wJalrXUtnFEMI"}
    code, _, errors = start(tmp_path, cluster.address, storage_options=options).end()
    assert code == 1
    assert "OptionError: storage_options: secret is a secret" in errors
    assert "wJalr" not in errors.replace(json.dumps(options), "")


@pytest.mark.long
def test_ray_on_this_machine_ends_with_the_pack(
    wanted: dict[int | None, dict[str, str]], start: Callable[..., Pack], tmp_path: Path
) -> None:
    pack = start(tmp_path, "here", workers=2)
    for _ in zip(range(4), pack.rows(), strict=False):
        pass
    pack.process.send_signal(signal.SIGINT)
    code, _, errors = pack.end()
    assert code in (1, -signal.SIGINT)
    assert "KeyboardInterrupt" in errors
    assert pack.left() == []
    code, _, errors = start(tmp_path, "here", workers=2, resume=True).end()
    assert code == 0, errors
    assert "Traceback" not in errors
    assert files(tmp_path) == wanted[None]


@pytest.mark.long
def test_a_killed_packer_leaves_no_process(
    wanted: dict[int | None, dict[str, str]], start: Callable[..., Pack], tmp_path: Path
) -> None:
    pack = start(tmp_path, "here", workers=2)
    for _ in zip(range(4), pack.rows(), strict=False):
        pass
    pack.process.kill()
    pack.end()
    assert pack.left() == []
    ss.pack(ray_calls.slow(), tmp_path, resume=True, **SMALL)
    assert files(tmp_path) == wanted[None]


@pytest.mark.long
def test_after_the_head_was_killed_resume_goes_on(
    wanted: dict[int | None, dict[str, str]], start: Callable[..., Pack], tmp_path: Path
) -> None:
    nodes = started(1)
    try:
        pack = start(tmp_path, nodes.address)
        for _ in zip(range(4), pack.rows(), strict=False):
            pass
        nodes.cluster.head_node.kill_all_processes(check_alive=False, allow_graceful=False)
        code, _, errors = pack.end()
    finally:
        nodes.shutdown()
    assert code != 0, errors
    ss.pack(ray_calls.slow(), tmp_path, resume=True, **SMALL)
    assert files(tmp_path) == wanted[None]


def test_a_cluster_that_is_not_there_is_told(start: Callable[..., Pack], tmp_path: Path) -> None:
    code, _, errors = start(tmp_path, "127.0.0.1:1").end()
    assert code == 1
    assert "StorageError: no Ray cluster at 127.0.0.1:1" in errors


def test_dask_writes_the_same_bytes_though_a_worker_is_killed(
    wanted: dict[int | None, dict[str, str]], tmp_path: Path
) -> None:
    from distributed import Client, LocalCluster

    ended: list[int] = []

    def kill(now: Any) -> None:
        if now.done_tasks == 4 and not ended:
            ended.append(min(client.run(os.getpid).values()))
            os.kill(ended[0], signal.SIGKILL)

    options = {"n_workers": 2, "threads_per_worker": 1, "host": "127.0.0.1", "dashboard_address": None}
    with LocalCluster(**options) as dask, Client(dask) as client:
        ss.pack(ray_calls.slow(), tmp_path, engine=client, progress=kill, **SMALL)
    assert ended
    assert files(tmp_path) == wanted[None]
