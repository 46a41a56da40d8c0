"""One epoch through DALI: a pipeline of its own, and what it is fed with."""

from __future__ import annotations

import base64
import dataclasses
import gc
import logging
import os
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from shardstream.decode.dali import NUMBERS, RANDOM, reason
from shardstream.decode.registry import decode_values
from shardstream.errors import SourceError, StateError, require
from shardstream.order.cursor import Run
from shardstream.order.uniforms import uniforms
from shardstream.read.batch import Batch, flags
from shardstream.read.held import HeldSource
from shardstream.read.samples import RawBatch

if TYPE_CHECKING:
    from shardstream.dali.loader import DaliLoader

__all__ = ["Epoch"]

_LOG = logging.getLogger("shardstream")

# A pipeline that is garbage when a process forks would crash or hang the child that collects it: it has
# none of DALI's threads.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=gc.freeze)


@dataclasses.dataclass
class _Fed:
    """A batch as DALI gets it: for each input the encoded samples, or an array [B, ...]."""

    keys: list[str]
    inputs: list[Any]
    beside: Batch
    start: int = 0  # of its global batch
    rows: list[int] | None = None  # those that are left of it

    def only(self, rows: list[int]) -> _Fed:
        """The batch of some of its rows."""
        inputs = [
            values[rows] if isinstance(values, np.ndarray) else [values[row] for row in rows]
            for values in self.inputs
        ]
        kept = self.rows or list(range(len(self.keys)))
        return dataclasses.replace(self, inputs=inputs, rows=[kept[row] for row in rows])


class _Source:
    """What DALI calls for its batches, each by its number.

    DALI counts the batches of its checkpoints, and has nothing but this to start a source again.
    """

    def __init__(self, made: Iterator[_Fed], number: int) -> None:
        self.made, self._number = made, number
        self.waiting: deque[_Fed] = deque()  # handed over and not delivered
        self.error: Exception | None = None

    def __call__(self, number: int) -> list[Any]:
        if number != self._number:
            raise StateError(
                f"DALI asks for batch {number}, after batch {self._number - 1}: restart the epoch"
            )
        try:
            fed = None if self.error else next(self.made, None)
        except Exception as error:  # noqa: BLE001 - raised by the consumer, in the batch's place
            self.error, fed = error, None
        if fed is None:
            raise StopIteration
        self._number += 1
        self.waiting.append(fed)
        return fed.inputs


