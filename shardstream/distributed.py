"""Finds out which rank this process is."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from shardstream.errors import OptionError
from shardstream.order import topology

__all__ = ["Topology"]


class _Place(NamedTuple):
    """Who says so, and what: as a launcher's variables or a library's group give it."""

    source: str
    rank: int
    size: int

    def __str__(self) -> str:
        return f"{self.source} says rank {self.rank} of {self.size}"


class _Launcher(NamedTuple):
    name: str
    rank: str
    size: str
    mark: str = ""  # a variable that only a process of this launcher itself has


# The innermost first: torchrun is started by mpirun or srun, mpirun within a Slurm job, never the reverse.
_TORCHRUN = _Launcher("torchrun", "RANK", "WORLD_SIZE", "TORCHELASTIC_RUN_ID")
_LAUNCHERS = (
    _TORCHRUN,
    _Launcher("Horovod", "HOROVOD_RANK", "HOROVOD_SIZE", "HOROVOD_GLOO_RENDEZVOUS_ADDR"),
    _Launcher("Open MPI", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
)
# What srun sets for its tasks, and what the whole job has.
_SLURM = (
    _Launcher("Slurm", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS"),
    _Launcher("Slurm", "SLURM_PROCID", "SLURM_NTASKS"),
)
_GIVE = "give the dataset its place: topology=ss.Topology(dp_rank, dp_size)"


@dataclass(frozen=True)
class Topology(topology.Topology):
    """The place of this process among the data-parallel ranks.

    mesh, data: of `from_mesh`, for a loader that broadcasts over another dimension; they stay behind
    where a topology is sent to another process.
    """

    mesh: Any = field(default=None, repr=False, compare=False)
    data: tuple[str, ...] = field(default=(), repr=False, compare=False)

    @classmethod
    def detect(cls) -> Topology:
        """The place that libraries or the launcher have given this process; 0 of 1 without any.

        The first of these that there is:

        1. Megatron's parallel state, if the program has initialised it: its data-parallel rank.
        2. torch.distributed, if initialised. All its ranks are data-parallel: with tensor, pipeline or
           context parallelism use `from_mesh` or `from_sizes`.
        3. Horovod, if initialised.
        4. The variables of torchrun (RANK, WORLD_SIZE), of horovodrun, of Open MPI, of Slurm.

        Nothing is imported for it. Raises OptionError where two of them cannot both be true: wrong
        places would give ranks the same samples, or none.
        """
        modules, env = sys.modules, os.environ
        megatron = _megatron(modules)
        if megatron is not None:
            return cls(megatron.rank, megatron.size)
        torch, horovod = _torch(modules), _horovod(modules)
        if torch is not None and horovod is not None and torch[1:] != horovod[1:]:
            raise OptionError(f"{torch}, but {horovod}; {_GIVE}")
        found = torch or horovod
        if found is None:
            found = launched(env)
        elif (outer := _pair(env, _TORCHRUN)) is not None and found.size < outer.size:
            # The other way round is fine: a script may start more processes than its launcher knows.
            raise OptionError(f"{found}, but {outer}, with fewer processes than the job has; {_GIVE}")
        return cls() if found is None else cls(found.rank, found.size)

    @classmethod
    def from_mesh(cls, mesh: Any, data: Sequence[str] = ("dp",)) -> Topology:
        """The topology of a torch DeviceMesh whose dimensions `data` split the data.

        Along all other dimensions ranks get the same data. The first of `data` varies slowest.
        """
        data = (data,) if isinstance(data, str) else tuple(data)
        names = tuple(mesh.mesh_dim_names or ())
        if len(set(data)) != len(data):
            raise OptionError(f"data={data!r} names a dimension twice")
        rank, size = 0, 1
        for name in data:
            if name not in names:
                raise OptionError(f"the mesh has no dimension {name!r}; it has {names}")
            width = mesh.size(names.index(name))
            rank, size = rank * width + mesh.get_local_rank(name), size * width
        return cls(rank, size, mesh, data)

    @classmethod
    def from_sizes(
        cls,
        rank: int,
        world_size: int | None = None,
        *,
        tp: int = 1,
        cp: int = 1,
        pp: int = 1,
        dp: int | None = None,
        order: str = topology.MEGATRON_ORDER,
    ) -> Topology:
        """The topology of process `rank` of a Megatron or NeMo job, from the sizes of its groups alone.

        Tensor (and sequence), context and pipeline parallel ranks get the same data. `dp` follows from
        `world_size`, or the other way round. `order` is that of Megatron's `initialize_model_parallel`
        (megatron/core/parallel_state.py): the first varies fastest, "ep" does not count.
        """
        if dp is None and world_size is None:
            raise OptionError("from_sizes needs world_size or dp")
        shared = topology.product({"tp": tp, "cp": cp, "pp": pp})
        if dp is None:
            assert world_size is not None
            if world_size % shared:
                raise OptionError(
                    f"world_size={world_size} is no multiple of tp x cp x pp = {tp} x {cp} x {pp}"
                )
            dp = world_size // shared
        sizes = {"tp": tp, "cp": cp, "dp": dp, "pp": pp}
        total = topology.product(sizes)
        if world_size not in (None, total):
            raise OptionError(f"world_size={world_size} is not tp x cp x dp x pp = {total}")
        if not 0 <= rank < total:
            raise OptionError(f"rank={rank} must be at least 0 and less than tp x cp x dp x pp = {total}")
        return cls(topology.data_rank(rank, sizes, order), dp)

    def group(self, name: str) -> Any:
        """The process group of the mesh's dimension `name`, along which ranks get the same data."""
        if self.mesh is None:
            raise OptionError(
                f"{name!r} is a dimension of a mesh, and the topology has none: "
                f"topology=ss.Topology.from_mesh(mesh), or give a ProcessGroup"
            )
        names = tuple(self.mesh.mesh_dim_names)
        if name not in names or name in self.data:
            others = tuple(other for other in names if other not in self.data)
            raise OptionError(f"{name!r} is no dimension of the mesh along which data is the same: {others}")
        return self.mesh.get_group(name)

    def __reduce__(self) -> tuple[Any, ...]:
        # A mesh and its groups belong to this process.
        return type(self), (self.dp_rank, self.dp_size)


