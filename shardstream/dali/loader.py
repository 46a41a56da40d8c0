"""DaliLoader: batches of a dataset, decoded by NVIDIA DALI."""

from __future__ import annotations

import dataclasses
import os
import weakref
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import Any

from shardstream.dali.epoch import Epoch
from shardstream.dataset import StreamingDataset
from shardstream.decode.dali import Graph
from shardstream.errors import OptionError, StateError, require
from shardstream.format.sizes import parse_size
from shardstream.loader import Batches, at_least_one
from shardstream.order.cursor import Cursor, Run
from shardstream.order.topology import batches
from shardstream.read.batch import Batch
from shardstream.read.engine import Budget, Stats

__all__ = ["DaliLoader"]


class DaliLoader:
    """Batches of `batch_size` samples per data-parallel rank, decoded by DALI, as torch tensors.

    Order, number of batches and state are those of a `StreamingLoader`. Encoded bytes reach DALI where
    they lie, and its outputs come as tensors by DLPack: neither is copied.

    pipeline: "imagenet-train", "imagenet-eval", "image-text", "audio"; or a function of fields to a dict
        of outputs, plain or decorated with DALI's `pipeline_def` (see docs/dali.md). Fields that it does
        not take come beside its outputs, decoded as by the dataset.
    device: "gpu" or "cpu"; by default "gpu" where there is one.
    last: as for StreamingLoader.  prefetch: bytes of encoded look-ahead.
    threads: of DALI; all cores by default.  queue: batches that DALI decodes ahead.
    seed: of the random numbers that pipelines take, and of DALI's own.
    outputs: names of the outputs of a `pipeline_def`, by default the fields that it takes.
    on_error: "raise" a SourceError that names the samples which DALI cannot decode; or "skip" them: their
        batch is smaller, they are logged and counted.
    checkpoint: save the state of DALI's own random operators, too. `state_dict` is then this rank's own,
        for the same number of ranks and batch size.
    """

    def __init__(
        self,
        ds: StreamingDataset,
        pipeline: str | Callable[..., Any],
        batch_size: int,
        device: str | None = None,
        last: str = "drop",
        prefetch: str | int = "256MiB",
        threads: int | None = None,
        queue: int = 2,
        seed: int = 0,
        outputs: Sequence[str] | None = None,
        on_error: str = "raise",
        checkpoint: bool = False,
    ) -> None:
        if not isinstance(ds, StreamingDataset):
            raise OptionError(f"ds is a {type(ds).__name__}, not a StreamingDataset")
        if ds.transform is not None:
            raise OptionError("a DaliLoader has no use for the dataset's transform: do it in the pipeline")
        at_least_one("batch_size", batch_size)
        at_least_one("queue", queue)
        if threads is not None:
            at_least_one("threads", threads)
        for name, value, known in (
            ("last", last, ("drop", "pad", "short")),
            ("on_error", on_error, ("raise", "skip")),
            ("device", device, (None, "gpu", "cpu")),
        ):
            if value not in known:
                raise OptionError(f"{name}={value!r} must be one of {known}")
        if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63:
            raise OptionError(f"seed={seed!r} must be an int, at least 0 and less than 2**63")
        self.ds, self.batch_size, self.last, self.seed = ds, batch_size, last, seed
        self.gpu = _gpu(device)
        names = [info.name for info in ds.manifest.fields if ds.fields is None or info.name in ds.fields]
        self.graph = Graph(pipeline, names, outputs, self.gpu)
        self.beside = [name for name in names if name not in self.graph.inputs.values()]
        self.plan = Batches(
            ds, batch_size, last, None, False, Budget(parse_size(prefetch, "prefetch"), ds.cache.keep)
        )
        self.options = {
            "batch_size": batch_size,
            "num_threads": threads or os.cpu_count() or 1,
            "prefetch_queue_depth": queue,
        }
        self.skips, self.checkpointing = on_error == "skip", checkpoint
        self.counts = Stats()
        self.delivered = [0, 0, 0, 0.0]  # batches, samples, skipped, seconds waited for DALI
        self._cursor = Cursor()
        self._saved: dict[str, Any] = {}  # DALI's part of a state that is to be iterated from
        self._epoch: Callable[[], Epoch | None] = lambda: None

    def __len__(self) -> int:
        """Batches of one epoch, the same on every rank."""
        return batches(self.ds.total, self.plan.samples, self.last)

    def __iter__(self) -> Iterator[Batch]:
        return self._deliver(self._cursor.begin())

    def _deliver(self, run: Run) -> Generator[Batch, None, None]:
        saved, self._saved = self._saved, {}
        epoch = Epoch(self, run, saved if saved.get("place") == [run.epoch, run.position] else {})
        self._epoch = weakref.ref(epoch)
        total = self.ds.total
        try:
            for batch in epoch.batches():
                start = run.position
                run.position = min(start + self.plan.samples, total)
                yield batch
        finally:
            epoch.close()
        self._cursor.end(run)

    def set_epoch(self, epoch: int) -> None:
        """Make `epoch` the next one to iterate."""
        self._cursor.set_epoch(epoch)

    def state_dict(self) -> dict[str, Any]:
        """What was delivered: JSON-able, batches in DALI's queues not counted.

        The same on all ranks, but for `checkpoint=True`.
        """
        now = self._cursor.now
        state = self.ds.state_at(now) | {"augment_seed": self.seed}
        if self.checkpointing:
            epoch = self._epoch()
            mine = self._saved if epoch is None or epoch.run is not now else epoch.saved()
            state["dali"] = {**self._place(), "place": [now.epoch, now.position], **mine}
        return state

    def _place(self) -> dict[str, Any]:
        ranks = self.ds.topology
        return {"dp_rank": ranks.dp_rank, "dp_size": ranks.dp_size, "batch_size": self.batch_size}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state, also of a StreamingLoader, saved with any number of ranks and any batch size.

        Random numbers go on as they would have; those of DALI's own operators only with `checkpoint=True`.
        Raises StateError if the state belongs to another dataset, another order or another seed.
        """
        place = self.ds.accept(state)
        theirs = {"augment_seed": state.get("augment_seed", self.seed)}
        saved: dict[str, Any] = dict(state.get("dali") or {}) if self.checkpointing else {}
        theirs |= {name: saved[name] for name in self._place() if name in saved}
        for name, value in theirs.items():
            if value != (mine := {"augment_seed": self.seed, **self._place()}[name]):
                raise StateError(f"{name} is {value!r} in the state and {mine!r} here")
        if self.checkpointing and not saved and place[1]:
            raise StateError(
                "the state holds no checkpoint of DALI; save it from a loader with checkpoint=True"
            )
        self._cursor.place(*place)
        self._saved = saved

    def stats(self) -> dict[str, Any]:
        """Counters since construction, as those of a StreamingLoader; and `skipped` samples.

        wait_seconds: that the consumer waited, for storage or for DALI.  queue_depth: units of encoded
        work that were ready at the last wait.
        """
        counts: dict[str, Any] = dataclasses.asdict(self.counts)
        tiers: dict[str, Any] = counts.pop("tiers")
        number, samples, skipped, waited = self.delivered
        own = {"batches": number, "samples": samples, "skipped": skipped}
        return counts | tiers | own | {"wait_seconds": counts["wait_seconds"] + waited}


def _gpu(device: str | None) -> int | None:
    """The number of the GPU to use, None for the CPU."""
    torch = require("torch", "torch")
    if device == "cpu" or (device is None and not torch.cuda.is_available()):
        return None
    if not torch.cuda.is_available():
        raise OptionError(
            "device='gpu' needs a CUDA device, and torch sees none; device=None takes what there is"
        )
    return int(torch.cuda.current_device())
