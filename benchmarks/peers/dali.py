<<<<<<< HEAD
"""DALI's own readers on the CPU: of files, or with options["reader"] of WebDataset's tars, which ours are."""

from __future__ import annotations

import glob
=======
"""DALI with its own readers, or with ours: the same decoder, resize and normalisation.

options["reader"]: "file" or "webdataset", DALI's own; "shardstream", our DaliLoader.
"""

from __future__ import annotations

>>>>>>> 956106f (Show: a sheet of samples as a picture or in the terminal; DALI's own index; the question dali)
import os
from collections.abc import Iterator
from typing import Any

from nvidia.dali import fn, pipeline_def, types
<<<<<<< HEAD
from nvidia.dali.plugin.base_iterator import LastBatchPolicy
from nvidia.dali.plugin.pytorch import DALIGenericIterator

from benchmarks.corpora import Corpus
from benchmarks.peers import ours
from benchmarks.peers.common import MEAN, STD, Options, count, expected, payloads

__all__ = ["PACKAGES", "count", "expected", "loader", "payloads", "write"]
PACKAGES = ("nvidia-dali-cuda120",)


def write(corpus: Corpus, dest: str, options: Options) -> None:
    """Our tars; the file reader reads the corpus as it is."""
    ours.write(corpus, dest, options)


@pipeline_def
def _pipeline(corpus: Corpus, dest: str, options: Options) -> Any:
    """As in DALI's ImageNet examples."""
    if options.get("reader") == "webdataset":
        tars = sorted(glob.glob(os.path.join(dest, "*.tar")))
        jpegs, labels = fn.readers.webdataset(
            paths=tars, ext=["jpg", "cls"], random_shuffle=True, initial_fill=1000, name="reader"
        )
        labels = fn.pad(labels, fill_value=0, axes=[0], shape=[4])
    else:
        jpegs, labels = fn.readers.file(
            file_root=corpus.file, random_shuffle=True, initial_fill=1000, name="reader"
        )
    images = fn.decoders.image_random_crop(jpegs, device="cpu", output_type=types.RGB)
    images = fn.resize(images, size=[options["decode"]] * 2, interp_type=types.INTERP_LINEAR)
    images = fn.crop_mirror_normalize(
        images,
        dtype=types.FLOAT,
        output_layout="CHW",
        mean=[255 * value for value in MEAN],
        std=[255 * value for value in STD],
        mirror=fn.random.coin_flip(),
    )
    return images, labels


class _Loader:
    """Every iteration is an epoch."""

    def __init__(self, corpus: Corpus, dest: str, options: Options) -> None:
        pipe = _pipeline(
            corpus,
            dest,
            options,
            batch_size=options["batch"],
            num_threads=os.cpu_count(),
            device_id=None,
            seed=1,
        )
        self._iterator = DALIGenericIterator(
            [pipe],
            ["image", "label"],
            reader_name="reader",
            auto_reset=True,
            last_batch_policy=LastBatchPolicy.PARTIAL,
        )

    def __iter__(self) -> Iterator[Any]:
        import torch

        for (batch,) in self._iterator:
            labels = batch["label"]
            if labels.dtype == torch.uint8:  # digits, and zeros behind them
                numbers = [int(bytes(row).rstrip(b"\0")) for row in labels.numpy()]
                labels = torch.tensor(numbers)
            yield {"image": batch["image"], "label": labels.flatten()}


def loader(corpus: Corpus, dest: str, options: Options) -> Any:
    """DALIGenericIterator over the pipeline."""
    return _Loader(corpus, dest, options)
=======
from nvidia.dali.plugin.pytorch import DALIGenericIterator, LastBatchPolicy

import shardstream as ss
from benchmarks.corpora import Corpus, Digest
from benchmarks.peers import ours
from benchmarks.peers.common import Options
from shardstream.read.dali_index import write_dali_index

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


def loader(corpus: Corpus, dest: str, options: Options, shuffle: bool = True) -> Any:
    """An iterable of batches on the CPU, two of them decoded ahead."""
    threads = os.cpu_count() or 1
    if options["reader"] == "shardstream":
        ds = ss.StreamingDataset(dest, shuffle=ss.Shuffle(seed=1))
        return ss.DaliLoader(ds, decoded, options["batch"], "cpu", last="short", threads=threads)
    pipe = own(
        corpus=corpus.file, dest=dest, reader=options["reader"], shuffle=shuffle,
        batch_size=options["batch"], num_threads=threads, device_id=None, prefetch_queue_depth=2,
    )  # fmt: skip
    return DALIGenericIterator(
        [pipe], ["jpg", "cls"], reader_name="reader", last_batch_policy=LastBatchPolicy.PARTIAL,
        auto_reset=True,
    )  # fmt: skip


def _dict(batch: Any) -> Any:
    return batch[0] if isinstance(batch, list) else batch


def count(batch: Any) -> int:
    """The samples of a batch, padding not counted."""
    batch = _dict(batch)
    return len(batch["jpg"]) - (int(batch["__pad__"].sum()) if "__pad__" in batch else 0)


def payloads(corpus: Corpus, batch: Any) -> Iterator[bytes]:
    """Pixels and class."""
    batch = _dict(batch)
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
>>>>>>> 956106f (Show: a sheet of samples as a picture or in the terminal; DALI's own index; the question dali)
