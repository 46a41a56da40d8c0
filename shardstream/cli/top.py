"""shardstream top"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from shardstream.cli import options
from shardstream.cli.screen import warn


def top(
    every: Annotated[float, typer.Option(min=0.1, max=3600, help="Seconds between two looks.")] = 1.0,
    sort: Annotated[
        str,
        typer.Option(
            metavar="NAME", help="Order of ranks: rank, wait, samples, p99, store, retries or memory."
        ),
    ] = "rank",
    serve: Annotated[
        int | None,
        typer.Option(min=0, max=65535, metavar="PORT", help="Serve the numbers for Prometheus, too."),
    ] = None,
    host: Annotated[
        str, typer.Option(help="Where --serve listens; 0.0.0.0 lets the network in.")
    ] = "127.0.0.1",
    json: options.Json = False,
) -> None:
    """Show what all jobs on this machine do with their data: rates, waits, caches, packs, checkpoints.

    It needs no port and no change of the job, and works if the job hangs. Without a terminal it prints one
    table. --json prints one snapshot of all processes, with all counters.
    """
    from rich.console import Console

    from shardstream.errors import OptionError
    from shardstream.observe import top as view
    from shardstream.observe.rows import SORTS

    if sort not in SORTS:
        raise OptionError(f"--sort {sort!r} must be one of {', '.join(SORTS)}")
    if json:
        options.print_json(view.snapshot(every))
        return
    console = Console()
    live = sys.stdout.isatty() and sys.stdin.isatty() and not console.is_dumb_terminal
    if serve is None:
        view.watch(console, every, sort) if live else view.look(console, every, sort)
        return
    from shardstream.observe.serving import serve as open_endpoint

    with open_endpoint(serve, host=host) as endpoint:
        if live:
            view.watch(console, every, sort, endpoint.url)
        else:
            warn(f"metrics for Prometheus: {endpoint.url}")
            endpoint.wait()
