"""DALI with its own readers, or with ours: the same decoder, resize and normalisation.

options["reader"]: "file" or "webdataset", DALI's own; "shardstream", our DaliLoader.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from typing import Any

import torch
from nvidia.dali import fn, pipeline_def, types

import shardstream as ss
from benchmarks.corpora import Corpus, Digest
from benchmarks.peers import ours
from benchmarks.peers.common import Options
from shardstream.maintain.dali_index import write_dali_index

QUEUE = 2
_LOADED = (ss.DaliLoader, ss.StreamingDataset)
PACKAGES = ("nvidia-dali-cuda120", "shardstream")
SIZE = 224


def write(corpus: Corpus, dest: str, options: Options) -> None:
    """Plain tars, ours, and DALI's index of them; its file reader takes the corpus as it is."""
    if options["reader"] == "file":
        os.makedirs(dest)
        return
    ours.write(corpus, dest, {"codec": "none"} | options)
    write_dali_index(dest, os.path.join(dest, "dali"))


def decoded(jpg: Any) -> dict[str, Any]:
    """What all of them do."""
    pixels = fn.resize(fn.decoders.image(jpg), size=[SIZE, SIZE])
    scale = {"mean": [127.0] * 3, "std": [60.0] * 3}
    return {"jpg": fn.crop_mirror_normalize(pixels, dtype=types.FLOAT, output_layout="CHW", **scale)}


@pipeline_def
def own(corpus: str, dest: str, reader: str, shuffle: bool) -> Any:
    """The pipeline over one of DALI's readers."""
    more = {"name": "reader", "random_shuffle": shuffle, "pad_last_batch": True}
    if reader == "file":
        jpg, label = fn.readers.file(file_root=corpus, **more)
    else:
        tars = sorted(name for name in os.listdir(dest) if name.endswith(".tar"))
        jpg, label = fn.readers.webdataset(
            paths=[os.path.join(dest, name) for name in tars],
            index_paths=[os.path.join(dest, "dali", name.replace(".tar", ".idx")) for name in tars],
            ext=["jpg", "cls"],
            **more,
        )
        # Digits of different number: of one shape, as the iterator wants them.
        label = fn.pad(label, fill_value=32)
    return decoded(jpg)["jpg"], label


class _Own:
    """Epochs of a pipeline over one of DALI's readers, which goes on for ever.

    DALI's own iterator decodes the first batches of the next epoch behind the last of this one: outside of
    the time that is taken. Here an epoch starts and ends with an empty queue, also if it is cut short, as
    with our loader; batches come by DLPack in both.
    """

    def __init__(self, pipe: Any, total: int, batch: int) -> None:
        if total <= batch * (QUEUE - 1):
            raise ValueError(f"{total} samples do not fill the queue")
        self._pipe, self._total, self._batch = pipe, total, batch
        self._begun = False

    def __iter__(self) -> Iterator[dict[str, Any]]:
        number = math.ceil(self._total / self._batch)
        ahead = min(QUEUE, number)
        # The first call of all fills the queue.
        for _ in range(ahead if self._begun else 1):
            self._pipe.schedule_run()
        self._begun = True
        try:
            for one in range(number):
                images, labels = (torch.from_dlpack(output.as_tensor()) for output in self._pipe.outputs())
                ahead -= 1
                if one + QUEUE < number:
                    self._pipe.schedule_run()
                    ahead += 1
                left = min(self._batch, self._total - one * self._batch)
                yield {"jpg": images[:left], "cls": labels[:left]}
        finally:
            for _ in range(ahead):
                self._pipe.outputs()


def loader(corpus: Corpus, dest: str, options: Options, shuffle: bool = True) -> Any:
    """An iterable of batches on the CPU, two of them decoded ahead."""
    threads = os.cpu_count() or 1
    if options["reader"] == "shardstream":
        ds = ss.StreamingDataset(dest, shuffle=ss.Shuffle(seed=1))
        return ss.DaliLoader(ds, decoded, options["batch"], "cpu", last="short", threads=threads, queue=QUEUE)
    pipe = own(
        corpus=corpus.file, dest=dest, reader=options["reader"], shuffle=shuffle,
        batch_size=options["batch"], num_threads=threads, device_id=None, prefetch_queue_depth=QUEUE,
        exec_dynamic=True,
    )  # fmt: skip
    return _Own(pipe, corpus.count, options["batch"])


def count(batch: Any) -> int:
    """The samples of a batch, padding not counted."""
    return len(batch["jpg"]) - (int(batch["__pad__"].sum()) if "__pad__" in batch else 0)


def payloads(corpus: Corpus, batch: Any) -> Iterator[bytes]:
    """Pixels and class."""
    for image, label in zip(batch["jpg"][: count(batch)], batch["cls"], strict=False):
        digits = label.ravel().tolist()
        number = int(bytes(digits)) if str(label.dtype).endswith("uint8") else digits[0]
        yield image.numpy().tobytes() + b"%d" % number


def expected(corpus: Corpus, dest: str, options: Options) -> dict[str, Any]:
    """What DALI's file reader gives."""
    digest = Digest()
    for batch in loader(corpus, dest, options | {"reader": "file"}, shuffle=False):
        digest.add(payloads(corpus, batch))
    return digest.facts()


def total(corpus: Corpus, dest: str, options: Options) -> int:
    """The samples of an epoch."""
    return corpus.count
