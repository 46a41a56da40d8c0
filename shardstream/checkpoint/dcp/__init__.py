"""For users of torch.distributed.checkpoint: `ss.dcp.Writer` and `ss.dcp.Reader`."""

from __future__ import annotations

from shardstream.errors import require

require("torch", "torch")

# What needs torch comes after the check for it.
from shardstream.checkpoint.dcp.reader import Reader  # noqa: E402
from shardstream.checkpoint.dcp.writer import Writer  # noqa: E402

__all__ = ["Reader", "Writer"]
