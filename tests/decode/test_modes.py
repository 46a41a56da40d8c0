"""A mode for each field: names, masks beside images, one crop for several fields, sizes of two numbers."""

from __future__ import annotations

import copy
import io
import pickle
import tarfile
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

import shardstream as ss
from shardstream.decode import images
from shardstream.decode.crops import cover, random_crops, scaled
from shardstream.errors import OptionError, SourceError

COUNT = 12


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def numbered(number: int, high: int = 96, wide: int = 128) -> np.ndarray:
    """An image whose red is the row and whose green is the column, so that pixels say where they lay."""
    rows, columns = np.mgrid[0:high, 0:wide]
    return np.stack((rows * 255 // (high - 1), columns * 255 // (wide - 1), np.full((high, wide), number)), 2)


def packed(path, rows: list[dict[str, bytes]], name: str = "a"):
    with tarfile.open(path / f"{name}.tar", "w") as tar:
        for number, row in enumerate(rows):
            for field, data in row.items():
                member = tarfile.TarInfo(f"{number:03d}.{field}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    ss.index([str(path / f"{name}.tar")], path / name, workers=1)
    return str(path / name)


def row(number: int, **options) -> dict[str, bytes]:
    picture = numbered(number, **options).astype(np.uint8)
    ids = (picture[..., 0] // 32).astype(np.uint8)  # eight stripes
    mask = Image.fromarray(ids, "P")
    mask.putpalette([number * 7 % 256 for number in range(3 * 8)])
    deep = picture[..., 1].astype(np.uint16) * 257
    return {
        "jpg": encoded(Image.fromarray(picture), "JPEG", quality=100, subsampling=0),
        "mask.png": encoded(mask),
        "depth.png": encoded(Image.fromarray(deep)),
        "txt": b"text",
    }


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    return packed(tmp_path_factory.mktemp("modes"), [row(number) for number in range(COUNT)])


def batches(url, decode, size=COUNT, **options):
    return list(ss.StreamingLoader(ss.StreamingDataset(url, decode=decode, **options), size))


def test_each_field_has_its_mode_and_its_name(url):
    decode = {"jpg": images.Train(32), "mask.png": "stored", "depth.png": False, "txt": True}
    (batch,) = batches(url, decode)
    assert batch["jpg"].shape == (COUNT, 3, 32, 32)
    assert batch["mask.png"].shape == (COUNT, 96, 128)
    assert (batch["mask.png"].numpy() == numbered(0)[..., 0] // 32).all()
    assert batch["depth.png"][0].startswith(b"\x89PNG")
    assert batch["txt"] == ["text"] * COUNT
    sample = ss.StreamingDataset(url, decode=decode)[3]
    assert set(sample) == {"__key__", "jpg", "mask.png", "depth.png", "txt"}
    assert sample["mask.png"].dtype == np.uint8
    assert sample["depth.png"] == batch["depth.png"][3]
    # Without a mode of their own, fields are decoded as True does.
    (other,) = batches(url, {"depth.png": "stored"})
    assert other["depth.png"].dtype == torch.uint16
    assert other["jpg"].shape == (COUNT, 96, 128, 3)
    (other,) = batches(url, {"image": images.Train(32), "mask.png": "stored"})
    assert torch.equal(other["image"], batch["jpg"])


def test_a_batch_has_the_other_name_for_a_version(url):
    (batch,) = batches(url, images.Train(32))
    assert list(batch) == ["__key__", "image", "mask.png", "depth.png", "txt"] or "jpg" not in batch
    for same in (
        batch,
        pickle.loads(pickle.dumps(batch)),
        copy.copy(batch),
        torch.utils._pytree.tree_map(lambda x: x, batch),
    ):
        with pytest.warns(DeprecationWarning, match=r"batch\['jpg'\] is batch\['image'\]"):
            assert same["jpg"] is same["image"]
        assert "jpg" not in same
        with pytest.raises(KeyError, match="png"):
            same["png"]
    (batch,) = batches(url, {"jpg": images.Train(32)})
    with pytest.warns(DeprecationWarning, match="image"):
        assert batch["image"] is batch["jpg"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        batch["jpg"]
        list(batch.samples())
    (batch,) = ss.StreamingLoader(ss.StreamingDataset(url, decode=images.Train(32)), COUNT, device="cpu")
    with pytest.warns(DeprecationWarning, match="jpg"):
        batch["jpg"]


HOW = [
    images.Train(64, seed=9),
    images.Train((48, 80)),
    images.Evaluate(64),
    images.Evaluate((60, 50), resize=70),
]


@pytest.mark.parametrize("how", HOW)
def test_a_mask_is_cut_and_mirrored_as_its_image(url, how):
    how = type(how)(**{**vars(how), "dtype": "uint8", "layout": "NHWC"})
    decode = {"jpg": how, "mask.png": images.Mask(), "depth.png": images.Mask("jpg", "int32")}
    (batch,) = batches(url, decode)
    image, mask, depth = batch["jpg"].numpy(), batch["mask.png"].numpy(), batch["depth.png"].numpy()
    assert mask.shape == depth.shape == image.shape[:3] == (COUNT, *how.shape)
    assert mask.dtype == np.uint8
    # Both say where a pixel lay: the red of the image and the stripe of the mask, the green and the depth.
    rows = image[..., 0].astype(float)
    near = np.abs(rows % 32 - 16) < 12  # away from the edges of stripes
    assert near.mean() > 0.4
    assert (rows[near] // 32 == mask[near]).all()
    assert np.abs(image[..., 1].astype(float) - depth / 257).max() < 8
    assert set(np.unique(mask)) <= set(range(8))


def test_the_same_crops_for_any_threads_batches_and_after_a_resume(url):
    decode = {"jpg": images.Train(32), "mask.png": images.Mask("jpg"), "depth.png": images.Train(16, seed=4)}
    options = {"shuffle": ss.Shuffle(seed=1)}
    (whole,) = batches(url, decode, **options)
    ds = ss.StreamingDataset(url, decode=decode, **options)
    parts = list(ss.StreamingLoader(ds, 5, "short", threads=1))
    samples = list(ss.StreamingDataset(url, decode=decode, **options))
    loader = ss.StreamingLoader(ss.StreamingDataset(url, decode=decode, **options), 4)
    next(iter(loader))
    state = loader.state_dict()
    again = ss.StreamingLoader(ss.StreamingDataset(url, decode=decode, **options), 4)
    again.load_state_dict(state)
    rest = list(again)
    for name in ("jpg", "mask.png", "depth.png"):
        assert torch.equal(torch.cat([part[name] for part in parts]), whole[name])
        assert torch.equal(torch.stack([sample[name] for sample in samples]), whole[name])
        assert torch.equal(torch.cat([part[name] for part in rest]), whole[name][4:])


def test_the_crop_of_one_image_is_that_of_0_1(url):
    (alone,) = batches(url, images.Train(32, seed=3))
    (beside,) = batches(
        url, {"mask.png": "stored", "jpg": images.Train(32, seed=3), "depth.png": images.Mask(dtype="uint16")}
    )
    assert torch.equal(alone["image"], beside["jpg"])


def test_images_that_draw_alike_share_crop_and_flip_and_others_do_not(tmp_path):
    rows = []
    for number in range(COUNT):
        left, half = numbered(number).astype(np.uint8), numbered(number, 48, 64).astype(np.uint8)
        rows.append({"left.png": encoded(Image.fromarray(left)), "right.png": encoded(Image.fromarray(half))})
    url = packed(tmp_path, rows)
    alike = {"left.png": images.Train(40, dtype="uint8"), "right.png": images.Train(40, dtype="uint8")}
    (batch,) = batches(url, alike)
    error = (batch["left.png"].float() - batch["right.png"].float())[:, :2].abs()
    assert error.mean() < 3  # the crops of the smaller image end at whole pixels
    other = alike | {"right.png": images.Train(40, dtype="uint8", seed=1)}
    (batch,) = batches(url, other)
    assert (batch["left.png"].float() - batch["right.png"].float())[:, :2].abs().mean() > 15


def test_crops_that_show_the_same_part():
    sizes = np.array([[100, 200], [7, 5], [64, 64]])
    random = images.Train(8).random(0, np.arange(3))
    crops, _ = random_crops(sizes, random, (0.1, 0.9), (0.5, 2.0))
    assert (scaled(crops, sizes, sizes) == crops).all()
    assert (scaled(crops, sizes, 3 * sizes) == 3 * crops).all()
    tiny = scaled(crops, sizes, np.ones_like(sizes))
    assert (tiny == [0, 0, 1, 1]).all()


def test_covering_a_size_is_0_1_for_squares_and_the_least_for_others():
    for high, wide in ((200, 300), (300, 200), (90, 90)):
        assert cover((high, wide), (72, 72))[-2:] == (
            (72, 72 * wide // high) if high <= wide else (72 * high // wide, 72)
        )
        for least in ((30, 80), (80, 30), (50, 51)):
            how = cover((high, wide), least)
            assert how.height >= least[0]
            assert how.width >= least[1]
            assert how.height == least[0] or how.width == least[1]
            assert abs(how.height / how.width - high / wide) < 0.1


def test_masks_of_another_size_are_scaled_and_of_another_shape_are_refused(tmp_path):
    rows = [row(number) for number in range(4)]
    for each in rows:
        ids = numbered(0, 24, 32)[..., 0] // 32
        each["mask.png"] = encoded(Image.fromarray(ids.astype(np.uint8)))
    url = packed(tmp_path, rows)
    how = images.Train(64, dtype="uint8", layout="NHWC")
    (batch,) = batches(url, {"jpg": how, "mask.png": images.Mask()}, 4)
    stripes = batch["jpg"][..., 0].float() / 32
    assert (stripes - batch["mask.png"] - 0.5).abs().max() < 1
    rows[2]["mask.png"] = encoded(Image.fromarray(np.zeros((32, 24), np.uint8)))
    url = packed(tmp_path, rows, "turned")
    with pytest.raises(
        SourceError, match=r"'002' of .*no mask in field mask.png .*24 x 32.*128 x 96.*upright=False"
    ):
        batches(url, {"jpg": how, "mask.png": images.Mask()}, 4)


def test_a_mask_of_an_image_that_is_turned(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = numbered(1).astype(np.uint8)  # 128 x 96 as stored, 96 x 128 upright
    upright = np.rot90(picture, -1)
    rows = [
        {
            "jpg": encoded(Image.fromarray(picture), "JPEG", quality=100, subsampling=0, exif=exif),
            "mask.png": encoded(Image.fromarray(np.ascontiguousarray(upright[..., 0]))),
            "raw.png": encoded(Image.fromarray(np.ascontiguousarray(picture[..., 0]))),
        }
    ] * 4
    url = packed(tmp_path, rows)
    for mask, asked in (("mask.png", True), ("raw.png", False)):
        how = images.Train(64, dtype="uint8", layout="NHWC", upright=asked)
        (batch,) = batches(url, {"jpg": how, mask: images.Mask()}, 4)
        assert (batch["jpg"][..., 0].int() - batch[mask].int()).abs().max() < 12


def test_a_sample_is_damaged_as_a_whole(tmp_path):
    rows = [row(number) for number in range(6)]
    rows[1]["jpg"] = rows[1]["jpg"][:500]
    rows[2]["mask.png"] = b"nonsense"
    del rows[3]["mask.png"]
    rows[4]["mask.png"] = encoded(Image.fromarray(np.zeros((96, 128, 3), np.uint8)))
    url = packed(tmp_path, rows)
    decode = {
        "jpg": images.Train(32, on_error="mask"),
        "mask.png": images.Mask(on_error="mask", fill=255),
    }
    loader = ss.StreamingLoader(ss.StreamingDataset(url, decode=decode), 6)
    (batch,) = loader
    bad = torch.tensor([False, True, True, True, True, False])
    assert torch.equal(batch["__damaged__"], bad)
    assert (batch["jpg"][bad] == 0).all()
    assert (batch["mask.png"][bad] == 255).all()
    assert (batch["mask.png"][~bad] < 8).all()
    assert loader.stats()["damaged"] == 4
    strict = decode | {"mask.png": images.Mask()}
    with pytest.raises(SourceError, match=r"'002' of .*no mask in field mask.png"):
        batches(url, strict, 6)


def test_values_that_a_mask_cannot_hold_are_refused(url):
    with pytest.raises(
        SourceError, match=r"depth.png .*uint16\), which uint8 cannot hold: give Mask a dtype"
    ):
        batches(url, {"jpg": images.Train(32), "depth.png": images.Mask()})
    for dtype in ("uint16", "int32", "int64", "float32"):
        (batch,) = batches(url, {"jpg": images.Train(32), "depth.png": images.Mask(dtype=dtype)})
        assert str(batch["depth.png"].dtype) == f"torch.{dtype}"
        assert batch["depth.png"].numpy().max() > 40_000


def test_whole_images_with_options(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = Image.fromarray(numbered(1).astype(np.uint8))
    url = packed(
        tmp_path, [{"jpg": encoded(picture, "JPEG", exif=exif), "png": encoded(picture), "txt": b"a"}]
    )
    for decode, shape in (
        (True, (128, 96, 3)),
        (images.Whole(), (128, 96, 3)),
        (images.Whole(upright=False), (96, 128, 3)),
    ):
        sample = ss.StreamingDataset(url, decode=decode)[0]
        assert sample["jpg"].shape == shape
        assert sample["png"].shape == (96, 128, 3)
        assert sample["txt"] == "a"
    (batch,) = batches(url, {"png": images.Whole(max_pixels=96 * 128)}, 1)
    assert batch["png"].shape == (1, 96, 128, 3)
    with pytest.raises(SourceError, match=r"'000' of .*tar, field 'png'.*more than max_pixels=12,287"):
        batches(url, {"png": images.Whole(max_pixels=96 * 128 - 1)}, 1)


def test_a_field_of_the_name_image_is_not_lost(tmp_path):
    url = packed(tmp_path, [{"jpg": row(0)["jpg"], "image": b"bytes"}])
    with pytest.raises(OptionError, match="there is a field 'image' beside the image"):
        batches(url, images.Train(8), 1)
    (batch,) = batches(url, {"jpg": images.Train(8)}, 1)
    assert list(batch["image"]) == [b"bytes"]


@pytest.mark.parametrize(
    ("decode", "said"),
    [
        ({"txt": images.Whole()}, "is for images"),
        ({"png": True}, "'png', which is not read"),
        ({"jpg": "raw"}, "a mode is True, False"),
        ({"jpg": 3}, "a mode is True, False"),
        ("stored", "a mode for each field"),
        (None, "a mode for each field"),
        ({"txt": "stored"}, "'stored'} is for images"),
        ({"mask.png": images.Mask()}, "like= has to say which image"),
        ({"jpg": images.Train(), "mask.png": images.Mask("png")}, "'png' is no image of decode"),
        ({"jpg": images.Train(fields=("jpg",))}, "leave fields= out"),
        (images.Mask(), "a mode for each field"),
    ],
)
def test_modes_that_cannot_be(url, decode, said):
    with pytest.raises(OptionError, match=said):
        ss.StreamingDataset(url, decode=decode)[0]


@pytest.mark.parametrize(
    "make",
    [
        lambda: images.Train((224,)), lambda: images.Train((224, 0)), lambda: images.Train("224"),
        lambda: images.Train(max_pixels=0), lambda: images.Evaluate((100, 300), resize=200),
        lambda: images.Mask(dtype="int8"), lambda: images.Mask(fill=256), lambda: images.Mask(fill=-1),
        lambda: images.Mask(on_error="skip"), lambda: images.Whole(max_pixels=-1),
    ],
)  # fmt: skip
def test_options_that_cannot_be(make):
    with pytest.raises(OptionError):
        make()
