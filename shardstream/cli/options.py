"""Options that several commands share."""

from __future__ import annotations

import contextlib
import json
import sys
import warnings
from collections.abc import Iterable, Iterator
from typing import Annotated, Any

import typer

from shardstream.cli import screen
from shardstream.errors import OptionError

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object for machines.")]
StorageOptions = Annotated[
    list[str] | None,
    typer.Option("--storage-option", metavar="NAME=VALUE", help="An option of the store; repeatable."),
]
Workers = Annotated[int | None, typer.Option(min=1, help="Processes; as many as cores by default.")]


def storage_options(pairs: list[str] | None) -> dict[str, Any] | None:
    """The options in pairs NAME=VALUE. A value that is JSON is decoded.

    Raises:
        OptionError: A text is no such pair.
    """
    import msgspec

    options: dict[str, Any] = {}
    for pair in pairs or ():
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise OptionError("--storage-option needs NAME=VALUE, such as anon=true")
        try:
            options[name] = msgspec.json.decode(value)
        except msgspec.DecodeError:
            options[name] = value
    return options or None


def pairs(option: str, given: list[str] | None) -> dict[str, str] | None:
    """The pairs NAME=VALUE of an option; None if it was not given.

    Raises:
        OptionError: A text is no such pair, or a name comes twice.
    """
    found: dict[str, str] = {}
    for pair in given or ():
        name, _, value = pair.partition("=")
        if not name or not value or name in found:
            raise OptionError(f"{option} {pair!r} must be NAME=VALUE, each name once")
        found[name] = value
    return found or None


@contextlib.contextmanager
def standard_input(sources: list[str]) -> Iterator[list[str]]:
    """The sources. The content of standard input, which is `-`, is in a temporary file meanwhile.

    A plan needs to know how much there is, and workers read parts of it.
    """
    if "-" not in sources:
        yield sources
        return
    import shutil
    import tempfile

    with tempfile.TemporaryDirectory(prefix="shardstream-") as folder:
        path = f"{folder}/stdin"
        with open(path, "wb") as file:
            shutil.copyfileobj(sys.stdin.buffer, file, 1 << 20)
        yield [path if source == "-" else source for source in sources]


def split_paths(paths: list[str], command: str, wanted: str) -> tuple[list[str], str]:
    """The sources and the destination of a command, which is the last path.

    Args:
        paths: What the user named.
        command: The name of the command.
        wanted: How the help names it, for messages.

    Raises:
        OptionError: There is one path alone.
    """
    if len(paths) < 2:
        raise OptionError(
            f"DEST is missing: {command} {wanted}. {paths[0]} would be read, but into which dataset? "
            f"('shardstream {command} --help' shows the options)"
        )
    return paths[:-1], paths[-1]


@contextlib.contextmanager
def warnings_shown() -> Iterator[None]:
    """Show the warnings of the library as ours."""
    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = lambda message, *_, **__: warn(str(message))
        yield


def warn(text: str) -> None:
    """Print a warning on stderr."""
    screen.warn(f"warning: {text}")


def unchecked(choice: str | None) -> Any:
    """A choice as the user wrote it. The library checks it, and its error names the choices."""
    return choice


def print_json(value: object) -> None:
    """Print a value on stdout, as one line of JSON in UTF-8, whatever the terminal's encoding is."""
    print_rows([value])


def print_rows(values: Iterable[object]) -> None:
    """Print values as `print_json` does, as they come; a file or a pipe gets many at once."""
    import msgspec

    if sys.stdout.isatty():
        for value in values:
            print("".join(map(_steady, msgspec.json.encode(value).decode())))
        return
    sys.stdout.flush()
    for value in values:
        sys.stdout.buffer.write(msgspec.json.encode(value) + b"\n")
    sys.stdout.buffer.flush()


def _steady(letter: str) -> str:
    """A letter of JSON; what would steer the terminal, as JSON escapes it."""
    return letter if screen.clean(letter) == letter else json.dumps(letter)[1:-1]
