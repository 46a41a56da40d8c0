"""Credentials in URLs, options and the environment are in nothing that is said or kept."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shardstream.storage.remote import Store
from tests.servers import KEY, SECRET

BACKENDS = ["http", "s3", "obstore"]

CANARY = "cAnArYsEcReT"

SAYS = """
import logging, sys, traceback
logging.basicConfig(level=logging.DEBUG)
import shardstream as ss
from shardstream.storage import retry
from shardstream.storage.files import expand, open_input, read_slice
from shardstream.storage.remote import Store
retry._policy = retry.Policy(attempts=2, timeout=0.3, deadline=0.8, span=0.0, pause=0.02)
def read(url, options):
    for batch in ss.StreamingLoader(ss.StreamingDataset(url, storage_options=options), 4):
        pass
tries = [
    lambda url, options: Store.open(url, options).write("x", b"x"),
    lambda url, options: Store.open(url, options).create("x", b"x"),
    lambda url, options: Store.open(url, options).list(),
    lambda url, options: Store.open(url, options).exists("x"),
    lambda url, options: Store.open(url, options).delete("x"),
    lambda url, options: read_slice(url, 0, 1, options),
    lambda url, options: open_input(url, options).read(),
    lambda url, options: expand([url + "/*"], options),
    lambda url, options: expand([url], options),
    read,
]
for url, options in eval(sys.stdin.read()):
    failed = 0
    for attempt in tries:
        try:
            attempt(url, options)
        except ss.ShardstreamError as error:
            failed += 1
            traceback.print_exc()
            print(repr(error), repr(error.__cause__), repr(error.__context__))
    print("failed", failed, "times")
"""
FAULTS: list[dict[str, Any]] = [
    {}, {"status": (503,), "share": 1.0}, {"dead": True}, {"status": (403,), "share": 1.0}, {"reset": 1.0},
]  # fmt: skip


@pytest.mark.parametrize("faults_of", [2, pytest.param(len(FAULTS), marks=pytest.mark.long)])
@pytest.mark.parametrize("backend", BACKENDS)
def test_no_secret_is_told(
    backend: str, faults_of: int, weed: Any, nginx: Any, proxy_to: Callable[..., Any], tmp_path: Path
) -> None:
    places = []
    for faults in [*FAULTS[:faults_of], None]:
        proxy = proxy_to(nginx if backend == "http" else weed)
        if faults is None:
            proxy.down()
        else:
            proxy.set(only=lambda method, path: True, **faults)
        if backend == "http":
            url = f"http://me:{CANARY}@{proxy.address}/none?X-Amz-Signature={CANARY}"
            options: dict[str, Any] = {"headers": {"X-Token": CANARY}}
        else:
            url = weed.bucket()
            options = {"key": KEY, "secret": CANARY, "token": CANARY, "endpoint_url": proxy.url}
            options |= {"config_kwargs": {}} if backend == "s3" else {}
        places.append((url, options))
    environment = {
        "PATH": "/usr/bin:/bin", "AWS_SESSION_TOKEN": CANARY, "AWS_SECRET_ACCESS_KEY": CANARY,
        "AWS_EC2_METADATA_DISABLED": "true", "PYTHONPATH": ":".join(sys.path), "HOME": str(tmp_path),
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", SAYS],
        input=repr(places), env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    said = done.stdout + done.stderr
    assert said.count("StorageError") > 15
    assert done.stdout.count("failed 10 times") + done.stdout.count("failed 9 times") >= 2, done.stdout
    assert CANARY not in said, [line for line in said.splitlines() if CANARY in line][:5]
    for path in tmp_path.rglob("*"):
        assert path.is_dir() or CANARY.encode() not in path.read_bytes()


KEEPS = """
import json, logging, sys
logging.basicConfig(level=logging.DEBUG)
import shardstream as ss
url, options = eval(sys.stdin.read())
ds = ss.StreamingDataset(url, shuffle=True, storage_options=options, cache=ss.Cache("cache", ram=1000))
loader = ss.StreamingLoader(ds, 8)
batches = iter(loader)
try:
    for number in range(20):
        next(batches)
        with open("state.json", "w") as file:
            json.dump([loader.state_dict(), ds.state_dict(), repr(loader), repr(ds), loader.stats()], file)
except ss.ShardstreamError:
    logging.exception("damaged")
assert ds.reader.kept.tiers.disk.flush(60)
print("done", number)
"""


@pytest.mark.parametrize("flip", [0.0, 1.0])
@pytest.mark.parametrize("backend", BACKENDS)
def test_no_secret_is_kept(
    backend: str,
    flip: float,
    weed: Any,
    nginx: Any,
    proxy_to: Callable[..., Any],
    packed: Path,
    tmp_path: Path,
) -> None:
    """What works, and what is damaged: output, state and the files of the cache."""
    proxy = proxy_to(nginx if backend == "http" else weed)
    proxy.set(flip=flip, only=lambda method, path: path.endswith(".zst"))
    if backend == "http":
        (nginx.root / "secrets").mkdir(exist_ok=True)
        direct = Store.open(str(nginx.root / "secrets"))
        url = f"http://me:{CANARY}@{proxy.address}/secrets"
        options: dict[str, Any] = {"headers": {"X-Token": CANARY}}
    else:
        url = weed.bucket()
        direct = Store.open(url, weed.options() | {"config_kwargs": {}})
        options = {"endpoint_url": proxy.url}
        options |= {"config_kwargs": {}, "key": KEY, "secret": SECRET} if backend == "s3" else {}
    for path in packed.iterdir():
        direct.write(path.name, path.read_bytes())
    environment = {
        "PATH": "/usr/bin:/bin", "AWS_EC2_METADATA_DISABLED": "true",
        "PYTHONPATH": ":".join(sys.path), "HOME": str(tmp_path),
    }  # fmt: skip
    if backend == "obstore":
        environment |= {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET}
    else:
        environment["AWS_SESSION_TOKEN"] = CANARY
    done = subprocess.run(
        [sys.executable, "-c", KEEPS],
        input=repr((url, options)), env=environment, cwd=tmp_path,
        capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    # Of a range with a flipped bit all frames but one are sound.
    assert (done.stdout == "done 19\n") == (not flip), done.stdout
    assert ("CorruptionError" in done.stderr) == bool(flip)
    if not flip:
        assert f'"backend": "{"obstore-s3" if backend == "obstore" else f"fsspec-{backend}"}"' in (
            (tmp_path / "state.json").read_text()
        )
    secrets = (CANARY,) if backend == "http" else (CANARY, SECRET)
    for secret in secrets:
        assert secret not in done.stdout + done.stderr
        for path in tmp_path.rglob("*"):
            assert secret not in str(path)
            assert path.is_dir() or secret.encode() not in path.read_bytes()
