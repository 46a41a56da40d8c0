"""Credentials in URLs, options and the environment are in nothing that is said or kept."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shardstream.storage.store import Store
from tests.faults.told import CANARY, FAULTS, run_program, said_of
from tests.servers import KEY, SECRET

BACKENDS = ["http", "s3", "obstore"]


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
    said = said_of(places, tmp_path, AWS_SESSION_TOKEN=CANARY, AWS_SECRET_ACCESS_KEY=CANARY)
    assert said.count("StorageError") > 15
    assert said.count("failed 10 times") + said.count("failed 9 times") >= 2, said
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
assert ds._contents.reader.blocks.tiers.disk.flush(60)
print("done", number)
"""


@pytest.mark.parametrize(
    ("backend", "flip"),
    [
        ("http", 1.0),
        ("s3", 0.0),
        ("obstore", 0.0),
        ("obstore", 1.0),
        pytest.param("http", 0.0, marks=pytest.mark.long),
        pytest.param("s3", 1.0, marks=pytest.mark.long),
    ],
)
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
    if backend == "obstore":
        environment = {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET}
    else:
        environment = {"AWS_SESSION_TOKEN": CANARY}
    done = run_program(KEEPS, (url, options), tmp_path, environment)
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
