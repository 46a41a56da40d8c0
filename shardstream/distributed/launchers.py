"""The rank of this process, as libraries and launchers say it. Nothing is imported for that."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from shardstream.errors import OptionError

__all__ = ["REMEDY", "TORCHRUN", "Place", "horovod", "launched", "megatron", "torch_distributed", "variables"]


class Place(NamedTuple):
    """What one source says about this process.

    Attributes:
        source: The library, or the launcher with its variables, for messages.
        rank: The number of this process.
        size: How many processes there are.
    """

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


# The innermost launcher first: mpirun or srun may start torchrun, and a Slurm job may start mpirun. The
# reverse does not happen.
TORCHRUN = _Launcher("torchrun", "RANK", "WORLD_SIZE", "TORCHELASTIC_RUN_ID")
_LAUNCHERS = (
    TORCHRUN,
    _Launcher("Horovod", "HOROVOD_RANK", "HOROVOD_SIZE", "HOROVOD_GLOO_RENDEZVOUS_ADDR"),
    _Launcher("Open MPI", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
)
# The variables that srun sets for its tasks, and those of the whole job.
_SLURM = (
    _Launcher("Slurm", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS"),
    _Launcher("Slurm", "SLURM_PROCID", "SLURM_NTASKS"),
)
REMEDY = "give the dataset its place: topology=ss.Topology(dp_rank, dp_size)"


def launched(env: Mapping[str, str]) -> Place | None:
    """What the variables of the launchers say; None if there are none.

    Args:
        env: The environment.

    Raises:
        OptionError: The variables contradict each other, or one of a pair is missing.
    """
    found = [(launcher, place) for launcher in _LAUNCHERS if (place := variables(env, launcher)) is not None]
    if not found:
        for launcher in _LAUNCHERS:
            present = [name for name in (launcher.rank, launcher.size) if name in env]
            if present:
                raise OptionError(
                    f"of {launcher.rank} and {launcher.size} only {present[0]} is set; set both, or {REMEDY}"
                )
        # Slurm comes last, and is not compared: a task of a job may start several processes.
        return next((place for pair in _SLURM if (place := variables(env, pair)) is not None), None)
    (launcher, inner), *others = found
    for _, outer in others:
        # Variables that were left over would make every process rank 0 of 1.
        stale = inner.size == outer.size and inner.rank != outer.rank and launcher.mark not in env
        if inner.size < outer.size or stale:
            raise OptionError(f"{inner}, but {outer}; unset the variables that do not belong, or {REMEDY}")
    return inner


def variables(env: Mapping[str, str], launcher: _Launcher) -> Place | None:
    """What the variables of one launcher say; None if they are not set. OptionError if they are wrong."""
    if launcher.rank not in env or launcher.size not in env:
        return None
    rank, size = _number(env, launcher.rank), _number(env, launcher.size)
    if not 0 <= rank < size:
        raise OptionError(f"{launcher.rank}={rank} and {launcher.size}={size} are no rank of a job")
    return Place(f"{launcher.name} ({launcher.rank}, {launcher.size})", rank, size)


def _number(env: Mapping[str, str], name: str) -> int:
    try:
        return int(env[name])
    except ValueError:
        raise OptionError(f"the environment variable {name}={env[name]!r} is not a number") from None


def megatron(modules: Mapping[str, Any]) -> Place | None:
    """The data-parallel rank of Megatron; None if Megatron is not imported and initialised."""
    state = modules.get("megatron.core.parallel_state")
    ready = getattr(state, "model_parallel_is_initialized", None)
    if state is None or ready is None or not ready():
        return None
    # By default these do not count context parallelism, whose ranks share a sequence.
    return Place("Megatron", state.get_data_parallel_rank(), state.get_data_parallel_world_size())


def torch_distributed(modules: Mapping[str, Any]) -> Place | None:
    """The rank of torch.distributed; None if it is not imported and initialised."""
    # While torch is being imported, and in a stub of torch, there is no `distributed`.
    group = getattr(modules.get("torch"), "distributed", None)
    if group is None or not group.is_available() or not group.is_initialized():
        return None
    return Place("torch.distributed", group.get_rank(), group.get_world_size())


def horovod(modules: Mapping[str, Any]) -> Place | None:
    """The rank of Horovod; None if it is not imported and initialised."""
    for name in ("horovod.torch", "horovod.tensorflow", "horovod.keras", "horovod.mxnet"):
        ready = getattr(modules.get(name), "is_initialized", None)
        if ready is not None and ready():
            return Place("Horovod", modules[name].rank(), modules[name].size())
    return None
