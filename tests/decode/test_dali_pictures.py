"""Images and masks by DALI against the CPU decoder: the same pixels, crops and flips."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import shardstream as ss
from shardstream.decode import images
from shardstream.decode.dali import imagenet_eval, imagenet_train
from shardstream.errors import OptionError, SourceError
from tests.decode.tars import tar

dali = pytest.importorskip("nvidia.dali", reason="nvidia-dali is an extra of several hundred MB")
from nvidia.dali import fn  # noqa: E402

HIGH, WIDE = 60, 90
ORIENTATION = 0x0112


def colours(high: int = HIGH, wide: int = WIDE, seed: int = 0) -> Image.Image:
    """Smooth shapes, other ones in each corner."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:high, :wide]
    waves = [np.sin(x / random.uniform(7, 20) + y / random.uniform(7, 20) + phase) for phase in range(3)]
    return Image.fromarray((128 + 120 * np.stack(waves, 2)).astype(np.uint8))


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def turned(image: Image.Image, kind: str, orientation: int) -> bytes:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return encoded(image, kind, exif=exif, **({"quality": 95} if kind == "jpeg" else {}))


def odd() -> dict[str, tuple[str, bytes]]:
    """Images of many kinds: the field, and the file."""
    rgb = colours()
    rgba = rgb.convert("RGBA")
    rgba.putalpha(Image.fromarray((np.arange(HIGH * WIDE) % 256).reshape(HIGH, WIDE).astype(np.uint8)))
    palette = rgb.quantize(16)
    depth = Image.fromarray((np.arange(HIGH * WIDE) * 11).reshape(HIGH, WIDE).astype(np.uint16))
    found = {
        "plain": ("jpg", encoded(rgb, "jpeg")),
        "fine": ("jpg", encoded(rgb, "jpeg", subsampling=0)),
        "progressive": ("jpg", encoded(rgb, "jpeg", progressive=True)),
        "grey": ("jpg", encoded(rgb.convert("L"), "jpeg")),
        "cmyk": ("jpg", encoded(rgb.convert("CMYK"), "jpeg")),
        "kept-rgb": ("jpg", encoded(rgb, "jpeg", keep_rgb=True)),
        "junk-behind": ("jpg", encoded(rgb, "jpeg") + bytes(99)),
        "png": ("png", encoded(rgb, "png")),
        "png-grey": ("png", encoded(rgb.convert("L"), "png")),
        "png-bit": ("png", encoded(rgb.convert("1"), "png")),
        "png-alpha": ("png", encoded(rgba, "png")),
        "png-grey-alpha": ("png", encoded(rgba.convert("LA"), "png")),
        "png-palette": ("png", encoded(palette, "png")),
        "png-transparent": ("png", encoded(palette, "png", transparency=3)),
        "png-depth": ("png", encoded(depth, "png")),
        "png-named-jpg": ("jpg", encoded(rgb, "png")),
        "webp": ("webp", encoded(rgb, "webp")),
        "webp-alpha": ("webp", encoded(rgba, "webp", lossless=True)),
        "webp-moving": ("webp", encoded(rgb, "webp", save_all=True, append_images=[rgb.rotate(180)])),
        "gif": ("gif", encoded(palette, "gif")),
        "bmp": ("bmp", encoded(rgb, "bmp")),
        "tiff": ("tiff", encoded(rgb, "tiff")),
        "jp2": ("jp2", encoded(rgb, "jpeg2000")),
    }
    for kind, field in (("jpeg", "jpg"), ("png", "png"), ("webp", "webp"), ("tiff", "tiff")):
        for orientation in range(9):
            found[f"{kind}-turned-{orientation}"] = field, turned(rgb, kind, orientation)
    return found


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tar(tmp_path_factory.mktemp("odd"), {key: {field: data} for key, (field, data) in odd().items()})


def loader(url: str, pipeline: Any, batch_size: int = 8, **options: Any) -> ss.DaliLoader:
    ds = ss.StreamingDataset(url, **options.pop("ds", {}))
    return ss.DaliLoader(ds, pipeline, batch_size, "cpu", last="short", threads=1, **options)


