"""One run of DLIO in a process of its own: the workload and where it lies as JSON in, figures as JSON out.

    python -m benchmarks.dlio_run '{"workload": {...}, "cold": true, "folders": [...], "out": "FILE"}'

DLIO runs as its own command does. What is added: pages are dropped before a cold run, or read before a warm
one, and the processor time of each epoch is taken, that of worker processes included.
"""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from typing import Any

import psutil

from benchmarks.dlio_api import DLIOMPI, DLIOBenchmark, OmegaConf
from benchmarks.page_cache import drop, files_below, read, resident


def processor_seconds() -> float:
    """User and system time of this process and its children, those that have ended included."""
    me = psutil.Process()
    times = me.cpu_times()
    total = times.user + times.system + times.children_user + times.children_system
    for child in me.children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            its = child.cpu_times()
            total += its.user + its.system
    return float(total)


class Measured(DLIOBenchmark):  # type: ignore[misc,unused-ignore]
    """DLIO's benchmark, which also reads the processor time of each epoch."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.cpu: list[float] = []

    def _train(self, epoch: int) -> Any:
        begun = processor_seconds()
        steps = super()._train(epoch)
        self.cpu.append(processor_seconds() - begun)
        return steps


def main() -> None:
    asked = json.loads(sys.argv[1])
    workload = asked["workload"]
    files = [path for folder in asked["folders"] for path in files_below(folder)]
    (drop if asked["cold"] else read)(files)
    cached = [resident(files)]
    if cached[0] > 0.01 if asked["cold"] else cached[0] < 0.95:
        sys.exit(f"the page cache holds {cached[0]:.1%} of the files")
    DLIOMPI.get_instance().initialize()
    benchmark = Measured(OmegaConf.create(workload))
    benchmark.initialize()
    benchmark.run()
    benchmark.finalize()
    cached.append(resident(files))
    summary = json.loads((Path(workload["output"]["folder"]) / "summary.json").read_text())
    metric = summary["metric"]
    found = {
        "au": metric["train_au_percentage"],
        "rate": metric["train_throughput_samples_per_second"],
        "cpu": benchmark.cpu,
        "cached": cached,  # the share of the files in the page cache, before and after
    }
    Path(asked["out"]).write_text(json.dumps(found))
    DLIOMPI.get_instance().finalize()


if __name__ == "__main__":
    main()
