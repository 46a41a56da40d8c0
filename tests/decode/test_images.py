"""Images to batches: the pixels, their order, damaged ones, and the same crops after a resume."""

from __future__ import annotations

import io
import logging
import random
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

import shardstream as ss
from shardstream.decode import images
from shardstream.errors import OptionError, SourceError
from shardstream.read.buffers import BufferPool

COUNT = 60


def picture(number: int, size: tuple[int, int] = (0, 0), mode: str = "RGB") -> Image.Image:
    """A smooth picture with some texture, and no two alike."""
    random = np.random.default_rng(number)
    width, height = size if size[0] else (200 + 37 * (number % 9), 180 + 53 * (number % 7))
    coarse = Image.fromarray(random.integers(0, 256, (6, 8, 3), np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.int16)
    noise = random.integers(-6, 7, smooth.shape, np.int16)
    return Image.fromarray(np.clip(smooth + noise, 0, 255).astype(np.uint8)).convert(mode)


def encoded(image: Image.Image, format: str = "JPEG", **options) -> bytes:
    out = io.BytesIO()
    image.save(out, format, **({"quality": 92} | options))
    return out.getvalue()


def psnr(one, two) -> float:
    error = np.mean((np.asarray(one, np.float64) - np.asarray(two, np.float64)) ** 2)
    return float(10 * np.log10(255**2 / max(error, 1e-9)))


def decoded(transform, data: list[bytes | None], field: str = "jpg", position: int = 0, **options):
    keys = [f"k{number}" for number in range(len(data))]
    numbers = transform.random(0, np.arange(position, position + len(data)))
    return transform.decode({field: data}, keys, ["shard-000000.tar"] * len(data), numbers, **options)


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    for number in range(COUNT):
        folder = root / "in" / f"{number % 5}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number:03d}.jpg").write_bytes(encoded(picture(number)))
    ss.pack(str(root / "in"), str(root / "out"), workers=1, frame_size="64KiB", shard_size="256KiB")
    return str(root / "out")


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_crops_agree_with_pillow(format):
    """Against Pillow: decoded whole, the same crop resized with its antialiased filter; 40 dB at least."""
    transform = images.Train(160, dtype="uint8", layout="NHWC", seed=3)
    data = [encoded(picture(number, (700, 620)), format) for number in range(12)]
    made = decoded(transform, data)["image"]
    assert made.shape == (12, 160, 160, 3)
    cuts, flips = transform.cuts(np.full((12, 2), [620, 700]), transform.random(0, np.arange(12)))
    assert {how.scale for how in cuts} >= {1, 2}
    assert set(flips) == {True, False}
    for row, (how, mirrored) in enumerate(zip(cuts, flips, strict=True)):
        left, right = how.left * how.scale, min(700, how.right * how.scale)
        box = (left, how.top * how.scale, right, min(620, how.bottom * how.scale))
        wanted = Image.open(io.BytesIO(data[row])).convert("RGB").resize((160, 160), Image.BILINEAR, box=box)
        wanted = wanted.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirrored else wanted
        assert psnr(made[row], wanted) > 40


def test_evaluation_is_resize_and_centre_crop():
    transform = images.Evaluate(64, resize=72, dtype="uint8", layout="NHWC")
    data = [
        encoded(picture(1, (300, 200)), "PNG"),
        encoded(picture(2, (200, 301))),
        encoded(picture(3, (90, 90))),
    ]
    made = decoded(transform, data)["image"]
    for row, (wide, high) in enumerate([(108, 72), (72, 108), (72, 72)]):
        whole = Image.open(io.BytesIO(data[row])).convert("RGB").resize((wide, high), Image.BILINEAR)
        left, top = round((wide - 64) / 2), round((high - 64) / 2)
        assert psnr(made[row], whole.crop((left, top, left + 64, top + 64))) > 38


def test_normalised_planes_are_the_same_pixels():
    data = [encoded(picture(number)) for number in range(4)]
    raw = decoded(images.Train(32, dtype="uint8"), data)["image"]
    made = decoded(images.Train(32), data)["image"]
    assert raw.shape == made.shape == (4, 3, 32, 32)
    assert made.is_contiguous(memory_format=torch.channels_last)
    mean = torch.tensor((0.485, 0.456, 0.406)).view(1, 3, 1, 1)
    std = torch.tensor((0.229, 0.224, 0.225)).view(1, 3, 1, 1)
    assert torch.allclose(made, (raw / 255 - mean) / std, atol=1e-5)


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_other_colours_become_rgb(mode):
    image = picture(5, (120, 100), mode)
    made = decoded(images.Evaluate(64, resize=64, dtype="uint8", layout="NHWC"), [encoded(image)])["image"]
    wanted = image.convert("RGB").resize((76, 64), Image.BILINEAR).crop((6, 0, 70, 64))
    assert psnr(made[0], wanted) > 30