def test_pixels_are_those_of_the_cpu_decoder(url):
    cpu = {sample["__key__"]: sample for sample in ss.StreamingDataset(url)}
    seen = 0
    for batch in loader(url, lambda image: {"image": fn.decoders.image(image)}):
        for key, image in zip(batch["__key__"], batch["image"], strict=True):
            (wanted,) = (value for name, value in cpu[key].items() if not name.startswith("__"))
            assert np.array_equal(image, wanted), key
            seen += 1
    assert seen == len(odd())


@pytest.mark.parametrize("upright", [True, False])
def test_crops_of_turned_images_are_those_of_the_cpu(tmp_path, upright):
    """Without a resize: cut and mirrored alone, which gives the same pixels."""
    samples = {
        f"{kind}-{orientation}": {f"img.{field}": turned(colours(), kind, orientation)}
        for kind, field in (("jpeg", "jpg"), ("png", "png"))
        for orientation in range(1, 9)
    }
    url = tar(tmp_path, samples)
    # Of the crops, all with the area 1 and the shape of the image, that is upright or not.
    for shape in ((HIGH, WIDE), (WIDE, HIGH)):
        ratio = shape[1] / shape[0]
        how = images.Train(
            shape, dtype="uint8", layout="NHWC", area=(1, 1), ratio=(ratio, ratio), upright=upright,
            fields=("img.jpg", "img.png"), seed=5,
        )  # fmt: skip
        (ours,) = loader(url, how, 16)
        (cpu,) = ss.StreamingLoader(ss.StreamingDataset(url, decode=how), 16)
        lies = [not upright or int(key[-1]) < 5 for key in ours["__key__"]]
        same = [torch.equal(one, other) for one, other in zip(ours["image"], cpu["image"], strict=True)]
        assert all(one for one, flat in zip(same, lies, strict=True) if flat == (shape == (HIGH, WIDE)))
        assert ours["image"].shape == cpu["image"].shape


def both(url: str, modes: Any, count: int, **options: Any) -> tuple[Any, Any]:
    (ours,) = loader(url, modes, count, **options)
    (cpu,) = ss.StreamingLoader(ss.StreamingDataset(url, decode=modes), count)
    return ours, cpu


