"""What each framework must show. A test file subclasses it and names its script."""

from __future__ import annotations

import itertools
import json
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import shardstream as ss
from tests.distributed import launch
from tests.distributed.training import name, pack
from tests.frameworks.loop import SEQ_LEN, Plan
from tests.test_docs import ROOT, examples

SECONDS = 240.0  # less than the time limit of a test, so that a hang shows where each rank is
ENDED = "import os; open(os.environ['RESULT'], 'w').write('true')"
Steps = list[list[Any]]  # of each step its epoch and the names of its blocks


class Jobs:
    """The jobs of one framework; each is run once, when a test first asks for it."""

    def __init__(
        self,
        module: str,
        processes: bool,
        env: dict[str, str],
        folder: Path,
        launcher: Callable[[int], Sequence[str]] = lambda ranks: (),
    ) -> None:
        self.module, self.processes, self.env, self.folder = module, processes, env, folder
        self.launcher = launcher
        self.data = str(pack(folder, "tokens", documents=39))
        self._done: dict[tuple[Any, ...], list[dict[str, Any]]] = {}

    @property
    def variables(self) -> dict[str, str]:
        """The environment of all processes."""
        return {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **self.env}

    def start(self, plan: Plan, size: int, log: Path) -> launch.Ranks:
        """Run the script."""
        command = [*self.launcher(plan.replicas), *plan.arguments(self.module)]
        return launch.command(command, size, log, self.variables)

    def everything(self, seq_len: int = SEQ_LEN) -> list[str]:
        """The names of all blocks, sorted: with batches of 8 the last one has a single block."""
        found = sorted(map(name, ss.TokenDataset(self.data, seq_len, topology=ss.Topology())))
        assert len(found) == len(set(found))
        assert seq_len != SEQ_LEN or len(found) % 8 == 1, len(found)
        return found

    def run(
        self, ranks: int = 2, save: int = 0, resume: int = 0, tp: int = 1, raw: bool = False
    ) -> list[dict[str, Any]]:
        """The records of all ranks. resume: from what 2 ranks have saved after so many steps."""
        key = ranks, save, resume, tp, raw
        if key not in self._done:
            if resume:
                self.run(save=resume)
            place = self.folder / f"checkpoint-{save or resume or f'whole-{tp}'}"
            plan = Plan(self.data, str(place), save=save, resume=bool(resume), tp=tp, replicas=ranks, raw=raw)
            place.mkdir(exist_ok=True)
            log = self.folder / "-".join(map(str, key))
            size = ranks if self.processes else 1
            with self.start(plan, size, log) as job:
                self._done[key] = list(itertools.chain(*job.results(SECONDS)))
        return self._done[key]


def merged(records: list[dict[str, Any]], begin: int = 0, end: int | None = None) -> Steps:
    """Of each step its epoch and what all ranks together had."""
    steps = [one["steps"][begin:end] for one in records]
    return [
        [parts[0][0], sorted(itertools.chain(*(found for _, found in parts)))]
        for parts in zip(*steps, strict=True)
    ]


