"""The page docs/walk.md, done as its reader would do it: in a shell, against a real S3 server.

The job is stopped where the page says so, in the middle of its first run.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.servers import KEY, SECRET, Weed
from tests.test_docs import FENCE, ROOT, RUN, WARNINGS, Example, examples

PAGE = ROOT / "docs" / "walk.md"
TITLED = re.compile(r'^```python title="([\w.]+)"\n(.*?)^```\s*$', re.MULTILINE | re.DOTALL)


END = """
import os

import shardstream as ss
from shardstream import logs

bucket = os.environ["BUCKET"]
steps = {row["step"] for row in logs.read(f"{bucket}/logs")}
assert ss.Checkpoints(f"{bucket}/run").steps()[-1] == max(steps), steps
"""


@pytest.fixture
def shell(weed: Weed, tmp_path: Path) -> dict[str, str]:
    """The environment that the page asks for, and the scripts that it has its reader save."""
    for name, code in TITLED.findall(PAGE.read_text("utf-8")):
        (tmp_path / name).write_text(held(code), "utf-8")
    path = os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]])
    return os.environ | {
        "PATH": path, "PYTHONPATH": str(ROOT), "BUCKET": weed.bucket().removesuffix("/root"),
        "AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_ENDPOINT_URL": weed.url,
        "SHARDSTREAM_COUNTERS": str(tmp_path),
    }  # fmt: skip


def held(code: str) -> str:
    """The page's script, whose job does not end before the test has looked at it."""
    pause = "        time.sleep(0.05)  # a larger model takes longer\n"
    assert code.count(pause) == 1
    wait = '        while step > 20 and os.path.exists("hold") and not asked:\n            time.sleep(0.05)\n'
    return code.replace(pause, wait)


def follow(found: list[Example], shell: dict[str, str], folder: Path) -> str:
    """Run blocks of the page, one after the other, and return what they print."""
    done = subprocess.run(
        [sys.executable, *WARNINGS, "-X", "faulthandler", "-c", RUN],
        input=json.dumps([str(PAGE), found]),
        cwd=folder, env=shell, capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_every_block_of_bash_is_run_but_the_two_that_set_up() -> None:
    blocks = [match[2] for match in FENCE.finditer(PAGE.read_text("utf-8")) if match[1] == "bash"]
    assert [block.split()[0] for block in blocks if not block.startswith("# run\n")] == ["pip", "export"]


def test_walk(shell: dict[str, str], tmp_path: Path) -> None:
    text = PAGE.read_text("utf-8")
    page = examples(TITLED.sub(lambda match: "\n" * match[0].count("\n"), text))
    at = next(number for number, block in enumerate(page) if "--nproc-per-node 2" in block.code)
    packed = follow(page[:at], shell, tmp_path)
    assert "300 samples" in packed
    assert "sound" in packed

    (tmp_path / "hold").touch()
    with (tmp_path / "job.log").open("wb") as log:
        job = subprocess.Popen(
            ["bash", "-c", f"exec {page[at].code.strip().splitlines()[-1]}"],
            cwd=tmp_path, env=shell, stdout=log, stderr=log,
        )  # fmt: skip
    try:
        printed = until(tmp_path / "job.log", "step 20,", job)
        assert printed.count("begins behind step 0") == 2
        seen = follow(page[at + 1 : at + 2], shell, tmp_path)
        assert "rank 1" in seen, seen
        assert "checkpoint" in seen
        job.send_signal(signal.SIGINT)
        job.wait(60)
    finally:
        if job.poll() is None:  # torchrun ends its ranks at SIGTERM; a kill would leave them behind
            job.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                job.wait(60)
        job.kill()
        (tmp_path / "hold").unlink()
    printed = (tmp_path / "job.log").read_text()
    stopped = re.findall(r"stopped behind step (\d+)", printed)
    assert len(stopped) == 2, printed
    assert len(set(stopped)) == 1

    # The asserts of the page say that no sample came twice and none is missing. Its last block deletes all.
    rest = follow(page[at + 2 : -1], shell, tmp_path)
    follow([Example("python", END, 1)], shell, tmp_path)
    follow(page[-1:], shell, tmp_path)
    assert f"rank 0 begins behind step {stopped[0]}" in rest
    assert "\n0 blocks fetched" in rest
    assert not (tmp_path / "cache").exists()


def until(log: Path, words: str, job: subprocess.Popen[bytes]) -> str:
    """What a job has printed, once these words are there."""
    limit = time.monotonic() + 120
    while words not in (text := log.read_text("utf-8")):
        assert job.poll() is None, text
        assert time.monotonic() < limit, text
        time.sleep(0.05)
    return text
