"""One reading of tars, for `pack` and for `index`: which members of an archive make a sample.

A *run* is consecutive members with one key. In most archives each sample is one run. In others, as `tar`
makes them without --sort=name, the members of a sample lie apart, in several runs. A `Survey`, of
tar_survey.py, says which runs belong together.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO, Generic, NamedTuple, TypeVar

from shardstream.errors import SourceError
from shardstream.format.names import SplitKey, check_field, check_key, split_name
from shardstream.format.tar import Member, scan

__all__ = ["Found", "Piece", "Step", "settle", "shown", "walk"]

Payload = TypeVar("Payload")

MACOS = "a file that macOS adds (._ or __MACOSX)"
HIDDEN = "a hidden file"
BARE = "a name without an extension"


@dataclass(frozen=True)
class Piece(Generic[Payload]):
    """A member of a sample.

    Args:
        field: The field that it is.
        payload: Its data, or where it is.
        name: The name of the member.
        problem: Why it cannot be read, or "".
    """

    field: str
    payload: Payload
    name: str
    problem: str


@dataclass(frozen=True)
class Found(Generic[Payload]):
    """A sample, or why it is none.

    Args:
        key: Its key.
        pieces: Its members.
        problem: Why it is no sample, or "".
    """

    key: str
    pieces: list[Piece[Payload]]
    problem: str


def passed_over(name: str) -> str:
    """Why a member is no part of any sample, by its name; "" if it is one. It is then named, and no error."""
    *folders, base = name.split("/")
    if base.startswith("._") or "__MACOSX" in folders:
        return MACOS
    if base.startswith("."):
        return HIDDEN
    return "" if "." in base else BARE


def shown(name: str) -> str:
    """A name that may not be text, for messages."""
    return name.encode("utf-8", "backslashreplace").decode()


class Step(NamedTuple):
    """A member of an archive, and where it belongs.

    Args:
        member: The member.
        run: The number of its run; -1 if it is no part of a sample.
        key: Its key.
        field: Its field.
        passed_over: Why it is no part of a sample, or "".
    """

    member: Member
    run: int
    key: str
    field: str
    passed_over: str


def walk(
    file: BinaryIO, size: int | None, where: str, split: SplitKey, begin: int | None = None
) -> Iterator[Step]:
    """The members of an archive with their runs, which are numbered from 0.

    Args:
        file, size, where, begin: See `scan`.
        split: See `split_name`.
    """
    run, key = -1, ""
    for member in scan(file, size, where, begin):
        if why := passed_over(member.name):
            yield Step(member, -1, "", "", why)
            continue
        new, field = split_name(member.name, split)
        if new != key or run < 0:
            run, key = run + 1, new
        yield Step(member, run, key, field.lower(), "")


def settle(runs: Sequence[tuple[str, list[Piece[Payload]]]]) -> Iterator[Found[Payload]]:
    """The samples that runs make.

    Half a sample is never one: if a member of it cannot be read, or it is not clear which members belong
    together, it is none. If a whole sample comes again, the first one counts.

    Args:
        runs: The key and the members of each, in order. Mostly they have one key.
    """
    keys: dict[str, list[list[Piece[Payload]]]] = {}
    for key, pieces in runs:
        groups = keys.setdefault(key, [])
        if groups and not {piece.field for piece in pieces} & {piece.field for piece in groups[-1]}:
            groups[-1] += pieces
        else:
            groups.append(list(pieces))
    for key, groups in keys.items():
        clear = len({frozenset(piece.field for piece in group) for group in groups}) == 1
        for number, group in enumerate(groups):
            problem = _problem(key, group)
            if not clear:
                twice = next(piece.name for piece in groups[1] if piece.field in {p.field for p in groups[0]})
                problem = (
                    f"member {shown(twice)!r} appears twice, and not all others do, so that it is not clear "
                    "which belong together"
                )
            elif number:
                problem = f"the key {shown(key)!r} occurs twice"
            yield Found(key, group, problem)


def _problem(key: str, pieces: Sequence[Piece[Payload]]) -> str:
    seen: set[str] = set()
    for piece in pieces:
        if piece.field in seen:
            return f"member {shown(piece.name)!r} appears twice"
        seen.add(piece.field)
    for piece in pieces:
        if piece.problem:
            return f"member {shown(piece.name)!r}: {piece.problem}"
    try:
        check_key(key)
        for piece in pieces:
            check_field(piece.field)
    except SourceError as error:
        return str(error)
    return ""
