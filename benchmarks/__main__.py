"""python -m benchmarks run --suite quick|full [--only NAME] --out DIR: see benchmarks/README.md."""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import os
import platform
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks import measure, report
from benchmarks.make_corpora import Maker
from benchmarks.processes import ROOT
from benchmarks.question import SIZES
from benchmarks.questions import all_questions


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def facts(options: argparse.Namespace) -> dict[str, Any]:
    """What a reader needs to repeat the run."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 30
    arguments = ["--suite", options.suite, *(f"--only {name}" for name in options.only)]
    arguments += [*(f"--row {shlex.quote(name)}" for name in options.row), "--out DIR"]
    arguments += ["--peers PYTHON"] if options.peers else []
    return {
        "suite": options.suite,
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": f"{_processor()}, {os.cpu_count()} cores, {memory} GiB, Linux {platform.release()}",
        "python": platform.python_version(),
        "command": f"python -m benchmarks run {' '.join(arguments)}",
        "load_at_start": os.getloadavg(),
    }


def run(options: argparse.Namespace) -> None:
    """Measure, and write results.json, results.md and a PNG per question; each question as it is done."""
    data, out = options.data.resolve(), options.out
    maker = Maker(data, options.corpus_text, options.corpus_images)
    setting = measure.Setting.of(data, maker, SIZES[options.suite], options.peers)
    questions = [q for q in all_questions() if not options.only or q.name in options.only]
    if options.row:
        questions = [
            dataclasses.replace(q, contenders=tuple(c for c in q.contenders if c.name in options.row))
            for q in questions
        ]
    unknown = set(options.only) - {q.name for q in questions}
    if unknown:
        sys.exit(f"no question {min(unknown)!r}: {', '.join(q.name for q in all_questions())}")
    if options.prepare:
        for question in questions:
            measure.prepare(question, setting)
        return
    out.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {"facts": facts(options), "versions": {}, "questions": {}}
    for question in questions:
        started = time.monotonic()
        answer = measure.run(question, setting)
        results["questions"][question.name] = answer | {"took_seconds": time.monotonic() - started}
        for row in answer["contenders"].values():
            results["versions"] |= row.pop("versions", {})
            row.pop("pid", None)
        (out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
        (out / "results.md").write_text(report.document(questions, results))
        print(report.section(question, answer), flush=True)
    _plots(out, options.peers)


def _plots(out: Path, peers: str | None) -> None:
    """By the peers' Python, which has matplotlib; without it there are no plots, and we say so."""
    command = [peers or sys.executable, "-m", "benchmarks.plots", str(out / "results.json"), str(out)]
    done = subprocess.run(
        command, check=False, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True
    )
    if done.returncode:
        print(f"no plots: {done.stderr.decode().strip().splitlines()[-1]}", file=sys.stderr)


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    command = parser.add_subparsers(required=True).add_parser("run")
    command.add_argument("--suite", choices=[name for name in SIZES if name != "tiny"], default="quick")
    command.add_argument("--only", action="append", default=[], metavar="NAME", help="a question; repeatable")
    command.add_argument("--row", action="append", default=[], metavar="NAME", help="a contender; repeatable")
    command.add_argument("--out", type=Path, required=True)
    command.add_argument("--peers", metavar="PYTHON", help="of an environment with requirements-peers.txt")
    command.add_argument("--corpus-text", help="JSONL with a text in each line, instead of Linux's C files")
    command.add_argument("--corpus-images", help="a folder of photographs")
    command.add_argument("--prepare", action="store_true", help="make corpora and datasets, measure nothing")
    command.add_argument("--data", type=Path, default=Path("~/.cache/shardstream-bench").expanduser())
    options = parser.parse_args(arguments)
    # A link in a virtual environment's bin is what tells Python which environment it is.
    options.peers = options.peers and os.path.abspath(options.peers)
    options.out = options.out.resolve()
    run(options)


if __name__ == "__main__":
    main()
