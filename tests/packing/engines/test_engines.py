"""Each engine does every task, and what goes wrong is told in the same way. Ray: tests/frameworks."""

from __future__ import annotations

import contextlib
import hashlib
import multiprocessing
import os
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import shardstream as ss
from shardstream.cli.app import app
from shardstream.packing.engines import Local, Needs, Submit
from shardstream.packing.engines.batch import run_batch
from shardstream.packing.engines.choice import engine_of
from tests.packing.engines import calls

SMALL: dict[str, Any] = {"shard_size": "4KiB", "frame_size": "1KiB"}
TASKS = list(range(8))


def files(folder: Path) -> dict[str, str]:
    """The SHA-256 of every file."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


class EngineContract:
    """What every engine does."""

    @pytest.fixture
    def engine(self) -> Any:
        raise NotImplementedError

    def test_every_task_is_done_in_each_run(self, engine: Any) -> None:
        with engine.started(Needs(2)) as workers:
            for job in (0, 1):  # the second pass of a pack has other arguments
                got = sorted(workers.run(calls.doubled, job, TASKS))
                assert got == [(task, 2 * task + job) for task in TASKS]
            assert list(workers.run(calls.doubled, 0, [])) == []
            assert (workers.counts.retried, workers.counts.lost) == (0, 0)

    @pytest.mark.parametrize(
        ("kind", "error"), [("source", ss.SourceError), ("commit", ss.CommitError), ("bug", RuntimeError)]
    )
    def test_the_first_error_ends_it(self, engine: Any, kind: str, error: type[Exception]) -> None:
        with engine.started(Needs(2)) as workers, pytest.raises(error, match="task 3 failed"):
            list(workers.run(calls.fails, kind, TASKS))

    @pytest.mark.parametrize("workers", [1, 2])
    def test_a_task_that_exits_does_not_end_the_program(self, engine: Any, workers: int) -> None:
        with engine.started(Needs(workers)) as crew, pytest.raises(RuntimeError, match=r"sys\.exit\(0\)"):
            list(crew.run(calls.exits, 0, TASKS))

    def test_what_cannot_be_sent_is_an_error(self, engine: Any) -> None:
        with engine.started(Needs(2)) as workers:
            with pytest.raises(ss.OptionError, match="lock"):
                list(workers.run(len, threading.Lock(), TASKS))
            with pytest.raises(RuntimeError, match="lock"):
                list(workers.run(calls.unsendable, None, TASKS))

    def test_nothing_is_begun_when_it_is_closed(self, engine: Any, tmp_path: Path) -> None:
        with engine.started(Needs(2, folders=(str(tmp_path / "dest"),))) as workers:
            run = workers.run(calls.noted, str(tmp_path), list(range(500)))
            next(run)
            run.close()
        begun = sorted(tmp_path.glob("*-*"))
        assert len(begun) < 400
        assert not [*(tmp_path / "dest").glob("*")]

    @pytest.mark.parametrize("shuffle", [None, 7])
    def test_the_bytes_are_those_of_one_process(
        self, engine: Any, shuffle: int | None, corpus: Path, tmp_path: Path
    ) -> None:
        ss.pack(corpus, tmp_path / "one", workers=1, shuffle=shuffle, **SMALL)
        ss.pack(corpus, tmp_path / "other", workers=2, shuffle=shuffle, engine=engine, **SMALL)
        assert files(tmp_path / "other") == files(tmp_path / "one")

    def test_a_bad_sample_is_told_and_resume_goes_on(self, engine: Any, corpus: Path, tmp_path: Path) -> None:
        whole = corpus.read_text()
        corpus.write_text(whole + "no json\n")
        with pytest.raises(ss.SourceError, match=r"corpus.jsonl:101"):
            ss.pack(corpus, tmp_path / "out", workers=2, engine=engine, **SMALL)
        assert not list((tmp_path / "out").glob(".pack-seen-*"))
        (tmp_path / "out/.pack-seen-0123").touch()  # of a packer that was killed
        ss.pack(corpus, tmp_path / "out", engine=engine, on_error="skip", **SMALL)
        ss.pack(corpus, tmp_path / "one", workers=1, on_error="skip", **SMALL)
        assert files(tmp_path / "out") == files(tmp_path / "one")


class TestLocal(EngineContract):
    @pytest.fixture
    def engine(self, monkeypatch: pytest.MonkeyPatch) -> Local:
        monkeypatch.syspath_prepend(str(Path(__file__).parents[3]))  # where a worker finds the calls
        return Local()


class OfExecutor(EngineContract):
    def test_a_store_that_fails_is_tried_again(self, executor: Executor, tmp_path: Path) -> None:
        with Submit(executor).started(Needs(4)) as workers:
            assert sorted(workers.run(calls.once, str(tmp_path), [1, 2])) == [1, 2]
            assert (workers.counts.retried, workers.counts.lost) == (2, 0)

    def test_a_store_that_always_fails_ends_it(self, executor: Executor) -> None:
        engine = Submit(executor, retries=0)
        with engine.started(Needs(2)) as workers, pytest.raises(ss.StorageError, match="task 3 failed"):
            list(workers.run(calls.fails, "storage", TASKS))

    def test_an_executor_is_an_engine(self, executor: Executor, tmp_path: Path) -> None:
        found = engine_of(executor)
        assert isinstance(found, Submit)
        assert not found.shared

    def test_batches_end_with_the_pack_also_without_folders(self, executor: Executor) -> None:
        with Submit(executor).started(Needs(2)) as workers:
            assert list(workers.run(calls.doubled, 0, [1])) == [(1, 2)]
            setup, sealed = workers._setup, workers.sealer.seal([1])
            folders = [Path(path).parent for path, _ in setup.expected.marks]
        assert len(folders) == 1
        assert not folders[0].exists()
        answer = executor.submit(run_batch, setup, sealed, "late").result()
        assert answer.results == []
        assert answer.error or answer.problems


class TestThreads(OfExecutor):
    @pytest.fixture
    def executor(self) -> Iterator[Executor]:
        with ThreadPoolExecutor(2) as pool:
            yield pool

    @pytest.fixture
    def engine(self, executor: Executor) -> Submit:
        return Submit(executor)


class TestProcesses(OfExecutor):
    @pytest.fixture(scope="class")
    @classmethod
    def executor(cls) -> Iterator[Executor]:
        with ProcessPoolExecutor(2, multiprocessing.get_context("forkserver")) as pool:
            yield pool

    @pytest.fixture
    def engine(self, executor: Executor) -> Submit:
        return Submit(executor)


def test_a_pool_that_broke_is_told_and_resume_goes_on_elsewhere(corpus: Path, tmp_path: Path) -> None:
    with ProcessPoolExecutor(1, multiprocessing.get_context("forkserver")) as pool:
        with Submit(pool).started(Needs(1)) as workers:
            with pytest.raises(ss.StorageError, match="another executor"):
                list(workers.run(calls.dies, None, TASKS))
            assert workers.counts.lost >= 1
        with pytest.raises(ss.StorageError, match="another executor"):
            ss.pack(corpus, tmp_path / "out", engine=pool, **SMALL)
    ss.pack(corpus, tmp_path / "out", resume=True, **SMALL)
    ss.pack(corpus, tmp_path / "one", workers=1, **SMALL)
    assert files(tmp_path / "out") == files(tmp_path / "one")


def test_a_program_that_packs_calls_which_exit_is_told(tmp_path: Path) -> None:
    def leave() -> Iterator[dict[str, str]]:
        sys.exit(0)
        yield {}

    # The first samples are also looked at for the compression, unless it is given.
    for more in ({}, {"workers": 1, "compression": "zstd"}, {"limit": 3, "compression": "zstd"}):
        with pytest.raises(RuntimeError, match=r"a task called sys\.exit\(0\)"):
            ss.pack([leave], tmp_path / str(len(more)), **more)


def test_an_engine_that_is_shared_only_once_it_has_started_is_local(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Starts:
        shared = False

        @contextlib.contextmanager
        def started(self, needs: Needs) -> Iterator[Any]:
            self.shared = True  # as of Ray, to which the program has then connected
            yield None

    got: list[Any] = []
    monkeypatch.setattr("shardstream.packing.packer.run_passes", lambda *arguments: got.append(arguments[-1]))
    ss.pack(corpus, tmp_path / "out", shuffle=7, engine=Starts(), **SMALL)
    assert got == [False]


def test_progress_tells_of_the_workers(corpus: Path, tmp_path: Path) -> None:
    seen: list[Any] = []
    ss.pack(corpus, tmp_path / "out", progress=seen.append, **SMALL)
    assert {(now.nodes, now.retried, now.lost) for now in seen} == {(1, 0, 0)}


@pytest.mark.parametrize(
    ("engine", "said"),
    [("spark", "method submit"), (None, "method submit"), (object(), "method submit")],
)
def test_what_is_no_engine_is_refused(engine: Any, said: str, corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(ss.OptionError, match=said):
        ss.pack(corpus, tmp_path / "out", engine=engine)


def test_what_an_engine_cannot_do_is_refused(corpus: Path, tmp_path: Path) -> None:
    dest = tmp_path / "out"
    with ThreadPoolExecutor(1) as pool:
        for more in ({"limit": 3}, {"dest": "memory://out"}):
            with pytest.raises(ss.OptionError, match="leave out engine"):
                ss.pack(corpus, **{"dest": dest, "engine": pool, **more})
        with pytest.raises(ss.OptionError, match="list of functions"):
            ss.pack(({"__key__": "a", "txt": "b"} for _ in "x"), dest, engine=pool)
        with pytest.raises(ss.OptionError, match="signature does not go") as told:
            ss.pack(corpus, "s3://bucket/out?X-Amz-Signature=abc", engine=pool)
        assert "abc" not in str(told.value)
    assert not os.path.exists(dest)


def test_without_ray_the_extra_is_named(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ss.MissingExtraError, match=r"shardstream\[ray\]"):
        ss.pack(corpus, tmp_path / "out", engine="ray")
    assert list((tmp_path / "out").iterdir()) == []


def test_the_command_takes_engines(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[Any] = []
    monkeypatch.setattr(
        "shardstream.packing.packer.engine_of", lambda engine: found.append(engine) or Local()
    )
    for more in ([], ["--engine", "ray"], ["--engine", "ray", "--address", "auto"]):
        done = CliRunner().invoke(app, ["pack", str(corpus), str(tmp_path / f"{len(more)}"), *more])
        assert done.exit_code == 0, done.output
    assert found == ["local", "ray", ss.engines.Ray("auto")]
    for wrong, said in ((["--engine", "spark"], "local or ray"), (["--address", "auto"], "--engine ray")):
        done = CliRunner().invoke(app, ["pack", str(corpus), str(tmp_path / "out"), *wrong])
        assert said in str(done.exception)


def test_wrong_arguments_of_engines_are_refused() -> None:
    with pytest.raises(ss.OptionError, match="cpus=0"):
        ss.engines.Ray(cpus=0)
    with pytest.raises(ss.OptionError, match="address=''"):
        ss.engines.Ray(address="")
    with pytest.raises(ss.OptionError, match="host:port"):
        ss.engines.Ray(address="ray://head:10001")
    with pytest.raises(ss.OptionError, match="retries"):
        ss.engines.Submit(ThreadPoolExecutor(1), retries=-1)
    with pytest.raises(ss.OptionError, match="submit"):
        ss.engines.Submit("pool")


def test_a_worker_of_this_machine_that_died_is_counted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[3]))
    with Local().started(Needs(2)) as workers:
        assert sorted(workers.run(calls.dies_once, str(tmp_path), TASKS)) == TASKS
        assert (workers.counts.retried, workers.counts.lost) == (1, 1)
