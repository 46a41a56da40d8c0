"""The commands as a person meets them: at any width, in any encoding, in a terminal and in a pipe."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

import shardstream as ss
from shardstream.cli import info
from shardstream.cli.image_lines import image_lines
from shardstream.read.reader import DatasetReader

Run = Callable[..., tuple[int, str, str]]
MAIN = [sys.executable, "-m", "shardstream"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A dataset with awkward keys and long fields, in many shards."""
    out = tmp_path_factory.mktemp("made") / "packed"
    samples = (
        {
            "__key__": key, "txt": f"\x1b[31m{key} " * 2000, "json": {"deep": list(range(3000))},
            "npy": np.zeros((4, 5), np.float32), "bin": bytes(range(256)) * 10,
        }
        for key in ("日本", "emoji-😀", "plain")
    )  # fmt: skip
    ss.pack(samples, out)
    return str(out)


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> str:
    out = tmp_path_factory.mktemp("tokens") / "packed"
    with ss.Writer(out, tokens="uint32") as writer:
        writer.write({"__key__": "window", "tokens": np.arange(2049, dtype=np.uint32)})
        writer.write({"__key__": "book", "tokens": np.arange(1_000_000, dtype=np.uint32)})
    return str(out)


@pytest.mark.parametrize("columns", ["40", "200"])
def test_help_fits_any_terminal(columns, run: Run, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    for command in ([], ["pack"], ["advise"], ["checkpoint"]):
        code, out, _ = run(*command, "--help")
        assert code == 0
        assert max(map(len, out.splitlines())) <= int(columns)
        assert "range>" not in out
        if command == ["checkpoint"]:
            assert "One of: list, show, verify, export, prune, upload." in " ".join(out.split())
    assert "List the samples: number, key, fields with their sizes in bytes, shard and frame." in " ".join(
        run("--help")[1].split()
    )


@pytest.mark.parametrize("columns", ["40", "200"])
def test_output_fits_any_terminal(columns, made, tokens, run: Run, monkeypatch, tmp_path) -> None:
    from shardstream.cli.screen import cells

    monkeypatch.setenv("COLUMNS", columns)
    for command in (
        ["info", made], ["show", made], ["show", tokens], ["verify", made, "--deep"], ["info", tmp_path],
        ["warm", made, "--cache", tmp_path / "cache", "--always"], ["cache", tmp_path / "cache"],
    ):  # fmt: skip
        _, out, errors = run(*command)
        assert "\x1b" not in out + errors
        for line in (out + errors).splitlines():
            # Paths and fingerprints are not broken, so that they can be copied.
            assert cells(line) <= int(columns) or max(map(cells, line.split())) > int(columns) - 20


def test_show_is_bounded(made, tokens, run: Run) -> None:
    code, out, _ = run("show", tokens)
    assert code == 0
    assert "2,049 tokens, uint32" in out
    assert "... 2044 2045 2046 2047 2048" in out
    assert "1,000,000 tokens, uint32" in out
    assert len(out.splitlines()) <= 1 + 2 * (8 + 2)
    assert len(run("show", tokens, "--lines", 2)[1].splitlines()) <= 1 + 2 * (2 + 2)
    assert len(run("show", tokens, "--lines", 60)[1].splitlines()) > 60
    out = run("show", made)[1]
    for told in ("characters)", "npy: float32, 4 x 5", "bin: 2.5 KiB: 00 01 02", "日本", r"\x1b[31m"):
        assert told in out
    assert len(out.splitlines()) < 50


def test_info_is_one_screen(made, run: Run) -> None:
    out = run("info", made)[1]
    assert len(out.splitlines()) <= 20
    for told in ("a dataset of samples", "samples      3", "created by   shardstream", "4 x 5 in the first"):
        assert told in out
    assert "listing_sha256" not in out
    assert "listing_sha256" in run("info", made, "--provenance")[1]
    assert "listing_sha256" in json.loads(run("info", made, "--json")[1])["provenance"]["sources"]


def in_terminal(*arguments: str, **environment: str) -> tuple[int, str]:
    """The exit code of a command in a terminal of 40 columns, and what is on its screen."""
    leader, follower = pty.openpty()
    env = {name: value for name, value in os.environ.items() if name != "COLUMNS"} | {"TERM": "xterm"}
    env |= {"COLUMNS": "40"} | environment
    process = subprocess.Popen([*MAIN, *arguments], stdin=follower, stdout=follower, stderr=follower, env=env)
    os.close(follower)
    deadline = threading.Timer(60, process.kill)  # which ends the reads, too
    deadline.start()

    def pieces() -> Iterator[bytes]:
        while True:
            try:
                yield os.read(leader, 1 << 16)
            except OSError:  # the command has ended
                return

    shown = b"".join(pieces()).decode()
    os.close(leader)
    try:
        return process.wait(60), shown
    finally:
        deadline.cancel()


def test_cat_spares_the_terminal_and_gives_a_pipe_every_byte(made, tokens, run: Run) -> None:
    code, shown = in_terminal("cat", made, "plain", "--field", "txt")
    assert code == 0
    assert "\x1b" not in shown
    assert r"\x1b[31mplain" in shown
    assert "the first 8.0 KiB of 21.5 KiB" in " ".join(shown.split())
    assert "2,560 bytes that are no text" in in_terminal("cat", made, "plain", "--field", "bin")[1]
    shown = in_terminal("cat", tokens, "book")[1]
    assert "1,000,000 tokens;" in shown
    assert len(shown) < 10_000
    piped = subprocess.run([*MAIN, "cat", made, "plain", "--field", "bin"], capture_output=True, check=True)
    assert piped.stdout == bytes(range(256)) * 10
    assert run("cat", tokens, "window")[1].split() == [str(number) for number in range(2049)]


def test_a_terminal_that_has_ascii_alone(made) -> None:
    env = os.environ | {"PYTHONIOENCODING": "ascii", "LC_ALL": "C"}
    for command in (["ls", made], ["show", made], ["info", "/日本"]):
        done = subprocess.run([*MAIN, *command], capture_output=True, env=env, check=False)
        assert b"Unicode" not in done.stderr
        assert done.returncode == (1 if "/日本" in command else 0)
    rows = subprocess.run([*MAIN, "ls", made, "--json"], capture_output=True, env=env, check=True).stdout
    assert json.loads(rows.splitlines()[0])["key"] == "日本"


def test_a_reader_that_ends_early_is_no_error(made) -> None:
    for command in ("ls", "show"):
        reading = subprocess.Popen([*MAIN, command, made], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert reading.stdout is not None
        reading.stdout.close()
        assert reading.stderr is not None
        assert reading.stderr.read() == b""
        assert reading.wait(60) in (0, 1)
        reading.stderr.close()


def test_colours_only_where_they_are_wanted(tmp_path: Path) -> None:
    ss.pack([{"__key__": "red", "png": np.full((8, 8, 3), (250, 10, 10), np.uint8)}], tmp_path / "images")
    for name, value in (("NO_COLOR", "1"), ("TERM", "dumb")):
        code, shown = in_terminal("show", str(tmp_path / "images"), **{name: value})
        assert code == 0
        assert "image, 8 x 8" in shown
        assert "▀" not in shown
        assert "\x1b[38" not in shown
    assert "▀" in in_terminal("show", str(tmp_path / "images"), COLORTERM="truecolor")[1]


def test_info_bears_the_provenance_of_other_programs(run: Run, tmp_path: Path) -> None:
    ss.pack([{"__key__": "a", "txt": "text"}], tmp_path / "packed")
    reader = DatasetReader.open(str(tmp_path / "packed"))
    odd: dict[str, Any] = dict.fromkeys(("rejected", "options", "tokenizer", "classes", "images"), "5")
    for record in (
        odd | {"sources": {"bytes": "5"}, "appended": "twice"},
        {"sources": {"bytes": 5, "files": "1"}, "appended": ["5"], "images": {"resized": 1, "images": "5"}},
        {"classes": ["a"], "class_counts": ["many"], "images": {"turned": "all"}},
    ):
        manifest = msgspec.structs.replace(reader.manifest, provenance=record)
        reader.manifest = manifest
        assert list(info._summary(manifest))
        assert info._facts(manifest)["provenance"] == record
        assert all(isinstance(line, str) for line in [*info._resized(manifest), *image_lines(record)])


def test_info_reads_no_large_frame(made, run: Run, monkeypatch) -> None:
    monkeypatch.setattr(info, "_FRAME", 100)
    out = run("info", made)[1]
    assert "npy" in out
    assert "in the first sample" not in out


def test_names_of_files_do_not_steer_the_terminal(run: Run, tmp_path: Path) -> None:
    code, out, errors = run("info", tmp_path / "a\x1b[31mb")
    assert (code, out) == (1, "")
    assert "\x1b" not in errors
