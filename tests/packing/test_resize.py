"""pack --resize: smaller, upright, the same bytes for any number of workers, and counted."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import shardstream as ss
from shardstream.cli.app import app
from shardstream.errors import OptionError, SourceError
from shardstream.packing.resize import Resize
from tests.decode.test_images import encoded, picture, psnr

TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "in"
    root.mkdir()
    for number in range(12):
        kind = ("JPEG", "PNG", "WEBP")[number % 3]
        size = (90, 60) if number < 2 else (300 + number, 200)
        name = root / f"{number:02d}.{'jpg' if kind == 'JPEG' else kind.lower()}"
        name.write_bytes(encoded(picture(number, size), kind))
    return root


def test_the_same_bytes_for_any_number_of_workers(folder, tmp_path):
    made = []
    for workers in (1, 2):
        dest = tmp_path / f"out{workers}"
        manifest = ss.pack(
            str(folder), str(dest), resize=96, shard_size="8KiB", frame_size="8KiB", workers=workers
        )
        files = {path.name: path.read_bytes() for path in dest.iterdir()}
        assert len(manifest.shards) > 3
        made.append(files)
    assert made[0] == made[1]


def test_sizes_and_counts(folder, tmp_path):
    manifest = ss.pack(str(folder), str(tmp_path / "out"), resize=96, quality=80, workers=1)
    for sample in ss.StreamingDataset(str(tmp_path / "out"), decode=False):
        (data,) = (value for name, value in sample.items() if name != "__key__")
        before = next(folder.glob(f"{sample['__key__']}.*"))
        if int(sample["__key__"]) < 2:
            assert data == before.read_bytes()
        else:
            image = opened(data)
            assert min(image.size) == 96
            assert image.format == opened(before.read_bytes()).format
            whole = opened(before.read_bytes()).convert("RGB").resize(image.size, Image.Resampling.LANCZOS)
            assert psnr(image.convert("RGB"), whole) > 30
    counts = manifest.provenance["images"]
    assert (counts["images"], counts["resized"]) == (12, 10)
    assert counts["pixels"] < counts["pixels_before"] / 3
    assert manifest.provenance["options"]["resize"] == 96
    shown = CliRunner().invoke(app, ["info", str(tmp_path / "out"), "--json"])
    assert json.loads(shown.stdout)["images"]["pixel_ratio"] > 3
    assert "10 of 12 made smaller" in CliRunner().invoke(app, ["info", str(tmp_path / "out")]).stdout


def test_shuffled_and_resumed_packs_count_too(folder, tmp_path):
    one = ss.pack(str(folder), str(tmp_path / "a"), resize=96, shuffle=1, workers=1)
    assert one.provenance["images"]["images"] == 12
    again = ss.pack(str(folder), str(tmp_path / "a"), resize=96, shuffle=1, workers=1, resume=True)
    assert again.fingerprint == one.fingerprint


@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_turned_upright(orientation):
    image = picture(3, (120, 80))
    exif = Image.Exif()
    exif[0x0112] = orientation
    for side in (40, 500):
        made = opened(Resize(side).apply("jpg", encoded(image, exif=exif)).data)
        assert made.getexif().get(0x0112, 1) == 1
        turned = image if orientation == 1 else image.transpose(TURNS[orientation])
        assert psnr(made, turned.resize(made.size, Image.Resampling.LANCZOS)) > 28


@pytest.mark.parametrize(
    ("mode", "format"), [("L", "JPEG"), ("CMYK", "JPEG"), ("P", "PNG"), ("RGBA", "WEBP")]
)
def test_colours(mode, format):
    data = encoded(picture(1, (120, 80), mode), format)
    made = opened(Resize(40).apply({"JPEG": "jpg"}.get(format, format.lower()), data).data)
    assert made.size == (60, 40)
    assert psnr(made.convert("RGB"), opened(data).convert("RGB").resize((60, 40))) > 22


def test_kinds_that_stay():
    deep = io.BytesIO()
    Image.fromarray(np.arange(9000, dtype=np.uint16).reshape(90, 100)).save(deep, "PNG")
    assert Resize(40).apply("png", deep.getvalue()) is None
    assert Resize(40).apply("gif", b"GIF89a") is None


def test_damaged_images_follow_on_error(folder, tmp_path):
    good = (folder / "03.jpg").read_bytes()
    (folder / "03.jpg").write_bytes(good[: len(good) // 2])
    with pytest.raises(SourceError, match=r"03\.jpg: the image cannot be decoded"):
        ss.pack(str(folder), str(tmp_path / "a"), resize=96, workers=1)
    manifest = ss.pack(str(folder), str(tmp_path / "b"), resize=96, workers=1, on_error="skip")
    assert (manifest.samples, manifest.provenance["rejected"]) == (11, 1)
    assert "03.jpg" in (tmp_path / "b" / "rejects.jsonl").read_text()


def test_options(folder, tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n')
    for sources, options in (
        (folder, {"quality": 90}), (folder, {"resize": 0}), (folder, {"resize": 9, "quality": 101}),
        (tmp_path / "a.jsonl", {"resize": 9}),
    ):  # fmt: skip
        with pytest.raises(OptionError):
            ss.pack(str(sources), str(tmp_path / "out"), **options)


@pytest.mark.parametrize("kind", ["png", "jpg"])
def test_a_size_that_the_bytes_cannot_hold_takes_no_memory(kind: str) -> None:
    out = io.BytesIO()
    Image.new("RGB", (3000, 2000)).save(out, {"png": "PNG", "jpg": "JPEG"}[kind], quality=1)
    whole = out.getvalue()
    assert Resize(20).apply(kind, whole) is not None  # of one colour: the fewest bytes
    with pytest.raises(ValueError, match="3000 x 2000 pixels in 900 bytes: it is cut off"):
        Resize(20).apply(kind, whole[:900])