class Epoch:
    """One iteration of a DaliLoader, from the place of `run` on."""

    def __init__(self, loader: DaliLoader, run: Run, saved: dict[str, Any]) -> None:
        self._loader, self.run = loader, run
        self._number = int(saved.get("batches", 0))
        plan, ds, graph = loader.plan, loader.ds, loader.graph
        self._made = ds.stream(
            run.epoch, plan.requests(run.position), self._fed, plan.budget, loader.counts, direct=True,
            source=HeldSource(ds.reader, ds.fields),
        )  # fmt: skip
        self._random = graph.random
        self._torch = require("torch", "torch")
        found = saved.get("checkpoint")
        self._pipe: Any = None
        self._start(self._placed(run.position), None if found is None else base64.b64decode(found))

    def _start(self, made: Iterator[_Fed], checkpoint: bytes | None) -> None:
        loader = self._loader
        self._source = _Source(made, self._number)
        rank, size = loader.ds.topology.dp_rank, loader.ds.topology.dp_size
        # A seed of its own for each rank and epoch, of the 31 bits that DALI takes.
        seed = (loader.seed * 2654435761 + self.run.epoch * size + rank) % 2**31
        more = {"enable_checkpointing": True, "checkpoint": checkpoint} if loader.checkpointing else {}
        self._pipe = loader.graph.build(self._source, seed=seed, **loader.options, **more)

    def _fed(self, raw: RawBatch) -> _Fed:
        """What DALI gets of a batch, and what comes beside it. Runs in the threads that read."""
        from nvidia.dali.tensors import TensorCPU

        loader = self._loader
        inputs: list[Any] = []
        for name in loader.graph.inputs.values():
            column = raw.fields[name]
            if None in column:
                key = raw.keys[column.index(None)]
                raise SourceError(
                    f"sample {key!r} of {loader.ds.url} has no field {name!r}; leave it out by ds.subset"
                )
            if name in NUMBERS:
                inputs.append(np.array(decode_values(name, column, raw.keys), np.int64))
            else:
                # A view, which holds its frame until DALI lets go of the tensor.
                inputs.append([TensorCPU(view) for view in column])
        fields = {name: raw.fields[name] for name in loader.beside}
        rest = RawBatch(raw.keys, fields, [name for name in raw.gaps if name in fields])
        return _Fed(raw.keys, inputs, loader.ds.collated(None)(rest))

    def _placed(self, start: int) -> Iterator[_Fed]:
        loader = self._loader
        for fed in self._made:
            fed.start = start
            if self._random:
                positions = loader.plan.positions(start)[: len(fed.keys)] % loader.ds.total
                fed.inputs.append(uniforms(positions, RANDOM, loader.seed, self.run.epoch))
            start += loader.plan.samples
            yield fed

    def batches(self) -> Iterator[Batch]:
        """The batches that DALI made."""
        loader = self._loader
        self._pipe.schedule_run()
        while True:
            started = time.monotonic()
            try:
                outputs = self._pipe.outputs()
            except StopIteration:
                break
            except Exception as error:  # noqa: BLE001 - DALI's own, of many types
                self._go_on(error)
                continue
            finally:
                loader.delivered[3] += time.monotonic() - started
            fed = self._source.waiting.popleft()
            self._number += 1
            batch = self._batch(fed, outputs)
            del outputs
            loader.delivered[0] += 1
            loader.delivered[1] += len(batch["__key__"])
            # DALI goes on while the consumer computes.
            self._pipe.schedule_run()
            yield batch
        if self._source.error is not None:
            raise self._source.error

    def _batch(self, fed: _Fed, outputs: Sequence[Any]) -> Batch:
        loader, rows = self._loader, fed.rows
        beside: Mapping[str, Any] = fed.beside
        if rows is not None:
            beside = {name: _picked(values, rows) for name, values in beside.items()}
        batch = Batch(__key__=beside["__key__"])
        for name, output in zip(loader.graph.names(), outputs, strict=True):
            batch[name] = self._tensors(output)
        for name in loader.beside:
            value = beside[name]
            moves = loader.gpu is not None and isinstance(value, self._torch.Tensor)
            batch[name] = value.to(f"cuda:{loader.gpu}", non_blocking=True) if moves else value
        if loader.last != "drop":
            padding = (loader.plan.positions(fed.start) >= loader.ds.total).tolist()
            batch["__pad__"] = flags(padding if rows is None else _picked(padding, rows))
        return batch

    def _tensors(self, output: Any) -> Any:
        """One tensor [B, ...] over DALI's memory, or where shapes differ a list of them."""
        if output.is_dense_tensor():
            return self._torch.from_dlpack(output.as_tensor())
        return [self._torch.from_dlpack(output[number]) for number in range(len(output))]

    def _go_on(self, error: Exception) -> None:
        """Name the samples that DALI failed on; go on without them, or raise."""
        loader, source = self._loader, self._source
        if not source.waiting:
            raise error
        failed = source.waiting.popleft()
        self._pipe = None
        bad = {} if failed.rows is not None else self._damaged(failed)
        if not bad:
            raise error
        where = self._where(failed, bad)
        if len(bad) == len(failed.keys) > 1:
            raise SourceError(f"the DALI pipeline fails on every sample of a batch: {where[0]}") from error
        if not loader.skips or len(bad) == len(failed.keys):
            raise SourceError("DALI cannot decode " + "; ".join(where)) from error
        _LOG.warning("skipped: DALI cannot decode %s", "; ".join(where))
        loader.delivered[2] += len(bad)
        again = [failed.only([row for row in range(len(failed.keys)) if row not in bad]), *source.waiting]
        self._number = 0
        self._start(_chained(again, source), None)
        self._pipe.schedule_run()

    def _damaged(self, fed: _Fed) -> dict[int, str]:
        """The rows that cannot be decoded, each tried alone, and what DALI says of them."""
        options = self._loader.options | {"batch_size": 1, "num_threads": 1, "prefetch_queue_depth": 1}
        rest, bad = list(range(len(fed.keys))), dict[int, str]()
        while rest:
            before = len(bad)
            # A pipeline that has failed is no longer valid: a new one for those behind.
            pipe = self._loader.graph.build(_Source(map(fed.only, [[row] for row in rest]), 0), **options)
            for row in rest:
                try:
                    pipe.schedule_run()
                    pipe.outputs()
                except Exception as error:  # noqa: BLE001 - DALI's own, of many types
                    bad[row] = reason(error)
                    break
            rest = [row for row in rest if len(bad) > before and row > max(bad)]
        return bad

    def _where(self, fed: _Fed, bad: Mapping[int, str]) -> list[str]:
        ds = self._loader.ds
        positions = self._loader.plan.positions(fed.start)[list(bad)] % ds.total
        shards, _ = ds.order(self.run.epoch).locate(positions)
        return [
            f"sample {fed.keys[row]!r} of {ds.reader.shard_name(shard)} ({told})"
            for (row, told), shard in zip(bad.items(), shards.tolist(), strict=True)
        ]

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


def _chained(again: list[_Fed], source: _Source) -> Iterator[_Fed]:
    """Batches that DALI lost, and then what their source still has."""
    yield from again
    if source.error is not None:
        raise source.error
    yield from source.made


def _picked(values: Any, rows: list[int]) -> Any:
    return values[rows] if hasattr(values, "shape") else [values[row] for row in rows]
