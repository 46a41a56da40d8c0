"""A data loader for DLIO: batches of a packed dataset, by StreamingLoader.

DLIO loads it by the name of the class, as it does any loader that is not its own:

    reader:
      data_loader: pytorch
      data_loader_classname: benchmarks.dlio_loader.ShardstreamDataLoader
      data_loader_sampler: index

`<data_folder>/shards` is the packed dataset, see `pack`. It holds the samples of the files that DLIO's own
generator has written to `<data_folder>/train`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import numpy as np
from dlio_benchmark.common.enumerations import DataLoaderType, DatasetType, Shuffle
from dlio_benchmark.data_loader.base_data_loader import BaseDataLoader

import shardstream as ss

__all__ = ["FIELD", "ShardstreamDataLoader", "pack"]

FIELD = "npy"
_FOLDERS = {DatasetType.TRAIN: "shards", DatasetType.VALID: "shards-valid"}


def samples(files: list[str]) -> Iterator[dict[str, Any]]:
    """The samples of npz files of DLIO's generator, each an array."""
    for path in files:
        name = os.path.splitext(os.path.basename(path))[0]
        for number, array in enumerate(np.moveaxis(np.load(path)["x"], -1, 0)):
            yield {"__key__": f"{name}-{number}", FIELD: array}


def pack(files: list[str], dest: str) -> None:
    """Pack the samples of npz files of DLIO's generator, and read them back.

    Nothing is compressed: the samples are noise, and DLIO's npz files are not compressed, either.

    Raises:
        RuntimeError: The loader does not give what the files hold.
    """
    ss.pack(samples(files), dest, compression="none")
    loader = ss.StreamingLoader(ss.StreamingDataset(dest), 1)
    for wanted, found in zip(samples(files), loader, strict=True):
        if found["__key__"] != [wanted["__key__"]] or not np.array_equal(found[FIELD][0], wanted[FIELD]):
            raise RuntimeError(f"{dest}: sample {wanted['__key__']} is not what was packed")


class ShardstreamDataLoader(BaseDataLoader):  # type: ignore[misc,unused-ignore]
    """Batches of a packed dataset for one rank of DLIO.

    Like DLIO's own readers it reads and decodes each sample whole. If the workload asks for another size
    (`record_length_resize`), it gives the same image in place of the resized sample that they give: to resize
    costs nothing in DLIO.
    """

    def __init__(self, format_type: Any, dataset_type: Any, epoch_number: int) -> None:
        super().__init__(format_type, dataset_type, epoch_number, DataLoaderType.PYTORCH)

    def read(self) -> None:
        """Open the dataset, before the first epoch."""
        args = self._args
        resized = args.resized_image if args.record_length_resize else None
        ds = ss.StreamingDataset(
            os.path.join(args.data_folder, _FOLDERS[self.dataset_type]),
            shuffle=ss.Shuffle(seed=args.seed) if args.sample_shuffle is not Shuffle.OFF else False,
            topology=ss.Topology(args.my_rank, args.comm_size),
            transform=None if resized is None else lambda sample: {FIELD: resized},
        )
        self._loader = ss.StreamingLoader(ds, self.batch_size)

    def next(self) -> Iterator[Any]:
        """The batches of one epoch, uint8 [B, height, width]."""
        for batch in self._loader:
            yield batch[FIELD]

    def finalize(self) -> None:
        """Called after each epoch: there is nothing to do."""
