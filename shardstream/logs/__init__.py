"""Logs of a training job: rows that survive the process, shipped to any store by a thread."""

from shardstream.logs.log import Log
from shardstream.logs.reading import read
from shardstream.logs.sinks import CSV, Sink, TensorBoard, Wandb

__all__ = ["CSV", "Log", "Sink", "TensorBoard", "Wandb", "read"]
