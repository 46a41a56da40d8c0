"""Topology: the place of this process among the data-parallel ranks, given or detected."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from shardstream.distributed import launchers
from shardstream.errors import OptionError
from shardstream.order import topology

__all__ = ["Topology"]


@dataclass(frozen=True)
class Topology(topology.Topology):
    """The place of this process among the data-parallel ranks.

    Args:
        dp_rank: The number of this rank, at least 0 and less than dp_size. Ranks that must see the same data
            (tensor, pipeline, context parallel) have the same number.
        dp_size: How many data-parallel ranks there are, at least 1.
        mesh: The mesh that `from_mesh` was given, for a loader that broadcasts along another dimension. It is
            left out if a topology is sent to another process.
        data: The dimensions that `from_mesh` was given. They are left out, too.

    Raises:
        OptionError: The numbers do not fit together.
    """

    mesh: Any = field(default=None, repr=False, compare=False)
    data: tuple[str, ...] = field(default=(), repr=False, compare=False)

    @classmethod
    def detect(cls) -> Topology:
        """The place that libraries or the launcher have given this process; rank 0 of 1 if there are none.

        The first of these sources that is present counts:

        1. The parallel state of Megatron, if the program has initialised it: its data-parallel rank.
        2. torch.distributed, if it is initialised. All its ranks count as data-parallel. With tensor,
           pipeline or context parallelism use `from_mesh` or `from_sizes`.
        3. Horovod, if it is initialised.
        4. The environment variables of torchrun (RANK, WORLD_SIZE), horovodrun, Open MPI or Slurm.

        Nothing is imported for this.

        Returns:
            The place of this process.

        Raises:
            OptionError: Two sources contradict each other. With a wrong place, several ranks could get the
                same samples.
        """
        modules, env = sys.modules, os.environ
        megatron = launchers.megatron(modules)
        if megatron is not None:
            return cls(megatron.rank, megatron.size)
        torch, horovod = launchers.torch_distributed(modules), launchers.horovod(modules)
        if torch is not None and horovod is not None and torch[1:] != horovod[1:]:
            raise OptionError(f"{torch}, but {horovod}; {launchers.REMEDY}")
        found = torch or horovod
        if found is None:
            found = launchers.launched(env)
        elif (outer := launchers.variables(env, launchers.TORCHRUN)) is not None and found.size < outer.size:
            # More processes than the launcher knows are fine: a script may start some itself.
            raise OptionError(
                f"{found}, but {outer}, with fewer processes than the job has; {launchers.REMEDY}"
            )
        return cls() if found is None else cls(found.rank, found.size)

    @classmethod
    def from_mesh(cls, mesh: Any, data: Sequence[str] = ("dp",)) -> Topology:
        """The topology of a torch DeviceMesh.

        Args:
            mesh: A mesh whose dimensions have names.
            data: The names of the dimensions that split the data; the first varies slowest. Along all other
                dimensions, ranks get the same data.

        Returns:
            The place of this process, which remembers the mesh.

        Raises:
            OptionError: The mesh has no such dimension, or a dimension is named twice.
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
        """The topology of one process of a Megatron or NeMo job, computed from the sizes of its groups.

        Ranks of one tensor (or sequence), context or pipeline parallel group get the same data.

        Args:
            rank: The number of the process, at least 0 and less than world_size.
            world_size: How many processes there are. None: it is computed from `dp`.
            tp: The size of the tensor parallel groups.
            cp: The size of the context parallel groups.
            pp: The size of the pipeline parallel groups.
            dp: How many data-parallel ranks there are. None: it is computed from `world_size`.
            order: The `order` of Megatron's `initialize_model_parallel` (megatron/core/parallel_state.py).
                The first dimension varies fastest, and "ep" is ignored.

        Returns:
            The place of the process of that rank.

        Raises:
            OptionError: The sizes do not fit together.
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
        """The process group of a dimension of the mesh, along which ranks get the same data.

        Args:
            name: The name of the dimension.

        Returns:
            A ProcessGroup of torch.distributed.

        Raises:
            OptionError: There is no mesh, or no such dimension, or the dimension splits the data.
        """
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
        # Not the mesh: a mesh and its groups belong to one process.
        return type(self), (self.dp_rank, self.dp_size)
