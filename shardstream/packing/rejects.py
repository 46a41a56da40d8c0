"""The list of rejects beside a dataset: what of the input was not packed, and why."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from shardstream.storage.store import Options, Store

__all__ = ["REJECTS", "first_rejects", "write_rejects"]

REJECTS = "rejects.jsonl"
_BEGIN = 64 << 10  # bytes of the list, in which the first ones are


def first_rejects(dest: str, storage_options: Options, count: int) -> tuple[list[dict[str, Any]], str]:
    """The first rejects of the last pack that had some, and where all are listed.

    Args:
        dest: The dataset.
        storage_options: Options for its store.
        count: How many, at most.
    """
    store = Store.open(dest, storage_options)
    begin = bytes(store.read_range(REJECTS, 0, min(store.size(REJECTS), _BEGIN)))
    lines = [line for line in begin.splitlines(keepends=True) if line.endswith(b"\n")]
    rows = [msgspec.json.decode(line, type=dict[str, Any]) for line in lines]
    return [row for row in rows if not row.get("skipped")][:count], store.where(REJECTS)


def write_rejects(
    store: Store, rejects: Sequence[tuple[str, str]], more: int = 0, skips: Sequence[tuple[str, str]] = ()
) -> None:
    """Write the list of rejects, if there are any.

    Args:
        store: The dataset.
        rejects: Where each is, and why.
        more: How many there are beside them.
        skips: The harmless ones, which come last and are marked.
    """
    left = [("", f"{more:,} more, which are not listed")] if more else []
    rows: list[dict[str, str | bool]] = [{"where": where, "reason": why} for where, why in [*rejects, *left]]
    rows += [{"where": where, "reason": why, "skipped": True} for where, why in skips]
    if rows:
        store.write(REJECTS, b"".join(msgspec.json.encode(row) + b"\n" for row in rows))