class Contract:
    """Two ranks, two epochs, a last batch that only one rank can fill."""

    script: ClassVar[str]
    processes: ClassVar[bool] = True  # or one command is all ranks: replicas, or a launcher
    env: ClassVar[dict[str, str]] = {}

    @staticmethod
    def launcher(ranks: int) -> Sequence[str]:
        """What comes before the command, where one process of the framework starts all ranks."""
        return ()

    def test_each_sample_once(self, jobs: Jobs, everything: list[str]) -> None:
        steps = merged(jobs.run())
        epochs = [[found for epoch, found in steps if epoch == number] for number in range(2)]
        assert sum(map(len, epochs)) == len(steps)
        for found in epochs:
            assert sorted(itertools.chain(*found)) == everything
        assert epochs[0] != epochs[1]

    def test_equal_batch_counts(self, jobs: Jobs, everything: list[str]) -> None:
        whole = jobs.run()
        assert len(whole) == 2
        for one in whole:
            assert one["length"] == -(-len(everything) // 8)
            assert [epoch for epoch, _ in one["steps"]] == [0] * one["length"] + [1] * one["length"]
        # The last batch of an epoch has one sample: the other rank got one that only pads.
        assert sorted(len(one["steps"][-1][1]) for one in whole) == [0, 1]

    def test_resume_with_the_same_world_size(self, jobs: Jobs) -> None:
        whole = jobs.run()
        before, later = jobs.run(save=5), jobs.run(resume=5)
        for one, first, then in zip(whole, before, later, strict=True):
            assert first["steps"] == one["steps"][:7]
            assert first["steps"][:5] + then["steps"] == one["steps"]

    def test_resume_with_another_world_size(self, jobs: Jobs) -> None:
        assert merged(jobs.run(ranks=1, resume=5)) == merged(jobs.run(), 5)

    def test_resume_at_the_end_of_an_epoch(self, jobs: Jobs) -> None:
        whole = jobs.run()
        length = whole[0]["length"]
        for one, then in zip(whole, jobs.run(resume=length), strict=True):
            assert then["steps"] == one["steps"][length:]

    def test_batches_with_a_bytes_field(self, jobs: Jobs) -> None:
        # The script compares the bytes of each block with its tokens, as they come out of the framework.
        found = jobs.run(raw=True)
        assert merged(found) == merged(jobs.run())
        assert all(one["raw"] > 0 for one in found)

    def test_no_hang_at_the_end(self, jobs: Jobs) -> None:
        # Each job's ranks ended by themselves, in time and with code 0, or `run` would have failed;
        # in the last step of each epoch one rank had nothing but padding.
        for options in ({}, {"save": 5}, {"resume": 5}, {"ranks": 1, "resume": 5}):
            assert all(one["steps"] for one in jobs.run(**options))

    def test_the_guide_runs(self, jobs: Jobs) -> None:
        page = ROOT / "docs" / "frameworks" / f"{self.script.removesuffix('_loop')}.md"
        guide = [example.code for example in examples(page.read_text()) if example.language == "python"]
        assert guide
        place = jobs.folder / "guide"
        place.mkdir()
        (place / "guide.py").write_text("\n".join([*guide, ENDED]))
        (place / "corpus").symlink_to(jobs.data)
        start = shlex.join([*jobs.launcher(2), sys.executable, "guide.py"])
        command = ["sh", "-c", f"cd '{place}' && exec {start}"]
        with launch.command(command, 2 if self.processes else 1, place, jobs.variables) as job:
            assert all(job.results(SECONDS))


class SharedData(Contract):
    """And ranks that share their data, as tensor-parallel ones do."""

    def test_tp_peers_are_identical(self, jobs: Jobs, everything: list[str]) -> None:
        one, other = jobs.run(tp=2)
        assert one == other
        assert sorted(itertools.chain(*(found for _, found in one["steps"]))) == sorted(everything * 2)


class GivenDirectly:
    """A dataset given to the framework itself, in the ways of the script NAME_direct, on two ranks.

    Each sample comes once, but for what the framework repeats to fill batches; and where it would share
    out what is shared out already, all ranks are told.
    """

    seq_len: ClassVar[int] = SEQ_LEN
    padded: ClassVar[bool] = True
    refuses: ClassVar[bool] = True

    def test_each_sample_of_a_dataset_given_directly(self, jobs: Jobs) -> None:
        module = f"{jobs.module.removesuffix('_loop')}_direct"
        place = jobs.folder / "direct"
        place.mkdir()
        command = Plan(jobs.data, str(place)).arguments(module)
        with launch.command(command, 2, place, jobs.variables) as job:
            one, other = job.results(SECONDS)
        everything = set(jobs.everything(self.seq_len))
        ways = [way for way in one if not way.endswith("refused")]
        assert ways
        for way in ways:
            assert {*one[way], *other[way]} == everything, way
            assert len(one[way]) == len(other[way]), way
            # At most the samples that fill a batch on each worker of each rank.
            extra = len(one[way]) + len(other[way]) - len(everything)
            assert extra <= (32 if self.padded else 0), way
        for way in ways if self.refuses else []:
            for rank, found in enumerate((one, other)):
                (message,) = found[f"{way}, refused"]
                assert message.endswith("would share it out again among 2 processes"), (way, rank)


class Saves:
    """A job that saves with ss.Checkpoints, as the script NAME_saves does it by the guide, and is killed."""

    def test_killed_and_continued_from_our_checkpoints(self, jobs: Jobs, everything: list[str]) -> None:
        module = f"{jobs.module.removesuffix('_loop')}_saves"
        for every, kill in self.kills(-(-len(everything) // 8)):
            place = jobs.folder / f"saves-{every}"
            place.mkdir()
            plan = Plan(jobs.data, str(place), save=every, kill=kill)
            with launch.command(plan.arguments(module), 2, place / "first", jobs.variables) as job:
                assert set(job.wait(SECONDS)) == {-9}, job.logs()
            plan = Plan(jobs.data, str(place), save=every, resume=True)
            with launch.command(plan.arguments(module), 2, place / "then", jobs.variables) as job:
                job.results(SECONDS)
            saved = kill // every * every
            before, later = [], []
            for rank in range(2):
                first, then = (lines(place / f"{what}-{rank}.jsonl") for what in ("killed", "resumed"))
                assert [line[0] for line in then] == list(range(saved + 1, 2 * -(-len(everything) // 8) + 1))
                # The same batches and, bit by bit, the same weights.
                assert len(first) in (kill - 1, kill)  # the other rank may have been quicker
                assert first[saved:] == then[: len(first) - saved]
                before.append(first[:saved])
                later.append(then)
            for epoch in range(2):
                found = [line[2] for line in itertools.chain(*before, *later) if line[1] == epoch]
                assert sorted(itertools.chain(*found)) == everything

    @staticmethod
    def kills(length: int) -> list[tuple[int, int]]:
        """How often to save, and after which step to kill: what is saved is in the middle of an epoch."""
        return [(length - 3, length - 1)]


def lines(path: Path) -> Steps:
    """The lines of a diary."""
    return [json.loads(line) for line in path.read_text().splitlines()]
