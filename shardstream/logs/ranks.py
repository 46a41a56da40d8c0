"""The rank of this process among all of its job."""

from __future__ import annotations

import os
import sys

from shardstream.distributed import launchers
from shardstream.errors import OptionError

__all__ = ["detected_rank"]


def detected_rank() -> int:
    """The rank that torch.distributed, Horovod or the launcher gives this process; 0 without them.

    It is the rank among all processes, not among those that read different data: each has its own rows.

    Raises:
        OptionError: Variables of launchers contradict each other.
    """
    found = launchers.torch_distributed(sys.modules) or launchers.horovod(sys.modules)
    if found is None:
        try:
            found = launchers.launched(os.environ)
        except OptionError as error:
            told = str(error).replace(launchers.REMEDY, "give the log its rank: ss.Log(url, rank=...)")
            raise OptionError(told) from error
    return 0 if found is None else found.rank
