"""For users of torch.distributed.checkpoint: `ss.dcp.Writer` and `ss.dcp.Reader`."""

from __future__ import annotations

from shardstream.errors import require

require("torch", "torch")

from shardstream.checkpoint.dcp_reader import Reader  # noqa: E402, what needs torch comes after the check for it

__all__ = ["Reader"]
