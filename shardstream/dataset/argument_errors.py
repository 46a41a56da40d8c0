"""Errors for arguments of other libraries and for wrong indexes; they say what is meant."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any

from shardstream.errors import OptionError
from shardstream.format.numbers import whole_number

__all__ = ["item_number", "unexpected"]

_SHUFFLE = "the dataset shuffles: StreamingDataset(url, shuffle=ss.Shuffle(seed=0))"
_RANKS = "the dataset knows its rank: topology=ss.Topology(dp_rank, dp_size), or 'auto'"
_BATCHES = "batches are made by a loader: StreamingLoader(ds, batch_size=8)"
_LAST = "say last='drop', last='pad' or last='short' to a StreamingLoader"
_CACHE = "say cache='/nvme/cache', or cache=ss.Cache('/nvme/cache', disk='200GB')"
_FETCH = "a StreamingLoader fetches ahead: prefetch='256MiB'"
_THREADS = (
    "a StreamingLoader has threads: threads=8, and engine='process' puts them in a process of their own"
)

# By torch, MosaicML streaming, WebDataset, litdata, Hugging Face datasets, and by guessing.
_MEANT = {
    "num_workers": _THREADS, "workers": _THREADS, "multiprocessing_context": _THREADS, "nthreads": _THREADS,
    "num_threads": _THREADS, "persistent_workers": _THREADS, "worker_init_fn": _THREADS,
    "prefetch_factor": _FETCH, "predownload": _FETCH, "max_pre_download": _FETCH, "prefetch_size": _FETCH,
    "drop_last": _LAST, "last_batch": _LAST,
    "collate_fn": "say collate= to a StreamingLoader", "collation_fn": "say collate= to a StreamingLoader",
    "pin_memory": "say pin=True to a StreamingLoader", "pin_memory_device": "say device='cuda'",
    "batch_size": _BATCHES, "batchsize": _BATCHES, "bs": _BATCHES,
    "shuffle": _SHUFFLE, "seed": _SHUFFLE, "shuffle_seed": _SHUFFLE, "generator": _SHUFFLE,
    "shuffle_algo": _SHUFFLE, "shuffle_block_size": _SHUFFLE, "shuffle_buffer": _SHUFFLE,
    "buffer_size": _SHUFFLE, "shardshuffle": _SHUFFLE, "num_canonical_nodes": _SHUFFLE,
    "sampler": "the dataset has an order of its own; ds.subset(...) leaves samples out",
    "batch_sampler": "the dataset has an order of its own; ds.subset(...) leaves samples out",
    "rank": _RANKS, "world_size": _RANKS, "num_replicas": _RANKS, "num_shards": _RANKS, "shard_id": _RANKS,
    "nodesplitter": _RANKS, "workersplitter": _RANKS,
    "local": _CACHE, "cache_dir": _CACHE, "cache_limit": _CACHE, "cache_size": _CACHE,
    "max_cache_size": _CACHE,
    "remote": "the first argument is the url", "path": "the first argument is the url",
    "root": "the first argument is the url", "urls": "the first argument is the url, of one dataset",
    "data_dir": "the first argument is the url", "input_dir": "the first argument is the url",
    "timeout": "a request has a deadline of its own", "columns": "say fields=", "keys": "say fields=",
    "map": "say transform= to the dataset", "transforms": "say transform= to the dataset",
    "transform_fn": "say transform= to the dataset", "transform": "say transform= to the dataset",
    "block_size": "say seq_len=", "context_length": "say seq_len=", "max_seq_len": "say seq_len=",
    "sequence_length": "say seq_len=", "max_length": "say seq_len=",
    "weights": "a Mixture takes pairs: Mixture([(one, 0.7), (other, 0.3)])",
    "proportions": "a Mixture takes pairs: Mixture([(one, 0.7), (other, 0.3)])",
    "probabilities": "a Mixture takes pairs: Mixture([(one, 0.7), (other, 0.3)])",
}  # fmt: skip


class _UnknownArgumentError(OptionError, TypeError):
    """An argument of a name that there is not: a TypeError, as Python itself raises."""


def unexpected(what: str, unknown: Mapping[str, object], known: Iterable[str]) -> OptionError:
    """The error for arguments that `what` does not have.

    Args:
        what: The class that was called.
        unknown: The arguments that it does not have.
        known: The names of its arguments.
    """
    told = []
    for name in unknown:
        near = get_close_matches(name, known, 1)
        hint = _MEANT.get(name) or (f"do you mean {near[0]}=?" if near else f"it has {', '.join(known)}")
        told.append(f"{what} has no argument {name!r}: {hint}")
    return _UnknownArgumentError("; ".join(told))


def item_number(item: Any, total: int, url: str) -> int:
    """The number, from 0 to `total`, that `ds[item]` asks for."""
    if isinstance(item, slice):
        # A slice of numbers alone can be repeated as it was written.
        plain = all(end is None or isinstance(end, int) for end in (item.start, item.stop, item.step))
        some = range(total)[item] if plain else range(3)
        raise _NoItemError(
            f"{url}: one sample at a time has a number; for a part of them write "
            f"ds.subset(numbers=range({some.start}, {some.stop}, {some.step}))"
        )
    if isinstance(item, str):
        raise _NoItemError(f"{url}: samples have numbers; for a key write ds.subset(keys=[{item!r}])")
    try:
        number = whole_number("number", item)
    except OptionError:
        raise _NoItemError(f"{url}: a sample has a number from 0 to {total - 1}, not {item!r}") from None
    if not -total <= number < total:
        raise IndexError(f"sample {number} of {url}, which has {total}")
    return number % total


class _NoItemError(OptionError, TypeError):
    """What is no number of a sample: a TypeError, as Python itself raises."""
