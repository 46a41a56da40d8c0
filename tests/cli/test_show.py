"""shardstream show: sheets of images, texts and tokens, and what a terminal gets."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import shardstream as ss
from shardstream.cli.app import run
from shardstream.decode.tiles import Tile
from shardstream.decode.views import joined, open_image, open_mask, open_sound, views
from shardstream.observe.sheet import INK, sheet


@pytest.fixture
def images(tmp_path: Path) -> str:
    """Twelve plain colours in two classes, one of them damaged."""
    for number in range(12):
        place = tmp_path / "images" / ("blue", "red")[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        colour = (250, 10, 10) if number % 2 else (10, 10, 250)
        Image.new("RGB", (60, 40), colour).save(place / f"{number:02d}.jpg")
    damaged = tmp_path / "images" / "red" / "05.jpg"
    damaged.write_bytes(damaged.read_bytes()[:200])
    ss.pack(str(tmp_path / "images"), str(tmp_path / "packed"), format="images")
    return str(tmp_path / "packed")


def near(page: Image.Image, colour: tuple[int, int, int]) -> int:
    """The pixels that have about this colour."""
    return int((np.abs(np.asarray(page, np.int64) - colour).max(2) < 20).sum())


def test_a_sheet_of_images(images, tmp_path, capsys):
    out = tmp_path / "sheet.png"
    assert run(["show", images, "--out", str(out)]) == 0
    assert "12 samples" in capsys.readouterr().out
    page = Image.open(out).convert("RGB")
    # Six pictures of one colour and, one being damaged, five of the other.
    assert near(page, (10, 10, 250)) > 6 * 60 * 40
    assert near(page, (250, 10, 10)) == pytest.approx(near(page, (10, 10, 250)) * 5 / 6, rel=0.05)


def test_a_place_that_takes_no_picture_is_named(images, tmp_path, capsys):
    for out in (tmp_path / "sheet.xyz", tmp_path / "nowhere" / "sheet.png"):
        assert run(["show", images, "--out", str(out)]) == 2
        assert f"--out {out}" in " ".join(capsys.readouterr().err.split())


def test_who_is_shown(images, tmp_path, capsys):
    def shown(*more: str) -> list[str]:
        assert run(["show", images, *more]) == 0
        said = capsys.readouterr().out
        return sorted(key for number in range(12) for key in [f"/{number:02d}"] if key in said)

    assert len(shown("--limit", "4")) == 4
    assert shown("--limit", "4", "--seed", "1") == shown("--limit", "4", "--seed", "1")
    assert shown("--limit", "4", "--seed", "1") != shown("--limit", "4", "--seed", "2")
    assert len(shown("--limit", "50")) == 12


def test_a_terminal_gets_blocks_where_it_has_colours(images, capsys, monkeypatch):
    assert run(["show", images, "--limit", "2"]) == 0
    plain = capsys.readouterr().out
    assert "image, 60 x 40" in plain
    assert "blue" in plain
    assert "▀" not in plain
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLORTERM", "truecolor")
    assert run(["show", images, "--limit", "12"]) == 0
    coloured = capsys.readouterr().out
    assert "▀" in coloured
    assert "cannot be decoded" in coloured


def test_texts_and_tokens(tmp_path, capsys):
    rows = [{"id": f"r{number}", "text": f"line {number} \x1b[2J grüß\n" * 30} for number in range(5)]
    (tmp_path / "c.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    ss.pack(tmp_path / "c.jsonl", tmp_path / "texts")
    ss.pack(tmp_path / "c.jsonl", tmp_path / "tokens", tokenizer="bytes", eos=256)
    for name in ("texts", "tokens"):
        out = tmp_path / f"{name}.png"
        assert run(["show", str(tmp_path / name), "--out", str(out)]) == 0
        ink = tuple(int(INK[at : at + 2], 16) for at in (1, 3, 5))
        assert near(Image.open(out).convert("RGB"), ink) > 500  # type: ignore[arg-type]
        capsys.readouterr()
        assert run(["show", str(tmp_path / name), "--limit", "1"]) == 0
        said = capsys.readouterr().out
        assert "line 0" in said
        assert "grüß" in said
        assert "\x1b" not in said
    assert "tokens" in said
    assert run(["show", str(tmp_path / "texts"), "--tokenizer", "bytes"]) == 2
    assert "holds no tokens" in capsys.readouterr().err


def test_a_mark_where_tokens_were_left_out(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with ss.Writer(tmp_path / "tokens", tokens="uint16") as writer:
        for key, count in (("long", 500), ("short", 3)):
            data = ("日" * count).encode()  # three tokens each, if the tokens are bytes
            writer.write({"__key__": key, "tokens": np.frombuffer(data, np.uint8).astype(np.uint16)})
    assert run(["show", str(tmp_path / "tokens"), "--tokenizer", "bytes", "--lines", "2"]) == 0
    long, short = capsys.readouterr().out.split("short")
    assert " ..." in long
    assert "..." not in short


def test_a_sample_without_its_picture_has_no_more_lines(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    samples = [{"__key__": "with", "png": np.zeros((8, 8, 3), np.uint8), "txt": "word"}]
    ss.pack([*samples, {"__key__": "without", "txt": "word " * 200}], tmp_path / "packed")
    assert run(["show", str(tmp_path / "packed"), "--lines", "3"]) == 0
    assert sum("word" in line for line in capsys.readouterr().out.splitlines()) <= 3


def test_tokens_of_a_tokenizer_that_nobody_knows_are_numbers(tmp_path, capsys):
    tokenizers = pytest.importorskip("tokenizers")
    (tmp_path / "c.jsonl").write_text('{"text": "one two one"}\n')
    words = tokenizers.models.WordLevel({"one": 0, "two": 1, "?": 2}, unk_token="?")
    tokenizer = tokenizers.Tokenizer(words)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.save(str(tmp_path / "words.json"))
    ss.pack(tmp_path / "c.jsonl", tmp_path / "packed", tokenizer=str(tmp_path / "words.json"))
    assert run(["show", str(tmp_path / "packed")]) == 0
    assert "0 1 0" in capsys.readouterr().out
    assert run(["show", str(tmp_path / "packed"), "--tokenizer", str(tmp_path / "words.json")]) == 0
    assert "one two one" in capsys.readouterr().out
    (tmp_path / "other.json").write_text((tmp_path / "words.json").read_text().replace("two", "zwei"))
    assert run(["show", str(tmp_path / "packed"), "--tokenizer", str(tmp_path / "other.json")]) == 2
    assert "packed with" in capsys.readouterr().err


@pytest.mark.parametrize("count", [0, 1, 2, 5, 16, 40])
@pytest.mark.parametrize("text", ["", "word " * 400, "w" * 5000, "a\nb\n" * 50])
def test_every_sheet_holds_its_tiles(count, text):
    image = Image.new("RGB", (9, 300), "green")
    for picture in (None, image):
        page = sheet("t" * 500, [Tile("k" * 300, picture, "l" * 300, text, picture is None)] * count)
        assert page.width == 1280
        assert page.height < 250 + count * 360


def test_transparent_and_turned_images():
    file = io.BytesIO()
    Image.new("RGBA", (4, 2), (9, 8, 7, 0)).save(file, "png")
    assert open_image(file.getvalue()).getpixel((0, 0)) == (9, 8, 7)  # as a model sees it
    file, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 20)).save(file, "jpeg", exif=exif)
    assert open_image(file.getvalue()).size == (20, 40)
    assert "cannot be decoded" in open_image(b"nothing")


def png(values: np.ndarray, mode: str | None = None) -> bytes:
    file = io.BytesIO()
    Image.fromarray(values, mode).save(file, "png")
    return file.getvalue()


def test_classes_have_colours_and_depths_have_greys():
    ids = np.arange(3 * 40).reshape(3, 40).astype(np.uint8) % 3
    palette = Image.fromarray(ids, "P")
    palette.putpalette([7, 7, 7] * 3)
    file = io.BytesIO()
    palette.save(file, "png")
    for data in (file.getvalue(), png(ids)):
        mask, about = open_mask(data)
        assert about == "ids 0, 1, 2"
        assert {mask.getpixel((at, 0)) for at in range(3)} == {(0, 0, 0), (128, 0, 0), (0, 128, 0)}
    depths = (np.arange(30 * 40).reshape(30, 40) * 30).astype(np.uint16)
    depth, about = open_mask(png(depths))
    assert about == "0 to 35,970 (uint16)"
    assert (depth.getpixel((0, 0)), depth.getpixel((39, 29))) == ((0, 0, 0), (255, 255, 255))
    assert "cannot be decoded" in open_mask(b"nothing")
    deep = open_image(png(depths))  # as a model sees it: the higher 8 bits
    assert deep.getpixel((39, 29)) == (35970 >> 8,) * 3


def test_large_images_are_made_smaller():
    file = io.BytesIO()
    Image.new("RGB", (2100, 1100), "green").save(file, "jpeg")
    assert open_image(file.getvalue()).size == (1050, 550)


def test_sounds_are_waves_with_their_length():
    soundfile = pytest.importorskip("soundfile")
    loud, quiet = np.sin(np.arange(12_000) / 5), np.zeros(12_000)
    file = io.BytesIO()
    soundfile.write(file, np.stack((loud, quiet), 1), 8000, format="FLAC")
    wave, about = open_sound(file.getvalue(), "flac")
    assert about == "1.50 s, 8,000 Hz, stereo"
    inked = (np.asarray(wave)[:, :, 0] < 128).mean(1)
    assert inked[20:100].min() > 0.8  # the first channel fills its half
    assert (inked[140:] > 0.9).sum() <= 3  # and the second is a line
    empty = io.BytesIO()
    soundfile.write(empty, np.zeros((0, 1)), 8000, format="WAV")
    assert open_sound(empty.getvalue(), "wav")[1] == "0.00 s, 8,000 Hz, mono"
    assert "0x" not in open_sound(b"nothing", "wav")
    assert open_sound(b"", "xyz") == "no decoder for xyz"


def test_all_pictures_of_a_sample_are_on_its_tile(tmp_path, capsys):
    import tarfile

    soundfile = pytest.importorskip("soundfile")
    sound = io.BytesIO()
    soundfile.write(sound, np.sin(np.arange(4000) / 9), 8000, format="WAV")
    image = np.full((60, 80, 3), (250, 10, 10), np.uint8)
    fields = {
        "jpg": png(image),
        "mask.png": png(np.eye(60, 80).astype(np.uint8) * 2),
        "wav": sound.getvalue(),
        "other.png": b"damaged",
    }
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, data in fields.items():
            info = tarfile.TarInfo(f"one.{name}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    ss.pack(str(tmp_path / "a.tar"), str(tmp_path / "packed"))
    assert run(["show", str(tmp_path / "packed")]) == 0
    said = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for told in ("jpg; mask.png: ids 0, 2", "wav: 0.50 s, 8,000 Hz, mono"):
        assert told in said or told.split()[-1] in said
    assert run(["show", str(tmp_path / "packed"), "--out", str(tmp_path / "sheet.png")]) == 0
    page = Image.open(tmp_path / "sheet.png").convert("RGB")
    assert near(page, (250, 10, 10)) > 5000
    kinds = {"jpg": "jpg", "mask.png": "png", "wav": "wav", "other.png": "png"}
    found = views(fields, kinds)
    assert [view.name for view in found] == ["jpg", "mask.png", "other.png", "wav"]
    assert "cannot be decoded" in found[2].picture
    assert joined(found).width > 60 * 3


def test_without_pillow_the_extra_is_named(images, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    assert run(["show", images, "--limit", "1"]) == 1
    assert "shardstream[images]" in capsys.readouterr().err
