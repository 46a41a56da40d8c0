"""DaliLoader: batches of a dataset, decoded by NVIDIA DALI."""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import Any, Literal, cast

from shardstream.cores import cores
from shardstream.counters.page import begin
from shardstream.dali.epoch import Epoch
from shardstream.dali.graph import Graph, OnError
from shardstream.dali.spec import Delivered, EpochSpec
from shardstream.dataset import StreamingDataset, contents_of
from shardstream.dataset.arguments import Last, at_least_one
from shardstream.dataset.rank_batches import RankBatches
from shardstream.dataset.sample_contents import SampleContents
from shardstream.dataset.states import accept, state_at
from shardstream.decode.dali import PipelineName
from shardstream.decode.images import Images
from shardstream.decode.modes import FieldMode, frozen
from shardstream.errors import OptionError, StateError, require
from shardstream.format.numbers import whole_number
from shardstream.format.shown import one_line, table
from shardstream.format.sizes import parse_size
from shardstream.order.cursor import Cursor, Run
from shardstream.read.engine.stats import Stats
from shardstream.read.engine.units import Budget
from shardstream.read.handoff.process_bound import ProcessBound
from shardstream.read.samples.batch import Batch

__all__ = ["DaliLoader"]

_PATIENCE = 10.0  # seconds that the end of a program waits until another thread has left DALI


