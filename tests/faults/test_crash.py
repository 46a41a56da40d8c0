"""SIGKILL and a full disk at every system call by which a pack changes its target."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import shardstream as ss
from shardstream.read.reader import DatasetReader

CALLS = ["write", "fsync", "rename", "link", "unlink", "mkdir"]
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {"workers": 1},
    "append": {"workers": 1, "append": True},
    "workers": {"workers": 2},
    "shuffle": {"workers": 1, "shuffle": 1},
    "linkless": {"workers": 1},  # on a file system without hard links: there every put is a rename
    "stub": {"workers": 1, "append": True},  # as that of very many shards, the manifest is two files
}
# The command, for which every manifest is a large one.
STUBS = """
import sys
from shardstream.cli.app import run
from shardstream.storage import manifests
manifests.LARGE = 0
sys.exit(run(sys.argv[1:]))
"""


def contents(folder: Path) -> dict[str, str]:
    """Name and SHA-256 of every file below a folder; names also show what was left behind."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


class Pack:
    """A small pack, whole or with a fault injected into one of its system calls."""

    def __init__(self, folder: Path, variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.options = {"shard_size": "16KiB", "frame_size": "4KiB", **VARIANTS[variant]}
        self.faults = ["-e", "inject=link:error=EPERM"] if variant == "linkless" else []
        self.append = bool(VARIANTS[variant].get("append"))
        self.program = ["-m", "shardstream"]
        if variant == "stub":
            monkeypatch.setattr("shardstream.storage.manifests.LARGE", 0)
            self.program = ["-c", STUBS]
        self.corpus = folder / "corpus.jsonl"
        rows = [{"id": f"k{number}", "text": f"line {number}\n" * (number % 37 + 1)} for number in range(120)]
        self.corpus.write_text("".join(json.dumps(row) + "\n" for row in rows))
        self.prepare(folder / "whole")
        ss.pack(self.corpus, folder / "whole", **self.options)
        self.expected = contents(folder / "whole")
        assert len(self.expected) >= 5
        assert bool(list((folder / "whole").glob("manifest-*"))) == (variant == "stub")

    def prepare(self, dest: Path) -> None:
        if self.append:
            ss.pack(self.corpus, dest, workers=1, limit=5)

    def run(self, dest: Path, inject: str) -> subprocess.CompletedProcess[str]:
        self.prepare(dest)
        command = [sys.executable, *self.program, "pack", str(self.corpus), str(dest)]
        for name, value in self.options.items():
            option = f"--{name.replace('_', '-')}"
            command += [option] if value is True else [option, str(value)]
        strace = ["strace", "-f", "-o", os.devnull, *self.faults, "-e", f"inject={inject}"]
        return subprocess.run([*strace, *command], capture_output=True, text=True, timeout=200)

    def check(self, dest: Path, done: subprocess.CompletedProcess[str]) -> None:
        """The target shows the old dataset, the whole new one, or none; resuming ends in the same bytes."""
        if (dest / "manifest.json").exists():
            assert ss.verify(str(dest), deep=True).sound
            samples = DatasetReader.open(str(dest)).manifest.samples
            assert samples in ((5, 125) if self.append else (120,))
        ss.pack(self.corpus, dest, resume=True, **self.options)
        assert contents(dest) == self.expected, f"{done.returncode}: {done.stderr}"


# Shards and a first manifest are linked to their names, so that each put is killed once by `link`. Without
# hard links they are renamed, as a manifest is that replaces another one.
NEVER = [
    ("rename", "plain"),
    ("rename", "workers"),
    *((call, "linkless") for call in CALLS if call != "rename"),
]
# An append differs from a new dataset in how it commits.
QUICK = [*((call, "plain") for call in CALLS), *((call, "append") for call in ("rename", "link", "unlink"))]
QUICK += [("rename", "linkless"), ("rename", "stub"), ("link", "stub")]
CASES = [
    pytest.param(call, variant, marks=() if (call, variant) in QUICK else pytest.mark.long)
    for call in CALLS
    for variant in VARIANTS
    if (call, variant) not in NEVER
]


# Each is a pack of its own: of the calls that are many one of three, unless all are asked for.
EVERY = [False, pytest.param(True, marks=pytest.mark.long)]


def calls(call: str, variant: str, every: bool) -> range:
    """At which calls the fault comes: the first, the fourth, ..."""
    few = call in ("rename", "link") and variant != "linkless"
    return range(1, 500, 1 if every or few else 3)


@pytest.mark.parametrize("every", EVERY, ids=["some", "all"])
@pytest.mark.parametrize(("call", "variant"), CASES)
def test_a_pack_killed_at_any_call_shows_nothing_and_resumes_to_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, variant: str, every: bool
) -> None:
    pack = Pack(tmp_path, variant, monkeypatch)
    for when in calls(call, variant, every):
        dest = tmp_path / f"killed-{when}"
        done = pack.run(dest, f"{call}:signal=SIGKILL:when={when}")
        if done.returncode == 0:
            break
        # A killed worker is reported by its parent, with exit code 1.
        assert done.returncode in (1, -signal.SIGKILL, 128 + signal.SIGKILL), done.stderr
        pack.check(dest, done)
    assert when > 1


@pytest.mark.parametrize("every", EVERY, ids=["some", "all"])
@pytest.mark.parametrize(
    ("call", "variant"), [("write", "plain"), ("fsync", "plain"), ("link", "plain"), ("rename", "linkless")]
)
def test_a_full_disk_is_a_clear_error_and_shows_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, variant: str, every: bool
) -> None:
    pack = Pack(tmp_path, variant, monkeypatch)
    for when in calls(call, variant, every):
        dest = tmp_path / f"full-{when}"
        done = pack.run(dest, f"{call}:error=ENOSPC:when={when}+")
        if done.returncode == 0:
            break
        assert "Traceback" not in done.stderr
        if call != "write":  # stderr itself is full otherwise
            assert "No space left on device" in done.stderr
            assert done.returncode == 1
        pack.check(dest, done)
    assert when > 1
