"""warm(): fill the SSD tier with the data that a machine's ranks are going to read, before they read it."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable
from typing import Any, Literal

from shardstream.dataset import OrderedDataset, StreamingDataset, TokenDataset, contents_of, place_of
from shardstream.dataset.contents import Contents
from shardstream.dataset.mixture_contents import MixtureContents
from shardstream.dataset.stored import StoredContents
from shardstream.errors import OptionError
from shardstream.format.numbers import whole_number
from shardstream.format.sizes import parse_size
from shardstream.maintain.warming import Warmed, Warming
from shardstream.order.cursor import Run
from shardstream.order.shuffle import Shuffle
from shardstream.order.topology import Topology
from shardstream.progress import Report, with_bar
from shardstream.read.reader import DatasetReader
from shardstream.storage.cache.blocks import Block
from shardstream.storage.cache.options import Cache, ReadOnlyCache

__all__ = ["Warmed", "warm"]


@with_bar("warming")
def warm(
    url: str | os.PathLike[str] | OrderedDataset[Any],
    cache: Cache | str | os.PathLike[str] | None = None,
    ranks: Iterable[int] | None = None,
    dp_size: int | None = None,
    seed: int = 0,
    epochs: int = 1,
    limit: str | int | None = None,
    check: bool = False,
    shuffle: bool | Shuffle = True,
    seq_len: int | None = None,
    storage_options: dict[str, Any] | None = None,
    progress: Report = None,
    *,
    pack: Literal["best-fit"] | None = None,
    tail: Literal["drop", "pad"] = "drop",
) -> Warmed:
    """Fetch into a cache the data that ranks will read, in the order of their need.

    Running it again continues where it stopped. It may run beside a job, or beside another one.

    Args:
        url: a dataset, a subset or a mixture, with its own cache, order and topology, from the place
            where it is; or the URL of a dataset, which the other arguments are for.
        cache: the cache to fill; it needs a dir.
        ranks: the ranks of this machine. By default the rank of the dataset; of a URL, all data.
        dp_size: the number of data-parallel ranks of the job. A dataset has it in its topology.
        seed: of the order, or give `shuffle` as the job does.
        epochs: the first so many; of an endless mixture, until each dataset has been read so many times.
        limit: stop before more than so many bytes of the cache are used; 0 fetches nothing.
        check: change nothing and fetch no frame, report what is missing or damaged.
        shuffle: as the job's.
        seq_len: as the job's, for a TokenDataset.
        storage_options: for fsspec.
        progress: True shows a bar on stderr; a function is called with a Progress as blocks arrive.
        pack: as the job's, for a TokenDataset.
        tail: as the job's, for a TokenDataset.

    Returns:
        The counts of wanted, present, fetched and missing blocks. If it is `complete`, the job that was
        described sends no request but for the manifest.

    Raises:
        OptionError: there is no cache to fill, or the arguments do not fit together.
        StorageError: the cache cannot be opened.
    """
    epochs = whole_number("epochs", epochs, 1)
    most = None if limit is None else 0 if limit in (0, "0") else parse_size(limit, "limit")
    chosen = None if ranks is None else sorted(set(ranks))
    if chosen == []:
        raise OptionError("ranks is empty: name at least one, or leave it out for all data")
    present: dict[Block, bool] = {}
    if isinstance(url, OrderedDataset):
        given = (cache, seq_len, storage_options, pack), (seed, shuffle, tail) != (0, True, "drop")
        if any(option is not None for option in given[0]) or given[1]:
            raise OptionError("a dataset has its own cache, order and options: leave them out, or give a URL")
        if dp_size not in (None, url.topology.dp_size):
            raise OptionError(
                f"dp_size={dp_size}: the dataset's topology has {url.topology.dp_size} ranks; open it, and "
                f"each part of a mixture, with topology=ss.Topology(0, {dp_size})"
            )
        contents, now = _copied(contents_of(url), check), place_of(url)
        chosen = [contents.topology.dp_rank] if chosen is None else chosen
    else:
        if (ranks is None) != (dp_size is None):
            raise OptionError("ranks and dp_size go together: which ranks, of how many")
        if cache is None:
            raise OptionError("warm needs a cache with a dir")
        tiers = _variant(cache if isinstance(cache, Cache) else Cache(cache), check)
        if tiers.dir is None:
            raise OptionError("warm needs a cache with a dir")
        disk = tiers.open_disk()  # an error here; a job would only warn and read the store
        if pack is not None:
            # Opening such a dataset fetches all indexes, so they are looked for before.
            looked = DatasetReader.open(os.fspath(url), storage_options)
            blocks = (looked.blocks.index(shard).block for shard in range(len(looked.manifest.shards)))
            present = {block: disk.has(block) for block in blocks}
        order = shuffle if isinstance(shuffle, Shuffle) or not shuffle else Shuffle(seed)
        common: Any = {
            "shuffle": order, "cache": tiers, "topology": Topology(0, dp_size or 1),
            "storage_options": storage_options,
        }  # fmt: skip
        if seq_len is not None:
            contents = contents_of(TokenDataset(url, seq_len, pack=pack, tail=tail, **common))
        elif pack is not None or tail != "drop":
            raise OptionError("pack and tail are of a TokenDataset: give seq_len, too")
        else:
            contents = contents_of(StreamingDataset(url, **common))
        now = Run(0, 0)
    for rank in chosen or ():
        Topology(rank, contents.topology.dp_size)  # refuses ranks that cannot be
    return Warming(contents, now, chosen, epochs, most, check, present, progress).run()


def _variant(cache: Cache, check: bool) -> Cache:
    """The cache of a reader of this run's own: memory holds nothing, and with `check` nothing changes."""
    options = {option.name: getattr(cache, option.name) for option in dataclasses.fields(cache)}
    return (ReadOnlyCache if check else Cache)(**options | {"ram": 1})


def _copied(contents: Contents[Any], check: bool) -> Contents[Any]:
    """The same with readers of its own: the other may be in use."""
    if isinstance(contents, MixtureContents):
        return contents.apart(lambda cache: _variant(cache, check))
    assert isinstance(contents, StoredContents)
    return contents.apart(_variant(contents.cache, check))
