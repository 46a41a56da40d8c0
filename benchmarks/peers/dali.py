"""DALI's own readers on the CPU: of files, or with options["reader"] of WebDataset's tars, which ours are."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator
from typing import Any

from nvidia.dali import fn, pipeline_def, types
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

        batches = iter(self._iterator)
        try:
            for (batch,) in batches:
                labels = batch["label"]
                if labels.dtype == torch.uint8:  # digits, and zeros behind them
                    numbers = [int(bytes(row).rstrip(b"\0")) for row in labels.numpy()]
                    labels = torch.tensor(numbers)
                yield {"image": batch["image"], "label": labels.flatten()}
        finally:
            # Of an epoch that was cut short the rest would come at the beginning of the next.
            for _ in batches:
                pass


def loader(corpus: Corpus, dest: str, options: Options) -> Any:
    """DALIGenericIterator over the pipeline."""
    return _Loader(corpus, dest, options)
