"""python -m benchmarks run, renew and tables: see benchmarks/README.md.

run --suite quick|full [--only NAME]... --out DIR   measures some questions
renew [--only NAME]... [--peers PYTHON]             measures all that is committed, in order
tables [--check]                                    writes the figures of the pages from what is committed
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import os
import platform
import shlex
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks import measure, renew, report, tables
from benchmarks.make_corpora import Maker
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
    """Measure, and write results.json and results.md; each question as it is done."""
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


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, dest="command")
    _run_options(commands.add_parser("run", help="measure some questions"))
    command = commands.add_parser(
        "renew", help="measure all that is committed, and write the figures of the pages"
    )
    command.add_argument("--suite", choices=["quick", "full"], default="full")
    command.add_argument("--only", action="append", default=[], metavar="NAME", help="a step; repeatable")
    command.add_argument("--start", metavar="NAME", help="begin with this step")
    command.add_argument(
        "--list", action="store_true", help="say the steps with their minutes, and measure nothing"
    )
    command.add_argument("--prepare", action="store_true", help="make corpora and datasets, measure nothing")
    _common(command)
    command = commands.add_parser("tables", help="write the figures of the pages")
    command.add_argument("--check", action="store_true", help="only say which files differ from the results")
    options = parser.parse_args(arguments)
    if options.command == "tables":
        sys.exit(tables.main(options.check))
    # A link in a virtual environment's bin is what tells Python which environment it is.
    options.peers = options.peers and os.path.abspath(options.peers)
    if options.command == "renew":
        sys.exit(renew.main(options))
    options.out = options.out.resolve()
    run(options)


def _run_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--suite", choices=[name for name in SIZES if name != "tiny"], default="quick")
    command.add_argument("--only", action="append", default=[], metavar="NAME", help="a question; repeatable")
    command.add_argument("--row", action="append", default=[], metavar="NAME", help="a contender; repeatable")
    command.add_argument("--out", type=Path, required=True)
    command.add_argument("--corpus-text", help="JSONL with a text in each line, instead of Linux's C files")
    command.add_argument("--corpus-images", help="a folder of photographs")
    command.add_argument("--prepare", action="store_true", help="make corpora and datasets, measure nothing")
    _common(command)


def _common(command: argparse.ArgumentParser) -> None:
    command.add_argument("--peers", metavar="PYTHON", help="of an environment with requirements-peers.txt")
    command.add_argument("--data", type=Path, default=Path("~/.cache/shardstream-bench").expanduser())


if __name__ == "__main__":
    main()
