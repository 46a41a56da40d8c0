"""rebuild: the manifest again, of whole datasets alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

import shardstream as ss
from shardstream.cli.app import run
from shardstream.format.manifest import Manifest
from shardstream.maintain.rebuild import rebuild

SMALL: dict[str, Any] = {"shard_size": "4KiB", "frame_size": "1KiB"}


def samples(count: int) -> list[dict[str, Any]]:
    return [
        {
            "__key__": f"ü/{n}",
            "txt": f"text {n} " * (n % 30),
            **({"meta.json": {"n": n}} if n % 7 == 6 else {}),
        }
        for n in range(count)
    ]


def rows(count: int, part: int) -> list[dict[str, Any]]:
    """Rows with values of every type, of which some are missing, in some shards all."""
    return [
        {
            "id": f"{part}-{n}",
            "text": "text " * (n % 9),
            "n": n - 50,
            "ok": None if n % 5 == 1 else n % 2 == 0,
            "a": n / 3 if n > 60 else None,
            "mixed": n if part else f"m{n % 3}",
            "some": {"lang": ["de", "en", None][n % 3]},
            "ü": {"ö": "ä" * (n % 4)},
        }
        for n in range(count)
    ]


@pytest.fixture(params=["zstd", "none", "tokens16", "tokens32", "parts", "columns", "tokens columns"])
def dataset(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    dest = tmp_path / "data"
    if request.param.endswith("columns"):
        # In an order of names that is neither that of the alphabet nor that of the widths.
        keep = ["n", "some.lang", "ok", "a", "mixed", "ü.ö"]
        options = {**SMALL, "tokenizer": "bytes", "eos": 0} if request.param != "columns" else SMALL
        for part in range(2):
            (tmp_path / f"{part}.jsonl").write_text("\n".join(map(json.dumps, rows(150, part))))
            ss.pack(tmp_path / f"{part}.jsonl", dest, keep=keep, append=part > 0, workers=1, **options)
    elif request.param.startswith("tokens"):
        dtype: Any = f"uint{request.param[-2:]}"
        with ss.Writer(dest, tokens=dtype, **SMALL) as writer:
            for n in range(200):
                writer.write(np.arange(n % 50, dtype=dtype))
    elif request.param == "parts":
        for rank in range(2):
            with ss.Writer(dest, part=(rank, 2), **SMALL) as writer:
                for one in samples(100):
                    writer.write(one)
        ss.commit(dest)
    else:
        ss.pack(samples(200), dest, compression=request.param, **SMALL)
        ss.pack(samples(50), dest, compression=request.param, append=True, **SMALL)
    return dest


def lose(dataset: Path) -> Manifest:
    data = (dataset / "manifest.json").read_bytes()
    (dataset / "manifest.json").unlink()
    return Manifest.from_bytes(data, "manifest")


def test_all_but_the_provenance_comes_back(dataset: Path) -> None:
    before = lose(dataset)
    after = rebuild(dataset, tokens=before.fields[0].dtype)
    for name in set(Manifest.__struct_fields__) - {"provenance", "fingerprint"}:
        assert getattr(after, name) == getattr(before, name), name
    assert (after.version == 2) == bool(after.columns)
    assert Manifest.from_bytes((dataset / "manifest.json").read_bytes(), "manifest") == after
    assert not ss.verify(str(dataset), deep=True).problems


def test_a_manifest_that_is_there_stays(dataset: Path) -> None:
    data = (dataset / "manifest.json").read_bytes()
    with pytest.raises(ss.CommitError, match="nothing to rebuild"):
        rebuild(dataset)
    assert (dataset / "manifest.json").read_bytes() == data


def test_a_damaged_manifest_is_replaced(tmp_path: Path) -> None:
    ss.pack(samples(50), tmp_path / "data")
    (tmp_path / "data" / "manifest.json").write_bytes(b"{")
    assert rebuild(tmp_path / "data").samples == 50


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: (d / "shard-000001.index").unlink(), "shard-000001.tar.zst: its index is missing"),
        (lambda d: (d / "shard-000001.tar.zst").unlink(), "shard-000001.index: there has to be one shard"),
        (
            lambda d: (d / "shard-000001.tar").write_bytes(b""),
            "shard-000001.index: there has to be one shard",
        ),
        (lambda d: (d / "shard-000001.index").write_bytes(b"x"), "shard-000001.index: not an index"),
        (
            lambda d: (d / "shard-000001.index").write_bytes((d / "shard-000000.index").read_bytes()),
            "shard-000001",
        ),
        (lambda d: flip(d / "shard-000001.tar.zst", 100), "shard-000001"),
        (lambda d: flip(d / "shard-000001.tar.zst", -30), "shard-000001"),
        (lambda d: cut(d / "shard-000001.tar.zst"), "shard-000001"),
        (lambda d: flip(d / "shard-000001.index", -3), "shard-000001"),
    ],
)
def test_damage_is_named_and_no_manifest_is_written(
    tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    ss.pack(samples(200), tmp_path / "data", **SMALL)
    lose(tmp_path / "data")
    damage(tmp_path / "data")
    with pytest.raises(ss.CorruptionError, match=message):
        rebuild(tmp_path / "data")
    assert not (tmp_path / "data" / "manifest.json").exists()


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 4
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-50])


def test_two_shards_of_one_number_are_both_named(tmp_path: Path) -> None:
    dest = tmp_path / "out"
    ss.pack(samples(60), dest, **SMALL)
    (dest / "manifest.json").unlink()
    for suffix in ("tar.zst", "index"):
        data = (dest / f"shard-000001.{suffix}").read_bytes()
        (dest / f"shard-000001.{suffix}").rename(dest / f"shard-000001.aaaaaaaa.{suffix}")
        (dest / f"shard-000001.bbbbbbbb.{suffix}").write_bytes(data)
    with pytest.raises(ss.CorruptionError, match=r"shard-000001\.aaaaaaaa.* and .*shard-000001\.bbbbbbbb"):
        rebuild(dest)
    assert not (dest / "manifest.json").exists()
    for file in dest.glob("*.aaaaaaaa.*"):
        file.unlink()
    assert rebuild(dest).samples == 60


def test_targets_that_are_no_datasets(tmp_path: Path) -> None:
    with pytest.raises(ss.OptionError, match="there are no shards"):
        rebuild(tmp_path)
    with pytest.raises(KeyError), ss.Writer(tmp_path / "out", **SMALL) as writer:  # noqa: PT012
        for one in samples(200):
            writer.write(one)
        raise KeyError
    with pytest.raises(ss.CommitError, match="unfinished"):
        rebuild(tmp_path / "out")


def test_tokens_need_their_dtype(tmp_path: Path) -> None:
    for name, length in (("even", 4), ("odd", 3)):
        with ss.Writer(tmp_path / name, tokens="uint16") as writer:
            writer.write(np.arange(length))
        lose(tmp_path / name)
    with pytest.raises(ss.OptionError, match="--tokens"):
        rebuild(tmp_path / "even")
    with pytest.raises(ss.OptionError, match="no multiple of 4"):
        rebuild(tmp_path / "odd", tokens="uint32")
    assert rebuild(tmp_path / "odd").tokens == 3
    ss.pack(samples(3), tmp_path / "samples")
    lose(tmp_path / "samples")
    with pytest.raises(ss.OptionError, match="holds samples"):
        rebuild(tmp_path / "samples", tokens="uint16")


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ss.pack(samples(200), tmp_path / "data", **SMALL)
    before = lose(tmp_path / "data")
    assert run(["rebuild", str(tmp_path / "data"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["samples"] == 200
    assert run(["rebuild", str(tmp_path / "data")]) == 1
    assert "nothing to rebuild" in capsys.readouterr().err
    assert run(["rebuild", str(tmp_path / "data"), "--tokens", "int8"]) == 2
    assert (
        msgspec.json.decode((tmp_path / "data" / "manifest.json").read_bytes())["samples"] == before.samples
    )
