"""Any files grouped by name: what is refused and told, metadata beside them, many files."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import pytest

import shardstream as ss
from shardstream.errors import OptionError, SourceError
from shardstream.packing.sources import Reject, Sample, SourceOptions, make_source, recognise
from shardstream.storage.inputs import FileInfo, expand
from shardstream.testing.sources import read_source


def write(folder: Path, **files: str | bytes) -> Path:
    for name, data in files.items():
        path = folder / name.replace("__", "/").replace("_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data.encode() if isinstance(data, str) else data)
    return folder


def read(folder: Path, **options) -> tuple[dict[str, dict[str, bytes]], list[str]]:  # type: ignore[no-untyped-def]
    found = read_source(make_source("files", SourceOptions(**options)), expand([str(folder)]), 1)
    samples = {item.key: item.fields for item in found if isinstance(item, Sample)}
    return samples, [f"{item.where}: {item.reason}" for item in found if isinstance(item, Reject)]


def test_a_folder_with_metadata_is_recognised_and_jsonl_alone_is_not(tmp_path: Path) -> None:
    write(tmp_path, a__x_png="png", a__metadata_jsonl='{"file_name": "x.png"}\n')
    assert recognise(expand([str(tmp_path)])) == "files"
    assert recognise(expand([str(tmp_path / "a" / "metadata.jsonl")])) == "jsonl"
    with pytest.raises(OptionError, match="do not show one format"):
        recognise(expand([str(write(tmp_path / "b", x_wav="wav", x_pdf="pdf"))]))


def test_what_cannot_be_a_sample_is_rejected_by_name(tmp_path: Path) -> None:
    write(tmp_path, x_jpg="1", x_JPG="2", README="no extension", y_txt="fine")
    samples, rejects = read(tmp_path)
    assert samples == {"y": {"txt": b"fine"}}
    assert len(rejects) == 2
    assert any("README: a file without an extension" in reject for reject in rejects)
    assert any("two files give field 'jpg'" in reject for reject in rejects)


def test_rows_of_metadata_that_do_not_fit_are_rejected_by_their_place(tmp_path: Path) -> None:
    rows = ['{"file_name": "a.jpg", "n": 1}', '{"file_name": "a.jpg", "n": 2}', '{"file_name": "gone.jpg"}']
    rows += ['{"n": 3}', "broken", "[]", '{"file_name": 3}', '{"file_name": "../q.jpg"}']
    write(tmp_path, a_jpg="a", b_jpg="b", metadata_jsonl="\n".join(rows))
    samples, rejects = read(tmp_path)
    assert samples == {"a": {"jpg": b"a", "json": b'{"n":1}'}, "b": {"jpg": b"b"}}
    assert len(rejects) == 7
    told = "\n".join(rejects)
    for part in ("a.jpg', or another", "no file 'gone.jpg'", "it has no 'file_name'", "not a JSON object"):
        assert part in told
    assert all(str(tmp_path / "metadata.jsonl, byte ") in reject for reject in rejects)


def test_rows_of_csv_that_do_not_fit_are_rejected_and_broken_csv_ends_the_pack(tmp_path: Path) -> None:
    write(tmp_path, a_jpg="a", b_jpg="b", metadata_csv="file_name,n\na.jpg,1,2\nb.jpg,7\n")
    samples, rejects = read(tmp_path)
    assert samples == {"b": {"jpg": b"b", "json": b'{"n":"7"}'}}
    assert rejects == [f"{tmp_path}/metadata.csv, byte 0: 3 cells, where the header has 2"]
    for data in (b'file_name\n"a.jpg', b"file_name\n\xff\n"):
        write(tmp_path, metadata_csv=data)
        with pytest.raises(SourceError, match=r"metadata.csv, byte 10: not CSV in UTF-8"):
            read(tmp_path)


@pytest.mark.parametrize("data", ["", "\n\n", "file_name\n"])
def test_metadata_without_rows_changes_nothing(tmp_path: Path, data: str) -> None:
    write(tmp_path, a_jpg="a", metadata_csv=data)
    assert read(tmp_path) == ({"a": {"jpg": b"a"}}, [])


def test_columns_and_keys_that_are_not_there_are_told(tmp_path: Path) -> None:
    write(tmp_path / "in", a_jpg="a", metadata_jsonl='{"file_name": "a.jpg", "m": {"n": 1}}')
    with pytest.raises(OptionError, match="--key and --keep name columns of metadata"):
        read(write(tmp_path / "none", a_jpg="a"), key="id")
    assert "there is no column 'id'" in read(tmp_path / "in", key="id")[1][0]
    assert "there is no column 'png'" in read(tmp_path / "in", column=(("png", "png"),))[1][0]
    assert read(tmp_path / "in", key="m.n", keep=())[0] == {"1": {"jpg": b"a"}}
    with pytest.raises(OptionError, match="nope"):
        ss.pack(tmp_path / "in", tmp_path / "out", keep=["nope"], workers=1)


def test_a_json_file_and_metadata_are_not_mixed(tmp_path: Path) -> None:
    write(tmp_path, a_jpg="a", a_json="{}", metadata_jsonl='{"file_name": "a.jpg", "n": 1}')
    assert "both give field 'json'" in read(tmp_path)[1][0]
    assert read(tmp_path, column=(("jpg", "jpg"), ("meta.json", "json")))[0] == {
        "a": {"jpg": b"a", "meta.json": b"{}", "json": b'{"n":1}'}
    }


def test_a_pack_gives_back_all_bytes_for_any_number_of_workers(tmp_path: Path) -> None:
    for number in range(60):
        write(
            tmp_path / "in",
            **{f"d{number % 7}__{number}_wav": bytes([number]) * 999, f"d{number % 7}__{number}_txt": "t"},
        )
    for workers in (1, 3):
        ss.pack(
            tmp_path / "in",
            tmp_path / f"out{workers}",
            format="files",
            workers=workers,
            shard_size="8KiB",
            frame_size="2KiB",
        )
    names = sorted(path.name for path in (tmp_path / "out1").glob("shard-*"))
    assert len(names) > 10
    for name in names:
        assert (tmp_path / "out1" / name).read_bytes() == (tmp_path / "out3" / name).read_bytes()
    found = {
        sample["__key__"]: sample for sample in ss.StreamingDataset(str(tmp_path / "out1"), decode=False)
    }
    assert {key: bytes(one["wav"]) for key, one in found.items()} == {
        f"d{n % 7}/{n}": bytes([n]) * 999 for n in range(60)
    }


def test_a_hundred_thousand_files_are_planned_and_read_in_little_memory(tmp_path: Path) -> None:
    data = tmp_path / "one"
    data.write_bytes(b"x" * 1000)
    (tmp_path / "in").mkdir()
    listed = []
    for number in range(2000):
        path = tmp_path / "in" / f"{number:05d}.{'txt' if number % 2 else 'jpg'}"
        path.hardlink_to(data)
        listed.append(FileInfo(str(path), 1000, str(tmp_path / "in")))
    many = [
        FileInfo(f"/in/{n // 1000:04d}/{n // 2:06d}.{'jpg' if n % 2 else 'txt'}", 1000, "/in")
        for n in range(100_000)
    ]
    tasks = make_source("files").plan(many, 1 << 20)
    assert sum(len(task.files) for task in tasks) == 100_000
    [task] = make_source("files").plan(listed, 1 << 40)
    tracemalloc.start()
    count = sum(1 for _ in make_source("files").read(task))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 2000
    assert peak < 1 << 20


def test_many_rows_of_metadata_are_read_in_little_memory(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    rows = []
    for number in range(300):
        (tmp_path / "in" / f"{number}.jpg").write_bytes(b"j")
        rows.append(json.dumps({"file_name": f"{number}.jpg", "text": "t" * 50_000}))
    (tmp_path / "in" / "metadata.jsonl").write_text("\n".join(rows))
    tracemalloc.start()
    source = make_source("files", SourceOptions(column=(("txt", "text"),)))
    count = sum(
        len(item.fields["txt"])  # type: ignore[union-attr]
        for task in source.plan(expand([str(tmp_path / "in")]), 1 << 20)
        for item in source.read(task)
    )
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 300 * 50_000
    assert peak < 3 << 20