def test_labels_and_order_are_those_of_the_bytes(packed):
    plain = ss.StreamingLoader(
        ss.StreamingDataset(packed, shuffle=ss.Shuffle(seed=1), decode=False), 8, "short"
    )
    ds = ss.StreamingDataset(packed, shuffle=ss.Shuffle(seed=1), decode=images.Train(32))
    keys = [key for batch in plain for key in batch["__key__"]]
    found, labels = [], []
    for batch in ss.StreamingLoader(ds, 8, "short"):
        assert batch["image"].shape[1:] == (3, 32, 32)
        assert "jpg" not in batch
        found += batch["__key__"]
        labels += batch["cls"].tolist()
    assert found == keys
    assert labels == [int(key.partition("/")[0]) for key in keys]


def epoch(packed, **options):
    ds = ss.StreamingDataset(packed, shuffle=ss.Shuffle(seed=1, lanes=4), decode=images.Train(24))
    return ss.StreamingLoader(ds, 4, **options)


def test_crops_are_the_same_for_any_threads_batch_size_and_way(packed):
    one = torch.cat([batch["image"] for batch in epoch(packed, threads=1)])
    ds = ss.StreamingDataset(packed, shuffle=ss.Shuffle(seed=1, lanes=4), decode=images.Train(24))
    many = torch.cat([batch["image"] for batch in ss.StreamingLoader(ds, 15, threads=3)])
    assert torch.equal(one, many)
    ds.set_epoch(0)
    assert torch.equal(one, torch.stack([sample["image"] for sample in ds]))
    second = torch.stack([sample["image"] for sample in ds])
    assert not torch.equal(one, second)


def test_ranks_make_the_crops_of_one(packed):
    alone = torch.cat([batch["image"] for batch in epoch(packed)])
    rows = {}
    for rank in range(2):
        ds = ss.StreamingDataset(
            packed,
            shuffle=ss.Shuffle(seed=1, lanes=4),
            decode=images.Train(24),
            topology=ss.Topology(rank, 2),
        )
        for number, image in enumerate(torch.cat([batch["image"] for batch in ss.StreamingLoader(ds, 2)])):
            rows[2 * number + rank] = image
    assert torch.equal(alone, torch.stack([rows[number] for number in range(COUNT)]))


