"""One file per question, each with QUESTIONS, a tuple; a new file is found by its being here."""

from __future__ import annotations

import importlib
import pkgutil

from benchmarks.question import Question


def all_questions() -> list[Question]:
    """The questions of all files, by name."""
    found: list[Question] = []
    for module in pkgutil.iter_modules(__path__):
        found += importlib.import_module(f"{__name__}.{module.name}").QUESTIONS
    return sorted(found, key=lambda question: question.name)
