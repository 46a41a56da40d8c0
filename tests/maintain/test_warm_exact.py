"""After a complete warm-up a job asks for the manifest alone, and nothing came that it does not read."""

from __future__ import annotations

import io
import json
import random
import tarfile
import tempfile
from typing import Any

import fsspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import shardstream as ss
from tests.counted import asked, forget

TOKENS: dict[str, dict[str, Any]] = {
    "tokens": {},
    "pad": {"tail": "pad"},
    "best-fit": {"pack": "best-fit"},
    "boundaries": {"boundaries": True},
}
SAMPLES = ("zstd", "none", "gzip")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Datasets in memory://warm/, with frames and shards small enough for 16 ranks."""
    folder, numbers = tmp_path_factory.mktemp("warm"), random.Random(0)
    rows = [
        {"id": f"{n:04d}", "text": "".join(numbers.choices("abcdef ", k=numbers.randint(0, 1500)))}
        for n in range(240)
    ]
    source = folder / "corpus.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    small: Any = {"shard_size": "24KiB", "frame_size": "4KiB", "workers": 1}
    for codec in ("zstd", "none"):
        ss.pack(source, f"memory://warm/{codec}", compression=codec, **small)
    ss.pack(source, "memory://warm/tokens", tokenizer="bytes", eos=256, **small)
    memory = fsspec.filesystem("memory")
    for shard in range(6):
        archive = io.BytesIO()
        with tarfile.open(fileobj=archive, mode="w:gz") as tar:
            for row in rows[shard * 20 : shard * 20 + 20]:
                info = tarfile.TarInfo(row["id"] + ".txt")
                info.size = len(row["text"])
                tar.addfile(info, io.BytesIO(row["text"].encode()))
        memory.pipe_file(f"/tars/{shard}.tar.gz", archive.getvalue())
    tars = [f"counted://tars/{shard}.tar.gz" for shard in range(6)]
    ss.index(tars, "memory://warm/gzip", workers=1, frame_size="4KiB")


def opened(kind: str, **options: Any) -> Any:
    """A dataset of one of the kinds."""
    if kind in TOKENS:
        return ss.TokenDataset("counted://warm/tokens", seq_len=300, **TOKENS[kind], **options)
    return ss.StreamingDataset(f"counted://warm/{kind}", **options)


def subset(ds: Any, how: str | None) -> Any:
    """A subset of samples, or all of them."""
    if how == "numbers":
        return ds.subset(numbers=range(0, ds.total, 7))
    if how == "where":
        return ds.subset(where=lambda columns: columns.size["txt"] > 900).subset(numbers=range(9))
    return ds


def made(parts: list[tuple[str, str | None]], stop: str, **options: Any) -> Any:
    """A dataset of one part, or a mixture of several."""
    found = [subset(opened(kind, **options), how) for kind, how in parts]
    return found[0] if len(found) == 1 else ss.Mixture([(ds, n + 1) for n, ds in enumerate(found)], stop)


PARTS = st.one_of(
    st.tuples(st.sampled_from(list(TOKENS)), st.none()).map(lambda part: [part]),
    st.lists(
        st.tuples(st.sampled_from(SAMPLES), st.sampled_from([None, "numbers", "where"])),
        min_size=1,
        max_size=3,
    ),
    st.just([("tokens", None), ("tokens", None)]),
)
SHUFFLES = st.one_of(
    st.just(False),
    st.builds(
        ss.Shuffle, st.integers(0, 5), st.sampled_from([None, 1, 3, 8]), st.integers(1, 4),
        st.sampled_from(["epoch", "lane"]),
    ),
)  # fmt: skip


@pytest.mark.usefixtures("store")
@settings(max_examples=15)
@given(data=st.data())
def test_a_job_after_a_complete_warm_up_asks_for_nothing(data: st.DataObject) -> None:
    parts, shuffle = data.draw(PARTS, "parts"), data.draw(SHUFFLES, "shuffle")
    stop = data.draw(st.sampled_from(["first", "all", "never"]), "stop")
    world = data.draw(st.integers(1, 16), "world")
    ranks = data.draw(st.lists(st.integers(0, world - 1), min_size=1, max_size=3, unique=True), "ranks")
    disk_format = data.draw(st.sampled_from(["stored", "raw"]), "disk_format")
    epochs = 1 if stop == "never" else data.draw(st.integers(1, 2), "epochs")
    with tempfile.TemporaryDirectory() as folder:
        options: Any = {"shuffle": shuffle, "cache": ss.Cache(folder, disk="1GB", disk_format=disk_format)}

        def job(rank: int, stop: str) -> Any:
            return made(parts, stop, topology=ss.Topology(rank, world), **options)

        first = job(ranks[0], stop)
        report = ss.warm(first, ranks=ranks, epochs=epochs)
        assert report.complete
        assert report.fetched + report.present == report.wanted
        forget()
        for rank in ranks:
            # An endless mixture is warmed until each dataset was read: what "all" reads, in the same order.
            ds = job(rank, "all" if stop == "never" else stop)
            source = ss.StreamingLoader(ds, 2) if data.draw(st.booleans(), "loader") else ds
            for _ in range(epochs):
                for _ in source:
                    pass
            assert asked() == []
        assert ss.warm(first, ranks=ranks, epochs=epochs, check=True).complete
        assert asked() == []


@pytest.mark.usefixtures("store")
@settings(max_examples=20)
@given(kind=st.sampled_from([*SAMPLES, *TOKENS]), shuffle=SHUFFLES, world=st.integers(1, 16), data=st.data())
def test_nothing_comes_that_the_ranks_do_not_read(
    kind: str, shuffle: Any, world: int, data: st.DataObject
) -> None:
    rank = data.draw(st.integers(0, world - 1))
    with tempfile.TemporaryDirectory() as folder:
        ds = opened(
            kind, shuffle=shuffle, cache=ss.Cache(folder, disk="1GB"), topology=ss.Topology(rank, world)
        )
        order, reader = ds._contents.order(0), ds._contents.reader
        frames, followers = set[tuple[int, int]](), set[tuple[int, int]]()
        for position in range(rank, ds.total, world):
            shard, number = (int(found[0]) for found in order.locate([position]))
            if kind in TOKENS:
                blocks = ds._contents.source.blocks(shard)
                mine = blocks.pieces(np.array([number]), False).frame.tolist()
                # A frame that a block begins in comes with those that hold the ends of its blocks.
                for one in blocks.pieces(np.array([number]), True).frame.tolist():
                    followers |= {(shard, frame) for frame in blocks.read_with(np.array([one])).tolist()}
            else:
                mine = [reader.index(shard).frame_of(number)]
            frames |= {(shard, frame if kind != "gzip" else 0) for frame in mine}
        indexes = len(reader.manifest.shards) if kind == "best-fit" else len({shard for shard, _ in frames})
        report = ss.warm(ds)
        assert report.complete
        assert frames <= frames | followers
        assert report.wanted == indexes + len(frames | followers)
        if kind not in ("tokens", "pad", "boundaries"):
            assert followers <= frames
