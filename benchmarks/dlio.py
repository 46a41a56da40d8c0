"""DLIO, with its own PyTorch loader and with ours: how busy an emulated accelerator is kept.

    python -m benchmarks.dlio [--data /tmp/dlio] [--rounds 3] [--only resnet50]... [--cache cold|warm]
        [--out benchmarks/results/dlio]

It runs in an environment of its own: see `requirements-dlio.txt`. DLIO generates the data in its own file
format and runs the epochs; a training step is a sleep, as in its configurations. Contenders take turns,
each run is a process. A cold run is one epoch, right after the files were dropped from the page cache; a
warm run is several epochs of files that are in it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.dlio_report import figure_of, markdown
from benchmarks.processes import ROOT, tree

OURS, THEIRS = "ours", "DLIO's PyTorch loader"
EPOCHS = {"cold": 1, "warm": 2}
TRIED = (2, 4)  # worker processes of DLIO's loader; the better number is measured
LIMIT = 180  # seconds of a run


@dataclass(frozen=True)
class Workload:
    """A configuration of DLIO, and how it was scaled.

    Args:
        model: DLIO's name of the model.
        record: Bytes of a sample.
        resized: Bytes of a sample in a batch; 0 for all of it.
        files: Files, each of one sample.
        batch: Samples of a batch.
        step: Seconds that a training step takes.
        scaled: How this differs from the configuration that DLIO has.
        threads: Worker processes of DLIO's loader.
    """

    model: str
    record: int
    resized: int
    files: int
    batch: int
    step: float
    scaled: str
    threads: int = 2

    def config(self, folder: Path, ours: bool, epochs: int) -> dict[str, Any]:
        """The workload as DLIO takes it."""
        reader: dict[str, Any] = {
            "data_loader": "pytorch", "batch_size": self.batch, "read_threads": self.threads,
            "file_shuffle": "seed", "sample_shuffle": "seed",
        }  # fmt: skip
        if ours:
            reader |= {
                "data_loader_classname": "benchmarks.dlio_loader.ShardstreamDataLoader",
                "data_loader_sampler": "index",
            }
        return {
            "model": self.model,
            "framework": "pytorch",
            "workflow": {"generate_data": False, "train": True, "checkpoint": False},
            "dataset": {
                "data_folder": str(folder / "data"), "format": "npz", "num_files_train": self.files,
                "num_samples_per_file": 1, "record_length": self.record, "record_length_resize": self.resized,
            },
            "reader": reader,
            "train": {"epochs": epochs, "computation_time": self.step},
            "checkpoint": {"checkpoint_folder": str(folder / "checkpoints")},
            "output": {"folder": str(folder / "output")},
        }  # fmt: skip


# Steps are those of DLIO's configurations for one accelerator, by the bytes of a batch.
WORKLOADS = {
    "resnet50": Workload(
        "resnet50", 150_528, 0, 2_000, 40, 0.0435,
        "resnet50_a100: batches of 40 instead of 400, steps of a tenth; npz files of an image, no TFRecord",
    ),
    "cosmoflow": Workload(
        "cosmoflow", 2_828_486, 0, 640, 4, 0.02204,
        "cosmoflow_a100: 4 samples a step instead of 1, steps of 4 times; npz files, no TFRecord",
    ),
    "unet3d": Workload(
        "unet3d", 14_660_062, 0, 160, 4, 0.13604,
        "unet3d_v100: samples of a tenth of the bytes, steps of a tenth; no resizing",
    ),
    "unet3d-resized": Workload(
        "unet3d", 14_660_062, 209_715, 160, 4, 0.13604,
        "unet3d_v100: samples of a tenth of the bytes, steps of a tenth; resized to a tenth of its size",
    ),
    "unet3d-no-step": Workload(
        "unet3d", 14_660_062, 0, 160, 4, 0.0,
        "unet3d: samples of a tenth of the bytes, steps take no time: the rate is the loader's",
    ),
}  # fmt: skip


def child(arguments: list[str], log: Path) -> None:
    """Run a module in this Python, with a deadline; raises RuntimeError if it fails."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
    with log.open("a") as output:
        running = subprocess.Popen(
            [sys.executable, "-m", *arguments], stdout=output, stderr=output, env=environment, cwd=log.parent
        )
        try:
            code: int | str = running.wait(LIMIT)
        except subprocess.TimeoutExpired:
            code = f"nothing within {LIMIT} s"
            for member in reversed(tree(running.pid)):
                os.kill(member, 9)
    if code:
        raise RuntimeError(f"{arguments[0]} ended with {code}, see {log}")


