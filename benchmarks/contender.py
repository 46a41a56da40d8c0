"""One contender in a process of its own: reads commands as JSON lines, answers with JSON lines.

    python -m benchmarks.contender ADAPTER

Runs in whichever environment has the library, and imports nothing of shardstream itself.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import importlib.metadata
import json
import os
import shutil
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from benchmarks.corpora import Digest, load
from benchmarks.peers import common

T = TypeVar("T")


def hashing(adapter: Any) -> Callable[[Any], int]:
    """Counts the samples of a batch, and hashes each of them, as a consumer that needs all bytes."""
    from xxhash import xxh3_64_intdigest  # shardstream has it, and so have the peers: by HF datasets

    views = getattr(adapter, "views", common.views)

    def consume(batch: Any) -> int:
        number = 0
        for data in views(batch):
            xxh3_64_intdigest(data)
            number += 1
        return number

    return consume


def processor_seconds() -> float:
    """User and system time of this process and of its children that have ended."""
    times = os.times()  # in steps of 10 ms
    return time.process_time() + times.children_user + times.children_system


def timed(action: Callable[[], T]) -> tuple[T, float]:
    """What an action gives, and the seconds that it took."""
    started = time.perf_counter()
    found = action()
    return found, time.perf_counter() - started


class Contender:
    """Carries out commands on one adapter."""

    def __init__(self, adapter: str) -> None:
        self.adapter = importlib.import_module(f"benchmarks.peers.{adapter}")
        self.loader: Any = None

    def handle(self, command: dict[str, Any]) -> dict[str, Any]:
        """The answer to a command, whose "do" names the method."""
        arguments = {name: value for name, value in command.items() if name != "do"}
        return getattr(self, command["do"])(**arguments)  # type: ignore[no-any-return]

    def facts(self) -> dict[str, Any]:
        """Versions."""
        names = (*self.adapter.PACKAGES, "numpy", "torch")
        return {"versions": {name: importlib.metadata.version(name) for name in names}, "pid": os.getpid()}

    def write(self, corpus: str, dest: str, options: dict[str, Any]) -> dict[str, Any]:
        """The contender's own dataset, unless it is there already."""
        done = Path(f"{dest}.done")
        if not done.exists():
            # What an interrupted run left.
            shutil.rmtree(dest, ignore_errors=True)
            shutil.rmtree(f"{dest}.cache", ignore_errors=True)
            Path(dest).parent.mkdir(parents=True, exist_ok=True)
            _, seconds = timed(lambda: self.adapter.write(load(corpus), dest, options))
            done.write_text(f"{seconds:.3f}")
        return {"seconds": float(done.read_text()), "bytes": _size(dest)}

    def open(self, corpus: str, dest: str, options: dict[str, Any]) -> dict[str, Any]:
        """Construct the loader, whose every iteration is an epoch."""
        self.corpus = load(corpus)
        self._where = (dest, options)
        # What a consumer does with each batch: it counts its samples, and if asked for, reads every byte.
        self._consume = hashing(self.adapter) if options.get("hash") else self.adapter.count
        self.loader, seconds = timed(lambda: self.adapter.loader(self.corpus, dest, options))
        return {"seconds": seconds}

    def verify(self) -> dict[str, Any]:
        """Read an epoch and compare it, sample for sample, with the corpus."""
        digest = Digest()
        for batch in self.loader:
            digest.add(self.adapter.payloads(self.corpus, batch))
        found = digest.facts()
        wanted = self.adapter.expected(self.corpus, *self._where)
        if found != wanted:
            raise ValueError(f"read {found}, the corpus has {wanted}")
        return found

    def round(self, least: float, most: float) -> dict[str, Any]:
        """Iterate epochs for at least `least` seconds; end with one that takes longer than `most`, within it.

        Time runs from the first batch of each epoch on: what comes before is `first`.
        """
        count = self._consume
        delivered, steady, seconds, first, epochs, cut = 0, 0, 0.0, [], 0, False
        before = processor_seconds()
        while True:
            if hasattr(self.adapter, "between"):
                self.adapter.between(self.loader)
            begun = time.perf_counter()
            iterator = iter(self.loader)
            of_first = count(next(iterator))
            started = time.perf_counter()
            end = started + most
            samples = 0
            for batch in iterator:
                samples += count(batch)
                if time.perf_counter() > end:
                    cut = True
                    break
            seconds += time.perf_counter() - started
            first.append(started - begun)
            steady += samples
            delivered += samples + of_first
            del iterator
            epochs += not cut
            if cut or seconds >= least:
                break
        if not steady:
            # Epochs of a single batch: all that there is to measure is that one.
            steady, seconds = delivered, seconds + sum(first)
        if epochs and not cut and round(delivered) != epochs * self._total():
            raise ValueError(f"{delivered} samples in {epochs} epochs, not {self._total()} in each")
        return {
            "samples": steady,
            "seconds": seconds,
            "first": first,
            "epochs": epochs,
            "cpu": processor_seconds() - before,
            "cpu_bytes": delivered * self.corpus.bytes / max(1, self.corpus.count),
        }

    def _total(self) -> int:
        if hasattr(self.adapter, "total"):
            return int(self.adapter.total(self.corpus, *self._where))
        return int(self.adapter.expected(self.corpus, *self._where)["count"])

    def first(self, corpus: str, dest: str, options: dict[str, Any]) -> dict[str, Any]:
        """Seconds to construct, and then to the first batch."""
        gc.collect()  # of what imports left: it would else fall due at some point of what is timed
        constructed = self.open(corpus, dest, options)["seconds"]
        batch, seconds = timed(lambda: next(iter(self.loader)))
        return {"construct": constructed, "seconds": seconds, "samples": self.adapter.count(batch)}

    def epoch(self, corpus: str, dest: str, options: dict[str, Any]) -> dict[str, Any]:
        """One epoch from construction on: what a new job waits for."""
        before, started = processor_seconds(), time.perf_counter()
        constructed = self.open(corpus, dest, options)["seconds"]
        samples, first = 0.0, 0.0
        for batch in self.loader:
            first = first or time.perf_counter() - started
            samples += self.adapter.count(batch)
        seconds = time.perf_counter() - started
        if round(samples) != self.corpus.count:
            raise ValueError(f"{samples} samples came, not {self.corpus.count}")
        cpu = processor_seconds() - before
        # What a contender still writes to its cache is no part of the epoch.
        fill = getattr(self.adapter, "fill", None)
        filled = 0.0 if fill is None else timed(lambda: fill(self.loader))[1]
        return {
            "construct": constructed,
            "first": first,
            "seconds": seconds,
            "samples": samples,
            "cpu": cpu,
            "cpu_bytes": self.corpus.bytes,
            "filled": filled,
        }

    def resume(
        self, corpus: str, dest: str, options: dict[str, Any], fraction: float, check: bool = False
    ) -> dict[str, Any]:
        """Seconds from a saved state to the next batch: construct, load, first batch.

        With `check`, the rest of the epoch is then read: it must have as many samples as are missing.
        """
        self.corpus = load(corpus)
        state = self.adapter.state(self.corpus, dest, options, fraction)

        def start() -> tuple[Any, Any]:
            self.loader = self.adapter.resume(self.corpus, dest, options, state)
            batches = iter(self.loader)
            return batches, self.adapter.count(next(batches))

        gc.collect()
        (batches, samples), seconds = timed(start)
        if check:
            rest = samples + sum(map(self.adapter.count, batches))
            missing = self.corpus.count - int(self.corpus.count * fraction)
            if abs(rest - missing) >= options["batch"]:
                raise ValueError(f"{rest} samples came after a resume at {fraction:.0%}, not {missing}")
        return {"seconds": seconds, "samples": samples}


def _size(dest: str) -> int:
    if os.path.isfile(dest):
        return os.path.getsize(dest)
    return sum(
        os.path.getsize(os.path.join(folder, name)) for folder, _, names in os.walk(dest) for name in names
    )


def main() -> None:
    # Libraries print as they like: answers have a descriptor of their own.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    contender = None
    for line in sys.stdin:
        try:
            contender = contender or Contender(sys.argv[1])
            answer = contender.handle(json.loads(line))
        except Exception as error:  # noqa: BLE001
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")
    # Some peers leave threads behind that never end, and some clean up only at exit.
    atexit._run_exitfuncs()  # noqa: SLF001
    os._exit(0)


if __name__ == "__main__":
    main()
