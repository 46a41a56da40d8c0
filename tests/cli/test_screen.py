"""Lines and tables for any width, and nothing that would steer the terminal."""

from __future__ import annotations

import json
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardstream.cli import options, screen
from shardstream.cli.values import bounded, described, numbers

texts = st.text(max_size=200)


@given(st.text("ab -/.7漢😀é", max_size=200), st.integers(20, 100))
def test_no_word_is_broken(text: str, width: int) -> None:
    lines = screen.wrapped(text, width)
    assert " ".join(lines).split() == text.split()
    assert all(screen.cells(line) <= width or len(line.split()) <= 2 for line in lines)


def test_a_unit_stays_with_its_number() -> None:
    lines = screen.wrapped("stored (ratio 11.56), 1.1 s, 965.3 KiB/s, 1,024 B", 30)
    assert lines == ["stored (ratio 11.56), 1.1 s,", "  965.3 KiB/s, 1,024 B"]


@given(texts)
def test_what_steers_a_terminal_is_escaped(text: str) -> None:
    for shown in (screen.clean(text), bounded(text, 3, 40), described("txt", text.encode(), 3, 40)):
        assert not {letter for letter in shown if ord(letter) < 32 and letter != "\n"}
        assert not {letter for letter in shown if 127 <= ord(letter) < 160}
        assert "\N{RIGHT-TO-LEFT OVERRIDE}" not in shown


def test_emoji_and_other_scripts_stay_as_they_are() -> None:
    family = "\U0001f469\N{ZERO WIDTH JOINER}\U0001f467"
    assert screen.clean(f"日本語 grüß {family}") == f"日本語 grüß {family}"


def test_columns_are_the_terminals_or_those_of_the_environment(monkeypatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    assert screen.room() is None  # the tests' output is a file
    monkeypatch.setenv("COLUMNS", "55")
    assert screen.room() == 55


ROWS = [("日本", "1"), ("key", "2,000")]


def test_wide_letters_are_aligned(capsys, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    screen.table(("name", "samples"), ROWS, "<>")
    lines = capsys.readouterr().out.splitlines()
    assert {screen.cells(line) for line in lines} == {13}
    assert lines[1].startswith("日本 ")


def test_a_narrow_terminal_loses_no_column(capsys, monkeypatch) -> None:
    head, row = [f"column{number}" for number in range(9)], [f"value{number}" for number in range(9)]
    for columns in ("40", "200"):
        monkeypatch.setenv("COLUMNS", columns)
        screen.table(head, [row])
        out = capsys.readouterr().out
        assert all(text in out for text in (*row, *head[1:]))
        assert max(map(len, out.splitlines())) <= int(columns)


@given(texts, st.integers(1, 5), st.integers(20, 60))
def test_bounded_text_has_no_more_lines(text: str, lines: int, width: int) -> None:
    shown = bounded(text, lines, width).split("\n")
    assert len(shown) <= lines
    assert all(screen.cells(line) <= width for line in shown)


def test_long_values_tell_their_size() -> None:
    assert bounded("word " * 100, 2, 30) == "word word word word word word\nword word ... (500 characters)"
    assert bounded("short\n", 2, 30) == "short\n"
    assert numbers(range(10**6), 40) == "0 1 2 3 4 5 6 7 8 9 10 11 12 ... 999999"
    assert numbers([1, 2, 3], 40) == "1 2 3"
    assert len(numbers([10**18] * 5, 90)) <= 90
    assert numbers(["a" * 9] * 3, 20) == "... aaaaaaaaa"
    assert numbers([1.5] * 3, 5) == "..."
    assert described("bin", bytes(range(256)) * 100, 1, 80) == (
        "25.0 KiB: 00 01 02 03 04 05 06 07 08 09 0a 0b 0c 0d 0e 0f ..."
    )
    assert described("bin", b"", 1, 80) == "0 B"


@pytest.mark.parametrize(
    ("shape", "told"), [((2, 3), "float32, 2 x 3: 0 0 0 0 0 0"), ((0,), "float32, 0: empty")]
)
def test_arrays_tell_their_dtype_and_shape(shape, told) -> None:
    import io

    import numpy as np

    file = io.BytesIO()
    np.save(file, np.zeros(shape, np.float32))
    assert described("npy", file.getvalue(), 1, 60) == told
    assert described("npy", b"damaged", 1, 60).startswith("damaged")
    file = io.BytesIO()
    np.save(file, np.array(["\x1b[31m" + "word " * 1000]))
    assert described("npy", file.getvalue(), 1, 60).startswith("<U5005, 1: \\x1b[31mword word")
    assert len(described("npy", file.getvalue(), 1, 60)) <= 60


def test_json_in_a_terminal_is_still_json(capsys, monkeypatch) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    options.print_json({"key": "日本 \x9b31m\x7f"})
    out = capsys.readouterr().out
    assert json.loads(out) == {"key": "日本 \x9b31m\x7f"}
    assert out.startswith('{"key":"日本 \\u009b31m')
