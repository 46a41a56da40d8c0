"""What is at a URL: files, indexes, checkpoints, the Hub; and what is refused."""

from __future__ import annotations

import json
import os
import uuid
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import shardstream as ss
from shardstream.errors import CorruptionError, OptionError, StorageError
from shardstream.storage.store import local_path_of
from shardstream.weights.catalog import open_catalog
from tests.weights.models import of_all_kinds, same, save_sharded


@pytest.fixture
def state() -> dict[str, torch.Tensor]:
    return of_all_kinds(20)


def test_folders_files_and_indexes(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    save_sharded(state, tmp_path / "sharded")
    save_file(state, tmp_path / "one.safetensors")
    (tmp_path / "folder").mkdir()
    save_file(state, tmp_path / "folder" / "weights.safetensors")
    for url in (
        tmp_path / "sharded", f"file://{tmp_path}/sharded/", tmp_path / "one.safetensors",
        tmp_path / "folder", tmp_path / "sharded" / "model.safetensors.index.json",
    ):  # fmt: skip
        assert same(ss.load_weights(url), state)
    part = next((tmp_path / "sharded").glob("model-00001*"))
    assert ss.load_weights(part).keys() == set(sorted(state)[::3])


def test_a_folder_without_weights(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"there is no \.safetensors file here"):
        open_catalog(str(tmp_path))
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(StorageError, match=r"only pickles .* convert them to safetensors"):
        open_catalog(str(tmp_path))
    with pytest.raises(StorageError, match=r"pickles are never loaded"):
        open_catalog(str(tmp_path / "pytorch_model.bin"))
    with pytest.raises(StorageError, match=r"[Nn]o such"):
        open_catalog(str(tmp_path / "none.safetensors"))


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (b"{}", "must have a weight_map"), (b"nonsense", "must have a weight_map"), (b"[]", "must have"),
        (b'{"weight_map": {}}', "its weight_map is empty"), (b'{"weight_map": [1]}', "must have"),
        (b'{"weight_map": {"a": "../up"}}', "cannot be"), (b'{"weight_map": {"a": 3}}', "must have"),
        (b'{"weight_map": {"a": "/etc/x"}}', "cannot be"),
        (b'{"weight_map": {"a": "s3://b/x"}}', "cannot be"),
        (b'{"weight_map": {"a": "m.safetensors"}}', "tensor 'a' is missing, which the index lists"),
        (b'{"weight_map": {"b": "m.safetensors", "b": "n.safetensors"}}', "'b' is there twice"),
    ],
)  # fmt: skip
def test_damaged_indexes(tmp_path: Path, index: bytes, message: str) -> None:
    save_file({"b": torch.ones(2)}, tmp_path / "m.safetensors")
    (tmp_path / "model.safetensors.index.json").write_bytes(index)
    with pytest.raises(CorruptionError, match=message):
        open_catalog(str(tmp_path))


