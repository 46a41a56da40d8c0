"""Trees of text files: every file once, under a key from which its path can be told."""

from __future__ import annotations

import json
import os
import tempfile
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import shardstream as ss
from shardstream.errors import OptionError, SourceError
from shardstream.format.names import check_key, unescape_key
from shardstream.packing.sources import Sample, make_source
from shardstream.read.reader import DatasetReader
from shardstream.storage.inputs import expand
from shardstream.storage.store import Store


def plant(root: Path, files: Mapping[str, bytes]) -> Path:
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def pack(sources: Any, dest: Path, **options: Any) -> dict[str, bytes]:
    """Path below the root to text."""
    ss.pack(sources, dest, format="text", workers=1, **options)
    assert ss.verify(str(dest), deep=True).sound
    found = list(DatasetReader.open(str(dest)).iter_samples())
    assert all(set(fields) == {"txt"} for _, fields in found)
    texts = {unescape_key(key): fields["txt"] for key, fields in found}
    assert len(texts) == len(found)
    return texts


TREE = {
    "a.txt": b"plain",
    "setup.py": b"import os\r\n",
    "no extension": b"x",
    "sub/a.txt": "é✓ 数据\u0000".encode(),
    "sub/ключ ✓/100%.txt": b"y",
    "sub.v1/.../x": b"dots",
    "back\\slash": b"z",
    "new\nline": b"n",
    "empty.txt": b"",
    "bom.txt": b"\xef\xbb\xbfkept as it is",
}


@pytest.mark.parametrize("options", [{}, {"shard_size": 5, "frame_size": 1}, {"shuffle": 1}])
def test_every_file_comes_back_under_its_path(tmp_path, options):
    root = plant(tmp_path / "tree", TREE)
    wanted = {name: text for name, text in TREE.items() if name != "sub.v1/.../x"}  # "..." is hidden
    assert pack(root, tmp_path / "out", **options) == wanted


def test_hidden_files_and_folders_are_left_out(tmp_path):
    root = plant(tmp_path / "tree", {"a": b"1", ".b": b"2", ".git/c": b"3", "sub/.d": b"4", "sub/e": b"5"})
    assert pack(root, tmp_path / "out") == {"a": b"1", "sub/e": b"5"}


def test_symlinks_to_files_count_and_to_folders_do_not(tmp_path):
    plant(tmp_path, {"tree/a": b"1", "elsewhere/b": b"2"})
    (tmp_path / "tree" / "file").symlink_to(tmp_path / "elsewhere" / "b")
    (tmp_path / "tree" / "folder").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "tree" / "self").symlink_to(tmp_path / "tree")
    (tmp_path / "tree" / "broken").symlink_to("nothing")
    with pytest.raises(SourceError, match="tree/folder: a link to a directory is not followed"):
        pack(tmp_path / "tree", tmp_path / "out")
    found = pack(tmp_path / "tree", tmp_path / "out", on_error="skip", max_rejects=0.6)
    assert found == {"a": b"1", "file": b"2"}
    rows = [json.loads(line) for line in (tmp_path / "out" / "rejects.jsonl").read_text().splitlines()]
    assert [row["where"] for row in rows] == [
        str(tmp_path / "tree" / name) for name in ("folder", "self", "broken")
    ]


names = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=12)
paths = st.lists(names.filter(lambda name: not name.startswith(".")), min_size=1, max_size=3).map("/".join)


@given(st.sets(paths, min_size=1, max_size=6), st.integers(1, 9))
def test_any_tree_gives_valid_unique_keys_that_can_be_turned_back(wanted, target):
    with tempfile.TemporaryDirectory() as folder:
        planted = set()
        for path in sorted(wanted):
            if not any(other.startswith(f"{path}/") or path.startswith(f"{other}/") for other in planted):
                plant(Path(folder), {path: path.encode()})
                planted.add(path)
        source = make_source("text")
        items = [item for task in source.plan(expand([folder]), target) for item in source.read(task)]
    found = {item.key: item.fields["txt"].decode() for item in items if isinstance(item, Sample)}
    assert {unescape_key(check_key(key)): text for key, text in found.items()} == {p: p for p in planted}
    assert len(items) == len(planted)