class DaliLoader:
    """Batches of `batch_size` samples per data-parallel rank, decoded by DALI, as torch tensors.

    Order, number of batches and state are those of a `StreamingLoader`. Encoded bytes reach DALI where
    they lie, and its outputs come as tensors by DLPack: neither is copied.

    Args:
        ds: A StreamingDataset. Its transform gets the fields that come beside DALI's outputs, and gives a
            dict.
        pipeline: "imagenet-train", "imagenet-eval", "image-text", "audio"; or modes as a dataset's `decode`
            takes them, such as images.Train(224) or {"jpg": images.Train(224), "mask.png": images.Mask()};
            or a function of fields to a dict of outputs, plain or decorated with DALI's `pipeline_def` (see
            docs/dali.md). Fields that it does not take come beside its outputs, decoded as by the dataset.
        batch_size: B, the samples of a batch of one rank; at least 1.
        device: "gpu" or "cpu"; by default "gpu" if there is one.
        last: As for StreamingLoader.
        prefetch: Bytes of encoded look-ahead, such as "256MiB".
        threads: Of DALI; all cores by default.
        queue: Batches that DALI decodes ahead; at least 1.
        seed: Of the random numbers that pipelines take, and of DALI's own; at least 0 and less than 2**63.
        outputs: Names of the outputs of a `pipeline_def`, by default the fields that it takes.
        on_error: "raise" a SourceError that names the samples of which a field is missing or cannot be
            decoded. "mask" sets what DALI makes of them to 0, or to nothing where shapes differ, sets what
            cannot be decoded beside it to None, and their entry of `batch["__damaged__"]`, bool [B], to True.
            "skip" leaves them out, so that their batch is smaller. Both log and count them.
        checkpoint: Save the state of DALI's own random operators, too. `state_dict` is then this rank's own,
            for the same number of ranks and batch size.

    Raises:
        OptionError: An argument cannot be.
        MissingExtraError: DALI or torch is not installed.
    """

    def __init__(
        self,
        ds: StreamingDataset[Any],
        pipeline: PipelineName | Images | Mapping[str, FieldMode] | Callable[..., Any],
        batch_size: int,
        device: Literal["gpu", "cpu"] | None = None,
        last: Last = "drop",
        prefetch: str | int = "256MiB",
        threads: int | None = None,
        queue: int = 2,
        seed: int = 0,
        outputs: Sequence[str] | None = None,
        on_error: OnError = "raise",
        checkpoint: bool = False,
    ) -> None:
        if not isinstance(ds, StreamingDataset):
            raise OptionError(f"ds is a {type(ds).__name__}, not a StreamingDataset")
        batch_size = at_least_one("batch_size", batch_size)
        queue = at_least_one("queue", queue)
        if threads is not None:
            threads = at_least_one("threads", threads)
        for name, value, known in (
            ("last", last, ("drop", "pad", "short")),
            ("on_error", on_error, ("raise", "skip", "mask")),
            ("device", device, (None, "gpu", "cpu")),
        ):
            if value not in known:
                raise OptionError(f"{name}={value!r} must be one of {known}")
        seed = whole_number("seed", seed, 0, 2**63 - 1)
        contents, gpu = contents_of(ds), _gpu(device)
        assert isinstance(contents, SampleContents)
        kinds = {
            info.name: info.codec
            for info in ds.manifest.fields
            if ds.fields is None or info.name in ds.fields
        }
        graph = Graph(pipeline, kinds, ds.decode, outputs, gpu)
        if graph.modes is not None:
            contents = contents.decoding(frozen(cast("Any", pipeline)))
            on_error = graph.on_error(on_error)
        beside = tuple(name for name in kinds if name not in graph.taken)
        budget = Budget(parse_size(prefetch, "prefetch"), ds.cache.ram_for_frames)
        self._ds, self._contents = ds, contents
        self._plan = RankBatches(contents, batch_size, last, None, False, budget)
        self._spec = EpochSpec(
            contents=contents,
            plan=self._plan,
            graph=graph,
            beside=beside,
            aliases=graph.aliases(beside),
            options={
                "batch_size": batch_size,
                "num_threads": threads or cores(),
                "prefetch_queue_depth": queue,
            },
            seed=seed,
            on_error=on_error,
            checkpoints=checkpoint,
            gpu=gpu,
        )
        self._pipeline = _name_of(pipeline) if callable(pipeline) else repr(pipeline)
        # DALI takes what is read; what the consumer gets is counted beside it.
        self._stats, self._delivered = Stats(delivers=False), Delivered()
        self._cursor = Cursor()
        self._saved: dict[str, Any] = {}  # DALI's part of a state that is to be iterated from
        self._epoch: Callable[[], Epoch | None] = lambda: None

    @property
    def ds(self) -> StreamingDataset[Any]:
        """The dataset."""
        return self._ds

    @property
    def batch_size(self) -> int:
        """Samples of a batch of one data-parallel rank."""
        return self._plan.size

    @property
    def last(self) -> Last:
        """What becomes of the samples that do not fill a global batch."""
        return self._plan.last

    @property
    def seed(self) -> int:
        """Of the random numbers that pipelines take."""
        return self._spec.seed

    def __len__(self) -> int:
        """Batches of one epoch, the same on every rank."""
        self._contents.decide()
        return self._plan.count()

    def __iter__(self) -> Iterator[Batch]:
        self._contents.start()
        ranks = self._contents.topology
        begin("loader", self._ds.url, ranks.dp_rank, ranks.dp_size)
        run = self._cursor.begin(self._plan.samples)
        return self._cursor.follow(ProcessBound(self._deliver(run), _PATIENCE), run)

    def _deliver(self, run: Run) -> Generator[Batch, None, None]:
        saved, self._saved = self._saved, {}
        mine = saved if saved.get("place") == [run.epoch, run.position] else {}
        epoch = Epoch(self._spec, run, mine, self._delivered, self._stats)
        self._epoch = weakref.ref(epoch)
        total = self._contents.total
        try:
            for batch in epoch.batches():
                following = min(run.position + self._plan.samples, total)
                # An interrupt is noticed at calls and at loops: there is none between this and the consumer.
                run.position = following
                yield batch
            self._cursor.end(run)
        finally:
            epoch.close()
            self._cursor.leave(run)

    def set_epoch(self, epoch: int) -> None:
        """Make `epoch` the next one to iterate.

        Args:
            epoch: At least 0 and less than 2**64.

        Raises:
            OptionError: It is no such number.
        """
        self._cursor.set_epoch(epoch)

    def state_dict(self) -> dict[str, Any]:
        """What was delivered.

        Returns:
            A dict that JSON can hold; batches in DALI's queues do not count. It is the same on all ranks, but
            for `checkpoint=True`.
        """
        now = self._cursor.now
        state = state_at(self._contents, now) | {"augment_seed": self.seed}
        if self._spec.checkpoints:
            epoch = self._epoch()
            mine = self._saved if epoch is None or epoch.run is not now else epoch.saved()
            state["dali"] = {**self._place(), "place": [now.epoch, now.position], **mine}
        return state

    def _place(self) -> dict[str, Any]:
        ranks = self._contents.topology
        return {"dp_rank": ranks.dp_rank, "dp_size": ranks.dp_size, "batch_size": self.batch_size}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state.

        Random numbers go on as they would have; those of DALI's own operators only with `checkpoint=True`.

        Args:
            state: What `state_dict` gave, also of a StreamingLoader, with any number of ranks and any batch
                size.

        Raises:
            StateError: It belongs to another dataset, another order or another seed.
        """
        place = accept(self._contents, state)
        theirs = {"augment_seed": state.get("augment_seed", self.seed)}
        saved: dict[str, Any] = dict(state.get("dali") or {}) if self._spec.checkpoints else {}
        theirs |= {name: saved[name] for name in self._place() if name in saved}
        for name, value in theirs.items():
            if value != (mine := {"augment_seed": self.seed, **self._place()}[name]):
                raise StateError(f"{name} is {value!r} in the state and {mine!r} here")
        if self._spec.checkpoints and not saved and place[1]:
            raise StateError(
                "the state holds no checkpoint of DALI; save it from a loader with checkpoint=True"
            )
        self._cursor.place(*place)
        self._saved = saved

    def stats(self) -> dict[str, Any]:
        """Counters since construction.

        Returns:
            By name what `StreamingLoader.stats` gives, and `skipped`, the samples that were skipped.
            `damaged` counts those that were masked.
            `wait_seconds` is the time that the consumer waited, for storage or for DALI. `queue_depth` are
            the units of encoded work that were ready at the last wait.
        """
        counts = self._stats.as_dict()
        own: dict[str, Any] = dataclasses.asdict(self._delivered)
        own["wait_seconds"] += counts["wait_seconds"]
        return counts | own

    def _described(self) -> dict[str, str]:
        return {
            "pipeline": f"pipeline={self._pipeline}",
            "batch_size": f"batch_size={self.batch_size}",
            "device": "device='cpu'" if self._spec.gpu is None else "device='gpu'",
            "last": f"last={self.last!r}",
        }

    def __repr__(self) -> str:
        return one_line(type(self).__name__, [repr(self._ds), *self._described().values()])

    def _repr_html_(self) -> str:
        return table(type(self).__name__, {"dataset": repr(self._ds)} | self._described())


def _name_of(function: object) -> str:
    return str(getattr(function, "__name__", type(function).__name__))


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
