"""The reference of the site: every public name is there, with all that can be given and comes back."""

from __future__ import annotations

import importlib
import logging
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import griffe
import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted((ROOT / "docs" / "reference").glob("*.md"))
# Modules that are public as a whole. Those that need another package are read here, not imported.
MODULES = (
    "shardstream", "shardstream.observe", "shardstream.testing", "shardstream.packing.engines",
    "shardstream.logs", "shardstream.checkpoint.dcp", "shardstream.decode.images",
    "shardstream.integrations.lightning", "shardstream.integrations.position",
    "shardstream.integrations.tensorflow", "shardstream.integrations.transformers",
)  # fmt: skip
# Constants, which have no docstring of their own.
PLAIN = {"DAMAGED", "IMAGE"}
# Users get them from a function, and do not make them.
MADE = {"shardstream.observe.Endpoint", "shardstream.observe.Trace"}
# Their methods are those of torch's interface, of `Engine` and of `Sink`, which describe them. Those of
# the modes of images are for the decoder, and not on the page.
IMPLEMENTED = re.compile(
    r"shardstream\.(checkpoint\.dcp\.|packing\.engines\.(Local|Ray|Submit)|logs\.[A-Z]\w+\.write|decode\.images\.)"
)
SHOWN = re.compile(r"^::: ([\w.]+)\n(?:    options: \{[^\n]*?members: \[([^\]]*)\])?", re.MULTILINE)


@cache
def package() -> Any:
    options: dict[str, Any] = {"docstring_parser": "google", "resolve_aliases": True}
    return griffe.load("shardstream", search_paths=[str(ROOT)], **options)


def found(path: str) -> Any:
    """The object of a dotted name, as griffe reads it."""
    place = package() if path == "shardstream" else package()[path.removeprefix("shardstream.")]
    return place.final_target if place.is_alias else place


def exported(module: str) -> list[str]:
    return [getattr(name, "name", name) for name in found(module).exports]


def listed() -> dict[str, set[str] | None]:
    """The names after `:::` on the pages, and the members that are chosen of each; None for all."""
    names: dict[str, set[str] | None] = {}
    for page in PAGES:
        for name, members in SHOWN.findall(page.read_text("utf-8") + "\n"):
            names[name] = set(members.split(", ")) if members else None
    return names


def public() -> Iterator[tuple[str, Any]]:
    """Each public name with what it is."""
    for module in MODULES:
        for name in exported(module):
            if name not in PLAIN:
                yield f"{module}.{name}", found(f"{module}.{name}")


def on_pages() -> set[str]:
    """Where what the pages show is defined."""
    shown = set()
    for name, members in listed().items():
        place = found(name)
        shown.add(place.path)
        if place.is_module:
            shown |= {
                found(f"{place.path}.{key}").path
                for key, member in place.members.items()
                if (key in members if members is not None else not member.is_alias)
            }
    return shown


def test_every_public_name_is_on_a_page() -> None:
    shown = on_pages()
    assert len(shown) > 60
    assert [name for name, place in public() if place.path not in shown] == []


def test_pages_name_what_exists() -> None:
    for name, members in listed().items():
        assert found(name)
        assert members is None or members <= set(found(name).members), name


def sections(place: Any) -> dict[str, Any]:
    parsed = place.docstring.parsed if place.docstring else []
    return {section.kind.value: section.value for section in parsed}


def given(function: Any) -> list[str]:
    """The parameters that a caller can give. What catches unknown keywords to name them is none."""
    return [
        parameter.name
        for parameter in function.parameters
        if parameter.name not in ("self", "cls") and not parameter.name.startswith("_")
        if str(parameter.annotation) != "NoReturn"
    ]


def gaps(place: Any, where: str) -> Iterator[str]:
    """What the docstring of a function or class lacks, or names and is not there."""
    if place.is_class and "__init__" in place.members:
        wanted = given(place.members["__init__"])
    elif place.is_class:
        wanted = given(place) if "dataclass" in place.labels else []
    else:
        wanted = given(place)
    told = sections(place)
    named = [item.name.lstrip("*") for item in told.get("parameters", [])]
    if wanted != named and where not in MADE:
        yield f"{where}: {wanted} can be given, {named} are described"
    # If nothing can be given, the first line says what comes back.
    if wanted and place.is_function:
        returns = str(place.returns) if place.returns is not None else "None"
        if returns not in ("None", "NoReturn", "Self") and not (told.keys() & {"returns", "yields"}):
            yield f"{where} returns {returns}, and no section says what"


def test_what_is_given_and_what_comes_back_is_described() -> None:
    found_gaps = []
    for name, place in public():
        if not place.docstring:
            found_gaps.append(f"{name} has no docstring")
        if place.is_class or place.is_function:
            found_gaps += list(gaps(place, name))
        if place.is_class and not name.startswith("shardstream.testing"):
            for key, member in place.members.items():
                # A method without a docstring has that of the class above, and the site does not show it.
                shown = member.is_function and member.docstring and not key.startswith("_")
                if shown and not IMPLEMENTED.match(f"{name}.{key}"):
                    found_gaps += list(gaps(member, f"{name}.{key}"))
    assert found_gaps == []


def test_a_gap_is_found() -> None:
    code = (
        '"""M."""\ndef f(a: int, b: int) -> int:\n    """F.\n\n    Args:\n        a, b: Numbers.\n    """\n'
    )
    with griffe.temporary_visited_module(code) as module:
        module["f"].docstring.parser = "google"
        assert len(list(gaps(module["f"], "f"))) == 2  # b is not described by itself, nor what comes back


def test_docstrings_are_understood(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "griffe"):
        for _, place in public():
            for one in (place, *place.members.values()):
                if not one.is_alias and one.docstring:
                    one.docstring.parse("google")
    assert [record.getMessage() for record in caplog.records] == []


def texts(place: Any) -> Iterator[str]:
    """What the site shows of a docstring as text, without the code in it."""
    for section in place.docstring.parsed if place.docstring else []:
        values = section.value if isinstance(section.value, list) else [section.value]
        for value in values:
            text = value if isinstance(value, str) else getattr(value, "description", "")
            yield re.sub(r"``?[^`]*``?|^    .*$", "", text, flags=re.MULTILINE)


def test_names_with_underscores_are_code() -> None:
    # Markdown makes bold letters of __key__.
    found_bold = [
        f"{name}: {word}"
        for name, place in public()
        for one in (place, *place.members.values())
        if not (one.is_alias or one.is_module)
        for text in texts(one)
        for word in re.findall(r"__\w+__", text)
    ]
    assert found_bold == []


def test_the_modules_say_what_they_have() -> None:
    for module in MODULES[:3]:
        assert set(importlib.import_module(module).__all__) == set(exported(module))
