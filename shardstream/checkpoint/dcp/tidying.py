"""Which checkpoints stay on a local disk: the newest of those that are committed at their URLs."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil

from shardstream.checkpoint.commit import read_manifest
from shardstream.checkpoint.dcp.places import folder_of, run_mark
from shardstream.checkpoint.layout import MANIFEST, is_attempt
from shardstream.errors import ShardstreamError
from shardstream.storage.store import Options, Store

__all__ = ["tidy"]

log = logging.getLogger("shardstream")


def tidy(local: str, url: str, keep: int, options: Options) -> None:
    """Delete local checkpoints of a run but the newest `keep`, and what killed saves have left beside these.

    Only what is committed at its URL counts and is deleted: what is not may be the only copy there is. Ranks
    of one machine may all do this at once. Errors are logged: the checkpoint that was saved is not lost.

    Args:
        local: The folder of local checkpoints.
        url: Of any checkpoint of the run.
        keep: How many stay.
        options: For the stores of the checkpoints.
    """
    mark, kept = run_mark(url), 0
    try:
        names = [name for name in os.listdir(local) if name.endswith(mark)]
        folders = sorted((os.path.join(local, name) for name in names), key=_age, reverse=True)
        if len(folders) <= keep and all(len(_attempts(folder)) <= 1 for folder in folders):
            return  # without a request to the store
        for folder in folders:
            there = Store.open(f"{folder_of(url)}/{os.path.basename(folder).removesuffix(mark)}", options)
            if not there.exists(MANIFEST):
                continue
            kept += 1
            if kept > keep:
                # Its manifest first: a reader must not take what is half deleted.
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(os.path.join(folder, MANIFEST))
                _delete(folder)
            elif len(attempts := _attempts(folder)) > 1 and (manifest := read_manifest(there)) is not None:
                for attempt in attempts:
                    if os.path.basename(attempt) != manifest.attempt:
                        _delete(attempt)
    except FileNotFoundError:
        return  # another rank of this machine deletes the same
    except (OSError, ShardstreamError) as error:
        log.warning("%s: old local checkpoints could not be deleted: %s", local, error)


def _attempts(folder: str) -> list[str]:
    return [os.path.join(folder, name) for name in os.listdir(folder) if is_attempt(name)]


def _age(folder: str) -> float:
    """When the last save to it began."""
    return max((os.stat(attempt).st_ctime for attempt in _attempts(folder)), default=0.0)


def _delete(folder: str) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    if os.path.exists(folder):
        log.warning("%s could not be deleted", folder)
