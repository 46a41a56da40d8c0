"""The templates in docs/cluster.md: they run here, as far as they can without a cluster."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import shardstream as ss
from shardstream.cli.app import run
from tests.corpora import digests, lines

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "cluster.md").read_text("utf-8")
INPUT, OUTPUT = "s3://raw/*.jsonl.zst", "s3://bucket/corpus"


def blocks(language: str, word: str) -> list[str]:
    found = re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    return [block for block in found if word in block]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return lines(tmp_path / "in.jsonl", [{"id": n, "text": "x" * 1000} for n in range(20)])


def test_the_script_for_slurm(source: Path, tmp_path: Path) -> None:
    (script,) = blocks("bash", "#SBATCH")
    assert "parts=100 " in script
    assert "--array=0-99" in PAGE
    assert INPUT in script
    assert OUTPUT in script
    small = f"{tmp_path}/out --shard-size 4KiB"
    script = script.replace(f"'{INPUT}'", shlex.quote(str(source))).replace(OUTPUT, small)
    script = script.replace("parts=100 ", "parts=3 ").replace("30 60 120 240 0", "0.1 0")
    (tmp_path / "bin").mkdir()
    command = tmp_path / "bin" / "shardstream"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m shardstream "$@"\n')
    command.chmod(0o755)
    environment = {
        **os.environ, "PYTHONPATH": str(ROOT), "PATH": f"{command.parent}:{os.environ['PATH']}",
        "SLURM_CPUS_PER_TASK": "1",
    }  # fmt: skip

    def job(number: int | None) -> subprocess.CompletedProcess[str]:
        array = {} if number is None else {"SLURM_ARRAY_TASK_ID": str(number)}
        words = ["bash", "-c", script, "pack.sbatch", *([] if array else ["commit"])]
        return subprocess.run(
            words, env=environment | array, capture_output=True, text=True, check=False, timeout=120
        )

    assert [job(number).returncode for number in (2, 0)] == [0, 0]
    early = job(None)
    assert early.returncode == 1
    assert early.stderr.count("For an array of jobs: 1") == 2  # it has tried again
    assert job(3).returncode == 2  # at once: there is no part 3 of 3
    assert [job(number).returncode for number in (1, None)] == [0, 0]
    ss.pack(source, tmp_path / "whole", shard_size="4KiB", workers=1)
    assert digests(tmp_path / "out") == digests(tmp_path / "whole")


def test_the_jobs_for_kubernetes(source: Path, tmp_path: Path) -> None:
    yaml = pytest.importorskip("yaml")
    parts, commit = (yaml.safe_load(block) for block in blocks("yaml", "kind: Job"))
    for job in (parts, commit):
        assert job["apiVersion"] == "batch/v1"
        spec = job["spec"]
        pod = spec["template"]["spec"]
        (container,) = pod["containers"]
        assert pod["restartPolicy"] == "Never"  # backoffLimitPerIndex and podFailurePolicy need it
        # Code 2 ends the job, and all other codes are tried again.
        (wrong,) = (rule for rule in spec["podFailurePolicy"]["rules"] if rule["action"] == "FailJob")
        assert wrong["onExitCodes"] == {
            "containerName": container["name"], "operator": "In", "values": [2],
        }  # fmt: skip
        assert run([*words(container, "0", source, tmp_path / "wrong"), "--part", "5/3"]) == 2
    spec = parts["spec"]
    assert spec["completionMode"] == "Indexed"
    (container,) = spec["template"]["spec"]["containers"]
    (variable,) = container["env"]
    assert variable["name"] == "PART"
    assert "job-completion-index" in variable["valueFrom"]["fieldRef"]["fieldPath"]
    assert f"$(PART)/{spec['completions']}" in container["args"]

    for number in range(spec["completions"]):
        if number < 7 or number == spec["completions"] - 1:  # the others have no tasks
            assert run(words(container, str(number), source, tmp_path / "out")) == 0
    (last,) = commit["spec"]["template"]["spec"]["containers"]
    assert last["image"] == container["image"]
    assert run(words(last, "", source, tmp_path / "out")) == 0
    ss.pack(source, tmp_path / "whole", shard_size="4KiB", workers=1)
    assert digests(tmp_path / "out") == digests(tmp_path / "whole")


def words(container: dict[str, Any], part: str, source: Path, dest: Path) -> list[str]:
    """What the container runs, with another source and target; without the name of the program."""
    program, *found = [*container["command"], *container["args"]]
    assert program == "shardstream"
    places = {INPUT: str(source), OUTPUT: str(dest)}
    return [places.get(word, word).replace("$(PART)", part) for word in found] + ["--shard-size", "4KiB"]
