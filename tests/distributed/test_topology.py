"""Which place a process has: from libraries, from launchers, from a mesh, from sizes alone."""

from __future__ import annotations

import os
import pickle
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import shardstream as ss
from shardstream.errors import OptionError

TORCHRUN = {"RANK": "3", "WORLD_SIZE": "8"}
HOROVOD = {"HOROVOD_RANK": "2", "HOROVOD_SIZE": "4"}
OPEN_MPI = {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "4"}
SLURM = {"SLURM_PROCID": "5", "SLURM_NTASKS": "16"}


@dataclass
class Group:
    """Stands for torch.distributed, for Horovod and for Megatron's parallel state."""

    at: int
    of: int
    ready: bool = True

    def is_available(self) -> bool:
        return True

    def is_initialized(self) -> bool:
        return self.ready

    model_parallel_is_initialized = is_initialized

    def rank(self) -> int:
        return self.at

    def size(self) -> int:
        return self.of

    get_rank = get_data_parallel_rank = rank
    get_world_size = get_data_parallel_world_size = size


def torch(at: int, of: int, ready: bool = True) -> dict[str, Any]:
    return {"torch": SimpleNamespace(distributed=Group(at, of, ready))}


def horovod(at: int, of: int, ready: bool = True) -> dict[str, Any]:
    return {"horovod.torch": Group(at, of, ready)}


def megatron(at: int, of: int, ready: bool = True) -> dict[str, Any]:
    return {"megatron.core.parallel_state": Group(at, of, ready)}


@pytest.fixture
def detect(monkeypatch: pytest.MonkeyPatch) -> Any:
    def detected(env: Mapping[str, str], modules: Mapping[str, Any] | None = None) -> tuple[int, int]:
        with monkeypatch.context() as patch:
            patch.setattr(os, "environ", dict(env))
            for name, module in {**torch(0, 1, False), **(modules or {})}.items():
                patch.setitem(sys.modules, name, module)
            found = ss.Topology.detect()
        assert type(found) is ss.Topology
        return found.dp_rank, found.dp_size

    return detected


@pytest.mark.parametrize(
    ("env", "modules", "place"),
    [
        ({}, {}, (0, 1)),
        (TORCHRUN, {}, (3, 8)),
        (HOROVOD, {}, (2, 4)),
        (OPEN_MPI, {}, (1, 4)),
        (SLURM, {}, (5, 16)),
        # srun of a part of the job's tasks.
        ({**SLURM, "SLURM_STEP_NUM_TASKS": "8"}, {}, (5, 8)),
        # One launcher within another.
        ({**SLURM, **OPEN_MPI}, {}, (1, 4)),
        ({"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2", **TORCHRUN}, {}, (3, 8)),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "1", **TORCHRUN}, {}, (3, 8)),
        # A rendezvous may number the ranks in its own way.
        ({"RANK": "0", "WORLD_SIZE": "4", "TORCHELASTIC_RUN_ID": "x", **OPEN_MPI}, {}, (0, 4)),
        # Half of a pair beside a whole one, and Slurm's without a task.
        ({"WORLD_SIZE": "4", **OPEN_MPI}, {}, (1, 4)),
        ({"SLURM_NTASKS": "16"}, {}, (0, 1)),
        # Libraries know better than launchers, the more special one first.
        (TORCHRUN, torch(5, 16), (5, 16)),
        (TORCHRUN, torch(5, 16, False), (3, 8)),
        (SLURM, torch(0, 1), (0, 1)),
        (OPEN_MPI, horovod(1, 4), (1, 4)),
        ({}, {**torch(1, 2), **horovod(1, 2)}, (1, 2)),
        ({}, {**torch(3, 4), **horovod(0, 1, False)}, (3, 4)),
        (TORCHRUN, {**torch(3, 8), **megatron(1, 2)}, (1, 2)),
        (TORCHRUN, {**torch(3, 8), **megatron(1, 2, False)}, (3, 8)),
        # Half imported.
        (TORCHRUN, {"torch": SimpleNamespace(), "megatron.core.parallel_state": SimpleNamespace()}, (3, 8)),
    ],
)
def test_the_first_that_knows_decides(detect: Any, env: Any, modules: Any, place: Any) -> None:
    assert detect(env, modules) == place


@pytest.mark.parametrize(
    ("env", "modules", "words"),
    [
        ({"RANK": "3"}, {}, "of RANK and WORLD_SIZE only RANK"),
        ({"OMPI_COMM_WORLD_SIZE": "3"}, {}, "only OMPI_COMM_WORLD_SIZE"),
        ({"RANK": "x", "WORLD_SIZE": "2"}, {}, "RANK='x' is not a number"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, {}, "RANK=2 and WORLD_SIZE=2"),
        ({"SLURM_PROCID": "-1", "SLURM_NTASKS": "2"}, {}, "SLURM_PROCID=-1"),
        # Left over from somewhere: every process would be rank 0.
        ({"RANK": "0", "WORLD_SIZE": "1", **OPEN_MPI}, {}, "rank 0 of 1, but Open MPI .* rank 1 of 4"),
        ({"RANK": "0", "WORLD_SIZE": "4", **OPEN_MPI}, {}, "rank 0 of 4, but Open MPI .* rank 1 of 4"),
        ({}, {**torch(1, 2), **horovod(0, 2)}, "torch.distributed says rank 1 of 2, but Horovod"),
        (TORCHRUN, torch(0, 1), "torch.distributed says rank 0 of 1, but torchrun"),
    ],
)
def test_contradictions_are_errors(detect: Any, env: Any, modules: Any, words: str) -> None:
    with pytest.raises(OptionError, match=words):
        detect(env, modules)


