"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from shardstream.errors import OptionError

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object for machines.")]
StorageOptions = Annotated[
    list[str] | None,
    typer.Option("--storage-option", metavar="NAME=VALUE", help="An option of the store; repeatable."),
]
Workers = Annotated[int | None, typer.Option(min=1, help="Processes; as many as cores by default.")]


def storage_options(pairs: list[str] | None) -> dict[str, Any] | None:
    """The options given as NAME=VALUE; values that are JSON are taken as such."""
    import msgspec

    options: dict[str, Any] = {}
    for pair in pairs or ():
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise OptionError("--storage-option wants NAME=VALUE, such as anon=true")
        try:
            options[name] = msgspec.json.decode(value)
        except msgspec.DecodeError:
            options[name] = value
    return options or None


def print_json(value: object) -> None:
    """One line of JSON on stdout."""
    import msgspec

    print(msgspec.json.encode(value).decode())
