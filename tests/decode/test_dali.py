"""DaliLoader: what it decodes, in which order, from where it goes on, and how it ends."""

from __future__ import annotations

import gc
import io
import json
import os
import signal
import sys
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import shardstream as ss
from shardstream.decode import images
from shardstream.decode.crops import RANDOM, random_crops
from shardstream.decode.dali import _random_crop, audio, imagenet_train
from shardstream.errors import MissingExtraError, OptionError, SourceError, StateError
from shardstream.order.uniforms import uniforms
from shardstream.read.samples.zero_copy import ZeroCopySource
from tests.distributed import launch

dali = pytest.importorskip("nvidia.dali", reason="nvidia-dali is an extra of several hundred MB")
from nvidia.dali import fn, pipeline_def  # noqa: E402

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
COUNT = 50


def picture(number: int) -> Image.Image:
    """Smooth shapes with some texture; each of its own size, one too narrow for any crop of the ratio."""
    random = np.random.default_rng(number)
    height, width = (200, 8) if number == 7 else random.integers(60, 140, 2).tolist()
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / random.uniform(5, 40) + y / random.uniform(5, 40) + phase) for phase in range(3)]
    pixels = 128 + 90 * np.stack(waves, 2) + random.normal(0, 6, (height, width, 3))
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def jpeg(number: int) -> bytes:
    file = io.BytesIO()
    picture(number).save(file, "jpeg", quality=92)
    return file.getvalue()


