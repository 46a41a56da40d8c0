"""The engine that a user chose, and what a pack needs of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain, islice
from typing import Any, Literal, Protocol, cast

from shardstream.errors import OptionError
from shardstream.packing.engines.engine import Engine, Needs
from shardstream.packing.engines.processes import Local
from shardstream.packing.job import Job
from shardstream.storage.inputs import FileInfo
from shardstream.storage.secrets import url_has_secret
from shardstream.storage.store import is_private, local_path_of, redact

__all__ = ["EngineOption", "check_engine", "engine_of", "needs_of"]


class Executor(Protocol):
    """An executor that the caller has started: a Dask client, one of concurrent.futures, MPI."""

    @property
    def submit(self) -> Callable[..., Any]:
        """Called with a function and its arguments, returns a future."""
        ...


EngineOption = Literal["local", "ray"] | Engine | Executor
_SHUFFLE = 192 << 20  # bytes
_MOST_FILES = 16  # input files that each machine looks for before it gets a task


def engine_of(given: object) -> Engine:
    """The engine for what `pack` was given.

    Args:
        given: "local", "ray", an engine, or an executor with a method `submit`.

    Raises:
        OptionError: It is none of them.
    """
    if given == "local":
        return Local()
    if given == "ray":
        from shardstream.packing.engines.ray import Ray

        return Ray()
    if callable(getattr(given, "started", None)):
        return cast(Engine, given)
    if callable(getattr(given, "submit", None)):
        from shardstream.packing.engines.submit import Submit

        return Submit(given)
    raise OptionError(f"engine={given!r} must be 'local', 'ray', an engine, or have a method submit")


def check_engine(engine: Engine, job: Job, files: Sequence[FileInfo]) -> None:
    """Raise OptionError if an engine cannot do a pack.

    Args:
        engine: The engine.
        job: The pack.
        files: The files of the input.
    """
    if isinstance(engine, Local):
        return
    if job.limit is not None:
        raise OptionError("limit packs one task after another, in this process: leave out engine")
    for url in chain([job.dest], (file.url for file in files)):  # there may be very many
        if is_private(url):
            raise OptionError(f"{redact(url)} is in this process alone: leave out engine")
        if url_has_secret(url):
            raise OptionError(
                f"{redact(url)}: a URL with credentials or a signature does not go to other machines; give "
                "credentials by storage_options, or by the environment of the workers"
            )


def needs_of(
    engine: Engine, job: Job, files: Sequence[FileInfo], workers: int | None, folder: str | None
) -> Needs:
    """What a pack needs of its workers.

    Args:
        engine: The engine.
        job: The pack.
        files: The files of the input.
        workers: How many tasks run at a time. None: as many as there is room for.
        folder: The local folder of the destination; None if it is a store.
    """
    if isinstance(engine, Local):
        return Needs(workers)
    layout = job.layout
    # A shuffle holds a bucket, and samples that it parts into buckets or reads ahead; see `store_shuffle`.
    shuffled = 0 if job.shuffle is None else layout.shard_size + _SHUFFLE
    folders = [] if folder is None else [folder]
    local = ((path, file.size) for file in files if (path := local_path_of(file.url)) and file.size)
    return Needs(
        workers=workers,
        memory=layout.shard_size + layout.frame_size + shuffled,
        storage_options=job.storage_options,
        folders=tuple(folders),
        files=tuple(islice(local, _MOST_FILES)),
    )
