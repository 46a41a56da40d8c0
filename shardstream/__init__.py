"""shardstream: pack a corpus once, stream it into training ever after."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from shardstream.version import __version__ as __version__

if TYPE_CHECKING:
    from shardstream import observe as observe
    from shardstream.checkpoint import dcp as dcp
    from shardstream.checkpoint.checkpoints import Checkpoints as Checkpoints
    from shardstream.dali.loader import DaliLoader as DaliLoader
    from shardstream.dataset import Mixture as Mixture
    from shardstream.dataset import StreamingDataset as StreamingDataset
    from shardstream.dataset import TokenDataset as TokenDataset
    from shardstream.dataset.transforms import seeded as seeded
    from shardstream.decode.registry import decoder as decoder
    from shardstream.distributed import Topology as Topology
    from shardstream.errors import CommitError as CommitError
    from shardstream.errors import CorruptionError as CorruptionError
    from shardstream.errors import MissingExtraError as MissingExtraError
    from shardstream.errors import OptionError as OptionError
    from shardstream.errors import ShardstreamError as ShardstreamError
    from shardstream.errors import SourceError as SourceError
    from shardstream.errors import StateError as StateError
    from shardstream.errors import StorageError as StorageError
    from shardstream.format.manifest import Manifest as Manifest
    from shardstream.integrations.tensorflow import to_tf as to_tf
    from shardstream.loader import StreamingLoader as StreamingLoader
    from shardstream.logs.log import Log as Log
    from shardstream.maintain.verify import verify as verify
    from shardstream.maintain.warm import warm as warm
    from shardstream.observe.advise import advise as advise
    from shardstream.observe.replay import Replay as Replay
    from shardstream.order.shuffle import Shuffle as Shuffle
    from shardstream.packing import engines as engines
    from shardstream.packing.adopt import index as index
    from shardstream.packing.commit_parts import commit as commit
    from shardstream.packing.pack_parts import PackedPart as PackedPart
    from shardstream.packing.packer import pack as pack
    from shardstream.packing.samples_writer import Writer as Writer
    from shardstream.packing.sources import Source as Source
    from shardstream.read.samples.batch import Batch as Batch
    from shardstream.storage.cache.options import Cache as Cache
    from shardstream.storage.options import Retry as Retry
    from shardstream.storage.options import Timeouts as Timeouts
    from shardstream.weights.fetch import fetch_weights as fetch_weights
    from shardstream.weights.into import load_into as load_into
    from shardstream.weights.load import load_weights as load_weights
    from shardstream.weights.load import stream_weights as stream_weights

# Imported at first use, so that `import shardstream` is quick and the packer never loads torch.
_HOMES = {
    "Batch": "shardstream.read.samples.batch",
    "Cache": "shardstream.storage.cache.options",
    "Checkpoints": "shardstream.checkpoint.checkpoints",
    "CommitError": "shardstream.errors",
    "CorruptionError": "shardstream.errors",
    "DaliLoader": "shardstream.dali.loader",
    "Log": "shardstream.logs.log",
    "Manifest": "shardstream.format.manifest",
    "MissingExtraError": "shardstream.errors",
    "Mixture": "shardstream.dataset",
    "OptionError": "shardstream.errors",
    "PackedPart": "shardstream.packing.pack_parts",
    "Replay": "shardstream.observe.replay",
    "Retry": "shardstream.storage.options",
    "ShardstreamError": "shardstream.errors",
    "Shuffle": "shardstream.order.shuffle",
    "Source": "shardstream.packing.sources",
    "SourceError": "shardstream.errors",
    "StateError": "shardstream.errors",
    "StorageError": "shardstream.errors",
    "StreamingDataset": "shardstream.dataset",
    "StreamingLoader": "shardstream.loader",
    "TokenDataset": "shardstream.dataset",
    "Timeouts": "shardstream.storage.options",
    "Topology": "shardstream.distributed",
    "Writer": "shardstream.packing.samples_writer",
    "advise": "shardstream.observe.advise",
    "commit": "shardstream.packing.commit_parts",
    "dcp": "shardstream.checkpoint",
    "decoder": "shardstream.decode.registry",
    "engines": "shardstream.packing",
    "fetch_weights": "shardstream.weights.fetch",
    "index": "shardstream.packing.adopt",
    "load_into": "shardstream.weights.into",
    "load_weights": "shardstream.weights.load",
    "observe": "shardstream",
    "pack": "shardstream.packing.packer",
    "seeded": "shardstream.dataset.transforms",
    "stream_weights": "shardstream.weights.load",
    "to_tf": "shardstream.integrations.tensorflow",
    "verify": "shardstream.maintain.verify",
    "warm": "shardstream.maintain.warm",
}

# Modules that are public as a whole.
_MODULES = {"dcp", "engines", "observe"}

# `to_tf` is a name for users of TensorFlow alone, and so not among those that everybody sees.
__all__ = [
    "Batch",
    "Cache",
    "Checkpoints",
    "CommitError",
    "CorruptionError",
    "DaliLoader",
    "Log",
    "Manifest",
    "MissingExtraError",
    "Mixture",
    "OptionError",
    "PackedPart",
    "Replay",
    "Retry",
    "ShardstreamError",
    "Shuffle",
    "Source",
    "SourceError",
    "StateError",
    "StorageError",
    "StreamingDataset",
    "StreamingLoader",
    "Timeouts",
    "TokenDataset",
    "Topology",
    "Writer",
    "advise",
    "commit",
    "dcp",
    "decoder",
    "engines",
    "fetch_weights",
    "index",
    "load_into",
    "load_weights",
    "observe",
    "pack",
    "seeded",
    "stream_weights",
    "verify",
    "warm",
]

# A type checker reads the imports above. If it saw this function, a name that does not exist would be an Any.
if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        if name not in _HOMES:
            raise AttributeError(f"module 'shardstream' has no attribute {name!r}")
        if name in _MODULES:
            return importlib.import_module(f"{_HOMES[name]}.{name}")
        return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*__all__, *(name for name in globals() if name.startswith("__"))])
