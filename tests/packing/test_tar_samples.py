"""One reading of tars: `pack` and `index` find the same samples, and every member is accounted for."""

from __future__ import annotations

import gzip
import io
import itertools
import json
import subprocess
import tarfile
import tempfile
import warnings
from pathlib import Path
from typing import Any

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

import shardstream as ss
from shardstream.errors import OptionError, SourceError
from shardstream.packing import adopt_archive
from shardstream.packing.sources import webdataset
from shardstream.read.reader import DatasetReader

Members = list[tuple[str, bytes]]
Samples = list[tuple[str, dict[str, bytes]]]
PACKED = {
    ".tar": lambda data: data,
    ".tar.gz": gzip.compress,
    ".tar.zst": zstandard.ZstdCompressor().compress,
}


def tar(members: Members, form: int = tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def special(name: str, kind: bytes, link: str = "") -> bytes:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info.tobuf(tarfile.PAX_FORMAT)


def samples(dest: Path) -> Samples:
    report = ss.verify(str(dest), deep=True)
    assert report.sound, report.problems
    return list(DatasetReader.open(str(dest)).iter_samples())


def both(tmp_path: Path, path: Path, **options: Any) -> tuple[Samples, list[dict[str, Any]]]:
    """The samples and the rows of rejects.jsonl that pack and index find alike, plain and compressed."""
    found, rows = [], []
    for name, run in (("packed", ss.pack), ("adopted", ss.index)):
        dest = tmp_path / f"{path.name}-{name}"
        run(path, dest, workers=1, **options)
        found.append(samples(dest))
        listed = dest / "rejects.jsonl"
        rows.append([json.loads(line) for line in listed.read_text().splitlines()] if listed.exists() else [])
    assert found[0] == found[1]
    assert rows[0] == rows[1]
    return found[0], rows[0]


def in_all(tmp_path: Path, data: bytes, **options: Any) -> tuple[Samples, list[tuple[str, str]]]:
    """The same for a tar that is plain, gzip and zstd; of the rejects the member and the reason."""
    answers = []
    folder = Path(tempfile.mkdtemp(dir=tmp_path))
    for suffix, packer in PACKED.items():
        path = folder / f"in{suffix}"
        path.write_bytes(packer(data))
        found, rows = both(folder, path, **options)
        answers.append((found, [(row["where"].removeprefix(f"{path}:"), row["reason"]) for row in rows]))
    assert answers[0] == answers[1] == answers[2]
    return answers[0]


SCATTERED: Members = [
    *((f"sa/{n}.jpg", b"j%d" % n * 400) for n in range(9)), *((f"sa/{n}.json", b"%d" % n) for n in range(9))
]  # fmt: skip


def test_members_that_are_no_neighbours_come_together(tmp_path: Path) -> None:
    found, rows = in_all(tmp_path, tar(SCATTERED))
    assert found == [(f"sa/{n}", {"jpg": b"j%d" % n * 400, "json": b"%d" % n}) for n in range(9)]
    assert rows == []


@pytest.mark.parametrize("frame_size", ["1", "1KiB"])
def test_frames_end_only_where_all_samples_are_whole(tmp_path: Path, frame_size: str) -> None:
    members = [("a.txt", b"a" * 900), *SCATTERED, ("b.txt", b"b" * 900), ("c.txt", b"c")]
    (tmp_path / "in.tar").write_bytes(tar(members))
    manifest = ss.index(tmp_path / "in.tar", tmp_path / "out", frame_size=frame_size, workers=1)
    assert [key for key, _ in samples(tmp_path / "out")] == ["a", *(f"sa/{n}" for n in range(9)), "b", "c"]
    assert manifest.shards[0].frames == 4


names = st.sampled_from("abc")


@given(st.lists(st.tuples(names, st.sampled_from(["x", "y", "z"]), st.binary(max_size=700)), max_size=12))
@settings(max_examples=25, deadline=None)
def test_pack_and_index_agree_on_any_order(
    tmp_path_factory: Any, parts: list[tuple[str, str, bytes]]
) -> None:
    folder = tmp_path_factory.mktemp("any")
    members = [(f"{key}.{field}", data) for key, field, data in parts] + [("whole.txt", b"w")]
    (folder / "in.tar").write_bytes(tar(members))
    (folder / "in.tar.gz").write_bytes(gzip.compress(tar(members)))
    found, rows = both(folder, folder / "in.tar", on_error="skip", max_rejects=1)
    again, _ = both(folder, folder / "in.tar.gz", on_error="skip", max_rejects=1)
    assert again == found
    # Whole samples alone: each has all fields of its key, from members that are there.
    fields: dict[str, set[str]] = {}
    for key, field, _ in parts:
        fields.setdefault(key, set()).add(field)
    for key, sample in found[:-1] if found[-1][0] == "whole" else found:
        assert key == "whole" or set(sample) == fields[key]
        assert all((key, field, data) in parts for field, data in sample.items() if key != "whole")
    assert {key for key, _ in found} | {row["where"].rpartition(":")[2] for row in rows} >= set(fields)


def test_what_waits_in_a_compressed_archive_has_a_limit_with_a_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webdataset, "REGROUP_MEMORY", 2000)
    path = tmp_path / "in.tar.gz"
    path.write_bytes(gzip.compress(tar(SCATTERED)))
    with pytest.raises(SourceError, match=r"too far apart.*pack the plain tar"):
        ss.pack(path, tmp_path / "out", workers=1)
    (tmp_path / "in.tar").write_bytes(tar(SCATTERED))
    ss.pack(tmp_path / "in.tar", tmp_path / "plain", workers=1)
    assert len(samples(tmp_path / "plain")) == 9


