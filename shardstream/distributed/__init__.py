"""Which data-parallel rank this process is, and whether all ranks read the same data."""

from shardstream.distributed.agreement import agree
from shardstream.distributed.topology import Topology

__all__ = ["Topology", "agree"]
