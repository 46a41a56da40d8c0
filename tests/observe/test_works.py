"""Packs, warm-ups, checkpoints, weights and logs: one row for each job and kind, over all its processes."""

from __future__ import annotations

from shardstream.observe.history import History
from shardstream.observe.works import works
from tests.observe.made import made


def test_all_kinds() -> None:
    def now(done: int) -> list:
        ranks = [
            made(
                pid=10 + rank,
                rank=rank,
                activities=("loader", "checkpoint", "logs"),
                what="s3://b/run",
                checkpoint_bytes=done * 1e6,
                checkpoint_step=500,
                commits=2,
                saves=3,
                saves_failed=1,
                log_rows=10 * done,
                log_dropped=1,
                events={"save": [0.5] * 3, "durable": [4.0] * 2},
            )
            for rank in range(4)
        ]
        pack = made(
            pid=1,
            job="pack",
            activities=["pack"],
            what="out",
            packed_rows=100 * done,
            packed_bytes=done * 1e6,
            packed_shards=done,
            pack_tasks=40,
            pack_tasks_done=done,
        )
        warm = made(
            pid=2, job="warm", activities=["warm"], what="s3://b", warmed_bytes=done * 1e6, warm_bytes=4e7
        )
        load = made(pid=3, job="load", activities=["weights"], weight_bytes=done * 1e6, weight_tensors=done)
        return [*ranks, pack, warm, load]

    history = History()
    history.update(now(0), 0.0)
    found = {work.kind: work for work in works(history.update(now(10), 5.0))}
    assert set(found) == {"pack", "warm", "checkpoint", "weights", "logs"}
    pack = found["pack"]
    assert (pack.progress, pack.rate, pack.left) == (0.25, 2e6, 15.0)
    assert pack.detail == "10 of 40 tasks, 1,000 samples in 10 shards"
    assert (found["warm"].progress, found["warm"].left) == (0.25, 15.0)
    saves = found["checkpoint"]
    assert (saves.processes, saves.rate, saves.trouble) == (4, 8e6, "1 failed")
    assert saves.detail.startswith("step 500 is durable, the loop waits 5")
    assert found["weights"].detail == "10 tensors, 9.5 MiB"
    assert (found["logs"].detail, found["logs"].trouble) == ("80.0 rows/s", "4 rows dropped")


def test_a_job_that_only_loads_has_none() -> None:
    assert works(History().update([made()], 0.0)) == []