@pytest.fixture(scope="module")
def masked(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Images, some of them turned, with masks of palettes and depths of 16 bits."""
    samples = {}
    for number in range(12):
        image = colours(70 + number, 100 - number, number)
        ids = Image.fromarray((np.asarray(image)[:, :, 0] // 64).astype(np.uint8), "P")
        ids.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255, 9, 9, 9])
        depth = Image.fromarray(np.asarray(image)[:, :, 1].astype(np.uint16) * 250)
        samples[f"{number:02d}"] = {
            "jpg": encoded(image, "jpeg", quality=95),
            "flow.png": encoded(image.rotate(180), "png"),
            "mask.png": encoded(ids, "png"),
            "depth.png": encoded(depth, "png"),
        }
    return tar(tmp_path_factory.mktemp("masked"), samples)


def test_one_crop_for_images_and_masks_as_on_the_cpu(masked):
    train = images.Train((48, 64), dtype="uint8", seed=9)
    modes = {
        "jpg": train,
        "flow.png": train,
        "mask.png": images.Mask(like="jpg"),
        "depth.png": images.Mask(like="jpg", dtype="int32"),
    }
    ours, cpu = both(masked, modes, 12)
    assert set(ours) - {"__pad__"} == set(cpu)
    for name in ("jpg", "flow.png"):
        assert ours[name].shape == cpu[name].shape == (12, 3, 48, 64)
        # Another resize: close, and the same crop and flip.
        assert (ours[name].int() - cpu[name].int()).abs().float().mean() < 2
    for name, dtype in (("mask.png", torch.uint8), ("depth.png", torch.int32)):
        assert ours[name].dtype == cpu[name].dtype == dtype
        assert torch.equal(ours[name], cpu[name])
    assert ours["depth.png"].max() > 40_000
    assert set(ours["mask.png"].unique().tolist()) <= {0, 1, 2, 3}


def test_evaluation_as_on_the_cpu(masked):
    modes = {"jpg": images.Evaluate((40, 56)), "mask.png": images.Mask()}
    ours, cpu = both(masked, modes, 12)
    assert ours["jpg"].shape == (12, 3, 40, 56)
    assert (ours["jpg"] - cpu["jpg"]).abs().mean() < 0.05
    assert torch.equal(ours["mask.png"], cpu["mask.png"])
    assert ours["flow.png"][0].shape == cpu["flow.png"][0].shape  # decoded beside


def test_the_role_has_the_name_image(masked):
    how = images.Train(32, seed=1)
    (ours,) = loader(masked, how, 12)
    assert ours["image"].shape == (12, 3, 32, 32)
    with pytest.warns(DeprecationWarning, match="from the next version"):
        assert ours["jpg"] is ours["image"]
    # The named function with the same seed makes the same crops.
    (other,) = loader(masked, imagenet_train(32), 12, seed=1)
    assert (ours["image"] - other["image"]).abs().mean() < 1e-3


def test_epochs_and_states_of_modes(masked):
    how = {"jpg": images.Train(32, seed=1), "mask.png": images.Mask()}
    ours = loader(masked, how, 4)
    first, second = list(ours), list(ours)
    assert not torch.equal(first[0]["jpg"], second[0]["jpg"])
    ours.set_epoch(1)
    batches = iter(ours)
    next(batches)
    again = loader(masked, how, 4)
    again.load_state_dict(ours.state_dict())
    for one, other in zip(again, second[1:], strict=True):
        assert torch.equal(one["jpg"], other["jpg"])
        assert torch.equal(one["mask.png"], other["mask.png"])


def test_masks_that_are_damaged(tmp_path):
    samples = {
        f"{n}": {
            "jpg": encoded(colours(), "jpeg"),
            "mask.png": b"none" if n == 2 else encoded(Image.new("L", (WIDE, HIGH), n + 1), "png"),
        }
        for n in range(4)
    }
    url = tar(tmp_path, samples)
    modes = {"jpg": images.Train(16), "mask.png": images.Mask(fill=255)}
    with pytest.raises(SourceError, match=r"sample '2' of shard-.*: no mask in field mask.png"):
        list(loader(url, modes, 4))
    (batch,) = loader(url, modes, 4, on_error="mask")
    assert batch["__damaged__"].tolist() == [False, False, True, False]
    assert (batch["mask.png"] == torch.tensor([1, 2, 255, 4])[:, None, None]).all()
    assert not batch["jpg"][2].any()
    (batch,) = loader(url, modes, 4, on_error="skip")
    assert batch["__key__"] == ["0", "1", "3"]
    assert (batch["mask.png"] == torch.tensor([1, 2, 4])[:, None, None]).all()


def test_stored_values_in_a_graph_of_ones_own(masked):
    def graph(image: Any, mask_png: Any, depth_png: Any, device: str) -> dict[str, Any]:
        pixels = fn.decoders.image(image, device=device)
        parts = [fn.crop(each, crop=(50, 60)) for each in (pixels, mask_png, depth_png)]
        return dict(zip(("image", "mask_png", "depth_png"), parts, strict=True))

    stored = {"mask.png": "stored", "depth.png": "stored"}
    (batch,) = loader(masked, graph, 12, ds={"decode": stored})
    cpu = ss.StreamingDataset(masked, decode=stored)
    for row in range(12):
        for name in ("mask.png", "depth.png"):
            wanted = cpu[row][name]
            top, left = (wanted.shape[0] - 50) // 2, (wanted.shape[1] - 60) // 2
            found = batch[name][row, :, :, 0].numpy()
            near = [
                wanted[y : y + 50, x : x + 60] for y in (top, top + 1) for x in (left, left + 1)
            ]  # DALI rounds half a pixel
            assert any(np.array_equal(found, one) for one in near)
    assert batch["depth.png"].dtype == torch.uint16


def test_rectangles(masked):
    (batch,) = loader(masked, imagenet_train((24, 40)), 12)
    assert batch["image"].shape == (12, 3, 24, 40)
    (batch,) = loader(masked, imagenet_eval((24, 40), resize=48), 12)
    assert batch["image"].shape == (12, 3, 24, 40)
    with pytest.raises(OptionError, match="resize=30"):
        imagenet_eval((24, 40), resize=30)


def test_modes_that_cannot_be(masked):
    for modes, told in (
        ({"png": images.Train(32)}, "names 'png', which is not read"),
        ({"mask.png": "stored"}, "names no image that DALI is to decode"),
        (5, "give a name or a function"),
        (
            {"jpg": images.Train(32, on_error="mask"), "mask.png": images.Mask()},
            "masked as a whole",
        ),
    ):
        with pytest.raises(OptionError, match=told):
            loader(masked, modes)