def test_a_file_that_is_not_utf8_is_rejected_by_file_and_line(tmp_path):
    root = plant(
        tmp_path / "tree",
        {
            "a": b"fine",
            "b": b"\xff",
            "c": b"1\n2\n3 \xc3\n",
            "d": "half é".encode()[:-1],
            "e": b"\xed\xa0\x80",
        },
    )
    with pytest.raises(SourceError, match=r"tree/b:1: not UTF-8 text"):
        ss.pack(root, tmp_path / "raise", format="text", workers=1)
    assert pack(root, tmp_path / "out", on_error="skip", max_rejects=0.8) == {"a": b"fine"}
    rows = [json.loads(line) for line in (tmp_path / "out" / "rejects.jsonl").read_text().splitlines()]
    assert [row["where"] for row in rows] == [f"{root}/{place}" for place in ("b:1", "c:3", "d:1", "e:1")]


@pytest.mark.parametrize("options", [{}, {"shuffle": 1}], ids=["plain", "shuffle"])
def test_names_that_are_not_utf8(tmp_path, options):
    root = plant(tmp_path / "tree", {"a": b"1"})
    for name, text in ((b"\xff", b"2"), (b"\xfe", b"3"), (b"bad\xfe", b"\xff")):
        Path(os.fsdecode(os.fsencode(root) + b"/" + name)).write_bytes(text)
    manifest = ss.pack(root, tmp_path / "out", format="text", workers=1, on_error="skip", **options)
    assert (manifest.samples, manifest.provenance["rejected"]) == (3, 1)
    found = dict(DatasetReader.open(str(tmp_path / "out")).iter_samples())
    assert {os.fsencode(unescape_key(key)): fields["txt"] for key, fields in found.items()} == {
        b"a": b"1", b"\xff": b"2", b"\xfe": b"3",
    }  # fmt: skip


def test_equal_paths_below_several_roots_have_keys_of_their_own(tmp_path):
    for root in ("one", "two", "three"):
        plant(tmp_path / root, {"a": root.encode(), "sub/b": root.encode()})
    plant(tmp_path / "two", {"a~2": b"tilde", "a~3": b"tilde"})
    roots = [tmp_path / root for root in ("one", "two", "three")]
    texts = pack(roots, tmp_path / "out")
    assert sorted(texts.values()) == sorted([b"one", b"two", b"three"] * 2 + [b"tilde"] * 2)
    assert (texts["a"], texts["a~2"], texts["sub/b"], texts["sub/b~3"]) == (b"one", b"two", b"one", b"three")


def test_a_named_file_is_known_by_its_name_and_a_glob_by_the_path_below_its_fixed_part(tmp_path):
    root = plant(tmp_path / "tree", {"x/a.txt": b"1", "y/a.txt": b"2", "y/b.md": b"3"})
    assert pack(root / "x" / "a.txt", tmp_path / "one") == {"a.txt": b"1"}
    assert pack(f"{root}/*/*.txt", tmp_path / "two") == {"x/a.txt": b"1", "y/a.txt": b"2"}
    assert pack([f"{root}/{{x,y}}/a.txt"], tmp_path / "three") == {"a.txt": b"1", "a.txt~2": b"2"}


def test_keys_are_the_same_for_a_remote_tree(tmp_path):
    store = Store.open(f"memory://{uuid.uuid4().hex}/tree")
    for name, text in TREE.items():
        store.write(name, text)
    root = plant(tmp_path / "tree", TREE)
    assert pack(store.url, tmp_path / "out") == pack(root, tmp_path / "local")


@pytest.mark.parametrize("text", [b"", b"short", b"longer than it was"])
def test_a_file_that_changes_while_packing_is_an_error(tmp_path, text):
    root = plant(tmp_path / "tree", {"a": b"as it was"})
    with pytest.raises(SourceError, match=r"tree/a: its size changed from 9 bytes"):
        ss.pack(
            root,
            tmp_path / "out",
            format="text",
            workers=1,
            compression="zstd",
            progress=lambda _: (root / "a").write_bytes(text) and None,
        )
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_only_trees_that_show_it_are_taken_for_text(tmp_path):
    root = plant(tmp_path / "tree", {"a.txt": b"1", "b.PY": b"2"})
    assert ss.pack(root, tmp_path / "out", workers=1).samples == 2
    plant(root, {"c.bin": b"3"})
    with pytest.raises(OptionError, match="do not show one format; pass --format"):
        ss.pack(root, tmp_path / "none", workers=1)