def test_a_resume_makes_the_crops_that_were_missing(packed):
    whole = [batch["image"] for _ in range(2) for batch in epoch(packed)][: COUNT // 4]
    first = epoch(packed)
    for step, _ in enumerate(first, 1):
        if step == 7:
            break
    state = first.state_dict()
    second = epoch(packed, threads=1)
    second.load_state_dict(state)
    rest = [batch["image"] for batch in second]
    assert len(rest) == len(whole) - 7
    assert all(torch.equal(a, b) for a, b in zip(whole[7:], rest, strict=True))


def test_a_transform_gets_the_image(packed):
    ds = ss.StreamingDataset(
        packed, decode=images.Evaluate(16), transform=lambda sample: (sample["image"].mean(), sample["cls"])
    )
    assert len(ds[0]) == 2
    batch = next(iter(ss.StreamingLoader(ds, 4, collate=list)))
    assert all(isinstance(label, int) for _, label in batch)


def test_the_first_of_several_fields_counts():
    data = encoded(picture(1))
    transform = images.Evaluate(64, resize=64, dtype="uint8")
    columns = {"jpg": [data, None], "png": [None, encoded(picture(1), "PNG")]}
    made = transform.decode(columns, ["a", "b"], ["s", "s"], None)["image"]
    assert psnr(made[0], made[1]) > 30


def test_fields_are_chosen_by_name():
    assert images.Train().choose({"cls": "cls", "jpg": "jpg", "seg.png": "png"}) == ("jpg",)
    assert images.Train().choose({"photo.jpg": "jpg", "txt": "txt"}) == ("photo.jpg",)
    assert images.Train(fields=("seg.png",)).choose({"jpg": "jpg", "seg.png": "png"}) == ("seg.png",)
    for kinds in ({"txt": "txt"}, {"left.jpg": "jpg", "right.jpg": "jpg"}):
        with pytest.raises(OptionError):
            images.Train().choose(kinds)
    with pytest.raises(OptionError, match="no field 'png'"):
        images.Train(fields=("png",)).choose({"jpg": "jpg"})


def test_memory_is_used_again_once_nobody_holds_it():
    transform, pool = images.Train(48), BufferPool()
    data = [encoded(picture(number)) for number in range(3)]
    first = decoded(transform, data, memory=pool.lease)["image"]
    before, row, place = first.clone(), first[1], first.data_ptr()
    second = decoded(transform, data, position=3, memory=pool.lease)["image"]
    assert second.data_ptr() != place
    del first
    third = decoded(transform, data, position=6, memory=pool.lease)["image"]
    assert third.data_ptr() not in (place, second.data_ptr())
    assert torch.equal(row, before[1])
    del row
    assert decoded(transform, data, position=9, memory=pool.lease)["image"].data_ptr() == place


@pytest.mark.parametrize(
    "options",
    [
        {"size": 0}, {"dtype": "float64"}, {"layout": "CHW"}, {"on_error": "skip"}, {"fields": "jpg"},
        {"std": (0.0, 1.0, 1.0)}, {"area": (0.0, 1.0)}, {"ratio": (2.0, 1.0)}, {"flip": 1.5},
    ],
)  # fmt: skip
def test_options_that_cannot_work(options):
    with pytest.raises(OptionError):
        images.Train(**options)
    with pytest.raises(OptionError):
        images.Evaluate(224, resize=200)


def test_a_damaged_image_is_named():
    good = encoded(picture(1))
    for bad in (good[: len(good) // 2], b"", b"nonsense", None, good[:2] + b"\x00" * 50):
        with pytest.raises(SourceError, match=r"'k1' of shard-000000\.tar.*jpg"):
            decoded(images.Train(32), [good, bad, good])


def test_damaged_images_are_masked_and_counted(tmp_path, caplog):
    (tmp_path / "in").mkdir()
    for number in range(8):
        data = encoded(picture(number))
        (tmp_path / "in" / f"{number}.jpg").write_bytes(data[: len(data) // 2] if number in (2, 5) else data)
    ss.pack(str(tmp_path / "in"), str(tmp_path / "out"), workers=1)
    ds = ss.StreamingDataset(str(tmp_path / "out"), decode=images.Train(16, on_error="mask"))
    loader = ss.StreamingLoader(ds, 4)
    with caplog.at_level(logging.WARNING, "shardstream"):
        batches = list(loader)
    bad = torch.cat([batch["__damaged__"] for batch in batches])
    assert bad.tolist() == [number in (2, 5) for number in range(8)]
    assert (torch.cat([batch["image"] for batch in batches])[bad] == 0).all()
    assert loader.stats()["damaged"] == 2
    assert sorted(record.getMessage()[:11] for record in caplog.records) == ["sample '2' ", "sample '5' "]


def test_a_thousand_corrupted_jpegs_are_named_or_decoded(tmp_path, caplog):
    """Whatever bytes are hit, the process lives, and what is masked is named; cut ones are all found."""
    rng = random.Random(1)
    goods = [encoded(picture(number, (160, 120)), quality=70) for number in range(10)]
    damaged = []
    for number in range(1000):
        data = bytearray(goods[number % len(goods)])
        if number % 3 == 0:
            del data[rng.randrange(len(data) * 9 // 10) :]
        else:
            for _ in range(rng.choice([1, 5, 50])):
                data[rng.randrange(len(data) if number % 3 == 1 else 700)] = rng.randrange(256)
        damaged.append((f"{number:04d}", bytes(data)))
    tars = {str(tmp_path / f"{part}.tar"): damaged[part::5] for part in range(5)}
    for name, rows in tars.items():
        with tarfile.open(name, "w") as tar:
            for key, content in rows:
                member = tarfile.TarInfo(f"{key}.jpg")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    ss.index(list(tars), tmp_path / "out")  # packing would refuse what does not begin as images do
    ds = ss.StreamingDataset(tmp_path / "out", decode=images.Train(32, on_error="mask"))
    loader = ss.StreamingLoader(ds, 16, "short")
    with caplog.at_level(logging.WARNING, "shardstream"):
        batches = list(loader)
    bad = {
        key
        for batch in batches
        for key, is_bad in zip(batch["__key__"], batch["__damaged__"].tolist(), strict=True)
        if is_bad
    }
    assert {key for key, _ in damaged[::3]} <= bad
    told = [record.getMessage() for record in caplog.records]
    wanted = {f"sample {key!r} of {name}" for name, rows in tars.items() for key, _ in rows if key in bad}
    assert {message.partition(": ")[0] for message in told} == wanted
    assert len(told) == len(bad) == loader.stats()["damaged"]
    assert sum(len(batch["__key__"]) for batch in batches) == 1000
    assert all(torch.isfinite(batch["image"]).all() for batch in batches)


def test_an_image_that_claims_too_much_is_refused():
    data = bytearray(encoded(picture(1, (64, 64))))
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = b"\xff\xdc\xff\xdc"
    with pytest.raises(SourceError, match="more than"):
        decoded(images.Train(32), [bytes(data)])
