"""export(): what comes back, and what is left after a failure."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pytest

from shardstream.errors import CommitError, OptionError, SourceError, StorageError
from shardstream.maintain.export import export
from shardstream.packing.packer import pack
from shardstream.progress import Progress
from shardstream.read.reader import DatasetReader


@pytest.fixture
def dataset(corpus: Path, tmp_path: Path) -> str:
    pack(str(corpus), str(tmp_path / "dataset"), shard_size="16KiB", frame_size="4KiB", workers=1)
    return str(tmp_path / "dataset")


def _split(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").removesuffix("\n").split("\n")


def _lines(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for path in sorted(folder.iterdir()) for line in _split(path)]


def test_tars_hold_the_same_bytes(dataset: str, tmp_path: Path) -> None:
    assert export(dataset, str(tmp_path / "out"), shard_size="16KiB") == 100
    found = {}
    files = sorted((tmp_path / "out").iterdir())
    assert len(files) > 1
    assert [path.name for path in files] == [f"shard-{number:06d}.tar" for number in range(len(files))]
    for path in files:
        with tarfile.open(path) as archive:
            for member in archive:
                content = archive.extractfile(member)
                assert content is not None
                found[member.name] = content.read()
    samples = DatasetReader.open(dataset).iter_samples()
    assert found == {f"{key}.{name}": data for key, fields in samples for name, data in fields.items()}


@pytest.mark.parametrize("format", ["webdataset", "jsonl"])
def test_same_bytes_every_time(dataset: str, tmp_path: Path, format: str) -> None:
    for name in "ab":
        export(dataset, str(tmp_path / name), format)
    first, second = ({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in "ab")
    assert first == second


def test_exported_tars_pack_to_the_same_samples(dataset: str, tmp_path: Path) -> None:
    export(dataset, str(tmp_path / "out"))
    pack(str(tmp_path / "out"), str(tmp_path / "again"), format="webdataset", workers=1)
    again = DatasetReader.open(str(tmp_path / "again"))
    assert list(again.iter_samples()) == list(DatasetReader.open(dataset).iter_samples())


def test_jsonl_gives_the_corpus_back(dataset: str, corpus: Path, tmp_path: Path) -> None:
    export(dataset, str(tmp_path / "out"), "jsonl", shard_size="16KiB")
    assert len(list((tmp_path / "out").iterdir())) > 1
    rows = _lines(tmp_path / "out")
    assert [row.pop("__key__") for row in rows] == [row["id"] for row in rows]
    assert rows == [json.loads(line) for line in _split(corpus)]


def test_tokens_as_numbers(corpus: Path, tmp_path: Path) -> None:
    pack(str(corpus), str(tmp_path / "tokens"), tokenizer="bytes", workers=1)
    export(str(tmp_path / "tokens"), str(tmp_path / "out"), "jsonl")
    texts = [json.loads(line)["text"] for line in _split(corpus)]
    assert [bytes(row["tokens"]).decode() for row in _lines(tmp_path / "out")] == texts  # type: ignore[call-overload]


def test_bytes_that_are_no_text_are_named_and_nothing_is_left(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    with tarfile.open(tree / "in.tar", "w") as archive:
        for number in range(40):
            path = tmp_path / "member"
            path.write_bytes(b"\xff\xfe" if number == 39 else b"x" * 2000)
            archive.add(path, f"s{number:02d}.bin")
    pack(str(tree), str(tmp_path / "dataset"), format="webdataset", workers=1)
    with pytest.raises(SourceError, match=r"'s39', field 'bin'.*webdataset"):
        export(str(tmp_path / "dataset"), str(tmp_path / "out"), "jsonl", shard_size="16KiB")
    assert list((tmp_path / "out").iterdir()) == []
    assert export(str(tmp_path / "dataset"), str(tmp_path / "out"), "webdataset") == 40


def test_two_values_for_one_name_are_refused(tmp_path: Path) -> None:
    line = {"id": "a", "content": "one", "text": "two"}
    (tmp_path / "in.jsonl").write_text(json.dumps(line) + "\n")
    pack(str(tmp_path / "in.jsonl"), str(tmp_path / "dataset"), text_key="content", workers=1)
    with pytest.raises(SourceError, match="second value for 'text'"):
        export(str(tmp_path / "dataset"), str(tmp_path / "out"), "jsonl")


def test_refuses_a_target_with_shards(dataset: str) -> None:
    before = {path.name: path.read_bytes() for path in Path(dataset).iterdir()}
    with pytest.raises(CommitError, match="empty target"):
        export(dataset, dataset)
    assert before == {path.name: path.read_bytes() for path in Path(dataset).iterdir()}


def test_unknown_format(dataset: str, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="format='orc'"):
        export(dataset, str(tmp_path / "out"), "orc")


def test_progress_counts_samples(tmp_path: Path) -> None:
    lines = (json.dumps({"id": str(number), "text": "x"}) for number in range(2500))
    (tmp_path / "in.jsonl").write_text("\n".join(lines))
    pack(str(tmp_path / "in.jsonl"), str(tmp_path / "dataset"), workers=1)
    seen: list[Progress] = []
    export(str(tmp_path / "dataset"), str(tmp_path / "out"), progress=seen.append)
    assert [(now.samples, now.total_samples) for now in seen] == [(1024, 2500), (2048, 2500), (2500, 2500)]


def test_a_file_in_the_place_of_the_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('{"text":"a"}\n')
    pack(tmp_path / "in.jsonl", tmp_path / "data", workers=1)
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError, match="a file is in the place of the folder"):
        export(str(tmp_path / "data"), str(tmp_path / "file"))
    assert (tmp_path / "file").read_text() == "x"
