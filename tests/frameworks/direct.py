"""What the scripts share that give a dataset itself to a framework, and no loader of ours."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import shardstream as ss
from shardstream.errors import OptionError
from tests.distributed.training import name
from tests.frameworks.loop import Plan

PLAN = Plan.given()


def blocks(seq_len: int, whole: bool) -> ss.TokenDataset:
    """The data of this rank, or all of it for a framework that shares it out."""
    topology = ss.Topology() if whole else ss.Topology.detect()
    return ss.TokenDataset(PLAN.data, seq_len, shuffle=ss.Shuffle(seed=3), topology=topology)


def named(tokens: Any) -> list[str]:
    """The names of the blocks of a batch."""
    return [name({"tokens": row}) for row in tokens]


def refused(error: OptionError) -> str:
    """What the message begins with."""
    return str(error).split(":")[0].split(", and ")[1]


def done(found: dict[str, Any]) -> None:
    """Leave what this rank had, under a name for each way, where the test looks for it."""
    Path(os.environ["RESULT"]).write_text(json.dumps(found))
