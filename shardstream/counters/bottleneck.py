"""Which stage a loader waits for."""

from __future__ import annotations

from shardstream.counters.snapshots import Snapshot

__all__ = ["bottleneck"]

_SMALL = 0.2  # of the loop's time: who waits less is not held up
_GET, _MAKE = ("request", "disk", "decompress"), ("decode", "transform")


def bottleneck(found: Snapshot) -> str:
    """The stage that holds up the consumer of a process.

    Args:
        found: What was counted in some time: the difference of two snapshots.

    Returns:
        "step" if the consumer waits for less than 20 % of its time. Else a stage of reading ("request",
        "disk" or "decompress") if the threads that build batches wait longer for frames than they build; and
        if not, "decode", "transform", or "batch" for the rest of building. "" if nothing was delivered.
    """
    seconds = {name: each.sum for name, each in found.stages.items()}
    wait, step = seconds["wait"], seconds["step"]
    if not wait + step:
        return ""
    if wait < _SMALL * (wait + step):
        return "step"
    made = {name: seconds[name] for name in _MAKE}
    # Batches that need neither are built by the consumer, who then waits for frames only.
    if found.values["frame_wait_seconds"] > seconds["batch"] or not any(made.values()):
        got = {name: seconds[name] for name in _GET}
        if any(got.values()):
            return max(got, key=got.__getitem__)
    made["batch"] = seconds["batch"] - sum(made.values())
    return max(made, key=made.__getitem__)
