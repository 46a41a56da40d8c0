"""Datasets to iterate: composition of the order and the read engine, nothing else.

A public class is a narrow face of its `Contents`, which the other packages get by `contents_of`.
"""

from shardstream.dataset.base import OrderedDataset, contents_of, place_of
from shardstream.dataset.mixture import Mixture
from shardstream.dataset.samples import StreamingDataset
from shardstream.dataset.tokens import TokenDataset

__all__ = ["Mixture", "OrderedDataset", "StreamingDataset", "TokenDataset", "contents_of", "place_of"]
