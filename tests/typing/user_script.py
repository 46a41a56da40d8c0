"""What a user writes. It passes `mypy --strict`, and each assert_type holds."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from typing_extensions import assert_type

import shardstream as ss
from shardstream import Batch, Manifest, OptionError, ShardstreamError, StreamingDataset, logs
from shardstream.progress import Progress


def pack_all(source: Path, folder: Path) -> int:
    manifest = ss.pack(
        source, folder / "code", format="jsonl", compression="zstd", on_error="skip", workers=2
    )
    assert_type(manifest, Manifest)
    ss.pack([source, "more.jsonl"], folder / "tokens", tokenizer="bytes", eos=256, progress=tell)
    plan = ss.pack(source, folder / "never", dry_run=True)
    print(plan.tasks, plan.compression)
    adopted = ss.index(["a.tar", "b.tar.gz"], folder / "adopted")
    assert_type(adopted, Manifest)
    report = ss.verify(str(folder / "code"), deep=True, progress=tell)
    if not report.sound:
        print([problem.sample for problem in report.problems])
    return manifest.samples + adopted.samples


def samples() -> Iterator[dict[str, Any]]:
    yield {"__key__": "a", "txt": "text", "cls": 3}


def pack_python(folder: Path, rank: int, world: int) -> None:
    assert_type(ss.pack(samples(), folder / "made", workers=2, progress=True), Manifest)
    ss.pack([{"txt": "a"}, {"json": {"b": [1]}}], folder / "listed", limit=1, resume=True)
    ss.pack([samples, samples], folder / "tasks", workers=8, on_error="skip")
    with ss.Writer(folder / "written", shard_size="1GiB", part=(rank, world), append=True) as writer:
        for sample in samples():
            writer.write(sample)
    assert_type(ss.commit(folder / "written", storage_options=None), Manifest)
    with ss.Writer(folder / "ids", tokens="uint16", progress=tell) as tokens:
        tokens.write({"__key__": 3, "tokens": np.arange(3)})
        tokens.write([1, 2, 3])
    print(tokens.samples, tokens.manifest.tokens)


def pack_own(source: ss.Source, folder: Path) -> None:
    ss.pack(["a.lines"], folder, format=source, shuffle=3)


def pack_elsewhere(folder: Path, own: ss.engines.Engine) -> None:
    with ThreadPoolExecutor() as pool:
        for engine in (ss.engines.Ray(address="auto", cpus=1, retries=5), ss.engines.Submit(pool), own):
            ss.pack("a.jsonl", folder, engine=engine)
        assert_type(ss.pack([samples], folder, engine=pool), Manifest)
    ss.pack("a.jsonl", folder, engine="ray")


def tell(now: Progress) -> None:
    print(now.done_bytes, now.total_bytes)


def cropped(sample: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    start = int(rng.integers(10))
    return {"__key__": sample["__key__"], "txt": sample["txt"][start:]}


def lengths(samples: list[dict[str, Any]]) -> torch.Tensor:
    return torch.tensor([len(sample["txt"]) for sample in samples])


def stream(folder: Path, rank: int, world: int) -> None:
    cache = ss.Cache("/nvme/cache", disk="200GB", ram="2GB", disk_format="raw")
    topology = ss.Topology(rank, world)
    shuffle = ss.Shuffle(seed=3, window=8, scope="lane")
    ds = StreamingDataset(folder / "code", fields=["txt"], shuffle=shuffle, cache=cache, topology=topology)
    loader = ss.StreamingLoader(ds, 8, last="pad", prefetch="64MiB", engine="process", pin=True)
    for batch in loader:
        assert_type(batch, Batch)
        print(batch.size, batch["__key__"])
    state: Mapping[str, Any] = loader.state_dict()
    loader.load_state_dict(state)
    loader.set_epoch(1)
    print(len(loader), loader.stats())
    loader.close()

    some = ds.subset(numbers=range(100))
    for sample in some:
        assert_type(sample, dict[str, Any])

    changed = StreamingDataset(folder / "code", transform=cropped)
    for lens in ss.StreamingLoader(changed, 8, collate=lengths):
        assert_type(lens, torch.Tensor)

    tokens = ss.TokenDataset(folder / "tokens", seq_len=2048, pack="best-fit", dtype="int32", cache=cache)
    for block in ss.StreamingLoader(tokens, 4, last="drop", device="cuda"):
        print(block["tokens"].shape)

    mixture = ss.Mixture([(ds, 0.7), (some, 0.3)], stop="all")
    for mixed in ss.StreamingLoader(mixture, 8, last="short"):
        print(mixed["__source__"])

    warmed = ss.warm(folder / "code", cache, ranks=range(8), dp_size=64, shuffle=shuffle, progress=tell)
    print(warmed.complete, ss.warm(mixture).fetched_bytes)


def log_rows(folder: Path) -> int:
    sinks: list[logs.Sink] = [logs.CSV(folder / "rows.csv", fields=["step", "loss"])]
    with ss.Log(folder / "log", rank=0, spool_limit="8MiB", seconds=1, sinks=sinks) as log:
        log.write(step=1, loss=0.5)
        logging.getLogger().addHandler(log.handler("INFO"))
        print(log.flush(timeout=1.0), log.stats()["rows"])
    for row in logs.read(str(folder / "log"), rank=0):
        print(row["step"] + 1)
    return log.dropped


@ss.decoder("upper")
def upper(data: bytes | memoryview) -> str:
    return bytes(data).decode().upper()


def main() -> None:
    try:
        print(ss.__version__, pack_all(Path("in.jsonl"), Path("out")))
        stream(Path("out"), 0, 1)
    except OptionError as error:
        print("an option", error)
    except (ss.SourceError, ss.CorruptionError, ss.StorageError, ss.CommitError, ss.StateError):
        raise
    except (ss.MissingExtraError, ShardstreamError) as error:
        print(error)


if __name__ == "__main__":
    main()
