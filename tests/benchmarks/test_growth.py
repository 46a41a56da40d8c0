"""Rates by samples and processes: the datasets are whole, and what is said of the figures is right."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import shardstream as ss
from benchmarks import growth_rates
from benchmarks.growth_rates import KINDS, PROCESSES, SEQ, cells, markdown, prepare, summary


@pytest.mark.parametrize("kind", KINDS)
def test_copies_of_a_shard_are_a_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setattr(growth_rates, "PER_SHARD", 40)
    url = str(prepare(tmp_path, kind, 80))
    ds: Any = ss.TokenDataset(url, SEQ) if kind == "tokens" else ss.StreamingDataset(url)
    assert ds.total == 80
    assert len(ds.manifest.shards) == 2
    assert sum(1 for _ in ds) == 80
    assert str(prepare(tmp_path, kind, 80)) == url  # made once


def test_every_size_and_number_of_processes_is_a_cell() -> None:
    found = [(cell["samples"], cell["processes"]) for cell in cells(10**7) if cell["kind"] == "tokens"]
    assert found == [(10**n, 1) for n in range(3, 8)] + [(10**6, count) for count in PROCESSES[1:]]


def test_growth_is_an_exponent_over_sizes_and_a_ratio_over_processes() -> None:
    rows = []
    for cell in cells(10**7):
        # The start of an epoch is most of the smallest size, which is left out. 2 cores are the limit.
        rate = 5.0 if cell["samples"] == 10**3 else 100.0 * min(2, cell["processes"])
        row = {"samples/s": rate, "CPU us/sample": cell["samples"] / 1e4, "MB": 10.0}
        rows.append(cell | {"rounds": [row, row | {"samples/s": rate + 50}, row]})
    for each in summary(rows).values():
        assert each["exponent of samples/s"] == pytest.approx(0)
        assert each["exponent of CPU us/sample"] == pytest.approx(1)
        assert (each["2 processes / 1"], each["8 processes / 1"]) == (2, 2)
    result = {"what": "w", "machine": "m", "cells": rows, "summary": summary(rows)}
    assert "| tokens | 1,000,000 | 8 | 200 (200 to 250) | 100.00 | 10 |" in markdown(result)
