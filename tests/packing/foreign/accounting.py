"""A pack of foreign files, and the account of it: what went in is what is in, or is named."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import shardstream as ss
from shardstream.read.reader import DatasetReader

__all__ = ["Account", "digest", "digests", "packed"]

Digests = dict[str, dict[str, str]]  # of each field of each sample, by key


class Account(NamedTuple):
    """What became of an input.

    Args:
        samples: The SHA-256 of each field of each sample, by key.
        rejects: Why each reject is none, by where it is.
        skips: The same for what is harmless.
    """

    samples: Digests
    rejects: dict[str, str]
    skips: dict[str, str]

    @property
    def named(self) -> set[str]:
        """All that is named as left out."""
        return {*self.rejects, *self.skips}


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def digests(samples: Mapping[str, Mapping[str, bytes]] | Iterable[tuple[str, dict[str, bytes]]]) -> Digests:
    """The SHA-256 of each field, by key. A key must not come twice."""
    found: Digests = {}
    for key, fields in samples.items() if isinstance(samples, Mapping) else samples:
        assert key not in found, key
        found[key] = {name: digest(data) for name, data in fields.items()}
    return found


def packed(source: Any, dest: Path, below: Path | None = None, **options: Any) -> Account:
    """Pack and read everything back.

    Args:
        source: What is packed.
        dest: Where to.
        below: The folder to which the places of rejects are relative. None: they stay as they are.
        options: Those of `pack`.
    """
    given = {"workers": 1, "on_error": "skip", "max_rejects": 1.0, **options}
    manifest = ss.pack(source, dest, **given)
    report = ss.verify(str(dest), deep=True)
    assert report.sound, report.problems
    samples = digests(DatasetReader.open(str(dest)).iter_samples())
    assert manifest.samples == len(samples)
    listed = dest / "rejects.jsonl"
    rows = [json.loads(line) for line in listed.read_text().splitlines()] if listed.exists() else []
    start = "" if below is None else f"{below}/"
    told: tuple[dict[str, str], dict[str, str]] = ({}, {})
    for row in rows:
        told[bool(row.get("skipped"))][row["where"].removeprefix(start)] = row["reason"]
    assert sum(map(len, told)) == len(rows), "a place is named twice"
    assert manifest.provenance["rejected"] == len(told[0])
    assert sum(manifest.provenance.get("skipped", {}).values()) == len(told[1])
    return Account(samples, *told)
