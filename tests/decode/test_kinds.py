"""Images as real files hold them: odd JPEGs, EXIF, depths, palettes, kinds, and the memory that they take."""

from __future__ import annotations

import io
import struct
import tarfile
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps, features

import shardstream as ss
from shardstream.decode import images, odd_pixels, pixels
from shardstream.decode.turning import REVERSED, before_turning, turned
from shardstream.errors import SourceError
from shardstream.format.pictures import orientation, picture_format

COLOURS = [40, 9, 200, 7, 180, 30, 250, 250, 10, 90, 60, 130]


def smooth(width: int = 96, height: int = 64, mode: str = "RGB") -> Image.Image:
    coarse = Image.fromarray(np.random.default_rng(3).integers(0, 256, (4, 6, 3), np.uint8))
    return coarse.resize((width, height), Image.Resampling.BICUBIC).convert(mode)


def encoded(image: Image.Image, kind: str = "JPEG", **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def with_orientation(number: int, kind: str = "JPEG", **options: Any) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = number
    return encoded(smooth(), kind, exif=exif, **options)


def palette(ids: np.ndarray, **options: Any) -> bytes:
    image = Image.fromarray(ids, "P")
    image.putpalette(COLOURS)
    return encoded(image, "PNG", **options)


def tar(path: Path, members: dict[str, bytes]) -> str:
    with tarfile.open(path, "w") as out:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            out.addfile(member, io.BytesIO(data))
    return str(path)


def packed(tmp_path: Path, members: dict[str, bytes]) -> str:
    ss.index([tar(tmp_path / "a.tar", members)], tmp_path / "out", workers=1)
    return str(tmp_path / "out")


def odd_jpegs() -> dict[str, bytes]:
    """JPEGs that libjpeg-turbo warns of and Pillow reads, each of another kind."""
    good = encoded(smooth(), quality=90)
    frame = good.index(b"\xff\xc0")
    end = frame + 2 + int.from_bytes(good[frame + 2 : frame + 4], "big")
    profile = b"ICC_PROFILE\0\1\1" + b"no profile"
    icc = b"\xff\xe2" + struct.pack(">H", 2 + len(profile)) + profile
    short = b"\xff\xe2\x00\x10ICC_PROFILE\0\2\1"  # the second of one part
    photoshop = b"Photoshop 3.0\x008BIM\x04\x04\0\0\0\0\xff\xffcut"
    return {
        "icc": good[:end] + icc + short + good[end:],
        "zero": good[:2] + b"\xff\x00" + good[2:],
        "junk": good[:20] + b"\xff\x00junk" + good[20:],
        "app14": good[:2] + b"\xff\xee\x00\x0cAdobe\x00\x64" + good[2:],
        "photoshop": good[:2] + b"\xff\xed" + struct.pack(">H", len(photoshop)) + photoshop + good[2:],
        "middle": good[:-2] + bytes(40) + b"\x12" * 9 + good[-2:],
    }


@pytest.mark.parametrize("name", list(odd_jpegs()))
def test_what_pillow_reads_does_not_end_a_run(tmp_path, name):
    data = odd_jpegs()[name]
    with pytest.raises(ValueError, match="Corrupt JPEG"):
        __import__("simplejpeg").decode_jpeg(data)
    url = packed(tmp_path, {"a.jpg": data, "b.jpg": encoded(smooth())})
    wanted = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    loader = ss.StreamingLoader(ss.StreamingDataset(url), 2)
    (batch,) = loader
    assert (batch["jpg"][0].numpy() == wanted).all()
    assert loader.stats()["tolerated"] == 1
    for engine in ("thread", "process") if name == "icc" else ("thread",):  # a process takes a while to start
        ds = ss.StreamingDataset(url, decode=images.Evaluate(32, dtype="uint8", on_error="mask"))
        loader = ss.StreamingLoader(ds, 2, engine=engine)
        (batch,) = loader
        loader.close()
        assert not batch["__damaged__"].any()
        assert (loader.stats()["tolerated"], loader.stats()["damaged"]) == (1, 0)
        wanted = images.Evaluate(32, dtype="uint8").decode(
            {"png": [encoded(Image.fromarray(np.asarray(Image.open(io.BytesIO(data)))), "PNG")]},
            ["a"],
            ["s"],
            None,
        )
        assert torch.equal(batch["image"][0], wanted["image"][0])


@pytest.mark.parametrize("cut", [2, 10, 400])
def test_truncated_jpegs_stay_errors_that_name_key_and_shard(tmp_path, cut):
    url = packed(tmp_path, {"a.jpg": encoded(smooth())[:-cut]})
    for decode in (True, images.Train(32)):
        with pytest.raises(SourceError, match=r"'a' of \S*a\.tar.*truncated"):
            list(ss.StreamingLoader(ss.StreamingDataset(url, decode=decode), 1))
        with pytest.raises(SourceError, match=r"'a' of \S*a\.tar"):
            ss.StreamingDataset(url, decode=decode)[0]


KINDS = {"JPEG": {"quality": 95, "subsampling": 0}, "PNG": {}, "WEBP": {"lossless": True}, "TIFF": {}}
if features.check("avif"):
    KINDS["AVIF"] = {"quality": 95, "subsampling": "4:4:4"}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("number", range(1, 9))
def test_images_are_upright_unless_they_are_left(kind, number):
    data = with_orientation(number, kind, **KINDS[kind])
    if kind != "AVIF":
        assert orientation(data) == number
    opened = Image.open(io.BytesIO(data))
    upright = np.asarray(ImageOps.exif_transpose(opened).convert("RGB"))
    assert upright.shape[:2] == ((96, 64) if number > 4 else (64, 96))
    assert np.abs(pixels.whole(data).astype(int) - upright).max() <= 2
    left = np.asarray(turned(upright, REVERSED[number]))
    assert np.abs(pixels.stored(data).astype(int) - left).max() <= 2
    for wanted, asked in ((upright, True), (left, False)):
        plain = encoded(Image.fromarray(np.ascontiguousarray(wanted)), "PNG")
        for how in (images.Train(24, seed=5), images.Evaluate((40, 20))):
            how = type(how)(**{**vars(how), "upright": asked, "dtype": "uint8"})
            random = how.random(0, np.arange(1))
            one = how.decode({"a": [data]}, ["k"], ["s"], random)["image"]
            two = how.decode({"a": [plain]}, ["k"], ["s"], random)["image"]
            assert one.shape == two.shape
            assert np.abs(one.numpy().astype(int) - two.numpy()).max() <= 6  # scaled by another decoder


def test_a_part_is_found_before_it_is_turned():
    array = np.arange(35).reshape(5, 7)
    for number in range(1, 9):
        whole = turned(array, number)
        top, left, bottom, right = before_turning((1, 2, 4, 5), whole.shape, number)
        part = turned(array[top:bottom, left:right], number)
        assert (part == whole[1:4, 2:5]).all()
        assert (turned(turned(array, number), REVERSED[number]) == array).all()


@pytest.mark.parametrize(
    "data",
    [
        b"", b"\xff\xd8", b"\xff\xd8\xff\xe1\x00\x10Exif\0\0II*\0", b"RIFF\0\0\0\0WEBPVP8X",
        b"\x89PNG\r\n\x1a\n\0\0\0\x04eXIfMM\0*",
    ],
)  # fmt: skip
def test_exif_data_that_ends_early_says_nothing(data):
    assert orientation(data) == 1
    assert orientation(memoryview(data)) == 1


@pytest.mark.parametrize("value", [0, 9, 65535])
def test_orientations_that_there_are_not_say_nothing(value):
    data = with_orientation(6)
    at = data.index(b"\x12\x01\x03\x00" if b"Exif\0\0II" in data else b"\x01\x12\x00\x03")
    order = "<H" if b"Exif\0\0II" in data else ">H"
    odd = data[: at + 8] + struct.pack(order, value) + data[at + 10 :]
    assert (orientation(data), orientation(odd)) == (6, 1)
    assert pixels.whole(odd).shape == (64, 96, 3)


def grey(bits: int) -> np.ndarray:
    return (np.arange(24).reshape(4, 6) * ((1 << bits) - 1) // 23).astype(np.uint16 if bits > 8 else np.uint8)


def png(values: np.ndarray, bits: int, colour: int = 0, width: int = 0) -> bytes:
    """A PNG of a depth that Pillow does not write."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    rows = b""
    for row in values:
        joined = "".join(f"{value:0{bits}b}" for value in row)
        joined += "0" * (-len(joined) % 8)
        rows += b"\0" + int(joined, 2).to_bytes(len(joined) // 8, "big")
    head = struct.pack(">IIBBBBB", width or values.shape[1], values.shape[0], bits, colour, 0, 0, 0)
    parts = chunk(b"IHDR", head), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def test_stored_keeps_ids_depths_and_modes():
    ids = np.arange(12, dtype=np.uint8).reshape(3, 4) % 4
    deep, photo = grey(16), encoded(smooth(mode="L"))
    cases = {
        "palette": (palette(ids), ids),
        "transparent palette": (palette(ids, transparency=bytes([0, 255, 9, 255])), ids),
        "2 bits": (png(grey(2), 2), grey(2)),
        "4 bits": (png(grey(4), 4), grey(4)),
        "1 bit": (encoded(Image.fromarray(ids > 1), "PNG"), ids > 1),
        "8 bits": (encoded(Image.fromarray(ids), "PNG"), ids),
        "16 bits": (encoded(Image.fromarray(deep), "PNG"), deep),
        "16 bits, TIFF": (encoded(Image.fromarray(deep), "TIFF"), deep),
        "16 bits, big-endian TIFF": (encoded(Image.fromarray(deep.astype(">u2")), "TIFF"), deep),
        "32 bits": (encoded(Image.fromarray(deep.astype(np.int32) * 7), "TIFF"), deep.astype(np.int32) * 7),
        "float": (encoded(Image.fromarray(deep / np.float32(3)), "TIFF"), deep / np.float32(3)),
        "GIF": (encoded(Image.fromarray(ids, "P"), "GIF", optimize=False), ids),
        "grey JPEG": (photo, np.asarray(Image.open(io.BytesIO(photo)))),
        "alpha": (encoded(smooth(mode="RGBA"), "PNG"), np.asarray(smooth(mode="RGBA"))),
        "grey, alpha": (encoded(smooth(mode="LA"), "PNG"), np.asarray(smooth(mode="LA"))),
    }  # fmt: skip
    for name, (data, wanted) in cases.items():
        found = pixels.stored(data)
        assert found.dtype == wanted.dtype.newbyteorder("="), name
        assert found.shape == wanted.shape, name
        assert (found == wanted).all(), name
        assert found.flags.writeable, name
        assert found.base is None, name


def test_sixteen_bits_in_colour_are_not_half_lost():
    values = np.arange(4 * 6 * 3, dtype=np.uint16).reshape(4, 18) * 800
    data = png(values, 16, 2, 6)
    with pytest.raises(ValueError, match="Pillow reads 8 bits"):
        pixels.stored(data)
    assert (pixels.whole(data) == (values >> 8).reshape(4, 6, 3)).all()


def test_colours_of_depths_palettes_and_inks():
    deep, ids = grey(16), np.arange(12, dtype=np.uint8).reshape(3, 4) % 4
    high = np.repeat((deep >> 8).astype(np.uint8)[..., None], 3, axis=2)
    colours = np.array(COLOURS, np.uint8).reshape(4, 3)[ids]
    alpha = smooth(mode="RGBA")
    alpha.putalpha(Image.fromarray(np.arange(64 * 96, dtype=np.uint8).reshape(64, 96)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for kind in ("PNG", "TIFF"):
            assert (pixels.whole(encoded(Image.fromarray(deep), kind)) == high).all()
        for options in ({}, {"transparency": 1}, {"transparency": bytes([0, 9, 255, 0])}):
            assert (pixels.whole(palette(ids, **options)) == colours).all()
        assert (pixels.whole(encoded(alpha, "PNG")) == np.asarray(smooth())).all()
        assert (pixels.whole(png(grey(2), 2))[..., 0] == grey(2) * 85).all()
    inks = encoded(smooth(mode="CMYK"), quality=95)
    wanted = np.asarray(Image.open(io.BytesIO(inks)).convert("RGB"), int)
    assert np.abs(pixels.whole(inks) - wanted).max() <= 1
    for found in (np.int32, np.float32):
        with pytest.raises(ValueError, match="'stored'"):
            pixels.whole(encoded(Image.fromarray(deep.astype(found)), "TIFF"))


SAVED = {
    "jpg": "JPEG", "jpe": "JPEG", "jfif": "JPEG", "mpo": "MPO", "png": "PNG", "webp": "WEBP", "gif": "GIF",
    "bmp": "BMP", "tif": "TIFF", "tiff": "TIFF", "avif": "AVIF", "jp2": "JPEG2000", "j2k": "JPEG2000",
}  # fmt: skip


@pytest.mark.parametrize("name", [name for name in SAVED if name != "avif" or features.check("avif")])
def test_every_kind_that_is_packed_is_decoded(tmp_path, name):
    options: dict[str, Any] = {"save_all": True, "append_images": [smooth(40, 30)]} if name == "mpo" else {}
    out = tmp_path / "in" / f"a.{name}"
    out.parent.mkdir()
    smooth().save(out, SAVED[name], **options)
    ss.pack(tmp_path / "in", tmp_path / "out", workers=1)
    wanted = np.asarray(Image.open(io.BytesIO(out.read_bytes())).convert("RGB"), int)
    url = str(tmp_path / "out")
    assert np.abs(ss.StreamingDataset(url)[0][name] - wanted).max() <= 2
    (batch,) = ss.StreamingLoader(ss.StreamingDataset(url, decode=images.Evaluate(32)), 1)
    assert batch["image"].shape == (1, 3, 32, 32)


def test_the_first_picture_of_an_animation_counts():
    frames = [Image.new("RGB", (8, 6), colour) for colour in ("red", "blue")]
    for kind in ("GIF", "WEBP", "TIFF"):
        data = encoded(
            frames[0],
            kind,
            save_all=True,
            append_images=frames[1:],
            **({"lossless": True} if kind == "WEBP" else {}),
        )
        assert (
            pixels.whole(data) == (255, 0, 0) if kind != "GIF" else pixels.whole(data)[..., 0] > 250
        ).all()


def test_the_content_decides_and_not_the_name():
    data = encoded(smooth(), "PNG")
    assert picture_format(data) == "PNG"
    made = images.Evaluate(32, dtype="uint8").decode({"jpg": [data]}, ["a"], ["s"], None)["image"]
    assert made.shape == (1, 3, 32, 32)
    for data in (b"", b"nonsense", b"%PDF-1.4 is no image", b"\0" * 100):
        with pytest.raises(ValueError, match="like no image") as error:
            pixels.header(data)
        assert "BytesIO" not in str(error.value)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_the_limit_of_pixels_is_an_option(kind):
    data = encoded(smooth(), kind)
    how = images.Train(16, max_pixels=96 * 64)
    how.decode({"a": [data]}, ["k"], ["s"], how.random(0, np.arange(1)))
    how = images.Train(16, max_pixels=96 * 64 - 1)
    with pytest.raises(SourceError, match=r"'k' of s:.*96 x 64 pixels are more than max_pixels=6,143"):
        how.decode({"a": [data]}, ["k"], ["s"], how.random(0, np.arange(1)))


def test_images_above_the_limit_of_pillow_are_decoded_if_they_may(monkeypatch):
    data = encoded(smooth(), "PNG")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert pixels.whole(data).shape == (64, 96, 3)


def test_large_parts_are_made_smaller_before_they_are_resized(monkeypatch):
    data = encoded(smooth(400, 304), "PNG")
    how = images.Evaluate(32, dtype="uint8")
    exact = how.decode({"a": [data]}, ["k"], ["s"], None)["image"].numpy()
    monkeypatch.setattr(odd_pixels, "_LARGE", 1000)
    monkeypatch.setattr(odd_pixels, "_STRIP", 1000)
    less = how.decode({"a": [data]}, ["k"], ["s"], None)["image"].numpy()
    error = exact.astype(float) - less
    assert 0 < np.mean(error**2) < 4  # 42 dB
    assert (pixels.whole(data) == np.asarray(smooth(400, 304))).all()
