"""DALI's own index of plain tars, read by DALI."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import shardstream as ss
from shardstream.cli.app import run
from shardstream.errors import OptionError
from shardstream.maintain.dali_index import write_dali_index
from shardstream.read.reader import DatasetReader
from shardstream.storage.store import Store


@pytest.fixture
def packed(tmp_path: Path) -> str:
    rows = [
        {"id": f"row{number}", "text": f"text {number} " * (100 + number % 5), "n": number}
        for number in range(90)
    ]
    (tmp_path / "c.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for codec in ("none", "zstd"):
        ss.pack(
            tmp_path / "c.jsonl", tmp_path / codec, compression=codec, frame_size="4KiB", shard_size="32KiB"
        )
    return str(tmp_path)


def test_dali_reads_by_our_index(packed, capsys):
    pytest.importorskip("nvidia.dali", reason="nvidia-dali is an extra of several hundred MB")
    from nvidia.dali import fn, pipeline_def

    assert run(["export", f"{packed}/none", f"{packed}/idx", "--format", "dali-index", "--json"]) == 0
    names = json.loads(capsys.readouterr().out)["files"]
    reader = DatasetReader.open(f"{packed}/none")
    assert len(names) == len(reader.manifest.shards) > 1

    @pipeline_def(batch_size=1, num_threads=1, device_id=None)
    def pipeline():
        return tuple(
            fn.readers.webdataset(
                paths=[f"{packed}/none/{shard.url}" for shard in reader.manifest.shards],
                index_paths=[f"{packed}/idx/{name}" for name in names],
                ext=["txt", "json"],
                missing_component_behavior="error",
            )
        )

    pipe = pipeline()
    pipe.build()
    for _, fields in reader.iter_samples():
        text, rest = pipe.run()
        assert text.as_array().tobytes() == fields["txt"]
        assert rest.as_array().tobytes() == fields["json"]


def test_lines_are_where_members_lie(packed):
    names = write_dali_index(f"{packed}/none", f"{packed}/idx")
    data = Path(packed, "none", names[0].replace(".idx", ".tar")).read_bytes()
    head, *lines = Path(packed, "idx", names[0]).read_text().splitlines()
    assert head == f"v1.2 {len(lines)}"
    words = lines[0].split()
    for extension, at, size, name in zip(*(words[part::4] for part in range(4)), strict=True):
        begin = int(at)
        header = data[begin - 512 : begin]
        assert header[:100].rstrip(b"\0").decode() == name
        assert int(header[124:135], 8) == int(size)
        assert name.endswith(f".{extension}")


def test_what_dali_could_not_read(packed, tmp_path):
    with pytest.raises(OptionError, match="compressed"):
        write_dali_index(f"{packed}/zstd", f"{packed}/idx")
    (tmp_path / "d.jsonl").write_text('{"id": "a b", "text": "x"}\n')
    ss.pack(tmp_path / "d.jsonl", tmp_path / "spaces", compression="none")
    with pytest.raises(OptionError, match="'a b'"):
        write_dali_index(str(tmp_path / "spaces"), f"{packed}/idx")


def test_a_manifest_of_two_files_and_a_bucket(packed, monkeypatch, weed, capsys):
    """As of very many shards: the indexes are the same, wherever they are written."""
    monkeypatch.setattr("shardstream.storage.manifests.LARGE", 0)
    ss.pack(f"{packed}/c.jsonl", f"{packed}/two", compression="none", frame_size="4KiB", shard_size="32KiB")
    assert list(Path(packed, "two").glob("manifest-*"))
    names = write_dali_index(f"{packed}/none", f"{packed}/idx")
    url, options = weed.bucket(), weed.options()
    told = [f"--storage-option={name}={value}" for name, value in options.items()]
    assert run(["export", f"{packed}/two", url, "--format", "dali-index", *told, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["files"] == names
    store = Store.open(url, options)
    assert store.list() == names
    assert all(store.read(name) == Path(packed, "idx", name).read_bytes() for name in names)
    assert Path(packed, "idx", names[0]).read_text().startswith("v1.2 ")