def test_index_refuses_what_makes_a_huge_frame_and_names_pack(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shardstream.packing.adopt.MAX_REGROUPED", 4096)
    monkeypatch.setattr(adopt_archive, "MAX_REGROUPED", 4096)
    (tmp_path / "in.tar").write_bytes(tar(SCATTERED))
    with pytest.raises(SourceError, match="shardstream pack"):
        ss.index(tmp_path / "in.tar", tmp_path / "out", frame_size="1KiB", workers=1)
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_joined_tars_are_read_to_the_end(tmp_path: Path) -> None:
    first, second = tar([("a.txt", b"1")]), tar([("b.txt", b"2"), ("a.json", b"3")])
    wanted = [("b", {"txt": b"2"}), ("a", {"txt": b"1", "json": b"3"})]
    assert in_all(tmp_path, first + second) == (wanted, [])
    one_block = tar([("a.txt", b"1")])[:1024] + bytes(512)
    assert in_all(tmp_path, one_block)[0] == [("a", {"txt": b"1"})]
    assert in_all(tmp_path, one_block + second)[0] == wanted


def test_what_is_behind_the_end_is_not_lost_in_silence(tmp_path: Path) -> None:
    (tmp_path / "in.tar").write_bytes(tar([("a.txt", b"1")]) + b"rest of a tar" * 100)
    for run in (ss.pack, ss.index):
        with pytest.raises(SourceError, match="behind the end of the tar"):
            run(tmp_path / "in.tar", tmp_path / run.__name__, workers=1)


def test_names_are_plain(tmp_path: Path) -> None:
    members = [("././a.jpg", b"1"), ("./a.txt", b"2"), ("x//b.jpg", b"3"), ("x/./b.txt", b"4")]
    found, rows = in_all(tmp_path, tar(members))
    assert found == [("a", {"jpg": b"1", "txt": b"2"}), ("x/b", {"jpg": b"3", "txt": b"4"})]
    assert rows == []


def test_files_of_systems_are_named_and_no_error(tmp_path: Path) -> None:
    members = [
        ("._a.jpg", b"m"), ("a.jpg", b"1"), ("._a.txt", b"m"), ("a.txt", b"2"), (".DS_Store", b"d"),
        ("__MACOSX/._a.jpg", b"m"), ("__MACOSX/x.jpg", b"m"), ("README", b"r"), ("d/.hidden", b"h"),
    ]  # fmt: skip
    found, rows = in_all(tmp_path, tar(members))
    assert found == [("a", {"jpg": b"1", "txt": b"2"})]
    assert sorted(name for name, _ in rows) == sorted(
        name for name, _ in members if name not in ("a.jpg", "a.txt")
    )
    (tmp_path / "in.tar").write_bytes(tar(members))
    for run in (ss.pack, ss.index):
        provenance = run(tmp_path / "in.tar", tmp_path / run.__name__, workers=1).provenance
        assert sum(provenance["skipped"].values()) == len(members) - 2
        assert not provenance.get("rejected")


def test_hard_links_have_the_data_of_their_target(tmp_path: Path) -> None:
    body = tar([("a.jpg", b"picture"), ("README", b"text"), ("a.txt", b"1")])
    links = [("b.jpg", "./a.jpg"), ("b.txt", "README"), ("c.jpg", "b.jpg"), ("a.bin", "a.txt")]
    data = body[: 6 * 512] + b"".join(special(name, tarfile.LNKTYPE, link) for name, link in links)
    found, rows = in_all(tmp_path, data + bytes(1024))
    assert dict(found) == {
        "a": {"jpg": b"picture", "txt": b"1", "bin": b"1"}, "b": {"jpg": b"picture", "txt": b"text"},
        "c": {"jpg": b"picture"},
    }  # fmt: skip
    assert [name for name, _ in rows] == ["README"]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (special("a.bin", tarfile.SYMTYPE, "good.txt"), "symbolic link"),
        (special("a.bin", tarfile.CHRTYPE), "device"),
        (special("a.bin", tarfile.FIFOTYPE), "FIFO"),
        (special("a.bin", tarfile.LNKTYPE, "later.txt"), "hard link to 'later.txt'"),
        (tar([("/a.bin", b"x")])[:1024], "absolute"),
        (tar([("a.bin", b"x")], tarfile.USTAR_FORMAT)[:1024].replace(b"a.bin", b"a.\xff\xfen"), ""),
    ],
)
def test_half_a_sample_is_never_kept(tmp_path: Path, data: bytes, reason: str) -> None:
    if not reason:
        data = fix_checksum(data)
    archive = tar([("a.jpg", b"x")])[:1024] + data + tar([("later.txt", b"1")])
    found, rows = in_all(tmp_path, archive, on_error="skip")
    assert found == [("later", {"txt": b"1"})]
    ((name, why),) = rows
    assert name == "a"
    assert reason in why
    (tmp_path / "in.tar").write_bytes(archive)
    for run in (ss.pack, ss.index):
        with pytest.raises(SourceError, match="--on-error skip"):
            run(tmp_path / "in.tar", tmp_path / f"raise-{run.__name__}", workers=1)


