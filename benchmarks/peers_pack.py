"""Packs a JSONL file with a peer's own writer, in the peers' environment; prints the seconds taken.

Usage: python peers_pack.py mds|wds SOURCE DEST WORKERS. Each worker packs its share of the lines, as
the peers' documentation recommends for more than one process. Both writers compress with zstd 3.
"""

import json
import multiprocessing
import os
import sys
import time
import types
from importlib.machinery import ModuleSpec


def lines(source: str, worker: int, workers: int):
    size = os.path.getsize(source)
    start, end = size * worker // workers, size * (worker + 1) // workers
    with open(source, "rb") as file:
        if start:
            file.seek(start - 1)
            file.readline()
        while file.tell() < end:
            line = file.readline()
            if not line:
                return
            yield json.loads(line)


def without_torchvision() -> None:
    """Stands in for torchvision, which MosaicML imports for its vision datasets and not to write.

    The builds on the index do not load beside every torch.
    """
    members = {
        "torchvision": (),
        "torchvision.datasets": ("VisionDataset", "CIFAR10", "ImageFolder", "CocoDetection"),
        "torchvision.transforms": (),
        "torchvision.transforms.functional": ("to_tensor",),
    }
    for name, classes in members.items():
        module = types.ModuleType(name)
        module.__spec__ = ModuleSpec(name, None)  # other packages look whether there is one
        for member in classes:
            setattr(module, member, type(member, (), {}))
        sys.modules[name] = module


def mds(source: str, dest: str, worker: int, workers: int) -> None:
    without_torchvision()
    from streaming import MDSWriter

    columns = {"id": "str", "text": "str", "bytes": "int"}
    out = os.path.join(dest, str(worker))
    with MDSWriter(out=out, columns=columns, compression="zstd:3", size_limit=1 << 26) as writer:
        for row in lines(source, worker, workers):
            writer.write(row)


def wds(source: str, dest: str, worker: int, workers: int) -> None:
    import webdataset
    import zstandard

    # ShardWriter compresses with gzip only; for zstd its documentation passes an opener.
    def opener(name: str):
        return zstandard.open(name, "wb", cctx=zstandard.ZstdCompressor(level=3, write_checksum=True))

    pattern = os.path.join(dest, f"{worker}-%06d.tar.zst")
    with webdataset.ShardWriter(pattern, maxsize=1 << 26, opener=opener, verbose=0) as writer:
        for row in lines(source, worker, workers):
            key = row["id"].replace(".", "%2E")
            writer.write({"__key__": key, "txt": row["text"], "json": {"bytes": row["bytes"]}})


if __name__ == "__main__":
    peer, source, dest, workers = [*sys.argv[1:4], int(sys.argv[4])]
    os.makedirs(dest, exist_ok=True)
    function = {"mds": mds, "wds": wds}[peer]
    started = time.perf_counter()
    processes = [
        multiprocessing.Process(target=function, args=(source, dest, worker, workers))
        for worker in range(workers)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        if process.exitcode:
            sys.exit(process.exitcode)
    print(time.perf_counter() - started)
