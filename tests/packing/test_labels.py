"""Which folders are classes, what is counted of images, and what pack, info and datasets say of it."""

from __future__ import annotations

import io
import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

import shardstream as ss
from shardstream.cli.app import app
from shardstream.errors import OptionError
from shardstream.packing.sources.labels import labelled
from shardstream.read.reader import DatasetReader
from tests.packing.test_sources_images import JPEG, PNG, plant, rejects


def classes(*paths: str, labels=None) -> dict[str, int]:
    found = labelled(paths, labels, paired=lambda: False)
    assert found.counts == (Counter(map(found.of, paths)) if found.counts else {})
    return found.counts


@pytest.mark.parametrize(
    ("paths", "wanted"),
    [
        (["dog/1.jpg", "cat/2.jpg", "cat/3.jpg"], {"cat": 2, "dog": 1}),
        (["cat/1.jpg"], {"cat": 1}),
        (["cat/a/1.jpg", "dog/2.jpg"], {"cat": 1, "dog": 1}),
        (["train/1.jpg", "car/2.jpg"], {"car": 1, "train": 1}),  # a train among vehicles
        (["train/cat/1.jpg", "train/dog/2.jpg", "val/cat/3.jpg"], {"cat": 2, "dog": 1}),
        (["Train/cat/1.jpg", "TEST/dog/2.jpg"], {"cat": 1, "dog": 1}),
        (["data/images/train/cat/deep/1.jpg", "data/images/test/dog/2.jpg"], {"cat": 1, "dog": 1}),
        (["images/1.jpg", "images/2.jpg"], {}),
        (["train2017/1.jpg", "val2017/2.jpg"], {}),
        (["images/train/1.jpg", "images/val/2.jpg"], {}),
        (["images/1.png", "masks/1.png"], {}),
        (["train/cat/1.jpg", "test/2.jpg"], {}),
        (["1.jpg", "cat/2.jpg"], {}),
        (["1.jpg"], {}),
        ([], {}),
        (["trainers/1.jpg", "test_tubes/3.jpg"], {"test_tubes": 1, "trainers": 1}),
    ],
)  # fmt: skip
def test_the_folders_of_common_trees(paths, wanted):
    assert classes(*paths) == wanted


def test_what_is_asked_for():
    paths = ["train/cat/1.jpg", "val/cat/2.jpg", "val/dog/3.jpg"]
    assert classes(*paths, labels="top") == {"train": 1, "val": 2}
    assert classes(*paths, labels="leaf") == {"cat": 2, "dog": 1}
    assert classes(*paths, labels="none") == {}
    for labels in ("top", "leaf"):
        with pytest.raises(OptionError, match=r"4\.jpg lies in no folder"):
            classes(*paths, "4.jpg", labels=labels)


@given(st.dictionaries(st.text("abcdefXYZ_ é", min_size=1, max_size=6), st.integers(1, 3), max_size=5))
def test_folders_that_are_no_parts_have_the_classes_of_0_1(tree):
    paths = [f"{name}/{number}.jpg" for name, count in tree.items() for number in range(count)]
    found = classes(*paths)
    assert found == tree
    assert list(found) == sorted(tree)


TREE = {
    "train/cat/1.png": PNG, "train/dog/2.jpg": JPEG, "val/cat/3.jpg": PNG, "val/Äffle/4.png": JPEG,
}  # fmt: skip


@pytest.mark.parametrize("options", [{}, {"workers": 2, "shard_size": 1, "frame_size": 1}, {"shuffle": 3}])
def test_labels_are_stored_and_named(tmp_path, options):
    root = plant(tmp_path / "in", TREE)
    manifest = ss.pack(root, tmp_path / "out", **({"workers": 1} | options))
    assert manifest.provenance["labels"] == "folders below train, val"
    assert manifest.provenance["classes"] == ["cat", "dog", "Äffle"]
    assert manifest.provenance["class_counts"] == [2, 1, 1]
    assert manifest.provenance["images"] == {"misnamed": 2}
    ds = ss.StreamingDataset(str(tmp_path / "out"))
    assert ds.classes == ("cat", "dog", "Äffle")
    assert ds.subset(numbers=[0]).classes == ds.classes
    found = {sample["__key__"]: ds.classes[sample["cls"]] for sample in ds}
    assert found == {key: key.split("/")[1] for key in found}
    assert len(found) == 4


