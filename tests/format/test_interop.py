"""Other people's tools open what we write."""

from __future__ import annotations

import io
import json
import struct
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import pyzstd
import zstandard

import shardstream as ss
from shardstream.read.reader import DatasetReader

ROWS = [{"id": f"a/{number}", "text": f"text {number} é\n" * (number + 1)} for number in range(200)]


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packed")
    corpus = folder / "corpus.jsonl"
    corpus.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    options = {"frame_size": "16KiB", "shard_size": "128KiB", "workers": 1, "keep": ()}
    ss.pack(corpus, folder / "zstd", compression="zstd", **options)
    ss.pack(corpus, folder / "none", compression="none", **options)
    return folder


def shards(folder: Path) -> list[Path]:
    found = sorted(folder.glob("shard-*.tar*"))
    assert len(found) > 1
    return found


def expected() -> dict[str, bytes]:
    return {f"{row['id']}.txt": row["text"].encode() for row in ROWS}


def members(tar: tarfile.TarFile) -> dict[str, bytes]:
    return {member.name: tar.extractfile(member).read() for member in tar}


def test_gnu_tar_and_zstd(packed: Path, tmp_path: Path) -> None:
    names: list[str] = []
    for shard in shards(packed / "zstd"):
        subprocess.run(["zstd", "-q", "-t", shard], check=True)
        listed = subprocess.run(
            ["tar", "--zstd", "-tf", shard], check=True, capture_output=True, text=True, encoding="utf-8"
        )
        assert not listed.stderr
        names += listed.stdout.splitlines()
        subprocess.run(["tar", "--zstd", "-xf", shard, "-C", tmp_path], check=True)
    assert sorted(names) == sorted(expected())
    assert {name: (tmp_path / name).read_bytes() for name in names} == expected()


def test_python_tarfile(packed: Path) -> None:
    found: dict[str, bytes] = {}
    for shard in shards(packed / "none"):
        with tarfile.open(shard) as tar:
            found |= members(tar)
    assert found == expected()


@pytest.mark.parametrize("codec", ["none", "zstd"])
def test_webdataset(packed: Path, tmp_path: Path, codec: str) -> None:
    urls = []
    for shard in shards(packed / codec):
        plain = tmp_path / f"{codec}-{shard.name.removesuffix('.zst')}"
        if codec == "zstd":
            subprocess.run(["zstd", "-q", "-d", shard, "-o", plain], check=True)
        else:
            plain.write_bytes(shard.read_bytes())
        urls.append(str(plain))
    # In a process of its own: webdataset leaves its files open, which is an error in this one.
    code = (
        "import json, sys, webdataset;"
        "rows = webdataset.WebDataset(sys.argv[1:], shardshuffle=False, empty_check=False);"
        "print(json.dumps({row['__key__'] + '.txt': row['txt'].decode() for row in rows}))"
    )
    done = subprocess.run([sys.executable, "-c", code, *urls], check=True, capture_output=True)
    assert json.loads(done.stdout) == {name: data.decode() for name, data in expected().items()}


def test_a_seekable_reader_that_is_not_ours(packed: Path) -> None:
    reader = DatasetReader.open(str(packed / "zstd"))
    for number, shard in enumerate(shards(packed / "zstd")):
        index = reader.index(number)
        with pyzstd.SeekableZstdFile(shard) as file:
            for frame in reversed(range(index.frames)):
                file.seek(int(index.frame_raw_offset[frame]))
                assert file.read(int(index.frame_raw_size[frame])) == bytes(reader.frame(number, frame))


def test_the_same_tar_in_both_codecs(packed: Path) -> None:
    for plain, packed_shard in zip(shards(packed / "none"), shards(packed / "zstd"), strict=True):
        with zstandard.open(packed_shard, "rb", dctx=zstandard.ZstdDecompressor()) as file:
            assert pyzstd.decompress(packed_shard.read_bytes()) == plain.read_bytes()
            assert file.read(512) == plain.read_bytes()[:512]


def read_by_the_document(folder: Path) -> dict[str, bytes]:
    """All samples, by nothing but docs/format.md."""
    manifest = json.loads((folder / "manifest.json").read_bytes())
    found = {}
    for shard in manifest["shards"]:
        raw = (folder / shard["index_url"]).read_bytes()
        (length,) = struct.unpack_from("<Q", raw)
        header = json.loads(raw[8 : 8 + length])

        def array(name: str, raw=raw, header=header, start=8 + length) -> list[int]:
            entry = header[name]
            letter = {"U8": "B", "U64": "Q", "I32": "i", "I64": "q"}[entry["dtype"]]
            begin, end = entry["data_offsets"]
            return [value for (value,) in struct.iter_unpack("<" + letter, raw[start + begin : start + end])]

        keys, bounds = bytes(array("key_bytes")), array("key_offset")
        offset, size, first = array("field_offset"), array("field_size"), array("frame_first")
        stored = (folder / shard["url"]).read_bytes()
        for frame, (at, count) in enumerate(zip(array("frame_offset"), array("frame_size"), strict=True)):
            data = stored[at : at + count]
            if shard["codec"] == "zstd":
                data = zstandard.ZstdDecompressor().decompress(data)
            for sample in range(first[frame], first[frame + 1]):
                key = keys[bounds[sample] : bounds[sample + 1]].decode()
                for column, name in enumerate(shard["fields"]):
                    cell = sample * len(shard["fields"]) + column
                    if size[cell] >= 0:
                        found[f"{key}.{name}"] = data[offset[cell] : offset[cell] + size[cell]]
    return found


@pytest.mark.parametrize("codec", ["none", "zstd"])
def test_a_reader_written_from_the_document(packed: Path, codec: str) -> None:
    assert read_by_the_document(packed / codec) == expected()


def test_long_and_unicode_names(tmp_path: Path) -> None:
    rows = [{"id": "ü" * 200, "text": "a"}, {"id": "x" * 150 + "/" + "y" * 150, "text": "b"}]
    (tmp_path / "c.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    ss.pack(tmp_path / "c.jsonl", tmp_path / "out", compression="none", keep=(), workers=1)
    data = (tmp_path / "out" / "shard-000000.tar").read_bytes()
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        assert members(tar) == {f"{row['id']}.txt": row["text"].encode() for row in rows}
    listed = subprocess.run(
        ["tar", "-tf", tmp_path / "out" / "shard-000000.tar"], check=True, capture_output=True
    )
    assert not listed.stderr


def test_dali_reads_plain_tars(packed: Path) -> None:
    pytest.importorskip("nvidia.dali", reason="nvidia-dali is an extra of several hundred MB")
    from nvidia.dali import fn, pipeline_def

    @pipeline_def(batch_size=1, num_threads=1, device_id=None)
    def pipeline(path: str):
        return fn.readers.webdataset(paths=[path], ext=["txt"], missing_component_behavior="error")

    found = []
    for shard in shards(packed / "none"):
        with tarfile.open(shard) as tar:
            count = len(tar.getnames())
        pipe = pipeline(str(shard))
        pipe.build()
        found += [bytes(pipe.run()[0].as_array().tobytes()) for _ in range(count)]
    assert sorted(found) == sorted(expected().values())
