"""An object store to measure with: SeaweedFS on this machine, behind a proxy that adds latency and counts."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import s3fs

from benchmarks.processes import ROOT
from tests.servers import KEY, SECRET, Weed

_DAY = 86_400


class Remote(contextlib.AbstractContextManager["Remote"]):
    """A context manager. What is uploaded goes to the server past the proxy."""

    def __init__(self, data: Path) -> None:
        self._data = data
        self._weed = Weed()
        self._uploaded: dict[str, dict[str, Any]] = {}
        self._cache = ""
        self._faults = {"latency": 0.0, "rate": 0.0}

    def __enter__(self) -> Any:
        self._weed.__enter__()
        self._fs = s3fs.S3FileSystem(**self._weed.options(), skip_instance_cache=True)
        # A process of its own: its work must not hold up the measuring one.
        self._proxy = subprocess.Popen(
            [sys.executable, "-m", "tests.proxy", "--to", self._weed.address],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
        )  # fmt: skip
        assert self._proxy.stdout is not None
        self._endpoint = self._proxy.stdout.readline().strip()
        return self

    def __exit__(self, *error: object) -> None:
        assert self._proxy.stdin is not None
        self._proxy.stdin.close()
        self._proxy.wait(20)
        self._weed.__exit__(None, None, None)
        shutil.rmtree(self._cache, ignore_errors=True)

    def _ask(self) -> dict[str, Any]:
        assert self._proxy.stdin is not None
        assert self._proxy.stdout is not None
        # A line replaces all faults: the latency and the rate have to be in each of them.
        self._proxy.stdin.write(json.dumps(self._faults) + "\n")
        self._proxy.stdin.flush()
        return json.loads(self._proxy.stdout.readline())  # type: ignore[no-any-return]

    def ready(self, place: str, latency: float | None, rate: float | None = None) -> dict[str, Any]:
        """Where a dataset is now, with an empty folder for a cache; requests are counted from here on.

        Args:
            place: The local dataset.
            latency: Seconds of a round trip.
            rate: Bytes per second of the link, which all connections share. None: as fast as it goes.
        """
        if place not in self._uploaded:
            prefix = f"{len(self._uploaded)}-{Path(place).name}"
            url = f"s3://bench/{prefix}"
            self._fs.put(place, url, recursive=True)
            access = {"key": KEY, "secret": SECRET, "endpoint": self._endpoint}
            # Signed for the proxy's address, for clients that cannot sign.
            signer = s3fs.S3FileSystem(**self._weed.options(self._endpoint), skip_instance_cache=True)
            files = sorted(self._fs.find(url))
            signed = [
                signer.sign(file, _DAY) for file in files if file.endswith((".tar", ".zst", ".parquet"))
            ]
            self._uploaded[place] = {"url": url, "signed": signed, **access}
        shutil.rmtree(self._cache, ignore_errors=True)
        self._cache = tempfile.mkdtemp(prefix="cold-", dir=self._data)
        self._faults = {"latency": latency or 0.0, "rate": rate or 0.0}
        self._ask()
        return self._uploaded[place] | {"cache": self._cache}

    def passed(self) -> dict[str, Any]:
        """What the proxy has counted since `ready`."""
        return self._ask()