class Mesh:
    """A DeviceMesh of the shape `sizes`, seen from one of its ranks."""

    def __init__(self, sizes: dict[str, int], at: dict[str, int]) -> None:
        self.mesh_dim_names, self._sizes, self._at = tuple(sizes), list(sizes.values()), at

    def size(self, dim: int) -> int:
        return self._sizes[dim]

    def get_local_rank(self, name: str) -> int:
        return self._at[name]

    def get_group(self, name: str) -> str:
        return f"group of {name}"


def test_all_dimensions_but_those_of_the_data_replicate() -> None:
    sizes = {"pp": 2, "dp": 3, "fsdp": 2, "tp": 2}
    found: dict[tuple[int, int], int] = {}
    for pp in range(2):
        for dp in range(3):
            for fsdp in range(2):
                for tp in range(2):
                    mesh = Mesh(sizes, {"pp": pp, "dp": dp, "fsdp": fsdp, "tp": tp})
                    topology = ss.Topology.from_mesh(mesh, data=("dp", "fsdp"))
                    assert topology.dp_size == 6
                    assert found.setdefault((dp, fsdp), topology.dp_rank) == topology.dp_rank
    assert sorted(found.values()) == list(range(6))


def test_a_mesh_gives_the_group_of_a_dimension_and_stays_behind() -> None:
    topology = ss.Topology.from_mesh(Mesh({"dp": 2, "tp": 2}, {"dp": 1, "tp": 0}))
    assert topology.group("tp") == "group of tp"
    for name in ("dp", "sp"):
        with pytest.raises(OptionError, match=f"'{name}' is no dimension .*'tp'"):
            topology.group(name)
    sent = pickle.loads(pickle.dumps(topology))
    assert sent == topology == ss.Topology(1, 2)
    assert sent.mesh is None
    with pytest.raises(OptionError, match="has none"):
        sent.group("tp")
    with pytest.raises(OptionError, match="no dimension 'ddp'"):
        ss.Topology.from_mesh(topology.mesh, data=("ddp",))
    with pytest.raises(OptionError, match="twice"):
        ss.Topology.from_mesh(topology.mesh, data=("dp", "dp"))
    assert ss.Topology.from_mesh(topology.mesh, data="dp") == topology


def test_the_example_in_megatrons_documentation() -> None:
    # 16 GPUs, tp 2, pp 4: the data-parallel groups are (0, 2), (1, 3), (4, 6), ...
    places = [ss.Topology.from_sizes(rank, 16, tp=2, pp=4).dp_rank for rank in range(16)]
    assert places == [0, 0, 1, 1] * 4
    # tp 2, cp 2: context-parallel ranks lie between; tp-pp-dp is its other order.
    assert [ss.Topology.from_sizes(r, 8, tp=2, cp=2).dp_rank for r in range(8)] == [0] * 4 + [1] * 4
    other = [ss.Topology.from_sizes(r, dp=2, tp=2, pp=2, order="tp-cp-pp-dp").dp_rank for r in range(8)]
    assert other == [0] * 4 + [1] * 4


size = st.integers(1, 4)


@given(size, size, size, size, st.permutations(["tp", "cp", "ep", "dp", "pp"]))
def test_each_data_rank_has_every_combination_of_the_others(
    tp: int, cp: int, pp: int, dp: int, order: list[str]
) -> None:
    world = tp * cp * pp * dp
    places = [
        ss.Topology.from_sizes(rank, world, tp=tp, cp=cp, pp=pp, order="-".join(order))
        for rank in range(world)
    ]
    assert {place.dp_size for place in places} == {dp}
    ranks = [place.dp_rank for place in places]
    assert [ranks.count(rank) for rank in range(dp)] == [tp * cp * pp] * dp


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"rank": 0}, "world_size or dp"),
        ({"rank": 0, "world_size": 6, "tp": 4}, "no multiple"),
        ({"rank": 0, "world_size": 6, "dp": 2}, "is not tp x cp x dp x pp = 2"),
        ({"rank": 2, "dp": 2}, "rank=2 must be"),
        ({"rank": 0, "dp": 2, "tp": 0}, "tp=0 must be"),
        ({"rank": 0, "dp": 2, "order": "tp-dp"}, "order='tp-dp' must name"),
    ],
)
def test_sizes_that_cannot_be(options: dict[str, Any], words: str) -> None:
    with pytest.raises(OptionError, match=words):
        ss.Topology.from_sizes(**options)
