"""The `shardstream` command: its parts, its exit codes, and how errors are shown."""

from __future__ import annotations

import os
import sys
from typing import Annotated, Any

import typer

import shardstream
from shardstream.cli import adopt, cache, export, inspect, pack, show, verify, warm
from shardstream.errors import OptionError, ShardstreamError

# click's UsageError, wherever typer keeps it: newer releases bring their own copy of click.
_UsageError: Any = typer.BadParameter.__base__

_INTERRUPTED = 130

app = typer.Typer(
    name="shardstream",
    help="Pack a corpus once into compressed, checksummed tar shards; stream it into training ever after.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.command()(pack.pack)
app.command()(adopt.index)
app.command()(inspect.info)
app.command()(inspect.ls)
app.command()(inspect.cat)
app.command()(verify.verify)
app.command()(export.export)
app.command()(warm.warm)
app.command()(cache.cache)
app.command()(show.show)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"shardstream {shardstream.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    # For the help alone: `run` takes it out of the arguments, wherever it stands.
    debug: Annotated[bool, typer.Option("--debug", help="Show a traceback when a command fails.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """What belongs to no command."""


def main() -> None:
    """Run the command line and exit: 0 done, 1 failed, 2 usage, 130 interrupted."""
    sys.exit(run(sys.argv[1:]))


def _say_interrupted(arguments: list[str]) -> None:
    hint = "; the same command with --resume continues" if arguments[:1] == ["pack"] else ""
    print(f"interrupted{hint}", file=sys.stderr)


def run(arguments: list[str]) -> int:
    """Run one command line; returns the exit code."""
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"] or ["--help"]
    try:
        code = app(arguments, standalone_mode=False)
        # Here and not at exit, where a closed pipe or a full disk could only be complained of.
        sys.stdout.flush()
        if code == _INTERRUPTED:  # some releases of typer turn the interrupt into a quiet exit
            _say_interrupted(arguments)
        return code if isinstance(code, int) else 0
    except (ShardstreamError, _UsageError) as error:
        if debug:
            raise
        message = error.format_message() if isinstance(error, _UsageError) else str(error)
        if isinstance(error, _UsageError) and (context := getattr(error, "ctx", None)) is not None:
            message += f" ('{context.command_path} --help' shows the options)"
        print(f"error: {message}", file=sys.stderr)
        return 2 if isinstance(error, (OptionError, _UsageError)) else 1
    except (KeyboardInterrupt, typer.Abort):
        _say_interrupted(arguments)
        return _INTERRUPTED
    except BrokenPipeError:
        # The reader of our output is gone (`| head`); Python must not complain of it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if debug:
            raise
        print(f"error: {type(error).__name__}: {error} (--debug shows where)", file=sys.stderr)
        return 1
