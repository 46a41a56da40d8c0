"""An error comes in its place: all in front of it is delivered, and the state stands there."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import shardstream as ss
from shardstream.errors import CorruptionError, SourceError
from shardstream.format.manifest import Manifest

COUNT, BAD = 400, 273


def fails(sample: dict[str, Any]) -> Any:
    if sample["json"]["n"] == BAD:
        raise ArithmeticError("cannot use it")
    return sample


def fails_of_two(samples: list[dict[str, Any]]) -> Any:
    if any(sample["json"]["n"] == BAD for sample in samples):
        raise ArithmeticError("cannot use them")
    return {"json": [sample["json"] for sample in samples]}


def failing_block(block: dict[str, Any]) -> Any:
    if bytes(block["tokens"][:8].tolist()).startswith(b"fail"):
        raise ArithmeticError("cannot use it")
    return block


def make(folder: Path, compression: str, refuse: bool = False) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "rows.jsonl").open("w") as file:
        for n in range(COUNT):
            file.write(json.dumps({"id": f"{n:04d}", "n": n, "text": f"{n} " + "ab" * (n % 90)}) + "\n")
    ss.pack(
        folder / "rows.jsonl", folder / compression, compression=compression,
        workers=1, frame_size="1KiB", shard_size="8KiB",
    )  # fmt: skip
    return folder / compression


@pytest.fixture(scope="module", params=["zstd", "none"])
def packed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("rows"), request.param)


def numbers(batch: Any) -> list[int]:
    rows = batch["json"] if isinstance(batch, dict) else [sample["json"] for sample in batch]
    return [row["n"] for row in ([rows] if isinstance(rows, dict) else rows)]


def failing(one: Any, kind: type[Exception]) -> list[int]:
    found: deque[list[int]] = deque()
    with pytest.raises(kind):
        found.extend(map(numbers, one))
    return [number for some in found for number in some]


def right(make_one: Callable[[], Any], kind: type[Exception], expected: list[int], step: int) -> None:
    """What is in front of the error comes, once; the state raises it again at once, also elsewhere."""
    one = make_one()
    whole = expected[: expected.index(BAD) // step * step]
    assert failing(one, kind) == whole
    state = one.state_dict()
    assert state["position"] == len(whole)
    for other in (one, make_one()):
        for _ in range(2):
            other.load_state_dict(state)
            assert failing(other, kind) == []
            assert other.state_dict() == state


@pytest.mark.parametrize("batch_size", [1, 4, 64])
@pytest.mark.parametrize("options", [{}, {"collate": list}, {"threads": 1}, {"last": "pad"}])
def test_a_transform_that_fails_in_a_loader(packed: Path, batch_size: int, options: dict[str, Any]) -> None:
    order = [row["json"]["n"] for row in ss.StreamingDataset(packed, shuffle=ss.Shuffle(3))]

    def loader() -> Any:
        ds = ss.StreamingDataset(packed, shuffle=ss.Shuffle(3), transform=fails)
        return ss.StreamingLoader(ds, batch_size, **options)

    right(loader, ArithmeticError, order, batch_size)


def test_a_transform_that_fails_in_another_process(packed: Path) -> None:
    ds = ss.StreamingDataset(packed, transform=fails)
    loader = ss.StreamingLoader(ds, 4, engine="process")
    assert failing(loader, ArithmeticError) == list(range(272))
    assert loader.state_dict()["position"] == 272
    loader.close()
    loader.close()


def test_a_collate_that_fails(packed: Path) -> None:
    right(
        lambda: ss.StreamingLoader(ss.StreamingDataset(packed), 8, collate=fails_of_two),
        ArithmeticError, list(range(COUNT)), 8,
    )  # fmt: skip


def test_single_samples_come_up_to_the_one_that_fails(packed: Path) -> None:
    right(lambda: ss.StreamingDataset(packed, transform=fails), ArithmeticError, list(range(COUNT)), 1)


def mixture(url: Path, **options: Any) -> ss.Mixture:
    one, other = ss.StreamingDataset(url, **options), ss.StreamingDataset(url, **options)
    return ss.Mixture(
        [(one.subset(numbers=range(0, COUNT, 2)), 1), (other.subset(numbers=range(1, COUNT, 2)), 2)]
    )


@pytest.mark.parametrize("batch_size", [0, 1, 8])
def test_a_mixture(packed: Path, batch_size: int) -> None:
    order = [row["json"]["n"] for row in mixture(packed)]
    assert BAD in order

    def made() -> Any:
        mixed = mixture(packed, transform=fails)
        return ss.StreamingLoader(mixed, batch_size) if batch_size else mixed

    right(made, ArithmeticError, order, batch_size or 1)


@pytest.fixture
def damaged(packed: Path, tmp_path: Path) -> Path:
    """A copy in which the frame of BAD, and no other, is damaged."""
    shutil.copytree(packed, tmp_path / packed.name)
    ds = ss.StreamingDataset(packed)
    shard, number = ds._contents.reader.locate(BAD)
    index = ds._contents.reader.index(shard)
    frame = next(f for f in range(len(index.frame_offset)) if index.frame_first[f + 1] > number)
    path = tmp_path / packed.name / ds.manifest.shards[shard].url
    data = bytearray(path.read_bytes())
    data[int(index.frame_offset[frame]) + int(index.frame_size[frame]) // 2] ^= 1
    path.write_bytes(data)
    return tmp_path / packed.name


def first_of_frame(url: Path) -> int:
    ds = ss.StreamingDataset(url)
    shard, number = ds._contents.reader.locate(BAD)
    index = ds._contents.reader.index(shard)
    return BAD - number + max(int(first) for first in index.frame_first if first <= number)


@pytest.mark.parametrize("transform", [None, dict])
def test_a_damaged_frame(damaged: Path, transform: Any) -> None:
    begin = first_of_frame(damaged)
    ds = ss.StreamingDataset(damaged, transform=transform)
    assert failing(ds, CorruptionError) == list(range(begin))
    assert ds.state_dict()["position"] == begin
    assert failing(iter(ds), CorruptionError) == list(range(begin))  # the next epoch
    for batch_size in (1, 8, 32):
        loader = ss.StreamingLoader(ss.StreamingDataset(damaged, transform=transform), batch_size)
        assert failing(loader, CorruptionError) == list(range(begin // batch_size * batch_size))
        assert loader.state_dict()["position"] == begin // batch_size * batch_size


def test_a_damaged_frame_of_a_mixture(packed: Path, damaged: Path) -> None:
    begin = first_of_frame(damaged)
    order = [row["json"]["n"] for row in mixture(packed)]
    found = failing(mixture(damaged), CorruptionError)
    assert found == order[: len(found)]
    assert order[len(found)] in range(begin, begin + 60)
    place = len(found) // 8 * 8
    assert failing(ss.StreamingLoader(mixture(damaged), 8), CorruptionError) == order[:place]


def test_a_damaged_index(packed: Path, tmp_path: Path) -> None:
    shutil.copytree(packed, tmp_path / packed.name)
    ds = ss.StreamingDataset(tmp_path / packed.name)
    shard, number = ds._contents.reader.locate(BAD)
    manifest: Manifest = ds.manifest
    path = tmp_path / packed.name / manifest.shards[shard].index_url
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    ds = ss.StreamingDataset(tmp_path / packed.name)
    assert failing(ds, CorruptionError) == list(range(BAD - number))
    loader = ss.StreamingLoader(ss.StreamingDataset(tmp_path / packed.name), 8)
    assert failing(loader, CorruptionError) == list(range((BAD - number) // 8 * 8))


def test_a_field_that_cannot_be_decoded(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "rows.tar", "w") as tar:
        for n in range(COUNT):
            data = b"{" if n == BAD else json.dumps({"n": n}).encode()
            info = tarfile.TarInfo(f"{n:04d}.json")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    ss.pack(tmp_path / "rows.tar", tmp_path / "packed", workers=1)
    for transform in (None, dict):
        for step in (1, 8):

            def made(step: int = step, transform: Any = transform) -> Any:
                ds = ss.StreamingDataset(tmp_path / "packed", transform=transform)
                return ds if step == 1 else ss.StreamingLoader(ds, step)

            right(made, SourceError, list(range(COUNT)), step)


def test_a_transform_of_blocks(tmp_path: Path) -> None:
    with (tmp_path / "t.jsonl").open("w") as file:
        for n in range(100):
            file.write(json.dumps({"text": ("fail" if n == 70 else "good") + " " * 27}) + "\n")
    ss.pack(tmp_path / "t.jsonl", tmp_path / "t", tokenizer="bytes", eos=0, workers=1, frame_size="1KiB")
    ds = ss.TokenDataset(tmp_path / "t", 32, transform=failing_block)
    assert counted(ds, ArithmeticError) == 70
    assert ds.state_dict()["position"] == 70
    loader = ss.StreamingLoader(ss.TokenDataset(tmp_path / "t", 32, transform=failing_block), 8)
    assert counted(loader, ArithmeticError) == 8
    assert loader.state_dict()["position"] == 64


def counted(one: Any, kind: type[Exception]) -> int:
    """How many there are in front of an error."""
    found: deque[Any] = deque()
    with pytest.raises(kind):
        found.extend(one)
    return len(found)
