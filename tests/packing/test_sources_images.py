"""Images: classes by folder or sidecars by name, the files' bytes as they are."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import shardstream as ss
from shardstream.errors import OptionError, SourceError
from shardstream.read.reader import DatasetReader


def image(kind: str, color: int = 0) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (color, 0, 0)).save(buffer, kind)
    return buffer.getvalue()


PNG, JPEG, WEBP = image("png"), image("jpeg"), image("webp")


def plant(root: Path, files: Mapping[str, bytes]) -> Path:
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def pack(root: Any, dest: Path, **options: Any) -> dict[str, dict[str, bytes]]:
    manifest = ss.pack(root, dest, workers=1, **options)
    assert ss.verify(str(dest), deep=True).sound
    found = list(DatasetReader.open(str(dest)).iter_samples())
    assert len(found) == manifest.samples == len(dict(found))
    return dict(found)


def rejects(dest: Path, root: Path) -> dict[str, str]:
    rows = [json.loads(line) for line in (dest / "rejects.jsonl").read_text().splitlines()]
    return {row["where"].removeprefix(f"{root}/"): row["reason"] for row in rows}


@pytest.mark.parametrize("options", [{}, {"shard_size": 1, "frame_size": 1}, {"shuffle": 1}])
def test_folders_are_classes_numbered_by_name(tmp_path, options):
    root = plant(
        tmp_path / "in",
        {
            "dog/1.jpg": JPEG,
            "cat/1.PNG": PNG,
            "cat/deep/2.JPEG": JPEG,
            "dog/3.webp": WEBP,
            "Äffle/x.png": PNG,
        },
    )
    assert pack(root, tmp_path / "out", **options) == {
        "cat/1": {"png": PNG, "cls": b"0"},
        "cat/deep/2": {"jpeg": JPEG, "cls": b"0"},
        "dog/1": {"jpg": JPEG, "cls": b"1"},
        "dog/3": {"webp": WEBP, "cls": b"1"},
        "Äffle/x": {"png": PNG, "cls": b"2"},
    }


def test_every_kind_of_image_keeps_its_bytes(tmp_path):
    kinds = {"png": "png", "jpg": "jpeg", "jpeg": "jpeg", "webp": "webp", "gif": "gif", "bmp": "bmp"}
    kinds |= {"tif": "tiff", "tiff": "tiff"}
    root = plant(tmp_path / "in", {f"{ext}.{ext}": image(kind) for ext, kind in kinds.items()})
    assert pack(root, tmp_path / "out") == {ext: {ext: image(kind)} for ext, kind in kinds.items()}


def test_images_are_not_compressed_again_unless_asked(tmp_path):
    root = plant(tmp_path / "in", {"a.png": image("png", 1), "b.jpg": image("jpeg", 2)})
    for codec, options in (("none", {}), ("zstd", {"compression": "zstd"}), ("none", {"shuffle": 1})):
        dest = tmp_path / f"{codec}-{len(options)}-{next(iter(options), '')}"
        manifest = ss.pack(root, dest, workers=1, **options)
        assert [shard.codec for shard in manifest.shards] == [codec]


def test_sidecars_belong_to_the_image_of_their_name(tmp_path):
    root = plant(
        tmp_path / "in",
        {
            "a.jpg": JPEG, "a.txt": b"an a", "a.json": b'{"n":1}', "a.cls": b"7", "a.caption": b"c",
            "sub/a.png": PNG, "sub/a.TXT": b"another", "b.v1.png": PNG, "b.v1.txt": b"dots", "c.webp": WEBP,
        },
    )  # fmt: skip
    assert pack(root, tmp_path / "out") == {
        "a": {"jpg": JPEG, "txt": b"an a", "json": b'{"n":1}', "cls": b"7", "caption": b"c"},
        "sub/a": {"png": PNG, "txt": b"another"},
        "b%2Ev1": {"png": PNG, "txt": b"dots"},
        "c": {"webp": WEBP},
    }


def test_with_sidecars_folders_are_no_classes(tmp_path):
    root = plant(tmp_path / "in", {"x/a.jpg": JPEG, "x/a.cls": b"5", "y/b.jpg": JPEG})
    assert pack(root, tmp_path / "out") == {"x/a": {"jpg": JPEG, "cls": b"5"}, "y/b": {"jpg": JPEG}}


def test_what_is_no_image_is_rejected_and_named(tmp_path):
    root = plant(
        tmp_path / "in",
        {
            "good.jpg": JPEG, "README.md": b"read me", "lonely.txt": b"no image", "empty.png": b"",
            "cut.webp": WEBP[:10], "text.jpg": b"<html>not found</html>",
            "two.jpg": JPEG, "two.png": PNG, "extra.jpg": JPEG, "extra.npy": b"x",
            "twice.jpg": JPEG, "twice.txt": b"1", "twice.TXT": b"2",
        },
    )  # fmt: skip
    dest = tmp_path / "out"
    found = pack(root, dest, format="images", on_error="skip", max_rejects=0.9)
    assert found == {"good": {"jpg": JPEG}}
    reasons = rejects(dest, root)
    assert reasons.pop("README.md") == "a file that tools write beside the data"  # named, and no reject
    assert reasons.pop("lonely.txt").startswith("not an image")
    assert reasons.pop("empty.png") == "the image file is empty"
    assert reasons.pop("cut.webp") == "the content is not webp, nor another kind of image"
    assert reasons.pop("text.jpg") == "the content is not jpg, nor another kind of image"
    assert "two images of one name" in reasons.pop("two.jpg")
    assert "neither an image nor a sidecar" in reasons.pop("extra.npy")
    assert reasons.pop("twice.jpg") == "two files give field 'txt'"
    assert reasons == {}


def test_the_first_bad_image_stops_a_pack(tmp_path):
    root = plant(tmp_path / "in", {"a.jpg": JPEG, "b.jpg": b"garbage"})
    with pytest.raises(SourceError, match=r"in/b\.jpg: the content is not jpg.*--on-error skip"):
        ss.pack(root, tmp_path / "out", workers=1)
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_images_of_one_name_below_several_roots_stay_apart(tmp_path):
    one = plant(tmp_path / "one", {"x/a.jpg": JPEG, "x/a.txt": b"1"})
    two = plant(tmp_path / "two", {"x/a.png": PNG, "x/a.txt": b"2"})
    assert pack([one, two], tmp_path / "out") == {
        "x/a": {"jpg": JPEG, "txt": b"1"},
        "x/a~2": {"png": PNG, "txt": b"2"},
    }


def test_the_classes_do_not_depend_on_how_the_input_is_cut(tmp_path):
    root = plant(
        tmp_path / "in", {f"c{number % 7}/{number}.png": image("png", number) for number in range(40)}
    )
    whole = pack(root, tmp_path / "whole")
    assert {fields["cls"] for fields in whole.values()} == {b"%d" % number for number in range(7)}
    for size in (1, 200, 1000):
        assert pack(root, tmp_path / f"cut{size}", shard_size=size, frame_size=1) == whole


def test_a_folder_without_images_is_not_taken_for_images(tmp_path):
    root = plant(tmp_path / "in", {"a.json": b"{}", "b.caption": b"x"})
    with pytest.raises(OptionError, match="do not show one format"):
        ss.pack(root, tmp_path / "out", workers=1)
    root = plant(tmp_path / "more", {"a.jpg": JPEG, "b.docx": b"x"})
    with pytest.raises(OptionError, match="do not show one format"):
        ss.pack(root, tmp_path / "out", workers=1)


def test_the_manifest_names_the_classes_and_an_append_must_number_them_the_same(tmp_path):
    one = plant(tmp_path / "one", {"cat/1.png": PNG, "dog/1.png": PNG, "owl/1.png": PNG})
    same = plant(tmp_path / "same", {"cat/2.png": PNG, "dog/2.png": PNG, "owl/2.png": PNG})
    other = plant(tmp_path / "other", {"cat/3.png": PNG, "owl/3.png": PNG})
    manifest = ss.pack(one, tmp_path / "out", workers=1)
    assert manifest.provenance["classes"] == ["cat", "dog", "owl"]
    ss.pack(same, tmp_path / "out", workers=1, append=True)
    with pytest.raises(OptionError, match="'dog' is in one alone"):
        ss.pack(other, tmp_path / "out", workers=1, append=True)
    found = dict(DatasetReader.open(str(tmp_path / "out")).iter_samples())
    assert {key: fields["cls"] for key, fields in found.items()} == {
        "cat/1": b"0", "dog/1": b"1", "owl/1": b"2", "cat/2": b"0", "dog/2": b"1", "owl/2": b"2",
    }  # fmt: skip


def test_images_without_class_folders_name_no_classes(tmp_path):
    root = plant(tmp_path / "in", {"a/1.png": PNG, "a/1.txt": b"one", "b/2.png": PNG})
    assert "classes" not in ss.pack(root, tmp_path / "out", workers=1).provenance
