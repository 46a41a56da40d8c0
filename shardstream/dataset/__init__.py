"""Datasets to iterate: composition of the order and the read engine, nothing else."""

from shardstream.dataset.base import Cache, OrderedDataset, Request
from shardstream.dataset.mixture import Mixture
from shardstream.dataset.samples import StreamingDataset
from shardstream.dataset.tokens import TokenDataset

__all__ = ["Cache", "Mixture", "OrderedDataset", "Request", "StreamingDataset", "TokenDataset"]
