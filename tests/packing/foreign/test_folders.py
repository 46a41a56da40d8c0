"""Folders as hubs, img2dataset and the consoles of S3 leave them: what is no data is named, never packed."""

from __future__ import annotations

import csv
import io
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import s3fs

import shardstream as ss
from shardstream.cli import app
from shardstream.packing.sources import recognise
from shardstream.storage.inputs import MARKER, expand
from tests.packing.foreign.accounting import digests, packed

TEXTS = [{"id": f"r{n}", "text": f"text {n}", "n": n} for n in range(20)]
BESIDE = ("README.md", "LICENSE", "dataset_infos.json")  # and hidden: .gitattributes


def parquet(folder: Path) -> list[str]:
    import pyarrow as pa
    import pyarrow.parquet

    for n in range(2):
        path = folder / "data" / f"train-{n:05d}-of-00002.parquet"
        pyarrow.parquet.write_table(pa.Table.from_pylist(TEXTS[n::2]), path)
    return [f"data/train-{n:05d}-of-00002" for n in range(2)]


def arrow(folder: Path) -> list[str]:
    import pyarrow as pa
    import pyarrow.feather

    for n in range(2):
        pyarrow.feather.write_feather(pa.Table.from_pylist(TEXTS[n::2]), folder / "data" / f"{n}.arrow")
    return ["data/0", "data/1"]


def jsonl(folder: Path) -> list[str]:
    for n in range(2):
        lines = "".join(json.dumps(row) + "\n" for row in TEXTS[n::2])
        (folder / "data" / f"{n}.jsonl").write_text(lines)
    return ["data/0", "data/1"]


def json_arrays(folder: Path) -> list[str]:
    for n in range(2):
        (folder / "data" / f"{n}.json").write_text(json.dumps(TEXTS[n::2], indent=2))
    return ["data/0", "data/1"]


def tables(folder: Path) -> list[str]:
    for n in range(2):
        with (folder / "data" / f"{n}.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(TEXTS[0]))
            writer.writeheader()
            writer.writerows(TEXTS[n::2])
    return ["data/0", "data/1"]


KINDS: dict[str, Callable[[Path], list[str]]] = {
    "parquet": parquet, "arrow": arrow, "jsonl": jsonl, "json": json_arrays, "csv": tables,
}  # fmt: skip


def hub(folder: Path) -> Path:
    """What a hub has beside the data."""
    (folder / "data").mkdir(parents=True)
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# A dataset\n")
    (folder / "LICENSE").write_text("MIT")
    (folder / "dataset_infos.json").write_text('{"default": {"splits": {}}}')
    (folder / ".gitattributes").write_text("*.parquet filter=lfs\n")
    (folder / ".cache" / "huggingface").mkdir(parents=True)
    (folder / ".cache" / "huggingface" / "x.jsonl").write_text("{}")
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_hub_has_beside_rows_is_named(tmp_path: Path, kind: str) -> None:
    folder = hub(tmp_path / "repo")
    bases = KINDS[kind](folder)
    assert recognise(expand([str(folder)])) == kind
    account = packed(folder, tmp_path / "out", folder)
    assert set(account.skips) == set(BESIDE)
    assert not account.rejects
    keys = {f"{base}/{row['id']}" for n, base in enumerate(bases) for row in TEXTS[n::2]}
    assert set(account.samples) == keys
    own = {row["id"]: digests([("", {"txt": str(row["text"]).encode()})])[""]["txt"] for row in TEXTS}
    assert all(fields["txt"] == own[key.rpartition("/")[2]] for key, fields in account.samples.items())


def test_what_a_hub_has_beside_images_is_named(tmp_path: Path) -> None:
    from PIL import Image

    folder = hub(tmp_path / "repo")
    for n in range(4):
        Image.new("RGB", (8, 8), (n, 9, 9)).save(folder / "data" / f"{n}.png")
    assert recognise(expand([str(folder)])) == "images"
    account = packed(folder, tmp_path / "out", folder)
    assert set(account.skips) == set(BESIDE)
    assert set(account.samples) == {f"data/{n}" for n in range(4)}


def img2dataset(folder: Path) -> dict[str, dict[str, bytes]]:
    """Shards with the files that img2dataset writes beside each."""
    import pyarrow as pa
    import pyarrow.parquet

    wanted: dict[str, dict[str, bytes]] = {}
    for shard in ("00000", "00001"):
        source = folder.parent / f"source-{shard}"
        source.mkdir()
        rows = []
        for n in range(5):
            key = f"{shard}{n:04d}"
            row = {"key": key, "url": f"http://x/{key}", "caption": f"picture {n}", "status": "success"}
            rows.append(row)
            wanted[key] = {
                "jpg": b"\xff\xd8\xff" + key.encode() * 50, "txt": row["caption"].encode(),
                "json": json.dumps(row).encode(),
            }  # fmt: skip
            for field, data in wanted[key].items():
                (source / f"{key}.{field}").write_bytes(data)
        folder.mkdir(exist_ok=True)
        out = str(folder / f"{shard}.tar")
        subprocess.run(["tar", "-C", str(source), "-cf", out, "--sort=name", "."], check=True)
        pyarrow.parquet.write_table(pa.Table.from_pylist(rows), folder / f"{shard}.parquet")
        (folder / f"{shard}_stats.json").write_text(json.dumps({"count": 5, "successes": 5}))
    return wanted


def test_what_img2dataset_writes_beside_shards_is_named_and_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = img2dataset(tmp_path / "laion")
    beside = {f"{shard}{end}" for shard in ("00000", "00001") for end in (".parquet", "_stats.json")}
    command = ["pack", str(tmp_path / "laion"), str(tmp_path / "out"), "--workers", "1"]
    assert app.run(command) == 0
    assert "4 skipped (4: a file that tools write beside the data)" in capsys.readouterr().out
    account = packed(tmp_path / "laion", tmp_path / "again", tmp_path / "laion")
    bases = {key: f"{key[:5]}/{key}" for key in wanted}
    assert account.samples == digests({bases[key]: fields for key, fields in wanted.items()})
    assert set(account.skips) == beside
    assert not account.rejects
    manifest = ss.index(tmp_path / "laion", tmp_path / "index", workers=1)
    assert manifest.samples == len(wanted)
    assert sum(manifest.provenance["skipped"].values()) == len(beside)


def test_folder_markers_of_s3_are_named_and_counted(tmp_path: Path, weed: Any) -> None:
    root = weed.bucket()
    files = s3fs.S3FileSystem(**weed.options(), skip_instance_cache=True)
    wanted = img2dataset(tmp_path / "laion")
    for path in sorted((tmp_path / "laion").iterdir()):
        files.pipe_file(f"{root}/shards/{path.name}", path.read_bytes())
    bucket, _, below = root.removeprefix("s3://").partition("/")
    for marker in ("", "shards/", "empty/"):  # as the button "create folder" of a console makes them
        files.call_s3("put_object", Bucket=bucket, Key=f"{below}/{marker}", Body=b"")
    found: list[tuple[str, str]] = []
    expand([root], weed.options(), markers=found)
    account = packed(root, tmp_path / "out", storage_options=weed.options())
    assert len(account.samples) == len(wanted)
    assert not account.rejects
    told = {where.removeprefix(root).strip("/") for where, why in account.skips.items() if why == MARKER}
    assert {where.removeprefix(root).strip("/") for where, _ in found} == told
    assert told, account.skips
    assert len(account.skips) == len(told) + 4
    again = io.BytesIO((tmp_path / "out" / "manifest.json").read_bytes()).read()
    assert json.loads(again)["provenance"]["skipped"][MARKER] == len(told)
