"""SPDL: a pipeline of threads, FFmpeg decoding, cropping and resizing. It needs FFmpeg's libraries."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import spdl.io
import torch
from spdl.pipeline import PipelineBuilder

from benchmarks.corpora import Corpus
from benchmarks.peers.common import MEAN, STD, Options, count, expected, payloads

__all__ = ["PACKAGES", "count", "expected", "loader", "payloads", "write"]
PACKAGES = ("spdl-core", "spdl-io")


def write(corpus: Corpus, dest: str, options: Options) -> None:
    """Nothing: it reads the corpus as it is."""
    os.makedirs(dest)


class _Loader:
    def __init__(self, corpus: Corpus, options: Options) -> None:
        self._images, self._batch, self._side = corpus.images(), options["batch"], options["decode"]
        self._threads = os.cpu_count() or 1
        self._random = np.random.default_rng(1)
        self._mean = 255 * torch.tensor(MEAN).view(3, 1, 1)
        self._std = 255 * torch.tensor(STD).view(3, 1, 1)

    def _decode(self, item: tuple[str, int]) -> tuple[Any, int]:
        path, label = item
        # Shares of the image, whose size is not known yet; the corpus's images are square.
        while True:
            area, ratio = self._random.uniform(0.08, 1), math.exp(self._random.uniform(-0.2877, 0.2877))
            wide, high = math.sqrt(area * ratio), math.sqrt(area / ratio)
            if wide <= 1 and high <= 1:
                break
        left, top = self._random.uniform(0, 1 - wide), self._random.uniform(0, 1 - high)
        steps = [
            f"crop=iw*{wide:.4f}:ih*{high:.4f}:iw*{left:.4f}:ih*{top:.4f}",
            f"scale={self._side}:{self._side}:flags=bilinear",
        ]
        if self._random.random() < 0.5:
            steps.append("hflip")
        buffer = spdl.io.load_image(path, filter_desc=",".join([*steps, "format=pix_fmts=rgb24"]))
        return spdl.io.to_torch(buffer), label

    def _collate(self, rows: list[tuple[Any, int]]) -> dict[str, Any]:
        images = torch.stack([image for image, _ in rows]).permute(0, 3, 1, 2).float()
        images = images.sub_(self._mean).div_(self._std)
        return {"image": images, "label": torch.tensor([label for _, label in rows])}

    def __iter__(self) -> Iterator[Any]:
        order = self._random.permutation(len(self._images)).tolist()
        pipeline = (
            PipelineBuilder()
            .add_source([self._images[number] for number in order])
            .pipe(self._decode, concurrency=self._threads)
            .aggregate(self._batch)
            .pipe(self._collate)
            .add_sink(4)
            .build(num_threads=self._threads + 1)
        )
        with pipeline.auto_stop():
            yield from pipeline


def loader(corpus: Corpus, dest: str, options: Options) -> Any:
    """A pipeline for each epoch."""
    return _Loader(corpus, options)
