"""MosaicML Streaming: MDSWriter and StreamingDataset under its StreamingDataLoader.

It imports torchvision, whose builds on the index do not load beside this torch; it uses it for its
vision classes alone, which nothing here touches. So the modules that it imports are empty stand-ins.
"""

from __future__ import annotations

import atexit
import importlib.machinery
import os
import shutil
import sys
import types
from typing import Any

import numpy as np


def _stand_in(name: str, *members: str) -> None:
    module = types.ModuleType(name)
    # Others look whether it can be found: it can, by this.
    module.__spec__ = importlib.machinery.ModuleSpec(name, None)
    for member in members:
        setattr(module, member, type(member, (), {}))
    sys.modules[name] = module


_stand_in("torchvision")
_stand_in("torchvision.datasets", "VisionDataset", "CIFAR10", "ImageFolder", "CocoDetection")
_stand_in("torchvision.transforms")
_stand_in("torchvision.transforms.functional", "to_tensor")

from streaming import MDSWriter, StreamingDataLoader, StreamingDataset  # noqa: E402

from benchmarks.corpora import Corpus  # noqa: E402
from benchmarks.peers.common import Options, collate, expected, samples  # noqa: E402
from benchmarks.peers.common import payloads as common_payloads  # noqa: E402

__all__ = ["PACKAGES", "count", "expected", "loader", "payloads", "resume", "state", "write"]
PACKAGES = ("mosaicml-streaming",)


def write(corpus: Corpus, dest: str, options: Options) -> None:
    """`MDSWriter`."""
    if corpus.kind == "tokens":
        kind = "int32" if corpus.dtype == "uint32" else "uint16"
        columns = {"tokens": f"ndarray:{kind}:{corpus.block}"}
    elif corpus.kind == "documents":
        columns = {"id": "str", "text": "str", "bytes": "int"}
    else:
        columns = {"image": "bytes", "label": "int"}
    compression = None if options["codec"] == "none" else "zstd:3"
    limit = max(4096, corpus.bytes // options["shards"]) if "shards" in options else 1 << 26
    with MDSWriter(out=dest, columns=columns, compression=compression, size_limit=limit) as writer:
        if corpus.kind == "tokens":
            for row in corpus.rows():
                writer.write({"tokens": np.asarray(row, kind)})
        else:
            for sample in samples(corpus):
                writer.write(sample)


def loader(corpus: Corpus, dest: str, options: Options) -> Any:
    """A StreamingDataLoader over a folder of its own, since two processes must not share one by name.

    Compressed shards it decompresses into that folder once, and reads those from then on.
    """
    local = f"{dest}.local{os.getpid()}"
    remote, store = None, options.get("remote")
    if store is not None:
        local, remote = os.path.join(store["cache"], "mds"), store["url"]
        os.environ |= {
            "S3_ENDPOINT_URL": store["endpoint"],
            "AWS_ACCESS_KEY_ID": store["key"],
            "AWS_SECRET_ACCESS_KEY": store["secret"],
        }
    elif options["codec"] == "none":
        if not os.path.islink(local):
            os.symlink(os.path.abspath(dest), local)
            atexit.register(os.remove, local)
    else:
        remote = os.path.abspath(dest)
        atexit.register(shutil.rmtree, local, ignore_errors=True)
    dataset = StreamingDataset(
        local=local, remote=remote, shuffle=True, batch_size=options["batch"], shuffle_seed=1
    )
    return StreamingDataLoader(
        dataset,
        batch_size=options["batch"],
        num_workers=options["workers"],
        collate_fn=None if corpus.kind == "tokens" else collate(options),
    )


def state(corpus: Corpus, dest: str, options: Options, fraction: float) -> Any:
    """What a dataset's state is after that part of the first epoch."""
    return {
        "epoch": 0,
        "sample_in_epoch": int(corpus.count * fraction),
        "num_canonical_nodes": 1,
        "shuffle_seed": 1,
        "initial_physical_nodes": 1,
    }


def resume(corpus: Corpus, dest: str, options: Options, state: Any) -> Any:
    """A loader with a state loaded."""
    made = loader(corpus, dest, options)
    made.dataset.load_state_dict(state)
    return made


def payloads(corpus: Corpus, batch: Any) -> Any:
    """A batch of tokens is a dict."""
    return common_payloads(corpus, batch["tokens"] if corpus.kind == "tokens" else batch)


def count(batch: Any) -> int:
    """The samples of a list, or of a dict of tensors."""
    return len(next(iter(batch.values()))) if type(batch) is dict else len(batch)
