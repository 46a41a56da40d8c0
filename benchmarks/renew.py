"""Measures all that the pages show, one question after the other, and writes the figures of the pages.

    python -m benchmarks renew [--list] [--prepare] [--only NAME]... [--start NAME] [--peers PYTHON]

Each step is a process of its own that writes to `results/NAME`. A step that fails is named at the end; the
results that it had before stay.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

from benchmarks import tables
from benchmarks.committed import RESULTS
from benchmarks.make_corpora import Maker
from benchmarks.processes import ROOT
from benchmarks.renew_steps import STEPS, Step


def _command(step: Step, options: argparse.Namespace) -> list[str]:
    peers = ["--peers", options.peers] if options.peers else []
    if step.name == "packing":
        text = Maker(options.data, None, None).text()
        runs = ["--runs", "5" if options.suite == "full" else "3"]
        command = [sys.executable, "-m", "benchmarks.packing", "--only", "jsonl", "--text", text, *runs]
    else:
        command = [sys.executable, "-m", "benchmarks", "run", "--suite", options.suite, "--only", step.name]
        command += ["--data", str(options.data)]
    return [*command, "--out", str(RESULTS / step.name), *peers]


def _chosen(options: argparse.Namespace) -> list[Step]:
    names = [step.name for step in STEPS]
    for name in (*options.only, *([options.start] if options.start else [])):
        if name not in names:
            raise SystemExit(f"no step {name!r}: {', '.join(names)}")
    begin = names.index(options.start) if options.start else 0
    return [step for step in STEPS[begin:] if not options.only or step.name in options.only]


def main(options: argparse.Namespace) -> int:
    """Run the steps.

    Args:
        options: Of the command line: suite, only, start, list, prepare, peers and data.

    Returns:
        The exit code: 1 if a step failed.
    """
    steps = _chosen(options)
    if options.list:
        for step in steps:
            print(f"{step.name:16} {step.minutes:4g} min  {Path('benchmarks/results') / step.name}")
        print(f"{'all':16} {sum(step.minutes for step in steps):4g} min, suite full, with all peers")
        return 0
    if not options.peers and not options.prepare:
        raise SystemExit("--peers PYTHON: results without other libraries would replace those with them")
    options.data = options.data.resolve()
    failed = []
    for step in steps:
        if options.prepare and step.name == "packing":
            Maker(options.data, None, None).text()
            continue
        more = ["--prepare"] if options.prepare else []
        started = time.monotonic()
        print(f"== {step.name}, about {step.minutes:g} min", flush=True)
        done = subprocess.run([*_command(step, options), *more], cwd=ROOT, check=False)
        print(f"   {(time.monotonic() - started) / 60:.1f} min", flush=True)
        if done.returncode:
            failed.append(step.name)
    if not options.prepare:
        tables.main(check=False)
    if failed:
        print(f"failed: {', '.join(failed)}; renew --only NAME repeats one", file=sys.stderr)
    return 1 if failed else 0
