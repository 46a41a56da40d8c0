"""What the training scripts of all frameworks share: their plan, the data, and a record of each step."""

from __future__ import annotations

import json
import os
import signal
import sys
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

import shardstream as ss
from shardstream.read.samples.batch import Ragged, collate

SEQ_LEN = 32


@dataclass(frozen=True)
class Plan:
    """One run: train to the end of `epochs`, or save after `save` steps and stop two steps later."""

    data: str
    folder: str  # of the checkpoint
    batch: int = 8  # over all data-parallel ranks
    epochs: int = 2
    save: int = 0
    resume: bool = False
    tp: int = 1  # ranks that share their data
    replicas: int = 2  # of frameworks that have several in a process
    raw: bool = False  # whether batches also have a field of bytes
    kill: int = 0  # the step after which a job that saves with ss.Checkpoints is killed

    @classmethod
    def given(cls) -> Plan:
        """The plan of this script, its only argument."""
        return cls(**json.loads(sys.argv[1]))

    def arguments(self, module: str) -> list[str]:
        """The command that runs a script with this plan."""
        return [sys.executable, "-m", module, json.dumps(asdict(self))]

    @property
    def devices(self) -> int:
        """The processes of this job."""
        return int(os.environ["WORLD_SIZE"])

    @property
    def state(self) -> Path:
        """A file for the data's state where a framework has no place for it."""
        return Path(self.folder) / "data.json"

    def loader(self, topology: ss.Topology | None = None, last: str = "short") -> ss.StreamingLoader:
        """The loader of this rank; the rank is detected, or given by the ranks that share data."""
        if topology is None:
            topology = ss.Topology.detect()
        if self.tp > 1:
            topology = ss.Topology.from_sizes(topology.dp_rank, topology.dp_size, tp=self.tp)
        ds = ss.TokenDataset(self.data, SEQ_LEN, shuffle=ss.Shuffle(seed=3), topology=topology)
        batches = with_bytes if self.raw else None
        return ss.StreamingLoader(ds, self.batch // topology.dp_size, last=last, collate=batches)


def with_bytes(blocks: list[Any]) -> ss.Batch:
    """A batch of blocks that has the bytes of each, cut to lengths that differ, in a ragged field."""
    batch = collate(blocks)
    batch["raw"] = Ragged.gather([memoryview(cut(block["tokens"])) for block in blocks])
    return batch


def cut(tokens: Any) -> bytes:
    """Some of a block's bytes, more or fewer."""
    tokens = np.asarray(tokens, np.int64)
    return tokens.tobytes()[: int(tokens[0])]


class Record:
    """What was trained on: of each step its epoch and the names of its blocks."""

    def __init__(self, length: int) -> None:
        self.length, self.steps, self.raw = length, [], 0  # type: ignore[var-annotated]

    def add(self, epoch: int, batch: dict[str, Any]) -> None:
        """A step has had this batch."""
        from tests.distributed.training import names

        self.steps.append([int(epoch), names(batch)])
        if "raw" in batch:
            assert list(batch["raw"]) == [cut(row) for row in batch["tokens"]]
            self.raw += len(batch["raw"])

    def done(self, other: list[Any] | None = None) -> None:
        """Leave the records of this process where the test looks for them."""
        found = [
            {"length": self.length, "steps": steps, "raw": self.raw} for steps in (other or [self.steps])
        ]
        Path(os.environ["RESULT"]).write_text(json.dumps(found))


class Diary:
    """What each step of a job has trained on and come to, a line each: it outlives a kill."""

    def __init__(self, plan: Plan) -> None:
        rank = os.environ["RANK"]
        self.path = Path(plan.folder) / f"{'resumed' if plan.resume else 'killed'}-{rank}.jsonl"
        self.plan = plan

    def add(self, step: int, epoch: int, batch: dict[str, Any], model: Any, saves: ss.Checkpoints) -> None:
        """A step has had this batch, and the model is as it came out; the process may die here."""
        from tests.distributed.training import names

        weights = zlib.crc32(b"".join(each.detach().float().numpy().tobytes() for each in model.parameters()))
        with self.path.open("a") as file:
            file.write(json.dumps([step, int(epoch), names(batch), weights]) + "\n")
        if step == self.plan.kill:
            saves.wait()  # the saves before are committed
            os.kill(os.getpid(), signal.SIGKILL)

    def done(self) -> None:
        """The job has come to its end."""
        Path(os.environ["RESULT"]).write_text("true")


def guide(framework: str, begin: str, **names: Any) -> dict[str, Any]:
    """What the block of a guide defines that begins so, with these names: the tests run what users copy."""
    from tests.test_docs import ROOT, examples

    page = ROOT / "docs" / "frameworks" / f"{framework}.md"
    [code] = [each.code for each in examples(page.read_text()) if each.code.startswith(begin)]
    exec(compile(code, str(page), "exec"), names)
    return names
