"""ss.Checkpoints beside torch.save, torch.distributed.checkpoint and s3torchconnector: on a disk and on S3.

    python -m benchmarks.checkpoints [--size 2GB] [--rounds 2] [--data DIR] [--out DIR]

Four questions: saves and loads of a model on a local disk; saves beside a training loop; saves to an object
store 20 ms away, and loads from it. Each way runs in a process of its own, in turn with the others, and does
its work more than once: the best figures count, for what else the machine does only adds. The first save of a
process makes buffers and does not count. s3torchconnector runs if it can be imported.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.saves import (
    Loop,
    Watch,
    bars,
    best,
    heading,
    in_process,
    load_raw,
    save_raw,
    state_of,
    synced,
    table,
    turns,
    views,
    write_results,
)
from shardstream.format.sizes import human_size, parse_size

RAW, READ, PUT, GET = "raw write + fsync", "raw preadv, 4 threads", "bare obstore puts", "bare obstore ranges"
OURS, COPY, CONNECTOR = "ss.Checkpoints", "memcpy into warm memory", "s3torchconnector"
KEPT = "dcp.async_save, DefaultStager kept"
SAVES = (RAW, "torch.save + fsync", "dcp.save", OURS)
LOADS = {READ: RAW, "torch.load": "torch.save + fsync", "dcp.load": "dcp.save", OURS: OURS}
STALLS = (COPY, "torch.save + fsync", "dcp.save", "dcp.async_save", KEPT, OURS)
TO_STORE = (PUT, CONNECTOR, "ss.dcp.Writer", OURS)
FROM_STORE = {GET: PUT, CONNECTOR: CONNECTOR, "ss.dcp.Reader": "ss.dcp.Writer", OURS: OURS}
BARS = (
    ("save: seconds, of a raw write and fsync", "save", "seconds", OURS, RAW, 1.05),
    ("save: CPU, of dcp.save", "save", "cpu", OURS, "dcp.save", 0.70),
    ("load, verified: seconds, of a raw preadv", "load", "seconds", OURS, READ, 1.10),
    ("stall, of a memcpy into warm memory", "stall", "stall", OURS, COPY, 1.20),
    ("stall, of dcp.async_save", "stall", "stall", OURS, "dcp.async_save", 0.60),
    ("lost until durable, of dcp.async_save", "stall", "lost", OURS, "dcp.async_save", 0.50),
    ("load from S3: seconds, of bare obstore", "S3 load", "seconds", OURS, GET, 1.15),
    ("load from S3: seconds, of s3torchconnector", "S3 load", "seconds", OURS, CONNECTOR, 0.50),
)
LATENCY = 0.02
PART = 8 << 20

Store = dict[str, str]


def checkpoints(folder: str, store: Store | None = None) -> Any:
    """Ours, with memory for all of the state."""
    import shardstream as ss

    options = None
    if store is not None:
        options = {"key": store["key"], "secret": store["secret"], "endpoint_url": store["endpoint"]}
    return ss.Checkpoints(folder, memory="4GB", busy="wait", storage_options=options)


def saver(way: str, folder: str, state: dict[str, Any], pause: float) -> Callable[[int], Callable[[], bool]]:
    """From a step to a function that says whether its checkpoint is durable; the call itself is the stall.

    The function waits for that at most `pause` seconds.
    """
    import torch
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

    handle = checkpoints(folder) if way == OURS else None
    options: dict[str, Any] = {}
    if way == KEPT:
        options["async_stager"] = DefaultStager(StagingOptions(False, False, False, False))
    kept = {name: tensor.clone() for name, tensor in state.items()} if way == COPY else {}

    def save(step: int) -> Callable[[], bool]:
        place = f"{folder}/{step}"
        if handle is not None:
            handle.save(step, {"state": state})
            return lambda: bool(handle.wait(pause))
        if way == COPY:
            for name, tensor in state.items():
                kept[name].copy_(tensor)
        elif way == RAW:
            save_raw(place, state)
        elif way == "torch.save + fsync":
            torch.save(state, place)
            synced(place)
        elif way == "dcp.save":
            dcp.save(state, checkpoint_id=place, no_dist=True)
        else:
            future: Any = dcp.async_save(state, checkpoint_id=place, no_dist=True, **options)
            return lambda: bool(future.done() and future.result())
        return lambda: True

    return save


def saved(way: str, folder: str, size: int) -> dict[str, float]:
    """In a process of its own: saves; the last one is left for loads."""
    state, rows = state_of(size), []
    os.makedirs(folder)
    save = saver(way, folder, state, 60.0)
    for step in range(3):
        os.sync()
        with Watch() as watch:
            durable = save(step)
            assert durable()
        rows.append(watch.found)
        if step:
            for old in (f"{folder}/{step - 1}", f"{folder}/step-{step - 1}"):
                shutil.rmtree(old, ignore_errors=True)
                Path(old).unlink(missing_ok=True)
    return {**best(rows[1:]), "memory": max(row["memory"] for row in rows)}


def loaded(way: str, folder: str, size: int) -> dict[str, float]:
    """In a process of its own: loads, the first of which fills the page cache."""
    import torch
    import torch.distributed.checkpoint as dcp

    state, rows = state_of(size, filled=False), []
    for _ in range(3):
        with Watch() as watch:
            if way == READ:
                load_raw(f"{folder}/2", state)
            elif way == "torch.load":
                state.update(torch.load(f"{folder}/2", weights_only=True))
            elif way == "dcp.load":
                dcp.load(state, checkpoint_id=f"{folder}/2", no_dist=True)
            else:
                assert checkpoints(folder).load({"state": state}) == 2
        rows.append(watch.found)
    assert all(bool(tensor.any()) for tensor in state.values())
    return best(rows[1:])


def stalled(way: str, folder: str, size: int) -> dict[str, float]:
    """In a process of its own: saves beside a loop."""
    os.makedirs(folder)
    save = saver(way, folder, state_of(size), 0.0)
    loop = Loop()
    rows = [loop.beside(lambda step=step: save(step)) for step in range(4)]  # type: ignore[misc]
    return best(rows[1:])


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

    options = {"key": store["key"], "secret": store["secret"], "endpoint_url": store["endpoint"]}
    return {
        "writer": ss.dcp.Writer(url, storage_options=options),
        "reader": ss.dcp.Reader(url, storage_options=options),
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


def measure(data: Path, size: int, rounds: int, out: Path) -> None:
    """All tables."""
    found: dict[str, Any] = {name: {} for name in ("save", "load", "stall", "S3 save", "S3 load")}
    beside, small = min(size, 350_000_000), min(size, 160_000_000)
    shutil.rmtree(data, ignore_errors=True)
    for _ in turns(rounds, 150.0):
        for way in SAVES:
            folder = data / way.replace(" ", "_")
            shutil.rmtree(folder, ignore_errors=True)
            found["save"].setdefault(way, []).append(in_process(saved, way, str(folder), size))
        for way, writer in LOADS.items():
            folder = data / writer.replace(" ", "_")
            found["load"].setdefault(way, []).append(in_process(loaded, way, str(folder), size))
        for way in STALLS:
            shutil.rmtree(data / "stall", ignore_errors=True)
            found["stall"].setdefault(way, []).append(in_process(stalled, way, str(data / "stall"), beside))
    shutil.rmtree(data)
    measure_store(found, small, rounds)
    lines = ["# Checkpoints", "", heading("Loads of local files are warm."), ""]
    both, columns = ("seconds", "cpu", "memory"), ("stall", "lost", "durable", "cpu", "memory")
    lines += table(f"save, {human_size(size)}, local", found["save"], both, RAW)
    lines += table(f"load, {human_size(size)}, local", found["load"], both, READ)
    lines += table(f"beside training, {human_size(beside)}", found["stall"], columns, COPY)
    lines += table(f"save, {human_size(small)}, S3 20 ms away", found["S3 save"], both, PUT)
    lines += table(f"load, {human_size(small)}, S3 20 ms away", found["S3 load"], both, GET)
    lines += bars(found, BARS)
    write_results(out, lines, {"size": size, "found": found})


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path("/tmp/benchmarks-checkpoints"))
    parser.add_argument("--size", default="2GB")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/checkpoints"))
    given = parser.parse_args()
    measure(given.data, parse_size(given.size), given.rounds, given.out)


if __name__ == "__main__":
    main()