def fix_checksum(header: bytes) -> bytes:
    total = sum(header[:148]) + sum(header[156:512]) + 8 * 32
    return header[:148] + b"%06o\0 " % total + header[156:]


def test_a_sparse_file_of_gnu_tar_is_named_and_passed(tmp_path: Path) -> None:
    with (tmp_path / "a.bin").open("wb") as file:
        for number in range(40):  # more holes than a header lists
            file.seek(number << 17)
            file.write(b"x")
    (tmp_path / "b.txt").write_bytes(b"1")
    for form in ("gnu", "posix"):
        path = tmp_path / f"{form}.tar"
        subprocess.run(
            ["tar", "--sparse", f"--format={form}", "-cf", path, "a.bin", "b.txt"], cwd=tmp_path, check=True
        )
        found, rows = both(tmp_path, path, on_error="skip")
        assert found == [("b", {"txt": b"1"})]
        assert [row["where"] for row in rows] == [f"{path}:a"]
        assert "sparse" in rows[0]["reason"]


@pytest.mark.parametrize("form", ["v7", "oldgnu", "gnu", "ustar", "posix"])
def test_every_format_of_gnu_tar(tmp_path: Path, form: str) -> None:
    folder = "d" * 40 if form in ("v7", "ustar") else "ключ/" + "d" * 120
    (tmp_path / "in" / folder).mkdir(parents=True)
    wanted = {}
    for number in range(3):
        (tmp_path / "in" / folder / f"{number}.txt").write_bytes(b"%d" % number * 600)
        (tmp_path / "in" / folder / f"{number}.json").hardlink_to(tmp_path / "in" / folder / f"{number}.txt")
        wanted[f"{folder}/{number}"] = {"txt": b"%d" % number * 600, "json": b"%d" % number * 600}
    subprocess.run(
        ["tar", f"--format={form}", "-cf", tmp_path / "x.tar", "."], cwd=tmp_path / "in", check=True
    )
    found, rows = both(tmp_path, tmp_path / "x.tar")
    assert (dict(found), rows) == (wanted, [])


