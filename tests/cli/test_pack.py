"""shardstream pack: what it says, and how it ends when it cannot say it."""

from __future__ import annotations

import json
import os
import pty
import struct
import subprocess
import sys
import termios
from collections.abc import Callable
from fcntl import ioctl
from pathlib import Path
from typing import Any

import pytest

import shardstream as ss
from shardstream.cli.app import run
from shardstream.errors import reason
from shardstream.packing.formats import FORMATS
from shardstream.read.reader import DatasetReader
from tests.corpora import lines, sound, texts

Run = Callable[..., tuple[int, str, str]]
COMMAND = [sys.executable, "-W", "error", "-m", "shardstream"]


def samples(dest: Path) -> list[tuple[str, dict[str, bytes]]]:
    return list(DatasetReader.open(str(dest)).iter_samples())


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Two files whose ids begin again."""
    return [
        lines(tmp_path / f"{name}.jsonl", [{"id": n, "text": f"{name}{n}", "lang": "en"} for n in range(2)])
        for name in "ab"
    ]


def test_the_keys_are_told(files: list[Path], tmp_path: Path, run: Run) -> None:
    code, out, errors = run(
        "pack", *files, tmp_path / "out", "--shuffle", 1, "--on-error", "skip", "--workers", 1
    )
    assert (code, errors) == (0, "")
    assert out.splitlines()[0].startswith("4 samples in 1 shard: ")
    told = "the path of the file without extensions / __key__, key or id; without these the file and the "
    assert out.splitlines()[1:] == [f"keys: {told}place of the row"]
    facts = json.loads(run("pack", *files, tmp_path / "two", "--key", "text", "--json", "--workers", 1)[1])
    assert facts["keys"] == "the value of text, as it is"
    dry = run("pack", *files, tmp_path / "three", "--key", "none", "--dry-run")
    assert dry[1].splitlines()[1].startswith("keys: the path of the file without extensions, and the place")


def test_keep_takes_commas(files: list[Path], tmp_path: Path, run: Run) -> None:
    options = ["--keep", "lang,id", "--keep", "text", "--workers", 1]
    assert run("pack", *files, tmp_path / "out", *options)[0] == 0
    assert json.loads(run("cat", tmp_path / "out", "a/1", "--field", "json")[1]) == {"lang": "en", "id": 1}
    code, out, errors = run("pack", *files, tmp_path / "no", "--keep", "lang,nope", "--workers", 1)
    assert (code, out) == (2, "")
    assert "no row has 'nope'" in errors


def test_the_ratio_is_of_what_the_fields_hold(files: list[Path], tmp_path: Path, run: Run) -> None:
    facts = json.loads(run("pack", files[0], tmp_path / "out", "--json", "--workers", 1)[1])
    fields = [fields for _, fields in samples(tmp_path / "out")]
    held = sum(len(data) for each in fields for data in each.values())
    assert facts["sample_bytes"] == held < 100
    assert facts["ratio"] == round(held / facts["bytes"], 4) < 1
    assert f"{held} B in the samples (ratio {facts['ratio']:.2f})" in run("info", tmp_path / "out")[1]
    # An append adds its own; a part whose bytes are not known leaves no ratio.
    both = json.loads(run("pack", files[1], tmp_path / "out", "--append", "--json", "--workers", 1)[1])
    assert both["sample_bytes"] == 2 * held
    manifest = ss.Manifest.from_bytes((tmp_path / "out" / "manifest.json").read_bytes(), "x")
    record: dict[str, Any] = {**manifest.provenance, "sample_bytes": None}
    old = ss.Manifest.build("samples", manifest.fields, manifest.shards, record)
    (tmp_path / "out" / "manifest.json").write_bytes(old.to_bytes())
    assert json.loads(run("info", tmp_path / "out", "--json")[1])["ratio"] is None
    assert "(ratio " not in run("info", tmp_path / "out")[1]


@pytest.mark.parametrize("options", [{}, {"shuffle": 3}, {"tokenizer": "bytes", "eos": 256}])
def test_the_bytes_of_samples_are_counted_in_any_way_to_pack(
    corpus: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    manifest = ss.pack(corpus, tmp_path / "out", workers=1, shard_size="8KiB", **options)
    found = samples(tmp_path / "out")
    assert manifest.sample_bytes == sum(len(data) for _, fields in found for data in fields.values())


def test_the_first_rejects_are_printed(tmp_path: Path, run: Run) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text('{"text": "fine"}\n' * 9 + '{"n": 1}\n' * 5)
    code, out, errors = run("pack", path, tmp_path / "out", "--on-error", "skip", "--workers", 1)
    assert (code, errors) == (0, "")
    assert out.splitlines()[2:] == [
        f"5 rejected: see {tmp_path}/out/rejects.jsonl",
        *(
            f"  {path}:{n}: no key 'text'; name the one that holds the text with --text-key"
            for n in (10, 11, 12)
        ),
        "  and 2 more",
    ]
    options = ["--on-error", "skip", "--workers", 1, "--json"]
    facts = json.loads(run("pack", path, tmp_path / "json", *options)[1])
    assert facts["rejected"] == 5
    assert [row["where"] for row in facts["first_rejects"]] == [f"{path}:{n}" for n in (10, 11, 12)]


def test_too_many_rejects_are_a_failure(tmp_path: Path, run: Run) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text('{"text": "fine"}\n' + '{"n": 1}\n' * 2)
    command = ["pack", path, tmp_path / "out", "--on-error", "skip", "--workers", 1]
    code, out, errors = run(*command)
    assert (code, out) == (1, "")
    assert "2 of 3 samples were rejected" in errors
    assert f"{path}:2: no key 'text'" in errors
    assert len((tmp_path / "out" / "rejects.jsonl").read_text().splitlines()) == 2
    assert run(*command, "--resume", "--max-rejects", 0.7)[0] == 0
    assert sound(tmp_path / "out")
    assert run(*command, "--max-rejects", 2)[0] == 2


def test_a_missing_eos_is_told_on_stderr(files: list[Path], tmp_path: Path, run: Run) -> None:
    command = ["pack", files[0], tmp_path / "out", "--tokenizer", "bytes", "--workers", 1]
    code, _, errors = run(*command)
    assert code == 0
    assert errors.startswith("warning: no end of document")
    for number, end in enumerate(("none", 256)):
        command[2] = tmp_path / f"out{number}"
        assert run(*command, "--eos", end)[::2] == (0, "")
    code, _, errors = run(*command, "--eos", "end")
    assert (code, errors) == (2, "error: --eos end: give a token id, or none\n")


@pytest.mark.parametrize("command", ["pack", "index"])
def test_a_missing_destination_is_named(files: list[Path], run: Run, command: str) -> None:
    code, out, errors = run(command, files[0])
    assert (code, out) == (2, "")
    assert errors.startswith("error: DEST is missing")
    assert str(files[0]) in errors
    assert run(command)[0] == 2


def test_a_file_as_destination_is_named(files: list[Path], tmp_path: Path, run: Run) -> None:
    before = files[1].read_bytes()
    for dest in (files[1], files[1] / "below"):
        code, out, errors = run("pack", files[0], dest, "--workers", 1)
        assert (code, out) == (1, "")
        assert f"error: {dest}: a dataset is a directory, but a file" in errors
    assert files[1].read_bytes() == before


def _shell(line: str, folder: Path) -> tuple[int, str, str]:
    done = subprocess.run(
        ["bash", "-c", line, "shardstream", *COMMAND],
        cwd=folder, capture_output=True, text=True, timeout=250, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("closed", ["2>&-", ">&-", "<&-", "<&- >&- 2>&-", "2>/dev/full", "2>/dev/null"])
def test_closed_standard_streams_harm_no_pack(files: list[Path], tmp_path: Path, closed: str) -> None:
    code, out, errors = _shell(f'"$@" pack a.jsonl b.jsonl out --workers 2 {closed}', tmp_path)
    assert (code, errors) == (0, "")
    assert out.startswith("4 samples") == (">&-" not in closed.replace("2>&-", ""))
    assert sound(tmp_path / "out")
    assert len(texts(tmp_path / "out")) == 4


@pytest.mark.parametrize("closed", ["2>&-", "2>/dev/full", "2>&1 >/dev/null | true; exit ${PIPESTATUS[0]}"])
def test_an_error_that_nobody_can_read_keeps_its_exit_code(
    files: list[Path], tmp_path: Path, closed: str
) -> None:
    assert _shell(f'"$@" pack a.jsonl missing.jsonl out {closed}', tmp_path) == (1, "", "")
    assert _shell(f'"$@" pack a.jsonl out --level 99 {closed}', tmp_path) == (2, "", "")


def test_a_reader_that_ends_early_is_no_error_of_ours(files: list[Path], tmp_path: Path) -> None:
    line = '"$@" pack a.jsonl b.jsonl out --workers 1 | true; exit ${PIPESTATUS[0]}'
    code, _, errors = _shell(line, tmp_path)
    assert (code, errors) == (1, "")  # as other commands do: what it has to say was not heard
    assert sound(tmp_path / "out")
    assert _shell('"$@" ls out --json | head -1', tmp_path)[0::2] == (0, "")


def test_progress_whose_reader_has_ended_stops_nothing(corpus: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from shardstream.progress import display; display._EVERY = 0.0\n"
        "from shardstream.cli.app import main; sys.argv[1:] = sys.argv[2:]; main()"
    )
    line = '"$1" -c "$0" x pack corpus.jsonl out --shard-size 2KiB --workers 1 2>&1 >/dev/null | true'
    line += "; exit ${PIPESTATUS[0]}"
    done = subprocess.run(
        ["bash", "-c", line, code, sys.executable],
        cwd=tmp_path,
        capture_output=True,
        timeout=250,
        check=False,
    )
    assert done.returncode == 0
    assert sound(tmp_path / "out")


@pytest.mark.parametrize("columns", [40, 60, 80, 140])
def test_progress_fits_a_terminal(tmp_path: Path, columns: int) -> None:
    rows = [{"id": n, "text": f"some text {n} " * 30} for n in range(3_000)]
    lines(tmp_path / "corpus.jsonl", rows)
    ours, theirs = pty.openpty()
    ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    with subprocess.Popen(
        [*COMMAND, "pack", "corpus.jsonl", "out", "--shard-size", "64KiB", "--workers", "1"],
        cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=theirs, env={**environment, "TERM": "xterm"},
    ) as process:  # fmt: skip
        os.close(theirs)
        shown = b""
        while True:
            try:
                part = os.read(ours, 1 << 16)
            except OSError:  # Linux says so where the other end is closed
                break
            if not part:
                break
            shown += part
        assert process.wait(200) == 0
    os.close(ours)
    text = _plain(shown.decode())
    frames = [frame for frame in text.replace("\n", "\r").split("\r") if frame.strip()]
    assert len(frames) > 1
    assert all(len(frame) <= columns for frame in frames)
    assert not any("…" in frame for frame in frames)
    assert ("100 %" in frames[-1]) == (columns < 60)


def _plain(text: str) -> str:
    import re

    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


def test_errors_name_no_objects_of_python(tmp_path: Path, run: Run) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100))
    (folder / "b.jpg").write_bytes(b"\xff\xd8\xff" + bytes(100))
    code, _, errors = run("pack", folder, tmp_path / "out", "--resize", 8, "--workers", 1)
    assert code == 1
    assert "cannot be decoded (cannot identify image file)" in errors
    run("pack", folder, tmp_path / "raw", "--workers", 1)
    code, _, errors = run("show", tmp_path / "raw", "--out", tmp_path / "sheet.png")
    for field in ("png", "jpg"):
        with pytest.raises(ss.SourceError) as caught:
            list(ss.StreamingDataset(str(tmp_path / "raw"), fields=[field], shuffle=False))
        assert " object at " not in str(caught.value)
    assert reason(ValueError("Error opening <_io.BytesIO object at 0x7fa>: no format")) == (
        "Error opening: no format"
    )


def test_the_help_names_every_format(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["pack", "--help"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert all(name in shown for name in FORMATS)
