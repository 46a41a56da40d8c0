"""Which way samples are read, and their tasks planned: that of the class, or of whoever derives from it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import shardstream as ss
from shardstream.packing.sources import Reject, Sample, Task
from shardstream.packing.sources.base import tasks_of
from shardstream.packing.sources.jsonl import JsonlSource
from shardstream.read.reader import DatasetReader
from shardstream.storage.inputs import FileInfo


class Louder(JsonlSource):
    """Changes the samples one by one."""

    def read(self, task: Task) -> Iterator[Sample | Reject]:
        for item in super().read(task):
            yield item if isinstance(item, Reject) else item._replace(fields={"txt": b"loud"})


class Both(Louder):
    """Has blocks of its own again."""

    def read_blocks(self, task: Task) -> Iterator[Any]:
        for item in self.read(task):
            yield item if isinstance(item, Reject) else item._replace(fields={"txt": b"block"})


class Wrapper:
    """Another source within, whose methods are found for the object, and not for its class."""

    def __init__(self, inner: JsonlSource) -> None:
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "inner":
            raise AttributeError(name)
        return getattr(self.inner, name)


def packed(tmp_path: Path, source: Any) -> set[bytes]:
    """The texts of a dataset of three lines."""
    path = tmp_path / "in.jsonl"
    path.write_text("".join(json.dumps({"text": "quiet"}) + "\n" for _ in range(3)))
    out = tmp_path / type(source).__name__
    assert ss.pack(path, out, format=source, workers=1).samples == 3
    return {bytes(fields["txt"]) for _, fields in DatasetReader.open(str(out)).iter_samples()}


def test_a_derived_class_with_its_own_read_is_read_by_it(tmp_path):
    assert packed(tmp_path, JsonlSource()) == {b"quiet"}
    assert packed(tmp_path, Louder()) == {b"loud"}
    assert packed(tmp_path, Both()) == {b"block"}


def test_a_source_whose_methods_are_of_the_object(tmp_path):
    assert packed(tmp_path, Wrapper(JsonlSource())) == {b"quiet"}


def test_a_plan_of_the_object(tmp_path):
    class Own:
        def __init__(self) -> None:
            self.plan = lambda files, target: [Task(len(files), ())]

    files = [FileInfo("a.jsonl", 3, "")]
    assert tasks_of(Own(), files, 9) == [Task(1, ())]  # type: ignore[arg-type]
    assert len(list(tasks_of(Wrapper(JsonlSource()), files, 9))) == 1  # type: ignore[arg-type]