def pack(folder: Path, compression: str, damaged: tuple[int, ...] = (), count: int = COUNT) -> str:
    """Images with class and caption; those that are damaged lack their end, or have zeros for a header."""
    for number in range(count):
        place = folder / "images" / f"{number % 5}"
        place.mkdir(parents=True, exist_ok=True)
        data = jpeg(number)
        if number in damaged:
            data = data[: len(data) // 2] if number % 2 else data[:4] + bytes(30) + data[34:]
        (place / f"{number:05d}.jpg").write_bytes(data)
        (place / f"{number:05d}.txt").write_text(f"picture {number}")
        (place / f"{number:05d}.cls").write_text(f"{number % 5}")
    url = str(folder / f"packed-{compression}")
    ss.pack(
        str(folder / "images"),
        url,
        format="images",
        compression=compression,
        shard_size="32KiB",
        frame_size="8KiB",
    )
    return url


@pytest.fixture(scope="module", params=["none", "zstd"])
def url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    return pack(tmp_path_factory.mktemp("dali"), request.param)


def dataset(url: str, rank: int = 0, size: int = 1) -> ss.StreamingDataset:
    return ss.StreamingDataset(url, shuffle=ss.Shuffle(seed=3, lanes=8), topology=ss.Topology(rank, size))


def loader(url: str, batch_size: int = 8, rank: int = 0, size: int = 1, **options: Any) -> ss.DaliLoader:
    options = {"pipeline": imagenet_train(size=32), "device": "cpu", "threads": 1} | options
    return ss.DaliLoader(dataset(url, rank, size), options.pop("pipeline"), batch_size, **options)


def number(key: str) -> int:
    return int(key.rpartition("/")[2])


def keys(batches: Any) -> list[str]:
    return [key for batch in batches for key in batch["__key__"]]


def pixels(batches: Any) -> dict[str, torch.Tensor]:
    return {
        key: image
        for batch in batches
        for key, image in zip(batch["__key__"], batch["image" if "image" in batch else "jpg"], strict=True)
    }


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def psnr(one: Any, other: Any) -> float:
    error = np.mean((np.asarray(one, np.float64) - np.asarray(other, np.float64)) ** 2)
    return float(10 * np.log10(255**2 / max(error, 1e-9)))


def decoded(jpg: Any, device: str) -> dict[str, Any]:
    return {"jpg": fn.decoders.image(jpg, device=device)}


def test_pixels_are_those_of_a_reference(url):
    for batch in loader(url, pipeline=decoded, last="short"):
        for key, image in zip(batch["__key__"], batch["jpg"], strict=True):
            assert psnr(image, Image.open(io.BytesIO(jpeg(number(key)))).convert("RGB")) > 45


def test_evaluation_is_resize_and_centre_crop(url):
    one = next(iter(loader(url, 1, pipeline="imagenet-eval")))
    image = Image.open(io.BytesIO(jpeg(number(one["__key__"][0]))))
    scale = 256 / min(image.size)
    image = image.resize([round(side * scale) for side in image.size], Image.Resampling.BILINEAR)
    left, top = (image.width - 224) // 2, (image.height - 224) // 2
    wanted = np.asarray(image.crop((left, top, left + 224, top + 224)))
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    found = (one["image"][0].permute(1, 2, 0) * std + mean) * 255
    assert one["image"].shape == (1, 3, 224, 224)
    assert psnr(found, wanted) > 30


@pytest.mark.parametrize("last", ["drop", "pad", "short"])
def test_order_labels_and_texts_are_those_of_a_streaming_loader(url, last):
    plain = list(ss.StreamingLoader(dataset(url), 8, last=last))
    ours = loader(url, last=last)
    assert len(ours) == len(plain)
    for epoch in range(2):
        wanted = plain if epoch == 0 else list(_second(url, last))
        for batch, other in zip(ours, wanted, strict=True):
            assert batch["__key__"] == other["__key__"]
            assert torch.equal(batch["cls"], other["cls"])
            assert batch["txt"] == other["txt"]
            if last != "drop":
                assert torch.equal(batch["__pad__"], other["__pad__"])
            assert [number(key) % 5 for key in batch["__key__"]] == batch["cls"].tolist()


def _second(url: str, last: str) -> ss.StreamingLoader:
    made = ss.StreamingLoader(dataset(url), 8, last=last)
    made.set_epoch(1)
    return made


@pytest.mark.parametrize("queue", [1, 3])
@pytest.mark.parametrize("taken", [0, 1, 4])
def test_a_resume_is_exact_while_queues_are_full(url, taken, queue):
    first = loader(url, queue=queue, last="short")
    first.set_epoch(2)
    batches = iter(first)
    begun = [next(batches) for _ in range(taken)]
    state = json.loads(json.dumps(first.state_dict()))
    rest = list(batches)
    assert state["position"] == 8 * taken
    assert state["epoch"] == 2
    for size in (8, 5):
        second = loader(url, size, queue=queue, last="short")
        second.load_state_dict(state)
        again = list(second)
        assert keys(again) == keys(rest)
        # The crops, too, with another size of batches.
        assert same(pixels(again), pixels(rest))
    assert len(keys(begun) + keys(rest)) == COUNT


def test_epochs_crop_otherwise_and_seeds_too(url):
    epochs = loader(url, last="short")
    one, two = pixels(epochs), pixels(epochs)
    other = pixels(loader(url, last="short", seed=1))
    for wrong in (two, other):
        assert sum(torch.equal(one[key], wrong[key]) for key in one) < 3
    assert same(one, pixels(loader(url, last="short")))


def test_ranks_are_disjoint_and_crop_as_one_would(url):
    alone = pixels(loader(url, 12, last="short"))
    for size in (2, 3):
        parts = [pixels(loader(url, 12 // size, rank, size, last="short")) for rank in range(size)]
        assert sum(map(len, parts)) >= COUNT
        found = {key: image for part in parts for key, image in part.items()}
        assert same(found, alone)


@pipeline_def
def own_random(jpg, cls):
    image = fn.decoders.image_random_crop(jpg)
    return fn.resize(image, size=[16, 16]), cls


def test_dalis_own_random_numbers_go_on_with_a_checkpoint(url):
    def made(**options: Any) -> ss.DaliLoader:
        return loader(url, pipeline=own_random, checkpoint=True, queue=3, **options)

    first = made()
    batches = iter(first)
    for _ in range(2):
        next(batches)
    state = json.loads(json.dumps(first.state_dict()))
    rest = list(batches)
    second = made()
    second.load_state_dict(state)
    assert json.loads(json.dumps(second.state_dict())) == state
    again = list(second)
    assert same(pixels(again), pixels(rest))
    assert [number(key) % 5 for key in keys(again)] == torch.cat([batch["cls"] for batch in again]).tolist()
    # Resumed twice: the batch number that DALI goes on with counts from the epoch's first.
    third = made()
    third.load_state_dict(state)
    batches = iter(third)
    next(batches)
    fourth = made()
    fourth.load_state_dict(third.state_dict())
    assert same(pixels(fourth), pixels(rest[1:]))
    # Epochs start from seeds of their own.
    assert same(pixels(first), pixels(second))
    with pytest.raises(StateError, match="batch_size is 8 in the state and 4 here"):
        loader(url, 4, pipeline=own_random, checkpoint=True).load_state_dict(state)


def test_states_of_others(url):
    plain = ss.StreamingLoader(dataset(url), 8)
    next(iter(plain))
    ours = loader(url)
    ours.load_state_dict(plain.state_dict())
    assert keys(ours)[:8] == keys(ss.StreamingLoader(dataset(url), 8))[8:16]
    with pytest.raises(StateError, match="augment_seed is 0 in the state and 5 here"):
        loader(url, seed=5).load_state_dict(ours.state_dict())
    with pytest.raises(StateError, match="no checkpoint of DALI"):
        loader(url, checkpoint=True).load_state_dict(plain.state_dict())


def test_damaged_images_are_named(tmp_path):
    damaged = (4, 11, 18, 33)
    url = pack(tmp_path, "none", damaged)
    with pytest.raises(SourceError) as caught:
        list(loader(url))
    told = str(caught.value)
    assert any(f"/{one:05d}'" in told for one in damaged)
    assert "shard-" in told
    # The loader can be iterated again, and skips if it is told to.
    ours = loader(url, on_error="skip", last="short")
    found = list(ours)
    assert sorted(map(number, keys(found))) == [one for one in range(COUNT) if one not in damaged]
    assert ours.stats()["skipped"] == len(damaged)
    for batch in found:
        assert [number(key) % 5 for key in batch["__key__"]] == batch["cls"].tolist()
        assert batch["txt"] == [f"picture {number(key)}" for key in batch["__key__"]]
        assert len(batch["image"]) == len(batch["__pad__"]) == len(batch["__key__"])


def test_who_is_skipped_changes_nothing_for_the_others(tmp_path):
    damaged = (4, 18)
    found = pixels(loader(pack(tmp_path, "none", damaged), on_error="skip", last="short"))
    whole = pixels(loader(pack(tmp_path / "whole", "none"), last="short"))
    assert len(found) == COUNT - len(damaged)
    assert all(torch.equal(image, whole[key]) for key, image in found.items())


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_a_thousand_damaged_images(tmp_path, caplog):
    damaged = tuple(range(0, 3000, 3))
    # Whole images: a crop that lies in front of where an image is cut off decodes well.
    url = pack(tmp_path, "none", damaged, 3000)
    ours = loader(url, pipeline=decoded, on_error="skip", last="short")
    found = keys(ours)
    assert ours.stats()["skipped"] == 1000
    assert sorted(map(number, found)) == [one for one in range(3000) if one % 3]
    assert all(f"/{one:05d}' of" in caplog.text for one in damaged)


def test_a_pipeline_that_always_fails_says_so(url):
    def wrong(jpg: Any) -> dict[str, Any]:
        return {"jpg": fn.decoders.audio(jpg)[0]}

    with pytest.raises(SourceError, match="fails on every sample"):
        next(iter(loader(url, pipeline=wrong)))


def test_corruption_comes_in_its_place(tmp_path):
    url = pack(tmp_path, "zstd")
    shard = max(Path(url).glob("shard-*.tar*"))
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 255
    shard.write_bytes(data)
    ours = ss.DaliLoader(ss.StreamingDataset(url), imagenet_train(size=16), 4, "cpu", threads=1)
    seen: list[Any] = []
    with pytest.raises(ss.ShardstreamError, match=shard.name):
        seen.extend(ours)
    assert seen


def tasks() -> int:
    return len(os.listdir("/proc/self/task"))


def test_dropped_iterators_leave_no_threads_and_no_frames(url):
    next(iter(loader(url, threads=3)))
    gc.collect()
    before = tasks()
    freed: list[int] = []
    for _ in range(3):
        batches = iter(loader(url, threads=3))
        batch = next(batches)
        kept = batch["image"]
        wanted = kept.clone()
        assert tasks() > before
        del batches, batch
        assert launch.ended(lambda: tasks() <= before)
        # A batch outlives its pipeline.
        assert torch.equal(kept, wanted)
        gc.collect()
        freed.append(len([one for one in gc.get_objects() if type(one).__name__ == "ZeroCopySource"]))
    assert freed == [0, 0, 0]


def test_a_forked_child_leaves_the_pipelines_of_its_parent_alone(url):
    batches = iter(loader(url))
    next(batches)
    cycle: list[Any] = [batches]
    cycle.append(cycle)
    gc.collect()
    gc.disable()
    try:
        # Only the garbage collector finds the pipeline now; in a child its end would wait for lost threads.
        del batches, cycle
        child = os.fork()
        if not child:
            gc.collect()
            os._exit(7)
        ended: list[tuple[int, int]] = []
        done = launch.ended(lambda: ended.append(os.waitpid(child, os.WNOHANG)) or ended[-1][0])
        if not done:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        assert done
        assert os.waitstatus_to_exitcode(ended[-1][1]) == 7
    finally:
        gc.enable()
        gc.collect()


def test_buffers_are_used_again_when_nobody_looks(tmp_path):
    reader = dataset(pack(tmp_path, "zstd"))._contents.reader
    held = ZeroCopySource(reader, None)
    one = held.fetch(0, 0)
    view = memoryview(one)[:100]
    wanted, address = bytes(view), one.ctypes.data
    held.recycle(one)
    del one
    other = held.fetch(0, 1)
    assert other.ctypes.data != address
    assert bytes(view) == wanted
    del view
    assert held.fetch(0, 0).ctypes.data == address


def test_numbers_are_uniform_and_depend_on_the_position_alone():
    positions = np.arange(5000, dtype=np.int64)
    found = uniforms(positions, RANDOM, 1, 2)
    assert found.dtype == np.float32
    assert found.min() >= 0
    assert found.max() < 1
    assert np.abs(found.mean(0) - 0.5).max() < 0.02
    assert np.abs(np.corrcoef(found.T) - np.eye(RANDOM)).max() < 0.07
    assert np.array_equal(uniforms(positions[7:9], RANDOM, 1, 2), found[7:9])
    for seed, epoch in ((1, 3), (2, 2)):
        assert abs(np.corrcoef(uniforms(positions, 1, seed, epoch)[:, 0], found[:, 0])[0, 1]) < 0.05


def test_crops_and_flips_are_those_of_the_cpu(url):
    """For one seed and position `images.Train` and a DALI graph cut the same and flip the same."""
    train = images.Train(32, seed=4)

    def cut(image: Any, random: Any) -> dict[str, Any]:
        start, shape = _random_crop(image, random, train.area, train.ratio)
        return {"start": start, "shape": shape, "flip": random[22] < train.flip}

    ours = loader(url, pipeline=cut, last="short", seed=4)
    ours.set_epoch(3)
    at = 0
    for batch in ours:
        count = len(batch["__key__"])
        random = train.random(3, np.arange(at, at + count))
        sizes = np.array([picture(number(key)).size[::-1] for key in batch["__key__"]], np.int64)
        crops, _ = random_crops(sizes, random, train.area, train.ratio)
        assert torch.cat((batch["start"], batch["shape"]), 1).tolist() == crops.tolist()
        assert batch["flip"].tolist() == train.cuts(sizes, random)[1]
        at += count
    assert at == COUNT


def test_crops_are_those_of_random_numbers(url):
    """A crop of the whole area without a choice of ratio is the image, resized."""
    whole = imagenet_train(size=32, area=(1, 1), ratio=(1e-3, 1e3), flip=0.0, mean=(0, 0, 0), std=(1, 1, 1))

    def both(image: Any, random: Any, device: str) -> dict[str, Any]:
        flipped = imagenet_train(size=32, flip=1.0)(image, random, device)["image"]
        plain = imagenet_train(size=32, flip=0.0)(image, random, device)["image"]
        return {"image": plain, "flipped": fn.flip(flipped, horizontal=1)}

    for batch in loader(url, pipeline=both, last="short"):
        assert (batch["image"] - batch["flipped"]).abs().max() < 1e-5
    assert all(
        0 <= float(batch["image"].min()) <= float(batch["image"].max()) <= 1
        for batch in loader(url, pipeline=whole)
    )


def test_sound(tmp_path):
    sources = tmp_path / "sounds"
    sources.mkdir()
    import tarfile

    with tarfile.open(sources / "a.tar", "w") as tar:
        for one in range(4):
            file = io.BytesIO()
            with wave.open(file, "wb") as out:
                out.setnchannels(1)
                out.setsampwidth(2)
                out.setframerate(8000)
                out.writeframes((np.sin(np.arange(1000 + one) / 9) * 2**14).astype("<i2").tobytes())
            for name, data in ((f"{one}.wav", file.getvalue()), (f"{one}.json", b'{"n": %d}' % one)):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    url = str(tmp_path / "packed")
    ss.pack(str(sources / "a.tar"), url, format="webdataset")
    ds = ss.StreamingDataset(url)
    batch = next(iter(ss.DaliLoader(ds, audio(sample_rate=8000), 4, "cpu", threads=1)))
    assert [len(sound) for sound in batch["audio"]] == [1000, 1001, 1002, 1003]
    assert batch["json"] == [{"n": one} for one in range(4)]
    assert np.abs(batch["audio"][0].numpy() - np.sin(np.arange(1000) / 9) / 2).max() < 1e-3
    cut = next(iter(ss.DaliLoader(ds, audio(sample_rate=8000, seconds=0.25), 4, "cpu", threads=1)))
    assert cut["audio"].shape == (4, 2000)
    assert not cut["audio"][0, 1000:].any()


def test_fields_that_samples_lack(tmp_path):
    place = tmp_path / "images"
    place.mkdir()
    for one in range(6):
        (place / f"{one}.jpg").write_bytes(jpeg(one))
        if one % 2:
            (place / f"{one}.txt").write_text(f"picture {one}")
    url = str(tmp_path / "packed")
    ss.pack(str(place), url, format="images")
    ds = ss.StreamingDataset(url)
    batch = next(iter(ss.DaliLoader(ds, imagenet_train(size=16), 6, "cpu", threads=1)))
    assert batch["txt"] == [None, "picture 1", None, "picture 3", None, "picture 5"]

    def texts(txt: Any) -> dict[str, Any]:
        return {"txt": txt}

    with pytest.raises(SourceError, match=r"sample '0' of .* has no field 'txt'"):
        next(iter(ss.DaliLoader(ds, texts, 6, "cpu", threads=1)))


def test_options_that_cannot_work(url, monkeypatch):
    ds = dataset(url)
    for options, told in (
        ({"pipeline": "imagenet"}, "choose imagenet-train"),
        ({"pipeline": lambda png: {"png": png}}, r"needs 'png'.*'jpg'"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"last": "some"}, "last='some'"),
        ({"device": "cuda"}, "device='cuda'"),
        ({"seed": -1}, "seed=-1"),
    ):
        given = {"pipeline": "imagenet-train", "batch_size": 8} | options
        with pytest.raises(OptionError, match=told):
            ss.DaliLoader(ds, **given)
    with pytest.raises(OptionError, match="2 outputs"):
        next(iter(loader(url, pipeline=own_random, outputs=["jpg"])))
    with pytest.raises(OptionError, match="ds is a int"):
        ss.DaliLoader(3, "imagenet-train", 8)
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    with pytest.raises(MissingExtraError, match=r"shardstream\[dali\]"):
        ss.DaliLoader(ds, "imagenet-train", 8)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, so that device='gpu' works")
def test_a_gpu_that_is_not_there(url):
    with pytest.raises(OptionError, match="device='gpu' needs a CUDA device"):
        loader(url, device="gpu")


@needs_gpu
def test_gpu_and_cpu_see_the_same(url):
    batches = list(loader(url, device="gpu", last="short"))
    assert batches[0]["image"].device.type == batches[0]["cls"].device.type == "cuda"
    on_gpu, on_cpu = pixels(batches), pixels(loader(url, last="short"))
    assert on_gpu.keys() == on_cpu.keys()
    # Another JPEG decoder and another resize: close, not equal. A standard deviation is 1.
    assert np.mean([float((on_gpu[key].cpu() - on_cpu[key]).abs().mean()) for key in on_cpu]) < 0.1


@needs_gpu
def test_resume_on_a_gpu(url):
    first = loader(url, device="gpu", queue=3, last="short")
    batches = iter(first)
    next(batches)
    state = first.state_dict()
    rest = pixels(batches)
    second = loader(url, device="gpu", last="short")
    second.load_state_dict(state)
    assert same(pixels(second), rest)