def prepare(workload: Workload, folder: Path) -> None:
    """Let DLIO generate its files, and pack the same samples."""
    done = folder / "prepared.json"
    facts = {"files": workload.files, "record": workload.record}
    if done.exists() and json.loads(done.read_text()) == facts:
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    config = workload.config(folder, False, 1)
    config["workflow"] |= {"generate_data": True, "train": False}
    child(["benchmarks.dlio_make", json.dumps(config)], folder / "log")
    done.write_text(json.dumps(facts))


def run(workload: Workload, folder: Path, ours: bool, cache: str) -> dict[str, Any]:
    """The figures of one run."""
    out = folder / "run.json"
    out.unlink(missing_ok=True)
    shutil.rmtree(folder / "output", ignore_errors=True)
    asked = {
        "workload": workload.config(folder, ours, EPOCHS[cache]), "cold": cache == "cold", "out": str(out),
        "folders": [str(folder / "data" / ("shards" if ours else "train"))],
    }  # fmt: skip
    child(["benchmarks.dlio_run", json.dumps(asked)], folder / "log")
    found: dict[str, Any] = json.loads(out.read_text())
    return found | {"load": os.getloadavg()[0]}


def tried(workload: Workload, folder: Path) -> dict[int, float]:
    """What DLIO's loader reaches by its number of worker processes, in a warm epoch or two."""
    figure = figure_of(workload.step)
    return {
        count: max(run(replace(workload, threads=count), folder, False, "warm")[figure]) for count in TRIED
    }


def machine() -> str:
    """Where this runs, for the report."""
    versions = ", ".join(f"{name} {version(name)}" for name in ("dlio-benchmark", "torch", "numpy"))
    return f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, {versions}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path("/tmp/dlio"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", action="append", choices=WORKLOADS)
    parser.add_argument("--cache", choices=EPOCHS)
    parser.add_argument("--prepare", action="store_true", help="make the data, and measure nothing")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "dlio")
    chosen = parser.parse_args()
    chosen.out.mkdir(parents=True, exist_ok=True)
    results = chosen.out / "results.json"
    rows: dict[str, Any] = json.loads(results.read_text()) if results.exists() else {}
    for name in chosen.only or WORKLOADS:
        workload, folder = WORKLOADS[name], chosen.data.resolve() / name.split("-")[0]
        prepare(workload, folder)
        if chosen.prepare:
            continue
        workers = tried(workload, folder)
        print(f"{name}: {figure_of(workload.step)} by worker processes {workers}", flush=True)
        workload = replace(workload, threads=max(workers, key=lambda count: workers[count]))
        for cache in [chosen.cache] if chosen.cache else EPOCHS:
            rounds: dict[str, list[Any]] = {THEIRS: [], OURS: []}
            for number in range(chosen.rounds):
                for contender in (THEIRS, OURS):
                    found = run(workload, folder, contender == OURS, cache)
                    rounds[contender].append(found)
                    shown = ", ".join(f"{au:.1f}" for au in found["au"])
                    print(f"{time.strftime('%H:%M:%S')} {name} {cache} {number} {contender}: AU {shown} "
                          f"{found}", flush=True)  # fmt: skip
            rows[f"{name} {cache}"] = {
                "workload": vars(workload), "cache": cache, "tried": workers, "rounds": rounds,
            }  # fmt: skip
            results.write_text(json.dumps(rows, indent=1) + "\n")
    if not rows:
        return
    order = [f"{name} {cache}" for name in WORKLOADS for cache in EPOCHS]
    rows = {key: rows[key] for key in order if key in rows}
    results.write_text(json.dumps(rows, indent=1) + "\n")
    report = markdown(rows, OURS, THEIRS, machine())
    (chosen.out / "results.md").write_text(report)
    print(report)


if __name__ == "__main__":
    main()
