"""One epoch through DALI, by a pipeline of its own."""

from __future__ import annotations

import base64
import gc
import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from shardstream.counters.layout import slot, stage
from shardstream.counters.recorder import add, put
from shardstream.dali.failures import checked, doubted, unsound
from shardstream.dali.fed import FedBatch
from shardstream.dali.feed import FedSource, Feed
from shardstream.dali.spec import Delivered, EpochSpec
from shardstream.dataset.requests import UnitOptions
from shardstream.dataset.streaming import stream
from shardstream.errors import SourceError, require
from shardstream.order.cursor import Run
from shardstream.read.engine.stats import Stats
from shardstream.read.samples.batch import Batch, flags
from shardstream.read.samples.zero_copy import ZeroCopySource

__all__ = ["Epoch"]

_WAIT, _STEP, _WAITING = stage("wait"), stage("step"), slot("waiting_since")
_BATCHES, _SAMPLES = slot("batches"), slot("samples")
_LOG = logging.getLogger("shardstream")

# A pipeline that is garbage when a process forks would crash or hang the child that collects it: it has
# none of DALI's threads.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=gc.freeze)


class Epoch:
    """One iteration of a DaliLoader.

    Args:
        spec: What all epochs have in common.
        run: Where it begins.
        saved: DALI's part of a state of this place, or nothing.
        delivered: Counts what is delivered.
        stats: Counts what is read.
    """

    def __init__(
        self, spec: EpochSpec, run: Run, saved: Mapping[str, Any], delivered: Delivered, stats: Stats
    ) -> None:
        self._spec, self.run, self._delivered = spec, run, delivered
        self._recorder = stats.recorder
        self._number = int(saved.get("batches", 0))
        contents, plan, feed = spec.contents, spec.plan, Feed(spec, run.epoch)
        self._made = stream(
            contents, run.epoch, plan.requests(run.position), feed.fed, plan.budget, stats,
            UnitOptions(direct=True), source=ZeroCopySource(contents.reader, contents.fields),
        )  # fmt: skip
        self._torch = require("torch", "torch")
        found = saved.get("checkpoint")
        self._pipe: Any = None
        self._start(feed.placed(self._made, run.position), None if found is None else base64.b64decode(found))

    def _start(self, made: Iterator[FedBatch], checkpoint: bytes | None) -> None:
        spec, ranks = self._spec, self._spec.contents.topology
        kept = None if spec.checkpoints else spec.kept.take()
        if kept is not None:
            self._pipe, self._source = kept
            self._source.begin(checked(spec, made), self._number)
            return
        self._source = FedSource()
        self._source.begin(checked(spec, made), self._number)
        # A seed of its own for each rank and epoch, of the 31 bits that DALI takes.
        seed = (spec.seed * 2654435761 + self.run.epoch * ranks.dp_size + ranks.dp_rank) % 2**31
        more = {"enable_checkpointing": True, "checkpoint": checkpoint} if spec.checkpoints else {}
        self._pipe = spec.graph.build(self._source, seed=seed, **spec.options, **more)

    def batches(self) -> Iterator[Batch]:
        """The batches that DALI made."""
        self._pipe.schedule_run()
        while True:
            started = time.monotonic()
            put(_WAITING, started)
            try:
                outputs = self._pipe.outputs()
            except StopIteration:
                break
            except Exception as error:  # noqa: BLE001 - DALI's own, of many types
                self._go_on(error)
                continue
            finally:
                ended = time.monotonic()
                put(_WAITING, 0)
                self._delivered.wait_seconds += ended - started
                self._recorder.span(_WAIT, started, ended)
            fed = self._source.waiting.popleft()
            self._number += 1
            batch = self._batch(fed, outputs)
            del outputs
            self._delivered.batches += 1
            self._delivered.samples += len(batch["__key__"])
            add(_BATCHES)
            add(_SAMPLES, len(batch["__key__"]))
            self._count(fed)
            # DALI goes on while the consumer computes.
            self._pipe.schedule_run()
            given = time.monotonic()
            yield batch
            self._recorder.span(_STEP, given, time.monotonic())
        if self._source.error is not None:
            raise self._source.error
        if not self._spec.checkpoints:
            self._spec.kept.put(self._pipe, self._source)

    def _batch(self, fed: FedBatch, outputs: Sequence[Any]) -> Batch:
        spec, beside = self._spec, fed.beside
        batch = Batch(__key__=[fed.keys[row] for row in fed.rows])
        batch.aliases = spec.aliases
        masked = [] if spec.on_error != "mask" else sorted(fed.damaged)
        graph = spec.graph
        for name, output, kept in zip(graph.names(), outputs, graph.kept(), strict=True):
            made = self._tensors(output)
            batch[name] = _blanked(made, masked) if masked and not kept else made
        for name, value in beside.items():
            if name == "__key__":
                continue
            moves = (
                spec.gpu is not None and isinstance(value, self._torch.Tensor) and not name.startswith("__")
            )
            batch[name] = value.to(f"cuda:{spec.gpu}", non_blocking=True) if moves else value
        if spec.plan.last != "drop":
            padding = (spec.plan.positions(fed.start) >= spec.contents.total)[fed.rows].tolist()
            batch["__pad__"] = flags(padding)
        return batch

    def _count(self, fed: FedBatch) -> None:
        """Log and count the damaged samples of a batch."""
        if not fed.damaged:
            return
        masks = self._spec.on_error == "mask"
        for told in fed.damaged.values():
            _LOG.warning("%s: %s", "masked" if masks else "skipped", told)
        self._delivered.damaged += len(fed.damaged) * masks
        self._delivered.skipped += len(fed.damaged) * (not masks)

    def _tensors(self, output: Any) -> Any:
        """One tensor [B, ...] over DALI's memory, or a list of them if their shapes differ."""
        if output.is_dense_tensor():
            return self._torch.from_dlpack(output.as_tensor())
        return [self._torch.from_dlpack(output[number]) for number in range(len(output))]

    def _go_on(self, error: Exception) -> None:
        """Find the samples that DALI failed on; go on without them, or raise."""
        spec, source = self._spec, self._source
        if not source.waiting:
            raise error
        failed = source.waiting.popleft()
        self._pipe = None
        masks = spec.on_error == "mask"
        bad = {} if failed.tried else doubted(spec, failed)
        if not bad and not failed.tried:
            bad = unsound(spec, failed)
            masks = masks and len(bad) < len(failed.rows)
            if len(bad) == len(failed.rows) > 1:
                one = failed.named(failed.rows[0], bad[0])
                raise SourceError(f"the DALI pipeline fails on every sample of a batch: {one}") from error
        if not bad:
            raise error
        if not spec.careful or (len(bad) == len(failed.rows) and not masks):
            told = [failed.named(failed.rows[place], why) for place, why in bad.items()]
            raise SourceError("; ".join(told)) from error
        sound = failed.without(bad, spec.graph, masks)
        sound.tried = True
        self._number = 0
        self._start(source.again([sound, *source.waiting]), None)
        self._pipe.schedule_run()

    def saved(self) -> dict[str, Any]:
        """DALI's own state after the batch that was delivered last."""
        if self._pipe is None or not self._number:
            return {}
        checkpoint = base64.b64encode(self._pipe.checkpoint()).decode()
        return {"batches": self._number, "checkpoint": checkpoint}

    def close(self) -> None:
        """End DALI's threads and ours."""
        self._pipe = None
        self._made.close()


def _blanked(made: Any, rows: list[int]) -> Any:
    """An output with zeros, or if its shapes differ with nothing, in place of some samples."""
    if isinstance(made, list):
        gone = set(rows)
        return [value[:0] if row in gone and value.ndim else value for row, value in enumerate(made)]
    made[rows] = 0
    return made
