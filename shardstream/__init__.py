"""shardstream: pack a corpus once, stream it into training ever after."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shardstream.dali.loader import DaliLoader as DaliLoader
    from shardstream.dataset import Mixture as Mixture
    from shardstream.dataset import StreamingDataset as StreamingDataset
    from shardstream.dataset import TokenDataset as TokenDataset
    from shardstream.decode.registry import decoder as decoder
    from shardstream.distributed import Topology as Topology
    from shardstream.errors import ShardstreamError as ShardstreamError
    from shardstream.format.manifest import Manifest as Manifest
    from shardstream.integrations.tensorflow import to_tf as to_tf
    from shardstream.loader import StreamingLoader as StreamingLoader
    from shardstream.order.shuffle import Shuffle as Shuffle
    from shardstream.pack.adopt import index as index
    from shardstream.pack.packer import pack as pack
    from shardstream.read.batch import Batch as Batch
    from shardstream.read.verify import verify as verify
    from shardstream.storage.cache import Cache as Cache
    from shardstream.warm import warm as warm

__version__ = "0.1.0"

# Imported at first use, so that `import shardstream` is quick and the packer never loads torch.
_HOMES = {
    "Batch": "shardstream.read.batch",
    "Cache": "shardstream.storage.cache",
    "DaliLoader": "shardstream.dali.loader",
    "Manifest": "shardstream.format.manifest",
    "Mixture": "shardstream.dataset",
    "ShardstreamError": "shardstream.errors",
    "Shuffle": "shardstream.order.shuffle",
    "StreamingDataset": "shardstream.dataset",
    "StreamingLoader": "shardstream.loader",
    "TokenDataset": "shardstream.dataset",
    "Topology": "shardstream.distributed",
    "decoder": "shardstream.decode.registry",
    "index": "shardstream.pack.adopt",
    "pack": "shardstream.pack.packer",
    "to_tf": "shardstream.integrations.tensorflow",
    "verify": "shardstream.read.verify",
    "warm": "shardstream.warm",
}

# `to_tf` is a name for users of TensorFlow alone, and so not among those that everybody sees.
__all__ = [
    "Batch",
    "Cache",
    "DaliLoader",
    "Manifest",
    "Mixture",
    "ShardstreamError",
    "Shuffle",
    "StreamingDataset",
    "StreamingLoader",
    "TokenDataset",
    "Topology",
    "decoder",
    "index",
    "pack",
    "verify",
    "warm",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'shardstream' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Package(ModuleType):
    """Keeps `shardstream.pack` the function: importing the subpackage would put the module there."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