def test_without_labels_there_is_no_field(tmp_path):
    root = plant(tmp_path / "in", TREE)
    ss.pack(root, tmp_path / "out", workers=1, labels="none")
    ds = ss.StreamingDataset(str(tmp_path / "out"))
    assert ds.classes == ()
    assert all("cls" not in sample for sample in ds)


def test_labels_beside_sidecars_only_if_they_are_asked_for(tmp_path):
    root = plant(tmp_path / "in", {"x/a.jpg": JPEG, "x/a.txt": b"1", "y/b.jpg": JPEG, "y/b.cls": b"7"})
    ss.pack(root, tmp_path / "none", workers=1)
    assert ss.StreamingDataset(str(tmp_path / "none")).classes == ()
    ss.pack(root, tmp_path / "top", workers=1, labels="top", on_error="skip")
    found = dict(DatasetReader.open(str(tmp_path / "top")).iter_samples())
    assert found == {"x/a": {"jpg": JPEG, "txt": b"1", "cls": b"0"}}
    assert "its class is in a file beside it" in rejects(tmp_path / "top", root)["y/b.jpg"]


def test_an_append_must_have_the_same_classes(tmp_path):
    one = plant(tmp_path / "one", {"train/cat/1.png": PNG, "val/dog/2.png": PNG})
    two = plant(tmp_path / "two", {"train/cat/3.png": PNG, "val/dog/4.png": PNG})
    ss.pack(one, tmp_path / "out", workers=1)
    ss.pack(two, tmp_path / "out", workers=1, append=True)
    with pytest.raises(OptionError, match="in one alone"):
        ss.pack(two, tmp_path / "out", workers=1, append=True, labels="top")


def test_labels_are_for_images_and_must_be_known(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n')
    with pytest.raises(OptionError, match="labels is for --format images"):
        ss.pack(tmp_path / "a.jsonl", tmp_path / "out", labels="top")
    root = plant(tmp_path / "in", TREE)
    with pytest.raises(OptionError, match="must be 'none', 'leaf' or 'top'"):
        ss.pack(root, tmp_path / "out", labels="folder")  # type: ignore[call-overload]


def turned() -> bytes:
    out, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (8, 6)).save(out, "JPEG", exif=exif)
    return out.getvalue()


def run(*args: str | Path) -> str:
    result = CliRunner().invoke(app, [str(arg) for arg in args])
    assert result.exit_code == 0, result.output
    return result.output


def test_pack_and_info_print_classes_and_what_is_odd(tmp_path):
    root = plant(tmp_path / "in", TREE | {"val/dog/5.jpg": turned()})
    for output in (run("pack", root, tmp_path / "out"), run("info", tmp_path / "out")):
        assert "3 classes, folders below train, val: cat 2, dog 2, Äffle 1" in output
        assert "images with an EXIF orientation, which are turned when they are decoded: 1" in output
        assert "another kind than their names say, whose content counts: 2" in output
    told = json.loads(run("pack", root, tmp_path / "json", "--labels", "leaf", "--json"))
    assert (told["classes"], told["class_counts"]) == (["cat", "dog", "Äffle"], [2, 2, 1])
    flat = plant(tmp_path / "flat", {"images/1.png": PNG})
    assert "labels none: images are no classes" in run("pack", flat, tmp_path / "flat-out")
    many = plant(tmp_path / "many", {f"c{number:02d}/1.png": PNG for number in range(15)})
    assert "15 classes, top folders: c00 1, c01 1" in (output := run("pack", many, tmp_path / "many-out"))
    assert "and 5 more" in output


def test_resized_images_are_upright_already(tmp_path):
    root = plant(tmp_path / "in", {"a.jpg": turned(), "b.jpg": PNG})
    images = ss.pack(root, tmp_path / "out", workers=1, resize=4).provenance["images"]
    assert "turned" not in images
    assert images["misnamed"] == 1
    assert images["images"] == 2
    assert "images: 2 of 2 made smaller" in run("info", tmp_path / "out")
