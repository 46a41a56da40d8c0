"""shardstream verify"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from shardstream.cli import options
from shardstream.errors import StorageError


def verify(
    url: Annotated[str, typer.Argument(help="Directory or URL of the dataset.")],
    deep: Annotated[bool, typer.Option("--deep", help="Check every frame and member too.")] = False,
    storage_option: options.StorageOptions = None,
    json: options.Json = False,
) -> int:
    """Check a dataset. Exit code 0: sound; 1: damaged, with all that is wrong named; 2: no access."""
    from shardstream.format.sizes import human_size
    from shardstream.read.verify import verify as run

    try:
        report = run(url, deep, options.storage_options(storage_option))
    except StorageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if json:
        options.print_json({"sound": report.sound, **vars(report)})
    else:
        for problem in report.problems:
            print(problem.message)
        verdict = "sound" if report.sound else f"{len(report.problems):,} problems"
        frames = f", {report.frames_checked:,} frames" if deep else ""
        print(
            f"{verdict}: {report.shards:,} shards, {report.samples:,} samples{frames}, "
            f"{human_size(report.bytes_checked)} read"
        )
    return 0 if report.sound else 1