def launched(env: Mapping[str, str]) -> _Place | None:
    """What the variables of the launchers say; raises OptionError if they contradict each other."""
    found = [(launcher, place) for launcher in _LAUNCHERS if (place := _pair(env, launcher)) is not None]
    if not found:
        for launcher in _LAUNCHERS:
            present = [name for name in (launcher.rank, launcher.size) if name in env]
            if present:
                raise OptionError(
                    f"of {launcher.rank} and {launcher.size} only {present[0]} is set; set both, or {_GIVE}"
                )
        # Slurm comes last and is not compared: a job's tasks need not be the processes that run in it.
        return next((place for pair in _SLURM if (place := _pair(env, pair)) is not None), None)
    (launcher, inner), *others = found
    for _, outer in others:
        # Left-over variables are what makes every process think that it is rank 0 of 1.
        stale = inner.size == outer.size and inner.rank != outer.rank and launcher.mark not in env
        if inner.size < outer.size or stale:
            raise OptionError(f"{inner}, but {outer}; unset the variables that do not belong, or {_GIVE}")
    return inner


def _pair(env: Mapping[str, str], launcher: _Launcher) -> _Place | None:
    if launcher.rank not in env or launcher.size not in env:
        return None
    rank, size = _number(env, launcher.rank), _number(env, launcher.size)
    if not 0 <= rank < size:
        raise OptionError(f"{launcher.rank}={rank} and {launcher.size}={size} are no rank of a job")
    return _Place(f"{launcher.name} ({launcher.rank}, {launcher.size})", rank, size)


def _number(env: Mapping[str, str], name: str) -> int:
    try:
        return int(env[name])
    except ValueError:
        raise OptionError(f"the environment variable {name}={env[name]!r} is not a number") from None


def _megatron(modules: Mapping[str, Any]) -> _Place | None:
    state = modules.get("megatron.core.parallel_state")
    ready = getattr(state, "model_parallel_is_initialized", None)
    if state is None or ready is None or not ready():
        return None
    # Without context parallelism, whose ranks share a sequence: Megatron's own default.
    return _Place("Megatron", state.get_data_parallel_rank(), state.get_data_parallel_world_size())


def _torch(modules: Mapping[str, Any]) -> _Place | None:
    # A torch that is still being imported, or a stub, has no `distributed` yet.
    group = getattr(modules.get("torch"), "distributed", None)
    if group is None or not group.is_available() or not group.is_initialized():
        return None
    return _Place("torch.distributed", group.get_rank(), group.get_world_size())


def _horovod(modules: Mapping[str, Any]) -> _Place | None:
    for name in ("horovod.torch", "horovod.tensorflow", "horovod.keras", "horovod.mxnet"):
        ready = getattr(modules.get(name), "is_initialized", None)
        if ready is not None and ready():
            return _Place("Horovod", modules[name].rank(), modules[name].size())
    return None
