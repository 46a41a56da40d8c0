"""How far a long operation is, told to a function of the user or shown to a person."""

from shardstream.progress.display import shown, with_bar
from shardstream.progress.numbers import Bytes, Progress, Report, Reporter

__all__ = ["Bytes", "Progress", "Report", "Reporter", "shown", "with_bar"]
