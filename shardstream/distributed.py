"""Finds out which rank this process is."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from shardstream.errors import OptionError
from shardstream.order import topology

__all__ = ["Topology"]

# (rank, world size) as launchers set them: torchrun and most others, Slurm, Open MPI.
_VARIABLES = (
    ("RANK", "WORLD_SIZE"),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    ("SLURM_PROCID", "SLURM_NTASKS"),
)


@dataclass(frozen=True)
class Topology(topology.Topology):
    """The place of this process among the data-parallel ranks."""

    @classmethod
    def detect(cls) -> Topology:
        """The topology of torch.distributed if initialised, else of the launcher, else 0 of 1.

        Torch is asked only if the program has imported it. Open MPI comes before Slurm: an mpirun
        in a Slurm job of one task sets both, and then Slurm's pair counts the mpirun.
        """
        torch = sys.modules.get("torch")
        # A torch that is still being imported, or a stub, has no `distributed` yet.
        group = getattr(torch, "distributed", None)
        if group is not None and group.is_available() and group.is_initialized():
            return cls(group.get_rank(), group.get_world_size())
        for rank, size in _VARIABLES:
            if rank in os.environ and size in os.environ:
                return cls(_number(rank), _number(size))
        return cls()

    @classmethod
    def from_mesh(cls, mesh: Any, data: Sequence[str] = ("dp",)) -> Topology:
        """The topology of a torch DeviceMesh whose dimensions `data` split the data."""
        names = tuple(mesh.mesh_dim_names or ())
        rank, size = 0, 1
        for name in data:
            if name not in names:
                raise OptionError(f"the mesh has no dimension {name!r}; it has {names}")
            width = mesh.size(names.index(name))
            rank, size = rank * width + mesh.get_local_rank(name), size * width
        return cls(rank, size)


def _number(name: str) -> int:
    value = os.environ[name]
    try:
        return int(value)
    except ValueError:
        raise OptionError(f"the environment variable {name}={value!r} is not a number") from None