def test_an_index_and_files_that_disagree(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    index = tmp_path / "model.safetensors.index.json"
    save_file({"a": torch.ones(2), "unlisted": torch.ones(1)}, tmp_path / "one.safetensors")
    index.write_text('{"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}')
    with pytest.raises(StorageError, match=r"two.safetensors: .*index.json names it: fetch it again"):
        open_catalog(str(tmp_path))
    # As in transformers, all tensors of the files that are named count.
    index.write_text('{"weight_map": {"a": "one.safetensors"}}')
    assert open_catalog(str(tmp_path)).tensors.keys() == {"a", "unlisted"}
    assert not caplog.records
    save_file({"a": torch.zeros(2)}, tmp_path / "model.safetensors")
    assert ss.load_weights(tmp_path)["a"].tolist() == [1, 1]
    assert "not model.safetensors, which is here, too" in caplog.text


def test_paths_in_urls_of_files_are_quoted(tmp_path: Path) -> None:
    folder = tmp_path / "a b 100%"
    folder.mkdir()
    save_file({"a": torch.ones(2)}, folder / "model.safetensors")
    (folder / "x y.safetensors.index.json").write_text('{"weight_map": {"a": "model.safetensors"}}')
    for url in (folder.as_uri(), f"file://{folder}", folder.as_uri().replace("file://", "file://localhost")):
        assert ss.load_weights(url).keys() == {"a"}
        assert ss.load_weights(f"{url}/model.safetensors").keys() == {"a"}
        assert ss.load_weights(f"{url}/x%20y.safetensors.index.json").keys() == {"a"}
    assert local_path_of("file://localhost2/x") == os.path.abspath("localhost2/x")


def test_a_folder_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for cache in (None, tmp_path / "cache"):
        with pytest.raises(StorageError, match=r"no such folder; a model .* is hf://org/model-7\.b$"):
            ss.load_weights("org/model-7.b", cache=cache)
        with pytest.raises(StorageError, match=r"no such folder$"):
            ss.load_weights("/nowhere/at/all", cache=cache)
    (tmp_path / "file.txt").write_text("x")
    with pytest.raises(StorageError, match="this is no folder"):
        open_catalog("file.txt")


def test_a_pointer_of_git_lfs(tmp_path: Path) -> None:
    text = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 12345\n"
    (tmp_path / "model.safetensors").write_text(text)
    with pytest.raises(CorruptionError, match=r"model\.safetensors: a pointer of Git LFS .* git lfs pull"):
        open_catalog(str(tmp_path))


def test_a_name_in_two_files(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2), "b": torch.ones(2)}, tmp_path / "m1.safetensors")
    save_file({"a": torch.zeros(2)}, tmp_path / "m2.safetensors")
    message = r"m2.safetensors: tensor 'a' is in .*m1.safetensors, too: .*give the URL of one file"
    with pytest.raises(OptionError, match=message):
        open_catalog(str(tmp_path))
    index = {"weight_map": {"a": "m2.safetensors", "b": "m1.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert ss.load_weights(tmp_path)["a"].tolist() == [0, 0]  # the index decides


def test_names(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    save_sharded(state, tmp_path)
    found = ss.load_weights(tmp_path, names=["number", "bool"])
    assert same(found, {name: state[name] for name in ("bool", "number")})
    with pytest.raises(OptionError, match=r"no tensor 'nope' here; there are .* and 14 more"):
        ss.load_weights(tmp_path, names=["number", "nope"])
    with pytest.raises(OptionError, match="a list of names"):
        ss.load_weights(tmp_path, names="number")


@pytest.fixture
def hub(nginx: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The Hub's two kinds of addresses, as files of a web server."""

    class Hub:
        def __init__(self) -> None:
            self.name = f"org-{uuid.uuid4().hex[:8]}/model"
            self.files: Path = nginx.root / self.name / "resolve" / "v1"
            self.files.mkdir(parents=True)

        def publish(self, shas: dict[str, str] | None = None) -> str:
            entries = [
                {"type": "file", "path": file.name, "size": file.stat().st_size}
                | ({"lfs": {"oid": shas[file.name], "size": 1}} if shas and file.name in shas else {})
                for file in self.files.iterdir()
            ]
            tree = nginx.root / "api" / "models" / self.name / "tree"
            tree.mkdir(parents=True, exist_ok=True)
            (tree / "v1").write_text(json.dumps([*entries, {"type": "directory", "path": "sub", "size": 0}]))
            return f"hf://{self.name}@v1"

    monkeypatch.setenv("HF_ENDPOINT", nginx.url)
    monkeypatch.setenv("HF_TOKEN", "hf_SECRET")
    return Hub()


def test_the_hub(hub: Any, state: dict[str, torch.Tensor]) -> None:
    save_sharded(state, hub.files)
    url = hub.publish()
    assert same(ss.load_weights(url), state)
    assert same(ss.load_weights(f"{url}/model.safetensors.index.json"), state)
    catalog = open_catalog(url)
    assert len(catalog.files) == 3
    assert "SECRET" not in repr(catalog)


def test_the_hub_knows_sizes(hub: Any) -> None:
    save_file({"a": torch.ones(2)}, hub.files / "model.safetensors")
    url = hub.publish()
    save_file({"a": torch.ones(3)}, hub.files / "model.safetensors")
    with pytest.raises(CorruptionError, match="when it was recorded"):
        open_catalog(url)
    for wrong in ("hf://model", "hf://a/b/../c@", "hf://"):
        with pytest.raises((OptionError, StorageError)):
            open_catalog(wrong)


def test_a_checkpoint_of_ours(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    from shardstream.storage.store import Store
    from shardstream.weights.download import digests_of_file

    save_sharded(state, tmp_path / "attempt")
    store = Store.open(str(tmp_path / "attempt"))
    files = [
        {"name": name, "bytes": store.size(name), "digests": digests_of_file(store, name).blocks}
        for name in store.list()
    ]
    content = {"attempt": "attempt", "files": files}
    (tmp_path / "manifest.json").write_text(
        json.dumps({"format": "shardstream-checkpoint", "version": 1, "checksum": "", "content": content})
    )
    assert same(ss.load_weights(tmp_path), state)
    assert len(open_catalog(str(tmp_path)).digests) == 3
    part = next((tmp_path / "attempt").glob("model-00002*"))
    data = bytearray(part.read_bytes())
    data[-1] ^= 1
    part.write_bytes(data)
    with pytest.raises(CorruptionError, match=r"model-00002.*damaged"):
        ss.load_weights(tmp_path)
