"""The thin line through all layers: pack, read back, adopt, verify, stream, resume."""

from __future__ import annotations

import hashlib
import itertools
import json
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

import shardstream as ss
from shardstream.errors import CommitError, CorruptionError, SourceError, StateError
from shardstream.maintain.export import export
from shardstream.read.reader import DatasetReader

ROWS = [
    {"id": f"doc/{number}.é", "text": f"zeile {number} ünïcode\n" * (number % 37 + 1), "n": number}
    for number in range(600)
]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=row["n"] % 2 == 0) + "\n" for row in ROWS))
    return path


def files(folder: Path) -> dict[str, str]:
    """Name and SHA-256 of every file of a dataset; names also show what was left behind."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def rows(url: Path) -> list[dict[str, object]]:
    return [{"text": sample["txt"], **sample["json"]} for sample in ss.StreamingDataset(url)]


SMALL = {"shard_size": "32KiB", "frame_size": "8KiB"}


@pytest.mark.parametrize("compression", ["zstd", "none"])
def test_every_document_is_read_back(corpus: Path, tmp_path: Path, compression: str) -> None:
    manifest = ss.pack(corpus, tmp_path / "packed", compression=compression, workers=1, **SMALL)
    assert manifest.samples == len(ROWS)
    assert len(manifest.shards) > 3
    assert rows(tmp_path / "packed") == ROWS
    assert ss.verify(str(tmp_path / "packed"), deep=True).sound


@pytest.mark.parametrize("options", [{}, {"shuffle": 5}, {"tokenizer": "bytes", "eos": 256}])
def test_the_number_of_workers_changes_no_byte(corpus: Path, tmp_path: Path, options: dict) -> None:
    packed = []
    for workers in (1, 3):
        ss.pack(corpus, tmp_path / f"w{workers}", workers=workers, **SMALL, **options)
        packed.append(files(tmp_path / f"w{workers}"))
    assert packed[0] == packed[1]
    assert not [name for name in packed[0] if name.startswith(".")]


def test_a_shuffle_is_a_permutation(corpus: Path, tmp_path: Path) -> None:
    ss.pack(corpus, tmp_path / "shuffled", shuffle=1, workers=1, **SMALL)
    found = rows(tmp_path / "shuffled")
    assert found != ROWS
    assert sorted(found, key=lambda row: row["n"]) == ROWS


def test_tokens_lie_together_and_bound_the_documents(corpus: Path, tmp_path: Path) -> None:
    manifest = ss.pack(corpus, tmp_path / "tokens", tokenizer="bytes", eos=256, workers=1, **SMALL)
    texts = [row["text"].encode() for row in ROWS]
    assert manifest.fields[0].dtype == "uint16"
    assert manifest.tokens == sum(map(len, texts)) + len(texts)
    found = [sample["tokens"].tolist() for sample in ss.StreamingDataset(tmp_path / "tokens")]
    assert found == [[*text, 256] for text in texts]
    reader = DatasetReader.open(str(tmp_path / "tokens"))
    index = reader.index(0)
    first, end = int(index.frame_first[0]), int(index.frame_first[1])
    spans = list(zip(index.field_offset[first:end, 0], index.field_size[first:end, 0], strict=True))
    assert all(a[0] + a[1] == b[0] for a, b in itertools.pairwise(spans))


def test_adopted_archives_read_like_packed_ones(corpus: Path, tmp_path: Path) -> None:
    ss.pack(corpus, tmp_path / "packed", compression="none", workers=1, **SMALL)
    tars = sorted((tmp_path / "packed").glob("*.tar"))
    subprocess.run(["gzip", tars[1]], check=True)
    subprocess.run(["zstd", "-q", "--rm", tars[2]], check=True)
    (tmp_path / "packed" / "manifest.json").unlink()
    archives = sorted(str(path) for path in (tmp_path / "packed").glob("*.tar*"))
    before = {path: Path(path).read_bytes() for path in archives}
    ss.index(archives, tmp_path / "adopted", workers=1, frame_size="8KiB")
    assert rows(tmp_path / "adopted") == ROWS
    assert ss.verify(str(tmp_path / "adopted"), deep=True).sound
    assert {path: Path(path).read_bytes() for path in archives} == before
    assert not list((tmp_path / "adopted").glob("*.tar*"))


def test_export_gives_tars_that_pack_to_the_same_samples(corpus: Path, tmp_path: Path) -> None:
    ss.pack(corpus, tmp_path / "packed", workers=1, **SMALL)
    assert export(str(tmp_path / "packed"), str(tmp_path / "out"), shard_size="64KiB") == len(ROWS)
    ss.pack(tmp_path / "out", tmp_path / "again", format="webdataset", workers=1)
    assert rows(tmp_path / "again") == ROWS


def test_a_bad_line_is_named_or_listed(corpus: Path, tmp_path: Path) -> None:
    lines = corpus.read_text().splitlines()
    lines[16] = '{"no text": 1}'
    corpus.write_text("\n".join(lines))
    with pytest.raises(SourceError, match=r"corpus\.jsonl:17"):
        ss.pack(corpus, tmp_path / "raise", workers=1)
    assert not (tmp_path / "raise" / "manifest.json").exists()
    ss.pack(corpus, tmp_path / "skip", on_error="skip", workers=2, **SMALL)
    listed = [json.loads(line) for line in (tmp_path / "skip" / "rejects.jsonl").read_text().splitlines()]
    assert [row["where"] for row in listed] == [f"{corpus}:17"]
    assert rows(tmp_path / "skip") == ROWS[:16] + ROWS[17:]


def test_append_leaves_what_was_there(corpus: Path, tmp_path: Path) -> None:
    ss.pack(corpus, tmp_path / "packed", workers=1, limit=100, **SMALL)
    before = files(tmp_path / "packed")
    with pytest.raises(CommitError, match="already holds"):
        ss.pack(corpus, tmp_path / "packed", workers=1)
    ss.pack(corpus, tmp_path / "packed", append=True, workers=1, **SMALL)
    after = files(tmp_path / "packed")
    assert all(after[name] == digest for name, digest in before.items() if name != "manifest.json")
    assert rows(tmp_path / "packed") == ROWS[:100] + ROWS


def test_a_flipped_bit_is_found_and_named(corpus: Path, tmp_path: Path) -> None:
    ss.pack(corpus, tmp_path / "packed", workers=1, **SMALL)
    shard = tmp_path / "packed" / "shard-000001.tar.zst"
    data = bytearray(shard.read_bytes())
    data[len(data) // 3] ^= 4
    shard.write_bytes(data)
    with pytest.raises(CorruptionError, match=r"shard-000001\.tar\.zst, frame \d+"):
        rows(tmp_path / "packed")
    report = ss.verify(str(tmp_path / "packed"), deep=True)
    assert not report.sound
    assert any(problem.frame is not None and problem.sample for problem in report.problems)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("../up.txt", tarfile.REGTYPE),
        ("/root.txt", tarfile.REGTYPE),
        ("link.txt", tarfile.SYMTYPE),
        ("hard.txt", tarfile.LNKTYPE),
        ("device.txt", tarfile.CHRTYPE),
        ("pipe.txt", tarfile.FIFOTYPE),
        ("twice.txt", tarfile.REGTYPE),
    ],
)
def test_hostile_archives_are_refused(tmp_path: Path, name: str, kind: bytes) -> None:
    with tarfile.open(tmp_path / "bad.tar", "w") as tar:
        for _ in range(2 if name.startswith("twice") else 1):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "target"
            tar.addfile(member)
    with pytest.raises(SourceError, match=r"bad\.tar"):
        ss.index(tmp_path / "bad.tar", tmp_path / "adopted", workers=1)
    with pytest.raises(SourceError, match=r"bad\.tar"):
        ss.pack(tmp_path / "bad.tar", tmp_path / "packed", workers=1)
    assert not list(tmp_path.glob("*/manifest.json"))


def test_a_size_of_a_tebibyte_is_refused(tmp_path: Path) -> None:
    member = tarfile.TarInfo("big.txt")
    member.size = 1 << 40
    (tmp_path / "big.tar").write_bytes(member.tobuf(tarfile.GNU_FORMAT) + bytes(2048))
    with pytest.raises(SourceError, match=r"big\.tar"):
        ss.index(tmp_path / "big.tar", tmp_path / "adopted", workers=1)


def test_resume_at_another_world_size(corpus: Path, tmp_path: Path) -> None:
    ss.pack(corpus, tmp_path / "packed", workers=1, **SMALL)

    def loader(rank: int, size: int, batch_size: int) -> ss.StreamingLoader:
        dataset = ss.StreamingDataset(
            tmp_path / "packed", shuffle=ss.Shuffle(seed=3), topology=ss.Topology(rank, size)
        )
        return ss.StreamingLoader(dataset, batch_size=batch_size, last="short")

    seen: list[str] = []
    states = []
    for rank in range(4):
        one = loader(rank, 4, 10)
        for step, batch in enumerate(one):
            seen += batch["__key__"]
            if step == 4:
                break
        states.append(one.state_dict())
    assert all(state == states[0] for state in states)
    for rank in range(2):
        one = loader(rank, 2, 25)
        one.load_state_dict(json.loads(json.dumps(states[0])))
        for batch in one:
            seen += [
                key for key, pad in zip(batch["__key__"], batch["__pad__"].tolist(), strict=True) if not pad
            ]
    assert sorted(seen) == sorted(sample["__key__"] for sample in ss.StreamingDataset(tmp_path / "packed"))
    ss.pack(corpus, tmp_path / "other", workers=1, limit=50)
    other = ss.StreamingLoader(ss.StreamingDataset(tmp_path / "other", shuffle=True), batch_size=2)
    with pytest.raises(StateError, match="fingerprint"):
        other.load_state_dict(states[0])


def test_pack_stays_a_function_whatever_is_imported_first() -> None:
    code = (
        "import shardstream.packing.packer, shardstream.maintain.verify, shardstream as ss;"
        "from shardstream.packing import writer;"
        "assert ss.pack is shardstream.pack is sys.modules['shardstream.packing.packer'].pack"
    )
    subprocess.run([sys.executable, "-c", f"import sys; {code}"], check=True)
