"""Worker processes: what the packer says of one that died."""

from __future__ import annotations

import pytest

from shardstream.errors import StorageError
from shardstream.pack.engines.local import _Worker


def test_a_worker_that_died_is_named_and_stops_without_another_error() -> None:
    worker = _Worker(len, None, ())
    worker.process.kill()
    worker.process.wait(30)
    with pytest.raises(StorageError, match="ended unexpectedly"):
        worker.call("task")
    worker.stop()
