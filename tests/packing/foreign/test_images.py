"""Images as Pillow writes them, in each format and mode that it can: kept byte by byte, and decoded alike."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

import shardstream as ss
from shardstream.errors import SourceError
from shardstream.format.kinds import PIXELS
from tests.packing.foreign.accounting import digests, packed

MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB", "HSV", "I", "F", "I;16")
MORE: dict[str, list[dict[str, Any]]] = {
    "JPEG": [{"progressive": True}, {"subsampling": 0, "quality": 30}, {"optimize": True, "dpi": (72, 72)}],
    "PNG": [{"compress_level": 0}, {"bits": 2}, {"transparency": 1}],
    "WEBP": [{"lossless": True}, {"quality": 5, "alpha_quality": 9}],
    "GIF": [{"interlace": 0}, {"transparency": 0}],
    "TIFF": [{"compression": name} for name in ("tiff_lzw", "tiff_deflate", "packbits", "jpeg", "group4")],
    "JPEG2000": [{"irreversible": True, "quality_layers": [20]}],
    "BMP": [],
    "AVIF": [{"quality": 40}],
}


def picture(mode: str) -> Image.Image:
    """A small picture of a mode, whose values use its range."""
    ramp = np.add.outer(np.arange(23) * 9, np.arange(37) * 3)
    if mode in ("I", "F", "I;16"):
        dtype = {"I": np.int32, "F": np.float32, "I;16": np.uint16}[mode]
        return Image.fromarray((ramp * 150).astype(dtype))
    colours = np.stack([ramp % 256, (255 - ramp) % 256, ramp * 2 % 256], axis=2).astype(np.uint8)
    image = Image.fromarray(colours)
    if mode == "PA":
        return image.convert("P").convert("PA")
    if mode == "LAB":
        return Image.merge("LAB", image.split())
    return image.convert(mode)


def pictures() -> Iterator[tuple[str, bytes]]:
    """The name and the content of each picture that Pillow can write."""
    for extension, kind in PIXELS.items():
        for mode in MODES:
            for number, options in enumerate([{}, *MORE[kind]]):
                out = io.BytesIO()
                try:
                    with warnings.catch_warnings(action="ignore"):
                        picture(mode).save(out, "MPO" if extension == "mpo" else kind, **options)
                except (OSError, ValueError, KeyError, TypeError, RuntimeError):
                    continue  # Pillow cannot write this mode so
                yield f"{mode.replace(';', '')}-{number}.{extension}", out.getvalue()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for name, data in pictures():
        path = folder / name.rpartition(".")[2] / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
    return folder


def test_each_format_and_mode_keeps_its_bytes_and_is_decoded_as_pillow_does(
    corpus: Path, tmp_path: Path
) -> None:
    files = [path for path in corpus.rglob("*") if path.is_file()]
    assert len(files) > 200
    account = packed(corpus, tmp_path / "out", labels="none")
    wanted = {
        str(path.relative_to(corpus).with_suffix("")): {path.suffix[1:]: path.read_bytes()} for path in files
    }
    assert account.samples == digests(wanted)
    assert not account.named
    dataset = ss.StreamingDataset(str(tmp_path / "out"))
    stored = ss.StreamingDataset(str(tmp_path / "out"), decode=dict.fromkeys(PIXELS, "stored"))
    for number in range(len(dataset)):
        try:
            sample = dataset[number]
        except SourceError as error:
            if "values of 32 bits, which are no colours: decode the field as 'stored'" not in str(error):
                raise
            [values] = [value for value in stored[number].values() if isinstance(value, np.ndarray)]
            assert values.dtype in (np.int32, np.float32)
            continue
        key = sample["__key__"]
        [(name, data)] = wanted[key].items()
        with warnings.catch_warnings(action="ignore"), Image.open(io.BytesIO(data)) as image:
            upright = ImageOps.exif_transpose(image)
            if image.mode.startswith("I"):  # of 16 bits the higher 8 count
                ramp = (np.asarray(upright).astype(int) >> 8).astype(np.uint8)
                expected = np.repeat(ramp[:, :, None], 3, axis=2)
            else:
                expected = np.asarray(upright.convert("RGB"))
        found = sample[name]
        assert (found.dtype, found.shape) == (np.uint8, expected.shape), key
        # Two libraries may round a colour of JPEG otherwise.
        assert np.abs(found.astype(int) - expected).max() <= (4 if PIXELS[name] == "JPEG" else 0), key


def test_names_that_lie_and_files_that_are_none(corpus: Path, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    good = {
        "png-as.jpg": (corpus / "png" / "RGB-0.png").read_bytes(),
        "webp-as.png": (corpus / "webp" / "RGB-0.webp").read_bytes(),
        "UPPER.JPG": (corpus / "jpg" / "L-0.jpg").read_bytes(),
        "junk-behind.jpg": (corpus / "jpg" / "RGB-0.jpg").read_bytes() + b"junk" * 9,
        "ключ ✓ é.png": (corpus / "png" / "P-0.png").read_bytes(),
    }
    bad = {"empty.jpg": b"", "text.png": b"this is a text", "page.jpg": b"<html>404</html>"}
    for name, data in (good | bad).items():
        (folder / name).write_bytes(data)
    account = packed(folder, tmp_path / "out", folder)
    assert set(account.rejects) == set(bad)
    assert not account.skips
    found = sorted(fields for sample in account.samples.values() for fields in sample.items())
    wanted = {name: {name.rpartition(".")[2].lower(): data} for name, data in good.items()}
    assert found == sorted(fields for sample in digests(wanted).values() for fields in sample.items())