DOTTED: Members = [(f"t12.{n:03d}.{n}.{kind}", b"%d" % n) for n in range(60) for kind in ("jpg", "txt")]


def test_the_key_may_end_at_the_last_dot(tmp_path: Path) -> None:
    found, _ = in_all(tmp_path, tar(DOTTED), split_key="last")
    assert found == [(f"t12%2E{n:03d}%2E{n}", {"jpg": b"%d" % n, "txt": b"%d" % n}) for n in range(60)]
    (tmp_path / "in.tar").write_bytes(tar(DOTTED))
    for run in (ss.pack, ss.index):
        with pytest.raises(OptionError, match="split_key"):
            run(tmp_path / "in.tar", tmp_path / "wrong", split_key="middle", workers=1)


def test_many_fields_are_a_warning_that_names_the_option(tmp_path: Path) -> None:
    (tmp_path / "in.tar").write_bytes(tar(DOTTED))
    for run in (ss.pack, ss.index):
        with pytest.warns(UserWarning, match=r"120 fields.*split_key='last'"):
            run(tmp_path / "in.tar", tmp_path / run.__name__, workers=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ss.pack(tmp_path / "in.tar", tmp_path / "last", split_key="last", workers=1)


def test_small_archives_share_shards_for_any_number_of_workers(tmp_path: Path) -> None:
    (tmp_path / "in" / "sub").mkdir(parents=True)
    for number in range(30):
        folder = "sub/" if number % 2 else ""
        (tmp_path / "in" / f"{folder}{number:02d}.tar").write_bytes(tar([("0.txt", b"%d" % number * 700)]))
    manifests = [
        ss.pack(tmp_path / "in", tmp_path / f"out{workers}", workers=workers, shard_size="64KiB")
        for workers in (1, 3)
    ]
    assert manifests[0] == manifests[1]
    assert 3 < len(manifests[0].shards) < 15
    found = dict(samples(tmp_path / "out1"))
    assert len(found) == 30
    assert found["sub/07/0"] == {"txt": b"7" * 700}
    assert found["08/0"] == {"txt": b"8" * 700}


def test_numbered_samples(tmp_path: Path) -> None:
    for name in ("x", "y"):
        (tmp_path / f"{name}.tar").write_bytes(tar(SCATTERED[:2]))
    ss.pack([tmp_path / "x.tar", tmp_path / "y.tar"], tmp_path / "out", key="none", workers=1)
    keys = [f"{name}-{n:012d}" for name, n in itertools.product("xy", range(2))]
    assert [key for key, _ in samples(tmp_path / "out")] == keys
    with pytest.raises(OptionError, match="named by their members"):
        ss.pack(tmp_path / "x.tar", tmp_path / "field", key="id", workers=1)


def test_what_img2dataset_writes_beside_archives_is_counted(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for number in range(2):
        (tmp_path / "in" / f"{number:05d}.tar").write_bytes(tar([(f"{number}.txt", b"x")]))
        (tmp_path / "in" / f"{number:05d}.parquet").write_bytes(b"PAR1")
        (tmp_path / "in" / f"{number:05d}_stats.json").write_bytes(b"{}")
    for run in (ss.pack, ss.index):
        manifest = run(tmp_path / "in", tmp_path / run.__name__, workers=1)
        assert manifest.samples == 2
        assert sum(manifest.provenance["skipped"].values()) == 4


def test_archives_are_known_by_their_content(tmp_path: Path) -> None:
    data = tar([("a.txt", b"x")])
    (tmp_path / "in.tar").write_bytes(gzip.compress(data))
    (tmp_path / "in.tar.gz").write_bytes(data)
    for name in ("in.tar", "in.tar.gz"):
        assert both(tmp_path, tmp_path / name)[0] == [("a", {"txt": b"x"})]


def test_an_archive_that_cannot_be_adopted_is_left_out_by_name(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(tar([("a.txt", b"x")]))
    (tmp_path / "b.tar").write_bytes(b"garbage " * 200)
    manifest = ss.index(
        [tmp_path / "a.tar", tmp_path / "b.tar"], tmp_path / "out", on_error="skip", workers=1
    )
    assert manifest.samples == manifest.provenance["rejected"] == 1
    assert str(tmp_path / "b.tar") in (tmp_path / "out" / "rejects.jsonl").read_text()
