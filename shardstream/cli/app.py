"""The `shardstream` command: its parts, its exit codes, and how errors are shown."""

from __future__ import annotations

import os
import sys
from typing import Annotated, Any

import typer

from shardstream.cli import (
    adopt,
    advise,
    bench,
    cache,
    checkpoint,
    export,
    info,
    inspect,
    pack,
    probe,
    rebuild,
    show,
    top,
    verify,
    warm,
    weights,
)
from shardstream.cli.help import Command, Group
from shardstream.cli.screen import warn
from shardstream.errors import OptionError, ShardstreamError
from shardstream.version import __version__

# The UsageError of click, found through typer: newer releases of typer have a copy of click of their own.
_UsageError: Any = typer.BadParameter.__base__

_INTERRUPTED = 130

app = typer.Typer(
    name="shardstream",
    cls=Group,
    help="Pack a corpus once into compressed, checksummed tar shards; stream it into training ever after.",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
for _command in (
    pack.pack,
    adopt.index,
    info.info,
    inspect.ls,
    inspect.cat,
    verify.verify,
    export.export,
    rebuild.rebuild,
    warm.warm,
    cache.cache,
    checkpoint.checkpoint,
    show.show,
    weights.weights,
    probe.probe,
    bench.bench,
    advise.advise,
    top.top,
):
    app.command(cls=Command)(_command)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"shardstream {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    # Only for the help: `run` removes it from the arguments, wherever it stands.
    debug: Annotated[bool, typer.Option("--debug", help="Show a traceback when a command fails.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """The options that belong to no command."""


def main() -> None:
    """Run the command line and exit with its code: 0 done, 1 failed, 2 wrong usage, 130 interrupted."""
    _open_standard_streams()
    for stream in (sys.stdout, sys.stderr):
        # Names of files and keys have any characters, and the terminal may only have ASCII.
        if (reconfigure := getattr(stream, "reconfigure", None)) is not None:
            reconfigure(errors="backslashreplace")
    sys.exit(run(sys.argv[1:]))


def _open_standard_streams() -> None:
    """Open those that the caller has closed (`2>&-`): what is said there goes nowhere.

    Else the next file that is opened, perhaps a shard, would get their number, and what libraries print.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    if sys.stdout is None:
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115 - it stays open
    if sys.stderr is None:
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115


def _say_interrupted(arguments: list[str]) -> None:
    again = "the same command"
    if not any(argument.startswith(("--part", "--commit", "--resume")) for argument in arguments):
        again += " with --resume"
    hint = f"; {again} continues" if arguments[:1] == ["pack"] else ""
    warn(f"interrupted{hint}")


def run(arguments: list[str]) -> int:
    """Run one command line.

    Args:
        arguments: Without the name of the program.

    Returns:
        The exit code: 0 done, 1 failed, 2 wrong usage, 130 interrupted.
    """
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"] or ["--help"]
    try:
        code = app(arguments, prog_name="shardstream", standalone_mode=False)
        # Flush here: at exit, a closed pipe or a full disk could no longer become an exit code.
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
        warn(f"error: {message}")
        return 2 if isinstance(error, (OptionError, _UsageError)) else 1
    except (KeyboardInterrupt, typer.Abort):
        _say_interrupted(arguments)
        return _INTERRUPTED
    except BrokenPipeError:
        # The reader of the output has ended (`| head`). Python must not print an error about that at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if debug:
            raise
        warn(f"error: {type(error).__name__}: {error} (--debug shows where)")
        return 1
