"""Packs with a peer's own writer, in the peers' environment; prints seconds, CPU seconds and samples stored.

Usage: python peers_pack.py PEER QUESTION SOURCE DEST WORKERS. PEER is mds, wds or litdata. QUESTION is
jsonl or parquet, whose rows are packed by WORKERS processes, each with its share of the lines or row
groups, as the peers' documentation recommends; or writer, where one process writes samples that it has in
memory. All compress with zstd 3, except images, which none compresses.
"""

import glob
import importlib
import json
import multiprocessing
import os
import sys
import tarfile
import time
import types
from importlib.machinery import ModuleSpec

LIMIT = 1 << 26  # bytes of a shard


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


def row_groups(source: str, worker: int, workers: int):
    import pyarrow.parquet

    file = pyarrow.parquet.ParquetFile(source)
    for number in range(worker, file.num_row_groups, workers):
        yield from file.read_row_group(number).to_pylist()


ROWS = {"jsonl": lines, "parquet": row_groups}


def in_memory(source: str) -> list:
    """Samples: the JPEGs of a folder, or the rows of a JSONL file."""
    if os.path.isdir(source):
        return [
            {"__key__": f"{number:08d}", "jpg": open(path, "rb").read()}
            for number, path in enumerate(sorted(glob.glob(f"{source}/**/*.jpg", recursive=True)))
        ]
    return [
        {"__key__": row["id"].replace(".", "%2E"), "txt": row["text"], "json": {"bytes": row["bytes"]}}
        for row in lines(source, 0, 1)
    ]


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


def load(peer: str) -> None:
    """Import a peer before the time begins, as the package itself is."""
    if peer == "mds":
        without_torchvision()
        importlib.import_module("streaming")
    elif peer == "wds":
        importlib.import_module("webdataset")
        importlib.import_module("zstandard")
    else:
        importlib.import_module("litdata")
    importlib.import_module("pyarrow.parquet")


class Mds:
    """MDSWriter. Texts and numbers as its own types, images as bytes."""

    def __init__(self, dest: str, worker: int, images: bool) -> None:
        from streaming import MDSWriter

        columns = {"key": "str", "jpg": "bytes"} if images else {"id": "str", "text": "str", "bytes": "int"}
        compression = None if images else "zstd:3"
        out = os.path.join(dest, str(worker))
        self.writer = MDSWriter(out=out, columns=columns, compression=compression, size_limit=LIMIT)

    def row(self, row: dict) -> None:
        self.writer.write(row)

    def sample(self, sample: dict) -> None:
        if "jpg" in sample:
            self.writer.write({"key": sample["__key__"], "jpg": sample["jpg"]})
        else:
            row = {"id": sample["__key__"], "text": sample["txt"], "bytes": sample["json"]["bytes"]}
            self.writer.write(row)

    def close(self) -> None:
        self.writer.finish()


class Wds:
    """ShardWriter. It compresses with gzip only; for zstd its documentation passes an opener."""

    def __init__(self, dest: str, worker: int, images: bool) -> None:
        import webdataset
        import zstandard

        opened = {}

        def opener(name: str):
            compressor = zstandard.ZstdCompressor(level=3, write_checksum=True)
            opened[name] = zstandard.open(name, "wb", cctx=compressor)
            return opened[name]

        def close(name: str) -> None:  # the writer closes what it opened itself alone
            opened.pop(name).close()

        pattern = os.path.join(dest, f"{worker}-%06d.tar")
        zstd = {} if images else {"opener": opener, "post": close}
        self.writer = webdataset.ShardWriter(
            pattern if images else f"{pattern}.zst", maxsize=LIMIT, verbose=0, **zstd
        )

    def row(self, row: dict) -> None:
        key = row["id"].replace(".", "%2E")
        self.writer.write({"__key__": key, "txt": row["text"], "json": {"bytes": row["bytes"]}})

    def sample(self, sample: dict) -> None:
        self.writer.write(sample)

    def close(self) -> None:
        self.writer.close()


WRITERS = {"mds": Mds, "wds": Wds}


def share(peer: str, question: str, source: str, dest: str, worker: int, workers: int) -> None:
    writer = WRITERS[peer](dest, worker, images=False)
    for row in ROWS[question](source, worker, workers):
        writer.row(row)
    writer.close()


def litdata_group(job: tuple[str, int]):
    import pyarrow.parquet

    source, number = job
    yield from pyarrow.parquet.ParquetFile(source).read_row_group(number).to_pylist()


def litdata_pack(source: str, dest: str, workers: int) -> None:
    import litdata
    import pyarrow.parquet

    groups = pyarrow.parquet.ParquetFile(source).num_row_groups
    litdata.optimize(
        fn=litdata_group,
        inputs=[(source, number) for number in range(groups)],
        output_dir=dest,
        chunk_bytes=LIMIT,
        compression="zstd",
        num_workers=workers,
        verbose=False,
    )


def write(peer: str, dest: str, samples: list) -> None:
    writer = WRITERS[peer](dest, 0, images="jpg" in samples[0])
    for sample in samples:
        writer.sample(sample)
    writer.close()


def stored(peer: str, dest: str) -> int:
    """How many samples lie below a folder, as the peer's own files say."""
    count = 0
    if peer == "wds":
        import zstandard

        for path in glob.glob(f"{dest}/**/*.tar*", recursive=True):
            opener = zstandard.open if path.endswith(".zst") else open
            with opener(path, "rb") as opened, tarfile.open(fileobj=opened, mode="r|") as tar:
                count += len({member.name.partition(".")[0] for member in tar})
        return count
    for path in glob.glob(f"{dest}/**/index.json", recursive=True):
        with open(path) as file:
            index = json.load(file)
        count += sum(shard["samples"] for shard in index.get("shards", ()))
        count += sum(chunk["chunk_size"] for chunk in index.get("chunks", ()))
    return count


def processes(*job: object) -> None:
    workers = int(str(job[-1]))
    started = [
        multiprocessing.Process(target=share, args=(*job[:-1], worker, workers)) for worker in range(workers)
    ]
    for process in started:
        process.start()
    for process in started:
        process.join()
        if process.exitcode:
            sys.exit(process.exitcode)


if __name__ == "__main__":
    peer, question, source, dest, workers = [*sys.argv[1:5], int(sys.argv[5])]
    os.makedirs(dest, exist_ok=True)
    samples = in_memory(source) if question == "writer" else []
    load(peer)
    started, used = time.perf_counter(), time.process_time()
    if question == "writer":
        write(peer, dest, samples)
    elif peer == "litdata":
        litdata_pack(source, dest, workers)
    else:
        processes(peer, question, source, dest, workers)
    seconds, times = time.perf_counter() - started, os.times()
    cpu = time.process_time() - used + times.children_user + times.children_system
    print(json.dumps([seconds, cpu, stored(peer, dest)]))
