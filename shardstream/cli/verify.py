"""shardstream verify"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from shardstream.cli import options
from shardstream.cli.screen import say, warn
from shardstream.errors import StorageError
from shardstream.progress import shown

if TYPE_CHECKING:
    from shardstream.maintain.verify import Problem


def verify(
    url: Annotated[str, typer.Argument(help="Directory or URL of the dataset.")],
    deep: Annotated[bool, typer.Option("--deep", help="Check every frame and member too.")] = False,
    storage_option: options.StorageOptions = None,
    json: options.Json = False,
) -> None:
    """Check a dataset. Exit code 0: sound; 1: damaged, with a list of all problems; 2: no access."""
    from shardstream.format.shown import counted
    from shardstream.format.sizes import human_size
    from shardstream.maintain.verify import verify as run

    try:
        with shown("verifying", quiet=json) as progress:
            report = run(url, deep, options.storage_options(storage_option), progress)
    except StorageError as error:
        warn(f"error: {error}")
        raise typer.Exit(2) from error
    if json:
        options.print_json({"sound": report.sound, **vars(report)})
    else:
        for problem in report.problems:
            say(_line(problem))
        verdict = "sound" if report.sound else f"damaged, {len(report.problems):,} found"
        frames = f", {counted(report.frames_checked, 'frame')}" if deep else ""
        say(
            f"{verdict}: {counted(report.shards, 'shard')}, {counted(report.samples, 'sample')}{frames}, "
            f"{human_size(report.bytes_checked)} read"
        )
    if not report.sound:
        raise typer.Exit(1)


def _line(problem: Problem) -> str:
    """A problem in one line. The frame and the sample are added if the message does not name them."""
    parts = [problem.message.replace("\n", " ")]
    if problem.frame is not None and f"frame {problem.frame}" not in problem.message:
        parts.append(f"frame {problem.frame}")
    if problem.sample is not None and repr(problem.sample) not in problem.message:
        parts.append(f"from sample {problem.sample!r} on")
    return ", ".join(parts)
