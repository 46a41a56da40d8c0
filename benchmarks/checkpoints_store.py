"""Checkpoints on S3, 20 ms away: ss.Checkpoints, ss.dcp and s3torchconnector beside bare requests."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from typing import Any

from benchmarks.saves import Watch, best, in_process, state_of, views

PUT, GET = "bare obstore puts", "bare obstore ranges"
OURS, CONNECTOR = "ss.Checkpoints", "s3torchconnector"
TO_STORE = (PUT, CONNECTOR, "ss.dcp.Writer", OURS)
FROM_STORE = {GET: PUT, CONNECTOR: CONNECTOR, "ss.dcp.Reader": "ss.dcp.Writer", OURS: OURS}
LATENCY = 0.02
PART = 8 << 20

Store = dict[str, str]


def checkpoints(folder: str, store: Store | None = None) -> Any:
    """Ours, with memory for all of the state."""
    import shardstream as ss

    options = None if store is None else _options(store)
    return ss.Checkpoints(folder, memory="4GB", busy="wait", storage_options=options)


def _options(store: Store) -> dict[str, Any]:
    return {"key": store["key"], "secret": store["secret"], "endpoint_url": store["endpoint"]}


def in_store(way: str, store: Store, size: int, loads: bool) -> dict[str, float]:
    """In a process of its own: saves to a store, or loads from it."""
    state, rows = state_of(size, filled=not loads), []
    work = _from_store(way, store, state) if loads else _to_store(way, store, state)
    for step in range(2):
        with Watch() as watch:
            work(step)
        rows.append(watch.found)
    assert all(bool(tensor.any()) for tensor in state.values())
    return {**best(rows[1:]), "memory": max(row["memory"] for row in rows)}


def _dcp(way: str, store: Store, step: int) -> dict[str, Any]:
    """A writer and a reader of torch.distributed.checkpoint."""
    url = f"{store['url']}/{way.split('.')[0]}/step-{step}"
    if way == CONNECTOR:
        from s3torchconnector import S3ClientConfig
        from s3torchconnector.dcp import S3StorageReader, S3StorageWriter
        from s3torchconnector.dcp.s3_file_system import S3FileSystem

        os.environ |= {
            "AWS_ACCESS_KEY_ID": store["key"], "AWS_SECRET_ACCESS_KEY": store["secret"],
            "AWS_ENDPOINT_URL": store["endpoint"], "AWS_ENDPOINT_URL_S3": store["endpoint"],
        }  # fmt: skip
        config = S3ClientConfig(force_path_style=True)
        writer, reader = (
            kind("us-east-1", url, s3client_config=config) for kind in (S3StorageWriter, S3StorageReader)
        )
        from s3torchconnector._s3client import S3Client

        for each in (writer, reader):
            system = each.fs
            assert isinstance(system, S3FileSystem)
            system._client = S3Client("us-east-1", endpoint=store["endpoint"], s3client_config=config)  # noqa: SLF001
        return {"writer": writer, "reader": reader}
    import shardstream as ss

    return {
        "writer": ss.dcp.Writer(url, storage_options=_options(store)),
        "reader": ss.dcp.Reader(url, storage_options=_options(store)),
    }


def _obstore(store: Store) -> Any:
    from obstore.store import S3Store

    bucket, _, prefix = store["url"].removeprefix("s3://").partition("/")
    return S3Store(
        bucket, prefix=f"{prefix}/bare", client_options={"allow_http": True},
        config={
            "access_key_id": store["key"], "secret_access_key": store["secret"],
            "endpoint": store["endpoint"], "region": "us-east-1",
        },
    )  # fmt: skip


def _to_store(way: str, store: Store, state: dict[str, Any]) -> Callable[[int], None]:
    import torch.distributed.checkpoint as dcp

    handle = checkpoints(f"{store['url']}/ours", store) if way == OURS else None

    def save(step: int) -> None:
        if handle is not None:
            handle.save(step, {"state": state})
            handle.wait()
        elif way == PUT:
            import obstore

            bare = _obstore(store)
            _in_threads(
                4, lambda pair: obstore.put(bare, f"{step}-{pair[0]}", pair[1]), list(enumerate(views(state)))
            )
        else:
            dcp.save(state, storage_writer=_dcp(way, store, step)["writer"], no_dist=True)

    return save


def _from_store(way: str, store: Store, state: dict[str, Any]) -> Callable[[int], None]:
    import torch.distributed.checkpoint as dcp

    def load(step: int) -> None:
        if way == OURS:
            assert checkpoints(f"{store['url']}/ours", store).load({"state": state}) == 1
        elif way == GET:
            import obstore

            bare = _obstore(store)

            def get(place: tuple[int, int, memoryview]) -> None:
                number, start, view = place
                view[:] = memoryview(obstore.get_range(bare, f"1-{number}", start=start, length=len(view)))

            _in_threads(
                16,
                get,
                [
                    (number, start, view[start : start + PART])
                    for number, view in enumerate(views(state))
                    for start in range(0, len(view), PART)
                ],
            )
        else:
            dcp.load(state, storage_reader=_dcp(way, store, 1)["reader"], no_dist=True)

    return load


def _in_threads(threads: int, work: Callable[[Any], Any], values: list[Any]) -> None:
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, values))


def measure_store(found: dict[str, Any], size: int, rounds: int) -> None:
    """Saves to and loads from SeaweedFS behind a proxy."""
    from tests.proxy import Proxy
    from tests.servers import KEY, SECRET, Weed

    with Weed() as weed, Proxy(weed.address, latency=LATENCY) as proxy:
        for _ in range(rounds):
            store = {"url": weed.bucket(), "endpoint": proxy.url, "key": KEY, "secret": SECRET}
            for way in TO_STORE:
                if way == CONNECTOR and importlib.util.find_spec("s3torchconnector") is None:
                    continue
                found["S3 save"].setdefault(way, []).append(in_process(in_store, way, store, size, False))
            for way, writer in FROM_STORE.items():
                if writer in found["S3 save"]:
                    found["S3 load"].setdefault(way, []).append(in_process(in_store, way, store, size, True))
