"""The contract of sources: any cut of the input gives the same samples, which can be packed."""

from __future__ import annotations

import os
import pickle
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest

from shardstream.errors import SourceError, StorageError
from shardstream.maintain.verify import verify
from shardstream.packing.build_manifest import build_manifest, provenance
from shardstream.packing.job import Job
from shardstream.packing.layout import Layout
from shardstream.packing.outcome import Outcome
from shardstream.packing.sources import Reject, Sample, Source, Task
from shardstream.packing.sources.base import prepared, tasks_of
from shardstream.packing.worker import run_task
from shardstream.read.reader import DatasetReader
from shardstream.storage.inputs import FileInfo, expand
from shardstream.storage.manifests import commit_manifest
from shardstream.storage.store import Store

__all__ = ["Samples", "SourceContract", "pack_source", "read_source"]

Samples = list[tuple[str, dict[str, bytes]]]  # the key and the fields of each sample


def read_source(source: Source, files: Sequence[FileInfo], target: int) -> list[Sample | Reject]:
    """All samples and rejects of a source, cut into tasks of about `target` bytes."""
    source = prepared(source, files)
    return [item for task in source.plan(files, target) for item in source.read(task)]


def pack_source(source: Source, files: Sequence[FileInfo], dest: Path, layout: Layout) -> None:
    """Pack a source in this process."""
    source = prepared(source, files)
    job = Job(source=source, dest=str(dest), layout=layout)
    results = [run_task(job, task) for task in source.plan(files, layout.shard_size)]
    outcome = Outcome(results, results, [])
    outcome.check_whole()
    manifest = build_manifest(job, None, outcome.shards, provenance(job, source.name, files))
    commit_manifest(Store.open(str(dest)), manifest, None)


class SourceContract:
    """What holds for every source. A subclass gives three fixtures.

    source: the Source; if it has `prepare`, what that returns for the inputs.
    inputs: a path, or several, of local files that it reads. They are files of this test alone.
    expected: the key and the fields of each sample in them, in order. There are at least two.
    """

    @pytest.fixture
    def source(self) -> Source:
        raise NotImplementedError("a subclass of the contract gives the fixture `source`")

    @pytest.fixture
    def inputs(self) -> Path | list[Path]:
        raise NotImplementedError("a subclass of the contract gives the fixture `inputs`")

    @pytest.fixture
    def expected(self) -> Samples:
        raise NotImplementedError("a subclass of the contract gives the fixture `expected`")

    @pytest.fixture
    def files(self, inputs: Path | list[Path]) -> list[FileInfo]:
        """The input as `pack` lists it."""
        return list(expand([str(path) for path in ([inputs] if isinstance(inputs, Path) else inputs)]))

    @pytest.fixture(params=[1, 100, 1 << 40])
    def target(self, request: pytest.FixtureRequest) -> int:
        """Bytes of a task."""
        return int(request.param)

    def test_every_cut_gives_the_same_samples(
        self, source: Source, files: list[FileInfo], expected: Samples, target: int
    ) -> None:
        assert len(expected) > 1
        assert [_content(item) for item in read_source(source, files, target)] == expected

    def test_the_tasks_cover_each_file_once(self, source: Source, files: list[FileInfo], target: int) -> None:
        tasks = source.plan(files, target)
        assert [task.number for task in tasks] == list(range(len(tasks)))
        spans = sorted(span[:4] for task in tasks for span in task.files)
        for file in files:
            mine = [(start, end) for url, start, end, size in spans if (url, size) == (file.url, file.size)]
            assert [start for start, _ in mine] == [0, *(end for _, end in mine[:-1])]
            assert mine[-1][1] == file.size
        assert {url for url, *_ in spans} == {file.url for file in files}

    def test_a_plan_depends_on_the_files_and_the_target_alone(
        self, source: Source, files: list[FileInfo], target: int
    ) -> None:
        tasks = source.plan(files, target)
        for task in reversed(tasks):
            list(source.read(task))
        assert source.plan(files, target) == tasks
        assert list(tasks_of(source, files, target)) == tasks

    def test_tasks_are_read_alone_in_any_order_and_again(
        self, source: Source, files: list[FileInfo], expected: Samples
    ) -> None:
        tasks = source.plan(files, 1)

        def read(task: Task) -> Samples:
            return [_content(item) for item in source.read(task)]

        found = {task.number: read(task) for task in reversed(tasks)}
        assert [sample for number in sorted(found) for sample in found[number]] == expected
        assert [sample for task in tasks for sample in read(task)] == expected

    def test_it_travels_to_other_processes(self, source: Source, files: list[FileInfo], target: int) -> None:
        tasks = source.plan(files, target)
        there, sent = pickle.loads(pickle.dumps((source, tasks)))  # noqa: S301 - made here
        assert sent == tasks
        assert read_source(there, files, target) == read_source(source, files, target)

    def test_reading_may_stop_at_any_sample(
        self, source: Source, files: list[FileInfo], expected: Samples
    ) -> None:
        task = source.plan(files, 1 << 40)[0]
        for count in range(len(expected)):
            reading = iter(source.read(task))
            for _, _ in zip(range(count), reading, strict=False):
                pass
            close = getattr(reading, "close", None)
            if close is not None:
                close()

    def test_its_samples_can_be_packed(
        self, source: Source, files: list[FileInfo], expected: Samples, tmp_path: Path
    ) -> None:
        for number, layout in enumerate((Layout(), Layout(codec="none", frame_size=1, shard_size=100))):
            dest = tmp_path / f"packed-by-the-contract-{number}"
            pack_source(source, files, dest, layout)
            report = verify(str(dest), deep=True)
            assert not report.problems
            found = [(key, dict(fields)) for key, fields in DatasetReader.open(str(dest)).iter_samples()]
            assert found == expected

    def test_a_sample_says_where_it_came_from(self, source: Source, files: list[FileInfo]) -> None:
        for task in source.plan(files, 1):
            names = [os.path.basename(span.url) for span in task.files]
            for item in source.read(task):
                assert any(name in item.where for name in names), item.where

    def test_its_name_and_options_are_recorded(self, source: Source) -> None:
        assert source.name.isidentifier()
        options = source.options()
        assert msgspec.json.decode(msgspec.json.encode(options)) == options

    def test_no_files_are_no_tasks(self, source: Source) -> None:
        assert source.plan([], 1 << 20) == []

    def test_a_file_that_is_gone_is_an_error_that_names_it(
        self, source: Source, files: list[FileInfo]
    ) -> None:
        tasks = source.plan(files, 1)
        for file in files:
            os.unlink(file.url)
        for task in tasks:
            with pytest.raises((SourceError, StorageError)) as caught:
                list(source.read(task))
            assert any(os.path.basename(span.url) in str(caught.value) for span in task.files)


def _content(item: Sample | Reject) -> tuple[str, dict[str, bytes]]:
    assert isinstance(item, Sample), f"{item.where}: {item.reason}"
    return item.key, {name: bytes(data) for name, data in item.fields.items()}
