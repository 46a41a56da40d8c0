"""Whether all ranks read the same data."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import Any

from shardstream.distributed.launchers import torch_distributed
from shardstream.errors import StateError
from shardstream.order.cursor import differences

__all__ = ["agree"]

_seen: set[str] = set()  # the keys that this process has compared
_forked = False  # whether this is a fork of a rank, which must not use the connection of its parent


def _in_fork() -> None:
    global _forked
    _forked = torch_distributed(sys.modules) is not None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_fork)


def agree(what: str, identity: Mapping[str, Any], dp_size: int) -> None:
    """Check that all ranks of torch.distributed read the same data.

    The first rank to come here writes its identity into the store of the process group, and the others
    compare theirs. So no rank has to wait for another, and one rank may iterate alone. Only the first dataset
    with a given `what` is compared, since further datasets need not be iterated on all ranks.

    Args:
        what: The kind and the URL of the dataset, for messages.
        identity: The dataset and the options that decide the order, as in a state.
        dp_size: How many data-parallel ranks there are.

    Raises:
        StateError: Two ranks differ. Each rank raises it when it comes here.
    """
    group = _store()
    if group is None:
        return
    import hashlib  # here, since it loads slowly and most processes do not need it
    import json

    store, size = group
    # Ranks of different groups in one job may have different seeds. Ranks of one group may not.
    loose = ("fingerprint", "seed") if dp_size == size else ("fingerprint",)
    kind = json.dumps([what, dp_size, _without(identity, loose)], sort_keys=True)
    key = "shardstream/" + hashlib.sha256(kind.encode()).hexdigest()
    mine = json.dumps(identity, sort_keys=True)
    try:
        if key not in _seen:
            theirs = store.compare_set(key, "", mine).decode()
            if theirs != mine:
                found = "; ".join(
                    f"{name} is {there!r} on one rank and {here!r} on another"
                    for name, there, here in differences("", json.loads(theirs), json.loads(mine))
                )
                store.set(f"{key}/differs", found)
        found = store.get(f"{key}/differs").decode() if store.check([f"{key}/differs"]) else ""
    except Exception:  # noqa: BLE001 - the store lacks these methods, or its host has ended
        return
    _seen.add(key)
    if found:
        raise StateError(
            f"the ranks do not read the same dataset as {what}: {found}. Give all ranks the same options, "
            f"and start again where the dataset was changed meanwhile"
        )


def _store() -> tuple[Any, int] | None:
    """The store of the default process group, and the number of its ranks; None if there is none."""
    place = torch_distributed(sys.modules)
    if place is None or place.size == 1 or _forked:
        return None
    get = getattr(sys.modules.get("torch.distributed.distributed_c10d"), "_get_default_store", None)
    store = None if get is None else get()
    return None if store is None else (store, place.size)


def _without(value: Any, names: tuple[str, ...]) -> Any:
    """A copy of a value without the keys `names`, in all dicts within it."""
    if isinstance(value, Mapping):
        return {name: _without(item, names) for name, item in value.items() if name not in names}
    return [_without(item, names) for item in value] if isinstance(value, list) else value
